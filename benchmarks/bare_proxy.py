"""The least a proxy in Python can do, to measure the gateway against: ``bare_proxy.py PORT URL...``."""

import itertools
import sys

import aiohttp
import uvloop
from aiohttp import web

servers = itertools.cycle(sys.argv[2:])


async def handle(request: web.BaseRequest) -> web.StreamResponse:
    """Ask the next server, and pass on what it says."""
    session, body = request.app["session"], await request.read()
    async with session.request(request.method, next(servers) + request.path_qs, data=body) as answer:
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]})
        await response.prepare(request)
        async for data in answer.content.iter_any():
            await response.write(data)
        return response


async def app() -> web.Application:
    """The proxy."""
    made = web.Application()
    made["session"] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    made.router.add_route("*", "/{path:.*}", handle)
    return made


uvloop.install()
web.run_app(app(), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
