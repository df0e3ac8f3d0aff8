"""JSON schemas of the methods' parameters, for listings. Nothing is checked by them: an instance knows best.

They name what the official clients send; what else an instance understands passes through whole.
"""

from __future__ import annotations

from typing import Any, Final

_MODEL: Final = {"type": "string", "minLength": 1, "description": "Such as llama3.2; :latest goes without saying."}
_KEEP_ALIVE: Final = {
    "type": ["string", "number"],
    "description": "How long the model stays in memory: 5m, or seconds; 0 unloads it, -1 keeps it.",
}
_OPTIONS: Final = {
    "type": "object",
    "description": "Of the model: temperature, num_predict, num_ctx, seed, stop and so on.",
}
_FORMAT: Final = {
    "type": ["string", "object"],
    "description": '"json", or a JSON schema that the answer must follow.',
}
_THINK: Final = {"type": ["boolean", "string"], "description": "Whether to think first; low, medium, high or max."}
_IMAGES: Final = {"type": "array", "items": {"type": "string"}, "description": "Base64, for models that see."}
_OUTPUT: Final = {
    "options": _OPTIONS,
    "format": _FORMAT,
    "think": _THINK,
    "logprobs": {"type": "boolean", "description": "Whether each token comes with its probability."},
    "top_logprobs": {"type": "integer", "minimum": 0, "description": "And with so many that were likely instead."},
    "keep_alive": _KEEP_ALIVE,
}
_MESSAGE: Final = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string", "description": "system, user, assistant or tool."},
        "content": {"type": "string"},
        "thinking": {"type": "string"},
        "images": _IMAGES,
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "tool_name": {"type": "string", "description": "Of the tool whose answer this is."},
    },
}


def _object(**properties: Any) -> dict[str, Any]:  # noqa: ANN401 - schemas
    return {"type": "object", "required": ["model"], "properties": {"model": _MODEL, **properties}}


CHAT_PARAMS: Final = _object(
    messages={"type": "array", "items": _MESSAGE, "description": "Empty: only load the model."},
    tools={"type": "array", "items": {"type": "object"}, "description": "Functions it may call."},
    **_OUTPUT,
)
COUNT_PARAMS: Final = _object(
    messages={"type": "array", "items": _MESSAGE, "description": "Without images."},
    tools={"type": "array", "items": {"type": "object"}, "description": "Functions the model may call."},
)
GENERATE_PARAMS: Final = _object(
    prompt={"type": "string", "description": "Empty: only load the model."},
    suffix={"type": "string", "description": "What comes after the continuation."},
    system={"type": "string"},
    template={"type": "string"},
    raw={"type": "boolean", "description": "Whether the prompt goes to the model as it is."},
    images=_IMAGES,
    **_OUTPUT,
)
EMBED_PARAMS: Final = _object(
    input={"type": ["string", "array"], "items": {"type": "string"}, "description": "One text or several."},
    truncate={"type": "boolean", "description": "Whether a text that is too long is cut; otherwise it is an error."},
    dimensions={"type": "integer", "minimum": 1},
    options=_OPTIONS,
    keep_alive=_KEEP_ALIVE,
)
SHOW_PARAMS: Final = _object(verbose={"type": "boolean"})
NO_PARAMS: Final[dict[str, Any]] = {"type": "object", "properties": {}}
