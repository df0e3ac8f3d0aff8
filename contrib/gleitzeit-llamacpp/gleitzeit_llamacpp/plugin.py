"""What this distribution adds: the hub type `llamacpp`, the embedded LLM."""

from __future__ import annotations

from gleitzeit_core.hookspecs import HubType, hookimpl


@hookimpl
def gleitzeit_register_hubs() -> list[HubType]:
    """llama.cpp in child processes; used unasked where no other LLM server is found."""
    return [
        HubType(
            name="llamacpp",
            target="gleitzeit_llamacpp.hub:LlamaCppHub",
            options="gleitzeit_llamacpp.options:LlamaCppOptions",
            summary="llama.cpp in child processes, with a small packaged model or any GGUF file",
            auto_rank=90,
            fallback=True,
        )
    ]
