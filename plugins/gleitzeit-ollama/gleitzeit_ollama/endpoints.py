"""Ollama's calls that manage models, for a gateway: over all Ollama servers in its pool.

The gateway is no requirement of this distribution, so what is needed of it is imported where it is used: by then it
runs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from gleitzeit_core.errors import InstanceFailure, InvalidRequest, NoCapableInstance
from gleitzeit_llm.protocol import UNREADABLE
from gleitzeit_ollama.blobs import Uploads
from gleitzeit_ollama.downloads import SUCCESS, Job
from gleitzeit_ollama.fleet import Fleet, Member, is_digest
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.where import HEADER, Where

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

    from gleitzeit_gateway.answers import Reply
    from gleitzeit_gateway.call import Call
    from gleitzeit_gateway.endpoints import Endpoint
    from gleitzeit_ollama.fleet import Line

    Steps = AsyncGenerator[Line, None]

_NDJSON: Final = "application/x-ndjson"
# As recorded: a failure that Ollama could have told in a stream has no charset.
_BARE_JSON: Final = "application/json"
_IN_BAND: Final = 500
_RESTING: Final = ("draining", "drained")
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


def endpoints() -> list[Endpoint]:
    """See the module's text."""
    from gleitzeit_gateway.endpoints import Endpoint  # noqa: PLC0415 - see the module's text
    from gleitzeit_gateway.errors import plain_error, renderer  # noqa: PLC0415 - the same

    make, in_steps = partial(Endpoint, error=renderer("ollama")), partial(Endpoint, error=_bare_error)
    return [
        in_steps(method="POST", path="/api/pull", handler=_changing(_pull)),
        in_steps(method="POST", path="/api/push", handler=_changing(_push)),
        in_steps(method="POST", path="/api/create", handler=_changing(_create)),
        make(method="POST", path="/api/copy", handler=_changing(partial(_on_all, "source"))),
        make(method="DELETE", path="/api/delete", handler=_changing(partial(_on_all, "model"))),
        make(method="HEAD", path="/api/blobs/*", handler=_has_blob),
        make(method="POST", path="/api/blobs/*", handler=_changing(_upload)),
        Endpoint(method="POST", path="/admin/models/load", handler=_load, error=plain_error, admin=True),
        Endpoint(method="POST", path="/admin/models/unload", handler=_unload, error=plain_error, admin=True),
    ]


def _bare_error(error: Exception) -> web.Response:
    from gleitzeit_gateway.errors import renderer  # noqa: PLC0415 - see the module's text

    response = renderer("ollama")(error)
    if response.status == _IN_BAND:
        response.headers["Content-Type"] = _BARE_JSON
    return response


def _changing(handler: Callable[[Call], Awaitable[Reply]]) -> Callable[[Call], Awaitable[Any]]:
    """`handler`, for those only who may change the pool.

    Not ``Endpoint.admin``, which wants bodies to be called JSON: Ollama does not care, and curl calls them a form. A
    web page that sends one is known by its origin.
    """

    async def guarded(call: Call) -> Reply:
        from gleitzeit_gateway.access import is_this_machine  # noqa: PLC0415 - see the module's text

        if call.tenant and not call.admin:
            raise _refused(403, "this needs a key with 'admin: true'", "forbidden")
        if not (call.tenant or is_this_machine(call.request.remote)):
            raise _refused(403, "without keys, only this machine may do this", "forbidden")
        return await handler(call)

    return guarded


def _refused(status: int, text: str, code: str) -> Exception:
    from gleitzeit_gateway.errors import Refused  # noqa: PLC0415 - see the module's text

    return Refused(status, text, code)


def _json(data: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(data), content_type=_BARE_JSON)


# -- what was asked ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """A body that can be read: whether steps are wanted, and the rest of it."""

    model: str
    steps: bool
    fields: dict[str, Any] = field(default_factory=dict)


