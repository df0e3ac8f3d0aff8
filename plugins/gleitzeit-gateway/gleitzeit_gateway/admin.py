"""The gateway's own endpoints: health, metrics and status; and JSON-RPC, which has a module of its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from gleitzeit_core.pool import State
from gleitzeit_gateway.endpoints import Endpoint, json_response
from gleitzeit_gateway.errors import plain_error
from gleitzeit_gateway.metrics import exposition
from gleitzeit_gateway.rpc import rpc

if TYPE_CHECKING:
    from gleitzeit_gateway.call import Call


def admin_endpoints() -> list[Endpoint]:
    """Health, metrics, status and JSON-RPC."""
    make = partial(Endpoint, error=plain_error)
    return [
        make(method="GET", path="/health/live", handler=_live, public=True),
        make(method="GET", path="/health/ready", handler=_ready, public=True),
        make(method="GET", path="/metrics", handler=_metrics),
        make(method="GET", path="/admin/status", handler=_status),
        make(method="POST", path="/rpc", handler=rpc),
    ]


async def _live(call: Call) -> web.Response:
    del call
    return json_response({"status": "ok"})


async def _ready(call: Call) -> web.Response:
    """Ready when an instance is, until shutdown: what sends traffic here should know that it can be served."""
    if call.draining:
        return json_response({"status": "shutting down", "ready": 0, "instances": 0}, status=503)
    states = [report.state for report in call.manager.instances()]
    ready = sum(1 for state in states if state == State.READY)
    body = {"status": "ok" if ready else "no instance is ready", "ready": ready, "instances": len(states)}
    return json_response(body, status=200 if ready else 503)


async def _metrics(call: Call) -> web.Response:
    body, content_type = exposition(call.manager)
    return web.Response(body=body, headers={"Content-Type": content_type})


async def _status(call: Call) -> web.Response:
    return json_response(call.manager.status())
