"""The dialects of the protocol `llm`: how its callers and its instances speak."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gleitzeit_llm.dialects.anthropic_client import AnthropicClient
from gleitzeit_llm.dialects.base import ClientDialect, Dialect
from gleitzeit_llm.dialects.errors import error_text
from gleitzeit_llm.dialects.ollama import OllamaClient, OllamaInstance
from gleitzeit_llm.dialects.openai_client import OpenAIClient
from gleitzeit_llm.dialects.openai_instance import OpenAIInstance
from gleitzeit_llm.dialects.responses_client import ResponsesClient

if TYPE_CHECKING:
    from collections.abc import Mapping

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "ollama": Dialect("ollama", OllamaClient(), OllamaInstance()),
        "openai": Dialect("openai", OpenAIClient(), OpenAIInstance()),
    }
)
"""By name: of a client API, and of an api that instances offer."""

RESPONSES: Final = "openai-responses"
"""A client API; and what an instance offers that is known to have it, so that its bytes pass."""

CLIENTS: Mapping[str, ClientDialect] = MappingProxyType(
    {
        **{name: dialect.client for name, dialect in DIALECTS.items()},
        RESPONSES: ResponsesClient(),
        "anthropic": AnthropicClient(),
    }
)
"""By name: all client APIs, those among them that no instance is spoken to in."""

__all__ = ["CLIENTS", "DIALECTS", "RESPONSES", "Dialect", "error_text"]
