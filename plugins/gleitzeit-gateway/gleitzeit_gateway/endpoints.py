"""HTTP paths and what answers them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.requests import Served
    from gleitzeit_gateway.options import GatewayOptions


@dataclass(slots=True)
class Call:
    """One HTTP request, as an endpoint gets it.

    Args:
        request: aiohttp's own.
        manager: What carries requests out.
        options: Of the gateway.
        id: Of the request, for logs and headers.
        tenant: The name of the key that was used; empty for none.
        priority: Of that key.
        rest: What a path ending in ``*`` matched there.
        served: Who served it; set by the endpoint when it knows.
        model: For the access line; set by the endpoint when it knows.
        error: The code of the error that was answered; for the access line.
    """

    request: web.BaseRequest
    manager: ResourceManager
    options: GatewayOptions
    id: str
    tenant: str = ""
    priority: int = 0
    rest: str = ""
    served: Served | None = None
    model: str = ""
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[web.StreamResponse]]
ErrorRenderer = Callable[[Exception], web.Response]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One path of a client API.

    Args:
        method: HTTP method; ``GET`` also answers ``HEAD``.
        path: ``/api/tags``; ending in ``/*`` for everything below.
        handler: Answers it. May raise `GleitzeitError`, which `error` puts into the API's envelope.
        error: The API's envelope.
        public: Whether it needs no key.
    """

    method: str
    path: str
    handler: Handler
    error: ErrorRenderer
    public: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """What a path leads to: an endpoint with the rest of the path, or the methods there are instead."""

    endpoint: Endpoint | None
    rest: str = ""
    allowed: tuple[str, ...] = ()


class Router:
    """Finds the endpoint of a path. The first that claims a path has it.

    Args:
        endpoints: In order of precedence.
    """

    def __init__(self, endpoints: list[Endpoint]) -> None:
        self._exact: dict[str, dict[str, Endpoint]] = {}
        self._below: dict[str, dict[str, Endpoint]] = {}
        for endpoint in endpoints:
            table, path = self._exact, endpoint.path
            if path.endswith("/*"):
                table, path = self._below, path[:-1]
            table.setdefault(path, {}).setdefault(endpoint.method, endpoint)

    def find(self, method: str, path: str) -> Match:
        """What `method` on `path` leads to."""
        found, rest = self._exact.get(path), ""
        if found is None:
            prefix = next((p for p in self._below if path.startswith(p) and len(path) > len(p)), None)
            if prefix is None:
                return Match(None)
            found, rest = self._below[prefix], path[len(prefix) :]
        endpoint = found.get("GET" if method == "HEAD" else method)
        return Match(endpoint, rest, tuple(sorted(found)))


def json_response(data: Any, *, status: int = 200) -> web.Response:  # noqa: ANN401 - anything JSON
    """`data` as compact JSON."""
    return web.Response(body=msgspec.json.encode(data), status=status, content_type="application/json")
