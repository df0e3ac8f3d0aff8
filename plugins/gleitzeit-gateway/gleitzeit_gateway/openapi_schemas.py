"""What `/openapi.json` says of bodies, answers and errors, by path; and the schemas it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_gateway.rpc_methods import params_schema
from gleitzeit_llm import schemas as llm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gleitzeit_core.requests import Method

Schema = dict[str, Any]
Content = dict[str, Any]

ERRORS: Final = {
    # What it means, and whether also a public path may answer it.
    400: ("the request is wrong; in the words of the API", True),
    401: ("no key, or a wrong one", False),
    403: ("not with this key, not from this machine, or not from this page", True),
    404: ("there is no such model, method, instance or path", True),
    405: ("the path has other methods", True),
    408: ("the request did not arrive in time", True),
    409: ("what is to be changed is in use", False),
    413: ("the body is too large", False),
    415: ("the body must be JSON", False),
    422: ("the configuration is wrong", False),
    429: ("too many requests: the queue is full, or the limits of the key are reached; see Retry-After", False),
    431: ("the head of the request is too large", True),
    500: ("an instance's own words, or a mistake of the gateway's, which is in its log", False),
    501: ("nobody here can do that", False),
    502: ("the instance failed", False),
    503: ("no instance is up, all are busy, or the gateway shuts down; see Retry-After", True),
    504: ("the deadline has passed", False),
    508: ("the request has come back to a gateway that it has been through", True),
    529: ("Anthropic's API: overloaded; see Retry-After", False),
}


def api_of(path: str) -> str:
    """Whose API a path belongs to: that of its errors."""
    if path.startswith("/v1/"):
        return "anthropic" if path.startswith("/v1/messages") else "openai"
    return "ollama" if path == "/" or path.startswith("/api/") else "gateway"


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: Iterable[str] = (), **properties: Any) -> Schema:  # noqa: ANN401 - schemas
    return {"type": "object", "required": [*required], "properties": properties}


def _json(schema: Schema) -> Content:
    return {"application/json": {"schema": schema}}


_STRING: Final = {"type": "string"}
_BOOLEAN: Final = {"type": "boolean"}
_STREAM: Final = {"type": "boolean", "description": "Whether the answer comes in parts."}
_MODEL: Final = {"type": "string", "minLength": 1}
_NAMED: Final = _object(["model"], model=_MODEL, stream=_STREAM)
_TEXTS: Final = {"anyOf": [_STRING, {"type": "array", "items": _STRING, "minItems": 1}]}
_TURN: Final = _object(
    ["role", "content"], role=_STRING, content={"type": ["string", "array"], "items": {"type": "object"}}
)
_TURNS: Final = {"type": "array", "items": _TURN, "minItems": 1}
# JSON objects, one in each line; and server-sent events. OpenAPI 3.1 has no words for their parts.
_LINES: Final[Content] = {"application/x-ndjson": {}}
_EVENTS: Final[Content] = {"text/event-stream": {}}
_NOTHING: Final[Content] = {}


def _of_ollama(params: Schema) -> Content:
    schema = {**params, "properties": {**params["properties"], "stream": _STREAM}}
    return _json(schema)


BODIES: Final[dict[tuple[str, str], Content]] = {
    ("POST", "/api/chat"): _of_ollama(llm.CHAT_PARAMS),
    ("POST", "/api/generate"): _of_ollama(llm.GENERATE_PARAMS),
    ("POST", "/api/embed"): _json(llm.EMBED_PARAMS),
    ("POST", "/api/embeddings"): _json(_object(["model"], model=_MODEL, prompt=_STRING)),
    ("POST", "/api/show"): _json(llm.SHOW_PARAMS),
    ("POST", "/api/pull"): _json(_NAMED),
    ("POST", "/api/push"): _json(_NAMED),
    ("POST", "/api/create"): _json(_NAMED),
    ("POST", "/api/copy"): _json(_object(["source", "destination"], source=_MODEL, destination=_MODEL)),
    ("DELETE", "/api/delete"): _json(_NAMED),
    ("POST", "/api/blobs/*"): {"application/octet-stream": {"schema": {}}},
    ("POST", "/v1/chat/completions"): _json(
        _object(["model", "messages"], model=_MODEL, messages=_TURNS, stream=_STREAM)
    ),
    ("POST", "/v1/completions"): _json(_object(["model", "prompt"], model=_MODEL, prompt=_TEXTS, stream=_STREAM)),
    ("POST", "/v1/embeddings"): _json(_object(["model", "input"], model=_MODEL, input=_TEXTS)),
    ("POST", "/v1/responses"): _json(
        _object(
            ["model", "input"],
            model=_MODEL,
            input={"type": ["string", "array"], "items": {"type": "object"}},
            stream=_STREAM,
        )
    ),
    ("POST", "/v1/messages"): _json(
        _object(
            ["model", "messages", "max_tokens"],
            model=_MODEL,
            messages=_TURNS,
            stream=_STREAM,
            max_tokens={"type": "integer", "minimum": 1},
        )
    ),
    ("POST", "/v1/messages/count_tokens"): _json(_object(["model", "messages"], model=_MODEL, messages=_TURNS)),
    ("POST", "/rpc"): _json({"anyOf": [_ref("rpc_call"), {"type": "array", "items": _ref("rpc_call"), "minItems": 1}]}),
    ("POST", "/admin/instances"): _json(
        _object(
            ["url"],
            url={"type": "string", "format": "uri"},
            hub=_STRING,
            weight={"type": "number", "exclusiveMinimum": 0},
            max_concurrent={"type": "integer", "minimum": 1},
        )
    ),
    ("POST", "/admin/models/load"): _json(_NAMED),
    ("POST", "/admin/models/unload"): _json(_NAMED),
}

_CHAT_LINE: Final = _object(["model", "created_at", "done"], model=_STRING, created_at=_STRING, done=_BOOLEAN)
_LIST_OF_MODELS: Final = _object(["models"], models={"type": "array", "items": _object(["name"], name=_STRING)})
_COMPLETION: Final = _object(["id", "object", "choices"], id=_STRING, object=_STRING, choices={"type": "array"})
_VECTORS: Final = _object(["object", "data"], object={"const": "list"}, data={"type": "array"})
_OPENAI_MODEL: Final = _object(["id", "object"], id=_STRING, object={"const": "model"})
_INSTANCE: Final = _json({"type": "object"})

ANSWERS: Final[dict[tuple[str, str], dict[int, Content]]] = {
    ("GET", "/"): {200: {"text/plain": {"schema": _STRING}}},
    ("GET", "/metrics"): {
        200: {"text/plain": {"schema": _STRING}, "application/openmetrics-text": {"schema": _STRING}}
    },
    ("GET", "/health/ready"): {200: _json(_ref("health")), 503: _json(_ref("health"))},
    ("GET", "/health/live"): {200: _json(_ref("health"))},
    ("GET", "/api/version"): {200: _json(_object(["version"], version=_STRING))},
    ("GET", "/api/tags"): {200: _json(_LIST_OF_MODELS)},
    ("GET", "/api/ps"): {200: _json(_LIST_OF_MODELS)},
    ("POST", "/api/chat"): {200: _json(_CHAT_LINE) | _LINES},
    ("POST", "/api/generate"): {200: _json(_CHAT_LINE) | _LINES},
    ("POST", "/api/embed"): {200: _json(_object(["model", "embeddings"], model=_STRING, embeddings={"type": "array"}))},
    ("POST", "/api/embeddings"): {200: _json(_object(["embedding"], embedding={"type": "array"}))},
    ("POST", "/api/pull"): {200: _json({"type": "object"}) | _LINES},
    ("POST", "/api/push"): {200: _json({"type": "object"}) | _LINES},
    ("POST", "/api/create"): {200: _json({"type": "object"}) | _LINES},
    ("POST", "/api/copy"): {200: _NOTHING},
    ("DELETE", "/api/delete"): {200: _NOTHING},
    ("HEAD", "/api/blobs/*"): {200: _NOTHING},
    ("POST", "/api/blobs/*"): {200: _NOTHING, 201: _NOTHING},
    ("GET", "/v1/models"): {
        200: _json(
            _object(["object", "data"], object={"const": "list"}, data={"type": "array", "items": _OPENAI_MODEL})
        )
    },
    ("GET", "/v1/models/*"): {200: _json(_OPENAI_MODEL)},
    ("POST", "/v1/chat/completions"): {200: _json(_COMPLETION) | _EVENTS},
    ("POST", "/v1/completions"): {200: _json(_COMPLETION) | _EVENTS},
    ("POST", "/v1/embeddings"): {200: _json(_VECTORS)},
    ("POST", "/v1/responses"): {200: _json(_object(["id", "object"], id=_STRING, object=_STRING)) | _EVENTS},
    ("POST", "/v1/messages"): {
        200: _json(_object(["id", "type", "content"], id=_STRING, type={"const": "message"}, content={"type": "array"}))
        | _EVENTS
    },
    ("POST", "/v1/messages/count_tokens"): {200: _json(_object(["input_tokens"], input_tokens={"type": "integer"}))},
    ("POST", "/rpc"): {200: _json(_ref("rpc_answer")) | _LINES, 204: _NOTHING},
    ("GET", "/rpc/methods"): {200: _json(_object(["methods"], methods={"type": "array", "items": {"type": "object"}}))},
    ("GET", "/admin/events"): {200: _EVENTS},
    ("GET", "/admin/instances"): {200: _json(_object(["instances"], instances={"type": "array"}))},
    ("POST", "/admin/instances"): {201: _INSTANCE},
    ("GET", "/admin/queues"): {200: _json(_object(["queues"], queues={"type": "array"}))},
}

SUMMARIES: Final = {
    ("GET", "/health/live"): "Whether the process answers.",
    ("GET", "/health/ready"): "Whether an instance is ready.",
    ("GET", "/metrics"): "Metrics for Prometheus.",
    ("GET", "/admin/status"): "The pool, as `gleitzeit status` shows it.",
    ("GET", "/admin/instances"): "The instances.",
    ("GET", "/admin/instances/*"): "One instance, with the history of its checks.",
    ("GET", "/admin/queues"): "The queues in which somebody waits.",
    ("GET", "/admin/metrics"): "The numbers that `gleitzeit metrics` shows.",
    ("GET", "/admin/usage"): "What was used, by key, model and instance.",
    ("GET", "/openapi.json"): "This document.",
    ("POST", "/admin/models/load"): "Have instances take a model into memory.",
    ("POST", "/admin/models/unload"): "Have instances free the memory of a model.",
    ("POST", "/api/chat"): "The next message of a conversation.",
    ("POST", "/api/generate"): "A continuation of a prompt.",
    ("POST", "/api/embed"): "Vectors for texts.",
    ("POST", "/api/embeddings"): "A vector for a text.",
    ("POST", "/api/show"): "What is known about a model.",
    ("POST", "/api/pull"): "Have instances load a model from its registry.",
    ("POST", "/api/push"): "Have an instance send a model to its registry.",
    ("POST", "/api/create"): "Make a model.",
    ("POST", "/api/copy"): "Give a model another name.",
    ("DELETE", "/api/delete"): "Remove a model.",
    ("HEAD", "/api/blobs/*"): "Whether a blob is there.",
    ("POST", "/api/blobs/*"): "Send a blob.",
    ("POST", "/v1/chat/completions"): "The next message of a conversation.",
    ("POST", "/v1/completions"): "A continuation of a prompt.",
    ("POST", "/v1/embeddings"): "Vectors for texts.",
    ("POST", "/v1/responses"): "The next turn of a conversation.",
    ("POST", "/v1/messages"): "The next message of a conversation.",
    ("POST", "/v1/messages/count_tokens"): "How many tokens a conversation takes.",
}


def _query(name: str, text: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "description": text, "schema": schema}


QUERIES: Final[dict[tuple[str, str], list[Schema]]] = {
    ("GET", "/admin/metrics"): [_query("window", "Which time.", {"enum": ["recent", "total"]})],
    ("GET", "/admin/usage"): [
        _query("by", "What a row is for: `key`, `model`, `instance`, or several of them.", {"type": "string"}),
        _query("window", "Of which time.", {"enum": ["total", "day", "hour"]}),
    ],
    ("GET", "/admin/events"): [_query("requests", "Whether also requests are told of.", {"enum": ["0", "1"]})],
    ("DELETE", "/admin/instances/*"): [
        _query("grace_s", "For what runs, in seconds.", {"type": "number", "minimum": 0})
    ],
    ("POST", "/admin/reload"): [_query("dry_run", "Whether only to say what would change.", {"enum": ["0", "1"]})],
}


def schemas(methods: Iterable[Method]) -> dict[str, Schema]:
    """The components: errors, health, JSON-RPC and the parameters of its methods."""
    # What is restricted is not everybody's, and this is read without a key.
    known = {method.name: params_schema(method) for method in methods if not method.restricted}
    params = {name: schema for method, given in known.items() for name, schema in _flat(_name(method), given)}
    return {**_ERRORS_OF, **_RPC, "health": _HEALTH, "rpc_call": _calls(known), **params}


def _flat(name: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, Schema]]:
    """A schema, and those that it defines inside itself: a reference counts from the top of the document."""

    def moved(part: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(part, Mapping):
            return {key: _moved_ref(name, value) if key == "$ref" else moved(value) for key, value in part.items()}
        return [moved(one) for one in part] if isinstance(part, list | tuple) else part

    yield name, moved({key: value for key, value in schema.items() if key != "$defs"})
    for inner, defined in schema.get("$defs", {}).items():
        yield f"{name}.{inner}", moved(defined)


def _moved_ref(name: str, ref: str) -> str:
    return ref.replace("#/$defs/", f"#/components/schemas/{name}.")


def _name(method: str) -> str:
    """Of the schema of a method's parameters."""
    return "params_" + method.replace("/", "_")


