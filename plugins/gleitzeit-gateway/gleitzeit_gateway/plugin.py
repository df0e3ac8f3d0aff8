"""What this distribution adds: the command ``serve``, the section ``gateway`` and a hook for endpoints."""

from __future__ import annotations

from gleitzeit_core.hookspecs import CommandType, SectionType, hookimpl


@hookimpl
def gleitzeit_register_commands() -> list[CommandType]:
    """The command ``serve``."""
    return [
        CommandType(
            name="serve",
            target="gleitzeit_gateway.serve:serve",
            summary="Run the gateway: one address for everything in the pool.",
        )
    ]


@hookimpl
def gleitzeit_register_sections() -> list[SectionType]:
    """The section ``gateway``."""
    return [
        SectionType(
            name="gateway",
            options="gleitzeit_gateway.options:GatewayOptions",
            summary="where the gateway listens, and who may call it",
            check="gleitzeit_gateway.sharing:not_for_several",
        )
    ]


@hookimpl
def gleitzeit_register_hookspecs() -> list[str]:
    """A hook for endpoints."""
    return ["gleitzeit_gateway.hookspecs:GatewayHookSpecs"]
