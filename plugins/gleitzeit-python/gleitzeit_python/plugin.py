"""What this distribution adds to Gleitzeit: the protocol `python` and the command of the same name."""

from __future__ import annotations

from gleitzeit_core.hookspecs import CommandType, ProviderType, hookimpl


@hookimpl
def gleitzeit_register_providers() -> list[ProviderType]:
    """The protocol."""
    return [
        ProviderType(
            name="python",
            target="gleitzeit_python.provider:PythonProvider",
            options="gleitzeit_python.options:PythonOptions",
            summary="python/execute, python/validate, python/info: code, run in containers and processes",
        )
    ]


@hookimpl
def gleitzeit_register_commands() -> list[CommandType]:
    """The command."""
    return [
        CommandType(
            name="python", target="gleitzeit_python.commands:python", summary="Run a Python script in the pool."
        )
    ]
