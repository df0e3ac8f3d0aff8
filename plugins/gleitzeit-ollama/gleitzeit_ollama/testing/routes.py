"""Which endpoint answers which path, and what is said where none does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_ollama.testing import manage, native, openai, responses
from gleitzeit_ollama.testing.answers import BARE_TEXT, Answer, Plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_ollama.testing.exchange import Exchange

    Endpoint = Callable[[Exchange], Awaitable[Answer]]

_NOT_FOUND, _NOT_ALLOWED = 404, 405

WORK_PATHS = frozenset(
    {
        "/api/generate",
        "/api/chat",
        "/api/embed",
        "/api/embeddings",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
    }
)
"""Where models work: these count as in flight, and faults hit these unless told otherwise."""

# A path that ends with a slash takes one more segment. The order of the methods is Ollama's.
_ROUTES: dict[str, dict[str, Endpoint]] = {
    "/": {"HEAD": manage.root, "GET": manage.root},
    "/api/version": {"HEAD": manage.version, "GET": manage.version},
    "/api/tags": {"HEAD": manage.tags, "GET": manage.tags},
    "/api/ps": {"GET": manage.ps},
    "/api/show": {"POST": manage.show},
    "/api/pull": {"POST": manage.pull},
    "/api/push": {"POST": manage.push},
    "/api/create": {"POST": manage.create},
    "/api/copy": {"POST": manage.copy},
    "/api/delete": {"DELETE": manage.delete},
    "/api/blobs/": {"HEAD": manage.head_blob, "POST": manage.create_blob},
    "/api/generate": {"POST": native.generate},
    "/api/chat": {"POST": native.chat},
    "/api/embed": {"POST": native.embed},
    "/api/embeddings": {"POST": native.embeddings},
    "/v1/chat/completions": {"POST": openai.chat_completions},
    "/v1/completions": {"POST": openai.completions},
    "/v1/embeddings": {"POST": openai.embeddings},
    "/v1/responses": {"POST": responses.responses},
    "/v1/models": {"GET": openai.models},
    "/v1/models/": {"GET": openai.model},
}


def split(path: str) -> tuple[str, str]:
    """Return the route of a path and the segment beyond it, both empty where there is no route."""
    if path in _ROUTES and (path == "/" or not path.endswith("/")):
        return path, ""
    head, _, rest = path.rpartition("/")
    return (f"{head}/", rest) if rest and head and f"{head}/" in _ROUTES else ("", "")


def endpoint(method: str, path: str) -> Endpoint | Plain:
    """Return the endpoint, or the answer where there is none: 404, or 405 with `Allow`."""
    methods = _ROUTES.get(split(path)[0])
    if methods is None:
        return Plain(_NOT_FOUND, b"404 page not found", BARE_TEXT)
    if method not in methods:
        allow = {"Allow": ", ".join(methods)}
        return Plain(_NOT_ALLOWED, b"405 method not allowed", BARE_TEXT, allow)
    return methods[method]
