"""``GET /openapi.json``: what can be asked of this gateway, as OpenAPI 3.1, made from its endpoints and its methods.

It names what is installed, and nothing of what is configured: no instance, no model, no key. So it needs no key itself.
What an API's own documentation says of its fields is not said again: schemas name the fields that a request needs, and
whatever else stands in a body passes.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_gateway.endpoints import Endpoint, json_response
from gleitzeit_gateway.errors import plain_error
from gleitzeit_gateway.openapi_schemas import ANSWERS, BODIES, ERRORS, QUERIES, SUMMARIES, api_of, schemas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiohttp import web

    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.requests import Method
    from gleitzeit_gateway.call import Call

# Looked up when this is imported, which is before the loop runs: it reads files.
_VERSION: Final = version("gleitzeit-gateway")
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_TEXT: Final = {"text/plain": {"schema": {"type": "string"}}}
_ABOUT: Final = (
    "A pool of LLM servers and other compute behind one address, in the client APIs of Ollama, OpenAI and Anthropic. "
    "Errors of this gateway have the header X-Gleitzeit-Error, a stable code."
)
_SECURITY: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of this gateway; where none are configured, none.",
    },
    "api_key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Api-Key",
        "description": "The same, as Anthropic's clients send it.",
    },
}
_ANY_OF_THEM: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {"api_key": []}, {}]


def openapi_endpoint(manager: ResourceManager, endpoints: Callable[[], Iterable[Endpoint]]) -> Endpoint:
    """The endpoint.

    Args:
        manager: Whose methods can be called.
        endpoints: All there are.
    """
    handler = partial(_answer, manager, endpoints)
    return Endpoint(method="GET", path="/openapi.json", handler=handler, error=plain_error, public=True)


async def _answer(manager: ResourceManager, endpoints: Callable[[], Iterable[Endpoint]], call: Call) -> web.Response:
    del call
    methods = [method for provider in manager.providers.values() for method in provider.methods]
    return json_response(document(endpoints(), methods))


def document(endpoints: Iterable[Endpoint], methods: Iterable[Method]) -> dict[str, Any]:
    """The whole document.

    Args:
        endpoints: Of the gateway.
        methods: That can be called by JSON-RPC.
    """
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in sorted(endpoints, key=lambda one: (one.path, one.method)):
        operations = paths.setdefault(_template(endpoint.path), {})
        operations[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": _DIALECT,
        "info": {"title": "Gleitzeit", "version": _VERSION, "description": _ABOUT},
        "paths": paths,
        "components": {"securitySchemes": _SECURITY, "schemas": schemas(methods)},
        "security": _ANY_OF_THEM,
    }


def _template(path: str) -> str:
    """``/v1/models/*`` as ``/v1/models/{rest}``."""
    return path[:-1] + "{rest}" if path.endswith("/*") else path


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    key = endpoint.method, endpoint.path
    api = api_of(endpoint.path)
    words = [word for word in _template(endpoint.path).replace("{", "").replace("}", "").split("/") if word]
    operation: dict[str, Any] = {
        "operationId": "_".join((endpoint.method.lower(), *words)).replace(".", "_").replace("-", "_"),
        "tags": [api],
        "summary": SUMMARIES.get(key) or _first_line(endpoint),
        "responses": {**_successes(key), **_errors(api, public=endpoint.public)},
    }
    parameters = [*QUERIES.get(key, ()), *([_REST] if endpoint.path.endswith("/*") else [])]
    if parameters:
        operation["parameters"] = parameters
    if key in BODIES:
        operation["requestBody"] = {"required": True, "content": BODIES[key]}
    if endpoint.public:
        operation["security"] = []
    return operation


_REST: Final = {
    "name": "rest",
    "in": "path",
    "required": True,
    "description": "A name; it may have slashes.",
    "schema": {"type": "string", "minLength": 1},
}


def _first_line(endpoint: Endpoint) -> str:
    """What its handler says of itself."""
    handler: Any = endpoint.handler
    while isinstance(handler, partial):
        handler = handler.func
    return (handler.__doc__ or "").strip().partition("\n")[0] or f"{endpoint.method} {endpoint.path}"


def _successes(key: tuple[str, str]) -> dict[str, Any]:
    known = ANSWERS.get(key, {200: {"application/json": {"schema": {}}}})
    found: dict[str, Any] = {}
    for status, content in known.items():
        found[str(status)] = {"description": "as asked"} | ({"content": content} if content else {})
    return found


def _errors(api: str, *, public: bool) -> dict[str, Any]:
    schema = {"schema": {"$ref": f"#/components/schemas/{api}_error"}}
    found: dict[str, Any] = {}
    for status, (text, open_to_all) in ERRORS.items():
        if public and not open_to_all:
            continue
        # A path that is none, a foreign host and a foreign page are refused whatever the API.
        plain = _TEXT if status in (403, 404, 405) else {}
        found[str(status)] = {"description": text, "content": {"application/json": schema, **plain}}
    return found
