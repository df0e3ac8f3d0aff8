"""What the client APIs list: the version, the models there are, and those in memory."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from gleitzeit_core.errors import NoCapableInstance
from gleitzeit_gateway.endpoints import json_response
from gleitzeit_llm import models
from gleitzeit_llm.dialects import DIALECTS
from gleitzeit_llm.listings import LOADED, MODELS, STALE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_gateway.call import Call

# What clients are told where no Ollama is in the pool: the version whose API the gateway follows.
OLLAMA_VERSION: Final = "0.24.0"
STALE_HEADER: Final = "X-Gleitzeit-Stale"
"""On a list of models: the instances that did not answer, of which it has what was last seen."""


async def root(call: Call) -> web.Response:
    """What Ollama says there, and clients look for."""
    del call
    return web.Response(text="Ollama is running", content_type="text/plain", charset="utf-8")


async def version(call: Call) -> web.Response:
    """The lowest version in the pool, because any instance may get the next request."""
    found = [_version_of(report.instance) for report in call.manager.instances()]
    return _ollama_json({"version": min(filter(None, found), key=_version_key, default=OLLAMA_VERSION)})


def _version_of(instance: ResourceInstance) -> str:
    """Of an Ollama; empty for other servers, whose versions mean something else."""
    speaks = any(api == "ollama" for api, _ in instance.offers)
    return str(instance.details.get("version") or "") if speaks else ""


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in text.split("-", maxsplit=1)[0].split("."))


async def tags(call: Call) -> web.Response:
    """The models there are, as Ollama lists them."""
    return _ollama_json({"models": await _list(call, MODELS)})


async def loaded(call: Call) -> web.Response:
    """The models in memory, as Ollama lists them."""
    return _ollama_json({"models": await _list(call, LOADED)})


async def listed_models(call: Call) -> web.Response:
    """The models there are, as OpenAI lists them."""
    found = await _list(call, MODELS)
    return json_response({"object": "list", "data": [_openai_model(entry["name"], entry) for entry in found]})


async def listed_model(call: Call) -> web.Response:
    """One of them.

    Raises:
        NoCapableInstance: There is none of that name.
    """
    found = await _list(call, MODELS)
    for entry in found:
        if models.canonical(entry["name"]) == models.canonical(call.rest):
            return json_response(_openai_model(call.rest, entry))
    raise NoCapableInstance(f"model '{call.rest}' not found")


async def _list(call: Call, method: str) -> Sequence[Mapping[str, Any]]:
    """The models that `method` lists, but for those that the caller may not use.

    Raises:
        Refused: It may not call the method.
    """
    call.caller.check(call.manager.provider(method).method(method))
    listed = await call.manager.execute(method)
    if listed.get(STALE):
        call.headers[STALE_HEADER] = ",".join(listed[STALE])
    return call.caller.shown(listed["models"])


def _openai_model(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    created = 0
    with contextlib.suppress(ValueError, KeyError, OverflowError):
        created = max(0, int(datetime.fromisoformat(entry["modified_at"]).timestamp()))
    model = {"id": name, "object": "model", "created": created or int(time.time()), "owned_by": "library"}
    more = {"parent": entry.get("alias_of"), STALE: entry.get(STALE)}
    return {**model, **{name: value for name, value in more.items() if value}}


def _ollama_json(data: Any) -> web.Response:  # noqa: ANN401 - anything JSON
    response = json_response(data)
    response.headers["Content-Type"] = DIALECTS["ollama"].client.plain_type
    return response