async def _asked(call: Call) -> tuple[_Asked | None, bytes]:
    """What a body says. None where none can be read from it: an Ollama says best what is wrong then."""
    body = await call.body()
    with contextlib.suppress(*UNREADABLE):
        read = _OBJECT.decode(body)
        model, stream = read.get("model") or read.get("name"), read.get("stream")
        if isinstance(model, str) and model.strip() and (stream is None or isinstance(stream, bool)):
            rest = {key: value for key, value in read.items() if key not in ("model", "name", "stream")}
            _use(call, body, model, rest.get("from"))
            return _Asked(model, stream is not False, rest), body
    return None, body


def _use(call: Call, body: bytes, model: str, other: object = None) -> None:
    """Note the model that a call is about.

    Args:
        call: The call.
        body: Its body.
        model: The model.
        other: Another one that it is made of, or made to; anything but a text is none.

    Raises:
        Refused: Its caller may not use one of them.
        InvalidRequest: See `Caller.check_body`.
    """
    call.model = model
    call.caller.check_body(body)
    for name in (model, other):
        if isinstance(name, str) and name:
            call.caller.check_model(name)


def _where(call: Call) -> Where:
    return Where.parse(call.request.headers.get(HEADER, ""))


def _fleet(call: Call) -> Fleet:
    hubs = [hub for hub in call.manager.dispatcher.shell.hubs.values() if isinstance(hub, OllamaHub)]
    if not hubs:
        text = f"{call.request.path} is not served here: no hub of type 'ollama' is in the pool"
        raise _refused(501, text, "not_implemented")
    resting = [report.instance.id for report in call.manager.instances() if report.state in _RESTING]
    return Fleet(hubs, resting)


def _note(call: Call, members: Sequence[Member]) -> None:
    """Say in the answer's headers whom it is from."""
    if members:
        call.headers["X-Gleitzeit-Instance"] = ",".join(member.id for member in members)


# -- what takes long, in steps -------------------------------------------------------------------------------------


async def _pull(call: Call) -> Reply:
    fleet, where = _fleet(call), _where(call)
    asked, body = await _asked(call)
    if asked is None:
        return await _refused_by_one(call, fleet, where, body)
    members = await fleet.targets(asked.model, where)
    _note(call, members)
    return await _told(call, fleet.pull(members, asked.model, insecure=asked.fields.get("insecure") is True), asked)


async def _push(call: Call) -> Reply:
    fleet, where = _fleet(call), _where(call)
    asked, body = await _asked(call)
    if asked is None:
        return await _refused_by_one(call, fleet, where, body)
    members = await fleet.pusher(asked.model, where)
    _note(call, members)
    return await _told(call, fleet.carry_out(members, Job("push", asked.model, asked.fields)), asked)


async def _create(call: Call) -> Reply:
    fleet, where = _fleet(call), _where(call)
    asked, body = await _asked(call)
    if asked is None:
        return await _refused_by_one(call, fleet, where, body)
    job = Job("create", asked.model, asked.fields)
    members = await fleet.creators(job, where)
    _note(call, members)
    return await _told(call, fleet.carry_out(members, job), asked)


async def _refused_by_one(call: Call, fleet: Fleet, where: Where, body: bytes) -> Reply:
    """Let an Ollama say what is wrong with a body.

    Raises:
        InstanceFailure: In its own words.
        InvalidRequest: It finds nothing wrong.
    """
    (member, *_) = fleet.named(where.named) if where.named else await fleet.answering()
    await member.hub.ask(member.instance, call.request.method, call.request.path, body)
    raise InvalidRequest("no model can be read from the request")


async def _told(call: Call, steps: Steps, asked: _Asked) -> Reply:
    """The answer to a call that takes long: as a stream of steps, or only the last of them."""
    async with contextlib.aclosing(steps):
        if not asked.steps:
            async for _ in steps:
                pass
            return _json({"status": SUCCESS})
        # Until the first step is there, everything can still become an ordinary error.
        first = await anext(steps)
        stream = await call.begin(_NDJSON)
        await stream.write(_line(first))
        await call.send(stream, _lines(call, steps), _in_band)
        return stream


