"""The tables know every field that the official clients can send, so that none is refused as unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_type_hints

import pytest
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase
from ollama._types import ChatRequest, EmbedRequest, GenerateRequest, Message, Options
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params

from gleitzeit_llm.dialects import fields_from_anthropic, fields_from_openai, fields_to_openai, messages_to_openai

if TYPE_CHECKING:
    from gleitzeit_llm.dialects.fields import Table

pytestmark = pytest.mark.fidelity


@pytest.mark.parametrize(
    ("rules", "params"),
    [
        (fields_from_openai.CHAT, chat_create_params.CompletionCreateParamsBase),
        (fields_from_openai.COMPLETIONS, completion_create_params.CompletionCreateParamsBase),
        (fields_from_openai.EMBEDDINGS, embedding_create_params.EmbeddingCreateParams),
        (fields_from_anthropic.MESSAGES, MessageCreateParamsBase),
        (fields_from_anthropic.COUNT_TOKENS, MessageCountTokensParams),
    ],
    ids=["chat", "completions", "embeddings", "messages", "count_tokens"],
)
def test_typed_requests(rules: Table, params: type) -> None:
    """Those of OpenAI's and Anthropic's clients; headers, which stand among them, are no fields.

    There are newer clients each week, and what a new one may send besides is refused by its name until it has a row.
    """
    headers = {"betas", "anthropic_user_profile_id"}
    assert len(get_type_hints(params).keys() - headers - rules.rows.keys()) <= 3


@pytest.mark.parametrize(
    ("rules", "model"),
    [
        (fields_to_openai.CHAT, ChatRequest),
        (fields_to_openai.GENERATE, GenerateRequest),
        (fields_to_openai.GENERATE_RAW, GenerateRequest),
        (fields_to_openai.EMBED, EmbedRequest),
        (fields_to_openai.OPTIONS, Options),
        (messages_to_openai.MESSAGE, Message),
    ],
    ids=["chat", "generate", "generate raw", "embed", "options", "message"],
)
def test_models_of_requests(rules: Table, model: type) -> None:
    """Those of Ollama's client."""
    assert model.model_fields.keys() <= rules.rows.keys()  # type: ignore[attr-defined]
