"""The gateway's own endpoints: health, metrics, what the pool is like and what changes it; and JSON-RPC.

JSON-RPC, the changes, the events and the reload have modules of their own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from gleitzeit_gateway.changes import add_instance, change_instance, remove_instance
from gleitzeit_gateway.endpoints import Endpoint, json_response
from gleitzeit_gateway.errors import plain_error
from gleitzeit_gateway.event_stream import EventStreams
from gleitzeit_gateway.metrics import exposition
from gleitzeit_gateway.queries import Query
from gleitzeit_gateway.reloading import reload_on_request
from gleitzeit_gateway.rpc import rpc
from gleitzeit_gateway.rpc_methods import rpc_methods

if TYPE_CHECKING:
    from gleitzeit_gateway.call import Call


def admin_endpoints() -> list[Endpoint]:
    """Health, metrics, ``/admin`` and JSON-RPC."""
    make = partial(Endpoint, error=plain_error)
    changing = partial(make, admin=True)
    return [
        make(method="GET", path="/health/live", handler=_live, public=True),
        make(method="GET", path="/health/ready", handler=_ready, public=True),
        make(method="GET", path="/metrics", handler=_metrics),
        make(method="GET", path="/admin/status", handler=_status),
        make(method="GET", path="/admin/instances", handler=_instances),
        make(method="GET", path="/admin/instances/*", handler=_instance),
        make(method="GET", path="/admin/queues", handler=_queues),
        make(method="GET", path="/admin/metrics", handler=_numbers),
        make(method="GET", path="/admin/events", handler=EventStreams().follow),
        changing(method="POST", path="/admin/instances", handler=add_instance),
        changing(method="POST", path="/admin/instances/*", handler=change_instance),
        changing(method="DELETE", path="/admin/instances/*", handler=remove_instance),
        changing(method="POST", path="/admin/reload", handler=reload_on_request),
        make(method="POST", path="/rpc", handler=rpc),
        make(method="GET", path="/rpc/methods", handler=rpc_methods),
    ]


async def _live(call: Call) -> web.Response:
    del call
    return json_response({"status": "ok"})


async def _ready(call: Call) -> web.Response:
    """Ready when an instance is, until shutdown: what sends traffic here should know that it can be served."""
    if call.draining:
        return json_response({"status": "shutting down", "ready": 0, "instances": 0}, status=503)
    reports = call.manager.instances()
    ready = sum(report.serving for report in reports)
    body = {"status": "ok" if ready else "no instance is ready", "ready": ready, "instances": len(reports)}
    return json_response(body, status=200 if ready else 503)


async def _metrics(call: Call) -> web.Response:
    body, content_type = await exposition(call.manager)
    return web.Response(body=body, headers={"Content-Type": content_type})


async def _status(call: Call) -> web.Response:
    return json_response(call.manager.status())


async def _instances(call: Call) -> web.Response:
    Query(call)
    return json_response({"instances": call.manager.status()["instances"]})


async def _instance(call: Call) -> web.Response:
    Query(call)
    return json_response(call.manager.instance(call.rest))


async def _queues(call: Call) -> web.Response:
    Query(call)
    return json_response({"queues": call.manager.queues()})


async def _numbers(call: Call) -> web.Response:
    window = Query(call, "window").one_of("window", "recent", "total")
    return json_response(call.manager.metrics_report(recent=window == "recent"))