async def _lines(call: Call, steps: Steps) -> AsyncIterator[bytes]:
    """A failure in a server's own words is the last line of a stream that ends as a server's own would."""
    try:
        async for step in steps:
            yield _line(step)
    except InstanceFailure as failure:
        if failure.body is None or failure.status is None:
            raise
        call.note_error(failure)
        yield _in_band(failure)


def _line(step: Line) -> bytes:
    return msgspec.json.encode(step) + b"\n"


def _in_band(error: Exception) -> bytes:
    from gleitzeit_gateway.errors import envelope  # noqa: PLC0415 - see the module's text

    return envelope(error, "ollama").strip() + b"\n"


# -- what is done at once ------------------------------------------------------------------------------------------


async def _on_all(key: str, call: Call) -> web.Response:
    """A copy or a deletion, wherever the model is."""
    fleet, where = _fleet(call), _where(call)
    body = await call.body()
    model, other = "", None
    with contextlib.suppress(*UNREADABLE):
        read = _OBJECT.decode(body)
        model, other = str(read.get(key) or read.get("name") or ""), read.get("destination")
    _use(call, body, model, other)
    did = await fleet.on_all(fleet.everywhere(where), call.request.method, call.request.path, body, model)
    _note(call, did)
    return web.Response(status=200)


async def _load(call: Call) -> web.Response:
    fleet, model, read = await _memory(call)
    members = await fleet.load(model, _where(call), read.get("keep_alive"))
    return _json({"model": model, "instances": [member.id for member in members]})


async def _unload(call: Call) -> web.Response:
    fleet, model, _ = await _memory(call)
    members = await fleet.unload(model, _where(call))
    return _json({"model": model, "instances": [member.id for member in members]})


async def _memory(call: Call) -> tuple[Fleet, str, dict[str, Any]]:
    body = await call.body()
    with contextlib.suppress(*UNREADABLE):
        read = _OBJECT.decode(body)
        model = read.get("model")
        if isinstance(model, str) and model.strip() and read.keys() <= {"model", "keep_alive"}:
            _use(call, body, model)
            return _fleet(call), model, read
    raise InvalidRequest("the body is {\"model\": NAME}, and may have a 'keep_alive'", param="model")


# -- blobs ---------------------------------------------------------------------------------------------------------


def _digest(call: Call) -> str:
    if not is_digest(call.rest):
        raise InvalidRequest("invalid digest format")
    return call.rest.replace("-", ":")


async def _blob_members(call: Call) -> list[Member]:
    """Those that a blob is for: named, or all that answer, because any may get the creation that follows."""
    fleet, where = _fleet(call), _where(call)
    return fleet.named(where.named) if where.named else await fleet.answering()


async def _has_blob(call: Call) -> web.Response:
    digest = _digest(call)
    members = await _blob_members(call)
    if len(await _fleet(call).having(members, [digest])) < len(members):
        raise NoCapableInstance(f'blob "{digest}" not found')
    return web.Response(status=200)


async def _upload(call: Call) -> web.Response:
    """To those that lack it, part by part as it comes. Named instances must all get it, of others at least one."""
    digest = _digest(call)
    members = await _blob_members(call)
    have = {member.id for member in await _fleet(call).having(members, [digest])}
    lack = [member for member in members if member.id not in have]
    if not lack:
        return web.Response(status=200)
    options = lack[0].hub.options
    plain = "Content-Encoding" not in call.request.headers
    uploads = Uploads(
        [member.instance for member in lack],
        digest,
        size_bytes=call.request.content_length if plain else None,
        stall_s=options.pull_stall_timeout_s,
        connect_timeout_s=options.connect_timeout_s,
    )
    async with uploads:
        async with contextlib.aclosing(call.parts()) as parts:
            async for part in parts:
                if not await uploads.send(part):
                    break
        got = await uploads.finish(every=bool(_where(call).named))
    _note(call, [member for member in lack if member.id in {instance.id for instance in got}])
    return web.Response(status=201)