def _calls(known: Iterable[str]) -> Schema:
    """A call of any method, with its own parameters."""
    each = [
        {**_CALL, "properties": {**_CALL["properties"], "method": {"const": name}, "params": _ref(_name(name))}}
        for name in sorted(known)
    ]
    return {"anyOf": each} if each else _CALL


_HEALTH: Final = _object(["status"], status=_STRING, ready={"type": "integer"}, instances={"type": "integer"})
_WHAT_WENT_WRONG: Final = _object(["code", "message"], code=_STRING, message=_STRING, retryable=_BOOLEAN)
_OPENAI_ERROR: Final = _object(["message", "type"], message=_STRING, type=_STRING)
_ANTHROPIC_ERROR: Final = _object(["type", "message"], type=_STRING, message=_STRING)
_ERRORS_OF: Final[dict[str, Schema]] = {
    "ollama_error": _object(["error"], error=_STRING),
    "openai_error": _object(["error"], error=_OPENAI_ERROR),
    "anthropic_error": _object(["type", "error"], type={"const": "error"}, error=_ANTHROPIC_ERROR),
    "gateway_error": _object(["error"], error=_WHAT_WENT_WRONG),
}
_CALL: Final = _object(
    ["jsonrpc", "method", "id"],
    jsonrpc={"const": "2.0"},
    method=_STRING,
    params={"type": "object"},
    id={"type": ["string", "integer"]},
    stream=_STREAM,
    timeout_s={"type": "number", "exclusiveMinimum": 0},
)
_RPC_ANSWER: Final = _object(
    ["jsonrpc", "id"], jsonrpc={"const": "2.0"}, result={}, error=_object(["code", "message"], code={"type": "integer"})
)
_RPC: Final[dict[str, Schema]] = {
    "rpc_answer": {"anyOf": [_RPC_ANSWER, {"type": "array", "items": _RPC_ANSWER}]},
}
