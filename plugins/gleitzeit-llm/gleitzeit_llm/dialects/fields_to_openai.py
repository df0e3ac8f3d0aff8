"""Canonical parameters on their way to an OpenAI server: what becomes of each field.

The known fields are those of Ollama 0.24 and of its official Python client, which still sends some that the server
has dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import values
from gleitzeit_llm.dialects.fields import Table, ignored, mapped, refused, table, together, translate

if TYPE_CHECKING:
    from gleitzeit_llm.protocol import Json

TARGET = "an OpenAI server"

_NO_LOADING = "an OpenAI server keeps its model loaded; the answer is the same"
_NO_SHIFTING = "an OpenAI server reports an input that is too long instead of shortening it"
_SPEED = "how a model is loaded changes its speed, not its answer"
_DROPPED = "Ollama has dropped this option and ignores it as well"
_SAMPLER = "its API has no such sampler setting"
_TEMPLATED = "it puts a prompt into the model's own template"
_RAW = "raw mode does not support template, system, or context"
_FILL_IN = "not every server has a suffix, and some leave it out without a word"
_PICTURES = "its chat does not make images"
_DEBUG = "it cannot show a prompt without running it"


def options(value: object, param: str) -> Json:
    """`options`, as the fields an OpenAI request has at its top."""
    found: Json = {}
    translate(OPTIONS, values.mapping(value, param), found, f"{param}.")
    return found


def limit(value: object, param: str) -> int | None:
    """`num_predict`: zero and less mean no limit, which OpenAI says by leaving the field out."""
    tokens = values.integer(value, param)
    return tokens if tokens > 0 else None


def response_format(value: object, param: str) -> Json | None:
    """`format`: empty, ``json`` or a JSON schema."""
    if value == "":
        return None
    if value == "json":
        return {"type": "json_object"}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param!r} must be 'json' or a JSON schema", param=param)
    # Without "strict": OpenAI itself accepts only a part of JSON schema there; other servers enforce any schema.
    return {"type": "json_schema", "json_schema": {"name": "response", "schema": value}}


def effort(value: object, param: str) -> str:
    """`think` as `reasoning_effort`. "Yes" has no word of its own there; ``medium`` is OpenAI's default."""
    if isinstance(value, bool):
        return "medium" if value else "none"
    if value not in ("low", "medium", "high"):
        raise InvalidRequest(f"{param!r} must be true, false, 'low', 'medium' or 'high'", param=param)
    return str(value)


def tool_choice(value: object, param: str) -> str:
    """`tool_choice`, which Ollama does not have; it is called the same here and there."""
    if value not in ("auto", "none", "required"):
        raise InvalidRequest(f"{param!r} must be 'auto', 'none' or 'required'", param=param)
    return str(value)


OPTIONS = table(
    TARGET,
    mapped("num_predict", "max_tokens", convert=limit),
    mapped("temperature", "temperature", convert=values.number),
    mapped("top_p", "top_p", convert=values.number),
    mapped("seed", "seed", convert=values.integer),
    mapped("stop", "stop", convert=values.texts),
    mapped("frequency_penalty", "frequency_penalty", convert=values.number),
    mapped("presence_penalty", "presence_penalty", convert=values.number),
    # Extensions of servers that are not OpenAI's. llama.cpp knows the first name of the last one, vLLM the second,
    # and each skips the other; OpenAI itself refuses all of them by name.
    mapped("top_k", "top_k", convert=values.integer),
    mapped("min_p", "min_p", convert=values.number),
    mapped("repeat_penalty", "repeat_penalty", "repetition_penalty", convert=values.number),
    refused("typical_p", _SAMPLER, (1,)),
    refused("repeat_last_n", _SAMPLER, (64,)),
    ignored("num_ctx", "the context's size is fixed when the server starts; it reports an input that does not fit"),
    ignored("num_keep", "it matters only where the context is shifted, and an OpenAI server does not"),
    *(ignored(name, _SPEED) for name in ("num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")),
    *(
        ignored(name, _DROPPED)
        for name in (
            *("numa", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "embedding_only"),
            *("tfs_z", "mirostat", "mirostat_tau", "mirostat_eta", "penalize_newline"),
        )
    ),
)

_EVERYWHERE = (
    mapped("model", "model", convert=values.text),
    ignored("keep_alive", _NO_LOADING),
    ignored("truncate", _NO_SHIFTING),
    ignored("shift", _NO_SHIFTING),
)
_TALK = (
    *_EVERYWHERE,
    together("stream", "stream"),
    together("options", "options.*"),
    mapped("format", "response_format", convert=response_format),
    mapped("think", "reasoning_effort", convert=effort),
    together("logprobs", "logprobs"),
    together("top_logprobs", "top_logprobs"),
    refused("_debug_render_only", _DEBUG, (False,)),
)
_IMAGE_MAKING = tuple(refused(name, _PICTURES, (0,)) for name in ("width", "height", "steps"))

CHAT = table(
    TARGET,
    *_TALK,
    together("messages", "messages"),
    mapped("tools", "tools", convert=values.tools),
    mapped("tool_choice", "tool_choice", convert=tool_choice),
)
GENERATE = table(
    TARGET,
    *_TALK,
    *_IMAGE_MAKING,
    together("prompt", "messages"),
    together("system", "messages"),
    together("images", "messages"),
    together("raw", "prompt"),
    refused("template", _TEMPLATED, ("",)),
    refused("context", "it takes no tokens; send the conversation to llm/chat"),
    refused("suffix", _FILL_IN, ("",)),
)
GENERATE_RAW = table(
    TARGET,
    *_EVERYWHERE,
    together("stream", "stream"),
    together("options", "options.*"),
    *_IMAGE_MAKING,
    mapped("prompt", "prompt", convert=values.text),
    together("logprobs", "logprobs"),
    together("top_logprobs", "logprobs"),
    together("raw", "prompt"),
    refused("system", _RAW, ("",)),
    refused("template", _RAW, ("",)),
    refused("context", _RAW),
    refused("suffix", _FILL_IN, ("",)),
    refused("images", "its completions take text only"),
    refused("format", "its completions have no response_format that every server keeps to", ("",)),
    refused("think", "there is no template that could ask for thinking in raw mode", (False,)),
    refused("_debug_render_only", _DEBUG, (False,)),
)
EMBED = table(
    TARGET,
    *_EVERYWHERE,
    ignored("stream", "an embedding has no parts"),
    ignored("options", "sampling and loading do not change an embedding"),
    mapped("input", "input", convert=values.one_or_more_texts),
    mapped("dimensions", "dimensions", convert=values.integer),
)

TABLES: dict[str, Table] = {
    "llm/chat": CHAT,
    "llm/generate": GENERATE,
    "llm/generate raw": GENERATE_RAW,
    "llm/embed": EMBED,
    "options": OPTIONS,
}
