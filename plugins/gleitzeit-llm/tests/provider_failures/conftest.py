"""The caller that the tests of failures use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .caller import Caller

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Line = Any
    Handler = Callable[[Line], Awaitable[None]]
    Serve = Callable[..., Awaitable[Any]]
    StartPool = Callable[..., Awaitable[Any]]
    MakeInstance = Callable[..., Any]


@pytest.fixture
def call(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> Callable[..., Awaitable[tuple[Caller, Any]]]:
    """Starts servers, and a caller of the pool of them."""

    async def start(dialect: str, api: str, *handlers: Handler) -> tuple[Caller, Any]:
        servers = [await serve(handler) for handler in handlers]
        return Caller(await pool(*(instance_at(s.url, api) for s in servers)), dialect), servers

    return start
