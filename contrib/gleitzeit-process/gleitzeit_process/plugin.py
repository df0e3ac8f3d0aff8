"""What this distribution adds to Gleitzeit: the hub type `process`."""

from __future__ import annotations

from gleitzeit_core.hookspecs import HubType, hookimpl


@hookimpl
def gleitzeit_register_hubs() -> list[HubType]:
    """Runners as child processes; used unasked, since none is started before code is to be run."""
    return [
        HubType(
            name="process",
            target="gleitzeit_process.hub:ProcessHub",
            options="gleitzeit_process.options:ProcessOptions",
            summary="Python in child processes, for code you trust: no sandbox",
            auto_rank=95,
        )
    ]
