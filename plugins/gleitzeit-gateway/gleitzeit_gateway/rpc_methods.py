"""``GET /rpc/methods``: what can be called with JSON-RPC, and with which parameters."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_gateway.endpoints import json_response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web
    from pydantic import BaseModel

    from gleitzeit_core.requests import Method
    from gleitzeit_gateway.call import Call

logger = logging.getLogger(__name__)

_ANYTHING: Final[dict[str, Any]] = {"type": "object"}


async def rpc_methods(call: Call) -> web.Response:
    """Every method, with the JSON schema of its parameters, and whether the caller may call it."""
    every = [method for provider in call.manager.providers.values() for method in provider.methods]
    return json_response({"methods": [{**_described(one), "allowed": call.caller.may_call(one)} for one in every]})


def _described(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "streams": method.streams,
        "replayable": method.replayable,
        "restricted": method.restricted,
        "params": params_schema(method),
    }


def params_schema(method: Method) -> Mapping[str, Any]:
    """The JSON schema of a method's parameters."""
    return method.schema or (_ANYTHING if method.params is None else _schema(method.params))


@lru_cache(maxsize=256)
def _schema(params: type[BaseModel]) -> dict[str, Any]:
    """The schema of `params`; any object, where pydantic has none for it."""
    try:
        return params.model_json_schema()
    except Exception:
        logger.exception("%s has no JSON schema", params.__qualname__)
        return _ANYTHING
