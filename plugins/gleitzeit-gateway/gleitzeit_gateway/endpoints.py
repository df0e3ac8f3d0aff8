"""HTTP paths and what answers them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from gleitzeit_gateway.answers import Reply
from gleitzeit_gateway.call import Call

logger = logging.getLogger(__name__)

_LOOKING = frozenset(("GET", "HEAD"))

Handler = Callable[[Call], Awaitable[Reply]]
ErrorRenderer = Callable[[Exception], web.Response]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One path of a client API.

    Args:
        method: HTTP method; ``GET`` also answers ``HEAD``.
        path: ``/api/tags``; ending in ``/*`` for everything below.
        handler: Answers it, with a response or by `Call.begin` and `Call.send`. What it raises goes to `error`.
        error: The API's envelope, such as `gleitzeit_gateway.errors.plain_error`.
        public: Whether it needs no key, and is answered while the gateway shuts down.
        admin: Whether it changes the pool: where keys are configured it needs one with ``admin: true``, elsewhere a
            caller on this machine; and a body that it has must be JSON, which no form of a web page sends.
        holds: Whether its handler itself counts what it does against the limits of a key, as one for many requests in
            one must. The others' requests are counted, but for those that only look: GET, HEAD, `public`, `admin`.

    Raises:
        ValueError: `path` or `method` could never match a request; or it is for anybody and for few.
    """

    method: str
    path: str
    handler: Handler
    error: ErrorRenderer
    public: bool = False
    admin: bool = False
    holds: bool = False

    limited: bool = field(init=False)
    """Whether a request to it counts against the limits of a key before its handler is called."""

    def __post_init__(self) -> None:
        """Refuse what could never be found."""
        limited = not (self.holds or self.public or self.admin or self.method in _LOOKING)
        object.__setattr__(self, "limited", limited)
        if not self.path.startswith("/"):
            raise ValueError(f"a path begins with a slash, unlike {self.path!r}")
        if not self.method.isupper():
            raise ValueError(f"a method is written like GET, and not like {self.method!r}")
        if self.public and self.admin:
            raise ValueError(f"{self.path} cannot need no key and a special one")


@dataclass(frozen=True, slots=True)
class Match:
    """What a path leads to: an endpoint with the rest of the path, or the methods there are instead."""

    endpoint: Endpoint | None
    rest: str = ""
    allowed: tuple[str, ...] = ()


class Router:
    """Finds the endpoint of a path. The first that claims a path has it; an exact one goes before one with ``*``.

    Args:
        endpoints: In order of precedence.
    """

    def __init__(self, endpoints: Iterable[Endpoint] = ()) -> None:
        self._exact: dict[str, dict[str, Endpoint]] = {}
        self._below: dict[str, dict[str, Endpoint]] = {}
        # What was found for exact paths, which nearly all are; there are only so many of them.
        self._found: dict[tuple[str, str], Match] = {}
        for endpoint in endpoints:
            self.add(endpoint)

    def __repr__(self) -> str:
        """How many paths."""
        return f"<Router {len(self._exact) + len(self._below)} paths>"

    def __iter__(self) -> Iterator[Endpoint]:
        """All endpoints."""
        for methods in (*self._exact.values(), *self._below.values()):
            yield from methods.values()

    def add(self, endpoint: Endpoint) -> None:
        """One more, unless another has its path and method: then that one stays, and a warning is logged."""
        methods = self._methods(endpoint.path)
        if endpoint.method in methods:
            logger.warning("%s %s is taken already: a second endpoint is not used", endpoint.method, endpoint.path)
        else:
            methods[endpoint.method] = endpoint

    def fill(self, endpoints: Iterable[Endpoint]) -> None:
        """Add those whose path and method nobody has."""
        for endpoint in endpoints:
            self._methods(endpoint.path).setdefault(endpoint.method, endpoint)

    def _methods(self, path: str) -> dict[str, Endpoint]:
        self._found.clear()
        if path.endswith("/*"):
            return self._below.setdefault(path[:-1], {})
        return self._exact.setdefault(path, {})

    def find(self, method: str, path: str) -> Match:
        """What `method` on `path` leads to."""
        return self._found.get((method, path)) or self._look_up(method, path)

    def _look_up(self, method: str, path: str) -> Match:
        found, rest = self._exact.get(path), ""
        if found is None:
            prefix = next((p for p in self._below if path.startswith(p) and len(path) > len(p)), None)
            if prefix is None:
                return Match(None)
            found, rest = self._below[prefix], path[len(prefix) :]
        endpoint = found.get(method) or (found.get("GET") if method == "HEAD" else None)
        allowed = {*found, "HEAD"} if "GET" in found else set(found)
        match = Match(endpoint, rest, tuple(sorted(allowed)))
        if endpoint is not None and not rest:
            self._found[method, path] = match
        return match


def json_response(data: Any, *, status: int = 200) -> web.Response:  # noqa: ANN401 - anything JSON
    """`data` as compact JSON."""
    return web.Response(body=msgspec.json.encode(data), status=status, content_type="application/json")
