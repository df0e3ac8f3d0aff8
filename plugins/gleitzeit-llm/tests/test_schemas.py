"""The schemas of the methods' parameters: complete, and what the official client sends is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ollama
import pytest

from gleitzeit_llm.provider import LLMProvider
from gleitzeit_llm.schemas import CHAT_PARAMS, EMBED_PARAMS, GENERATE_PARAMS

if TYPE_CHECKING:
    from gleitzeit_core.requests import Method

# ``stream`` is told beside the parameters; the others are for models that make images, or go out of use.
ELSEWHERE = {"stream", "context", "width", "height", "steps"}
OF_CLIENT = [
    (CHAT_PARAMS, ollama._types.ChatRequest),
    (GENERATE_PARAMS, ollama._types.GenerateRequest),
    (EMBED_PARAMS, ollama._types.EmbedRequest),
]


@pytest.mark.parametrize("method", LLMProvider.methods, ids=lambda method: method.name)
def test_each_method_has_a_schema(method: Method) -> None:
    """A method says what it takes, and needs a model if it needs anything."""
    schema = method.schema
    assert schema is not None
    assert schema["type"] == "object"
    assert schema.get("required", []) == (["model"] if schema["properties"] else [])
    assert all("type" in one for one in schema["properties"].values())


@pytest.mark.parametrize(("schema", "request_type"), OF_CLIENT, ids=["chat", "generate", "embed"])
def test_what_the_client_sends(schema: dict[str, object], request_type: type[ollama._types.ChatRequest]) -> None:
    """Each field of the official client's request is there, and no other."""
    properties = schema["properties"]
    assert isinstance(properties, dict)
    assert properties.keys() == request_type.model_fields.keys() - ELSEWHERE


def test_messages() -> None:
    """So is each field of its messages."""
    messages = CHAT_PARAMS["properties"]["messages"]
    assert messages["items"]["properties"].keys() == ollama.Message.model_fields.keys()
