"""The configuration, read again while the gateway runs: by ``POST /admin/reload`` and on SIGHUP."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from gleitzeit_core.errors import GleitzeitError
from gleitzeit_gateway.endpoints import json_response
from gleitzeit_gateway.queries import Query

if TYPE_CHECKING:
    import asyncio

    from aiohttp import web

    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.reload import Change, Changes
    from gleitzeit_gateway.call import Call
    from gleitzeit_gateway.workers import Worker

logger = logging.getLogger("gleitzeit.reload")

_SHOWN_CHARACTERS: Final = 200


async def reload_on_request(worker: Worker | None, call: Call) -> web.Response:
    """Reload, and answer what changed; with ``?dry_run=1`` only what would. Other workers reload as well.

    Raises:
        ConfigurationError: The configuration is wrong; nothing has changed.
    """
    dry_run = Query(call, "dry_run").flag("dry_run")
    if dry_run:
        changes = await call.manager.reload(dry_run=True)
    else:
        changes = await reload(call.manager)
        if worker is not None:
            worker.reload_all()
    return json_response({"dry_run": dry_run, "changes": [asdict(change) for change in changes]})


async def reload_on_signal(manager: ResourceManager, signals: asyncio.Event) -> None:
    """Reload each time that `signals` is set, until cancelled. A configuration that is wrong is logged, no more."""
    while True:
        await signals.wait()
        signals.clear()
        try:
            await reload(manager)
        except GleitzeitError:
            logger.info("the gateway goes on as it was")  # What is wrong is logged already.
        except Exception:
            logger.exception("the configuration could not be reloaded; the gateway goes on")


async def reload(manager: ResourceManager) -> Changes:
    """Reload, and log what changed, a line for each; or what is wrong.

    Raises:
        ConfigurationError: The configuration is wrong; nothing has changed.
    """
    try:
        changes = await manager.reload()
    except GleitzeitError as error:
        logger.warning("nothing was reloaded: %s", error.message)
        raise
    for change in changes:
        logger.info("reload: %s", _line(change))
    if not changes:
        logger.info("reload: nothing has changed")
    return changes


def _line(change: Change) -> str:
    """One change, for the log: what, where, from what to what, and whether it is in force."""
    values = {"added": [change.after], "removed": [change.before]}.get(change.what, [change.before, change.after])
    text = f"{change.what} {change.path}: {' -> '.join(map(_short, values))}"
    note = change.note or ("" if change.applied else "not applied")
    return f"{text} ({note})" if note else text


def _short(value: object) -> str:
    """A value on one line, and not endless: a hub may have thousands of instances."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
