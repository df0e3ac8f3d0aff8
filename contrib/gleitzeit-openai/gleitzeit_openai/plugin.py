"""What this distribution adds: the hub type `openai`."""

from __future__ import annotations

from gleitzeit_core.hookspecs import HubType, hookimpl


@hookimpl
def gleitzeit_register_hubs() -> list[HubType]:
    """The hub type `openai`. It needs to be told where its servers are, so it is never used unasked."""
    return [
        HubType(
            name="openai",
            target="gleitzeit_openai.hub:OpenAIHub",
            options="gleitzeit_openai.options:OpenAIOptions",
            summary="servers with OpenAI's API: vLLM, SGLang, llama.cpp, LM Studio, a hosted service",
        )
    ]
