"""What this distribution adds: the hub type `ollama`, commands that manage models, and such calls for a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.hookspecs import CommandType, HubType, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gleitzeit_gateway.endpoints import Endpoint


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
    """What manages models."""
    there = "gleitzeit_ollama.model_commands"
    return [
        CommandType(
            name="models pull",
            target="gleitzeit_ollama.commands:pull",
            summary="download a model to Ollama servers",
        ),
        CommandType(name="models copy", target=f"{there}:copy", summary="give a model a second name"),
        CommandType(name="models rm", target=f"{there}:remove", summary="delete models"),
        CommandType(name="models show", target=f"{there}:show", summary="what a server says about a model"),
        CommandType(name="models load", target=f"{there}:load", summary="load a model into memory"),
        CommandType(name="models unload", target=f"{there}:unload", summary="take a model out of memory"),
    ]


@hookimpl(optionalhook=True)
def gleitzeit_gateway_endpoints() -> Sequence[Endpoint]:
    """Pull, push, create, copy, delete and blobs; only a gateway asks for them."""
    from gleitzeit_ollama.endpoints import endpoints  # noqa: PLC0415 - only a gateway needs it

    return endpoints()
