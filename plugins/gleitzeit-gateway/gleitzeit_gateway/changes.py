"""What changes the pool by hand: instances come, are drained and resumed, and go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_gateway.endpoints import json_response
from gleitzeit_gateway.errors import Refused
from gleitzeit_gateway.queries import Query
from gleitzeit_llm.protocol import UNREADABLE

if TYPE_CHECKING:
    from aiohttp import web

    from gleitzeit_gateway.call import Call

_GRACE_S: Final = 30.0
_SETTINGS: Final = msgspec.json.Decoder(dict[str, Any])


async def add_instance(call: Call) -> web.Response:
    """One more, from its settings; ``hub`` among them names the hub that gets it. Checked when this answers.

    Raises:
        InvalidRequest: The settings are wrong, or there is no hub for them.
    """
    Query(call)
    settings = await _settings(call)
    hub = settings.pop("hub", None) or ""
    if not isinstance(hub, str):
        raise InvalidRequest("'hub' must be a name", param="hub")
    instance = await call.manager.add_instance(settings, hub)
    call.headers["Location"] = f"/admin/instances/{quote(instance.id, safe='')}"
    return json_response(call.manager.instance(instance.id), status=201)


async def change_instance(call: Call) -> web.Response:
    """``ID/drain``: it finishes what it has and gets nothing new. ``ID/resume``: it serves again.

    Raises:
        Refused: It is neither.
    """
    Query(call)
    name, _, action = call.rest.rpartition("/")
    if action == "drain":
        call.manager.drain_instance(name)
    elif action == "resume":
        await call.manager.resume_instance(name)
    else:
        raise Refused(404, "an instance can be asked to 'drain' or to 'resume'", "not_found")
    return json_response(call.manager.instance(name))


async def remove_instance(call: Call) -> web.Response:
    """Let it finish what it has, for ``?grace_s=`` seconds at most, and forget it."""
    grace_s = Query(call, "grace_s").seconds("grace_s", _GRACE_S)
    await call.manager.remove_instance(call.rest, grace_s=grace_s)
    return json_response({"removed": call.rest})


async def _settings(call: Call) -> dict[str, Any]:
    try:
        return _SETTINGS.decode(await call.body())
    except UNREADABLE as error:
        raise InvalidRequest(f"the body must be a JSON object: {error}") from None
