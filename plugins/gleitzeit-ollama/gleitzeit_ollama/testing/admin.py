"""The path `/__test__/`, by which a test steers a stand-in in another process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aiohttp import web

from gleitzeit_ollama.testing.gates import Gate
from gleitzeit_ollama.testing.script import fault_from_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from gleitzeit_ollama.testing.server import OllamaServer

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GAUGES = ("in_flight", "running", "queued", "held", "waiting_tokens")
"""Counts that rise and fall: a wait for one of them wants exactly that number."""
TOTALS = ("requests", "finished", "disconnects", "max_in_flight", "tokens", "loads")
"""Counts that only rise: a wait for one of them wants at least that number."""


def state(server: OllamaServer) -> dict[str, int]:
    """Return the server's counts."""
    runners = server.runners
    return {
        "in_flight": server.in_flight,
        "running": runners.running,
        "queued": runners.queued,
        "held": server.held,
        "waiting_tokens": server.gate.waiting if isinstance(server.gate, Gate) else 0,
        "requests": len(server.requests),
        "finished": sum(record.finished for record in server.requests),
        "disconnects": server.disconnects,
        "max_in_flight": server.max_in_flight,
        "tokens": sum(record.tokens for record in server.requests),
        "loads": runners.loads.total(),
    }


def is_reached(now: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
    """Tell whether the counts are as wanted."""
    return all(now[name] == number if name in GAUGES else now[name] >= number for name, number in wanted.items())


def add_routes(application: web.Application, server: OllamaServer) -> None:
    """Let the application answer below `/__test__/` for this server."""
    admin = _Admin(server)
    routes: dict[str, Handler] = {
        "state": admin.state,
        "wait": admin.wait,
        "next": admin.next,
        "always": admin.always,
        "clear": admin.clear,
        "release": admin.release,
        "gate": admin.gate,
    }
    for name, handler in routes.items():
        application.router.add_post(f"/__test__/{name}", _guarded(handler))


def _guarded(handler: Handler) -> Handler:
    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)

    return guarded


async def _read(request: web.Request) -> dict[str, object]:
    value = json.loads(await request.read() or b"{}")
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {value!r}")  # noqa: TRY004 - the caller's mistake, answered with 400
    return value


class _Admin:
    def __init__(self, server: OllamaServer) -> None:
        self._server = server

    def _state(self) -> web.Response:
        return web.json_response(state(self._server))

    async def state(self, _request: web.Request) -> web.Response:
        return self._state()

    async def wait(self, request: web.Request) -> web.Response:
        wanted = _counts(await _read(request))
        await self._server.wait_for(lambda server: is_reached(state(server), wanted))
        return self._state()

    async def next(self, request: web.Request) -> web.Response:
        options = await _read(request)
        times, on = options.pop("times", 1), str(options.pop("on", "work"))
        if not isinstance(times, int):
            raise ValueError(f"times must be a whole number, got {times!r}")  # noqa: TRY004 - the caller's mistake, answered with 400
        self._server.script.next(fault_from_json(options), times=times, on=on)
        return self._state()

    async def always(self, request: web.Request) -> web.Response:
        options = await _read(request)
        on = str(options.pop("on", "work"))
        self._server.script.always(fault_from_json(options), on=on)
        return self._state()

    async def clear(self, _request: web.Request) -> web.Response:
        self._server.script.clear()
        return self._state()

    async def release(self, _request: web.Request) -> web.Response:
        self._server.release()
        return self._state()

    async def gate(self, request: web.Request) -> web.Response:
        gate, options = self._server.gate, await _read(request)
        if not isinstance(gate, Gate):
            raise ValueError("the server was not started with a gate")  # noqa: TRY004 - the caller's mistake, answered with 400
        allow = options.get("allow", 0)
        if not isinstance(allow, int):
            raise ValueError(f"allow must be a whole number, got {allow!r}")  # noqa: TRY004 - the caller's mistake, answered with 400
        gate.allow(allow)
        if "open" in options:
            (gate.open if options["open"] else gate.close)()
        return self._state()


def _counts(options: Mapping[str, object]) -> dict[str, int]:
    known = (*GAUGES, *TOTALS)
    counts: dict[str, int] = {}
    for name, number in options.items():
        if name not in known or not isinstance(number, int):
            raise ValueError(f"cannot wait for {name}={number!r}; counts: {', '.join(known)}")
        counts[name] = number
    return counts
