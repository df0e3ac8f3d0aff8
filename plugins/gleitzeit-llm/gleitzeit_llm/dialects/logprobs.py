"""Log probabilities of tokens: a list of objects in Ollama, the same list inside an object in OpenAI's chat."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gleitzeit_llm.protocol import Json

_KEYS = ("token", "logprob", "bytes")


def from_openai(found: object) -> list[Json]:
    """The canonical list, from what an OpenAI server puts into a choice; empty when there is nothing usable.

    llama.cpp and Ollama answer completions in the form of chat as well; the old form of completions, with one list
    per column, is what vLLM and OpenAI itself answer.
    """
    if not isinstance(found, dict):
        return []
    if isinstance(found.get("content"), list):
        return [_token(item) for item in found["content"] if isinstance(item, dict)]
    return _from_columns(found)


def to_chat(logprobs: Sequence[Json]) -> Json:
    """As a chat's choice has it."""
    return {"content": list(logprobs)}


def to_completion(logprobs: Sequence[Json], offset: int) -> Json:
    """As a completion's choice has it: OpenAI's columns, and beside them the list that Ollama's server gives.

    Args:
        logprobs: The canonical list.
        offset: Characters of text before the first of these tokens.
    """
    tokens = [str(item.get("token", "")) for item in logprobs]
    return {
        "tokens": tokens,
        "token_logprobs": [item.get("logprob") for item in logprobs],
        "top_logprobs": [
            {top.get("token", ""): top.get("logprob") for top in item.get("top_logprobs") or []} for item in logprobs
        ],
        "text_offset": list(accumulate((len(token) for token in tokens[:-1]), initial=offset)),
        "content": list(logprobs),
    }


def _token(item: Json) -> Json:
    """The keys Ollama has; llama.cpp adds the token's id."""
    token: Json = {key: item[key] for key in _KEYS if key in item}
    tops = item.get("top_logprobs")
    if isinstance(tops, list) and tops:
        token["top_logprobs"] = [_token(top) for top in tops if isinstance(top, dict)]
    return token


def _from_columns(found: Json) -> list[Json]:
    tokens, values = found.get("tokens"), found.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list):
        return []
    tops = found.get("top_logprobs")
    rows: list[Any] = tops if isinstance(tops, list) else []
    rows = rows + [None] * (len(tokens) - len(rows))
    return [_row(token, value, top) for token, value, top in zip(tokens, values, rows, strict=False)]


def _row(token: object, value: object, tops: object) -> Json:
    row = _pair(str(token), value)
    if isinstance(tops, dict) and tops:
        row["top_logprobs"] = [_pair(other, logprob) for other, logprob in tops.items()]
    return row


def _pair(token: str, logprob: object) -> Json:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
