"""What this distribution adds: the hub type `ollama` and the command ``models pull``."""

from __future__ import annotations

from gleitzeit_core.hookspecs import CommandType, HubType, hookimpl


@hookimpl
def gleitzeit_register_hubs() -> list[HubType]:
    """The hub of Ollama servers; the first to be tried when no hub is configured."""
    return [
        HubType(
            name="ollama",
            target="gleitzeit_ollama.hub:OllamaHub",
            options="gleitzeit_ollama.options:OllamaOptions",
            summary="Ollama servers: configured, found on this machine, or started here",
            auto_rank=10,
        )
    ]


@hookimpl
def gleitzeit_register_commands() -> list[CommandType]:
    """Downloads."""
    return [
        CommandType(
            name="models pull",
            target="gleitzeit_ollama.commands:pull",
            summary="download a model to Ollama servers",
        )
    ]
