"""What this distribution adds: the protocol `llm`."""

from __future__ import annotations

from gleitzeit_core.hookspecs import ProviderType, hookimpl


@hookimpl
def gleitzeit_register_providers() -> list[ProviderType]:
    """The protocol `llm`."""
    return [
        ProviderType(
            name="llm",
            target="gleitzeit_llm.provider:LLMProvider",
            options="gleitzeit_llm.options:LLMOptions",
            summary="chat, generate, embed and models on anything that speaks Ollama's or OpenAI's API",
        )
    ]
