"""The gateway's own endpoints: health, metrics, what the pool is like and what changes it; and JSON-RPC.

JSON-RPC, the changes, the events and the reload have modules of their own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from gleitzeit_gateway.access import sees_all
from gleitzeit_gateway.changes import add_instance, change_instance, remove_instance
from gleitzeit_gateway.endpoints import Endpoint, json_response
from gleitzeit_gateway.errors import Refused, plain_error
from gleitzeit_gateway.event_stream import EventStreams
from gleitzeit_gateway.metrics import exposition
from gleitzeit_gateway.queries import Query
from gleitzeit_gateway.reloading import reload_on_request
from gleitzeit_gateway.rpc import rpc
from gleitzeit_gateway.rpc_methods import rpc_methods
from gleitzeit_gateway.usage import BY, NOBODY, WINDOWS, Usage

if TYPE_CHECKING:
    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_gateway.call import Call
    from gleitzeit_gateway.workers import Worker


def admin_endpoints(worker: Worker | None = None, usage: Usage | None = None) -> list[Endpoint]:
    """Health, metrics, ``/admin`` and JSON-RPC.

    Args:
        worker: When this is one of several processes: a change of instances would reach this one only.
        usage: What the gateway counts; None for nothing yet.
    """
    make = partial(Endpoint, error=plain_error)
    changing = partial(make, admin=True)
    alone = worker is None
    return [
        make(method="GET", path="/health/live", handler=_live, public=True),
        make(method="GET", path="/health/ready", handler=_ready, public=True),
        make(method="GET", path="/metrics", handler=partial(_metrics, worker)),
        make(method="GET", path="/admin/status", handler=_status),
        make(method="GET", path="/admin/instances", handler=_instances),
        make(method="GET", path="/admin/instances/*", handler=_instance),
        make(method="GET", path="/admin/queues", handler=_queues),
        make(method="GET", path="/admin/metrics", handler=_numbers),
        make(method="GET", path="/admin/usage", handler=partial(_usage, usage or Usage())),
        make(method="GET", path="/admin/events", handler=EventStreams().follow),
        changing(method="POST", path="/admin/instances", handler=add_instance if alone else _one_of_many),
        changing(method="POST", path="/admin/instances/*", handler=change_instance if alone else _one_of_many),
        changing(method="DELETE", path="/admin/instances/*", handler=remove_instance if alone else _one_of_many),
        changing(method="POST", path="/admin/reload", handler=partial(reload_on_request, worker)),
        make(method="POST", path="/rpc", handler=rpc, holds=True),
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


async def _metrics(worker: Worker | None, call: Call) -> web.Response:
    body, content_type = await exposition(call.manager)
    if worker is not None:
        body = await worker.of_all(body)
    return web.Response(body=body, headers={"Content-Type": content_type})


async def own_numbers(manager: ResourceManager) -> bytes:
    """What this process alone has for Prometheus; for other workers."""
    return (await exposition(manager))[0]


async def _one_of_many(call: Call) -> web.Response:
    del call
    text = "this is one of several workers, and the others would not know: change the configuration, then reload it"
    raise Refused(409, text, "several_workers")


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


async def _usage(usage: Usage, call: Call) -> web.Response:
    """What was used: by all, for those who see all; otherwise by the key that asks."""
    query = Query(call, "by", "window")
    by, window = query.some_of("by", *BY), query.one_of("window", *WINDOWS)
    return json_response(usage.report(by, window=window, key=None if sees_all(call) else call.tenant or NOBODY))
