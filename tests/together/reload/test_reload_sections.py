"""Sections of plugins are reloaded by their plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import GleitzeitError
from gleitzeit_core.reload import RESTART

from .changes import LAN, found, told

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_core.manager import ResourceManager

KEY = "a-long-enough-key"


async def test_a_section_is_reloaded_by_its_plugin(manager: ResourceManager, write: Callable[[str], None]) -> None:
    """It gets the new options, those that need a restart as they were; secrets are not shown."""
    got: list[Any] = []

    def swap(options: object) -> str:
        got.append(options)
        return "keys swapped"

    manager.on_reload("gateway", swap, fixed=["port"])
    write(LAN + f"gateway: {{port: 9000, grace_s: 3, keys: [{{name: me, key: {KEY}}}]}}\n")
    changes = await manager.reload()
    assert (found(changes, "gateway.grace_s").applied, found(changes, "gateway.grace_s").note) == (True, "keys swapped")
    assert (found(changes, "gateway.port").applied, found(changes, "gateway.port").note) == (False, RESTART)
    assert found(changes, "gateway.keys[0]").after["key"] == "***"
    assert KEY not in repr(changes)
    (options,) = got
    assert (options.port, options.grace_s) == (8484, 3.0)
    assert manager.config.sections["gateway"] == options
    # A secret that changes is a change, though nobody sees it.
    write(LAN + f"gateway: {{grace_s: 3, keys: [{{name: me, key: {KEY}-2}}]}}\n")
    (change,) = await manager.reload()
    assert (change.path, change.before, change.after, change.applied) == ("gateway.keys[0].key", "***", "***", True)
    assert len(got) == 2


async def test_a_section_nobody_reloads_needs_a_restart(manager: ResourceManager, write: Callable[[str], None]) -> None:
    """And stays as it was."""
    write(LAN + "gateway: {port: 9000}\n")
    assert told(await manager.reload()) == [("gateway.port", "changed", False, RESTART)]
    assert manager.config.sections["gateway"].model_dump()["port"] == 8484


@pytest.mark.parametrize(
    ("error", "note"), [(ValueError("no"), "failed: ValueError: no"), (GleitzeitError("not now"), "failed: not now")]
)
async def test_a_plugin_that_fails_keeps_what_it_had(
    manager: ResourceManager, write: Callable[[str], None], error: Exception, note: str
) -> None:
    """It is said, and all else is put in force."""

    def fail(options: object) -> str:
        del options
        raise error

    manager.on_reload("gateway", fail)
    write(LAN + "routes: [{methods: ['llm/*']}]\ngateway: {grace_s: 3}\n")
    changes = await manager.reload()
    assert told(changes) == [("routes[0]", "added", True, ""), ("gateway.grace_s", "changed", False, note)]
    assert manager.config.sections["gateway"].model_dump()["grace_s"] == 30.0
    assert len(manager.config.routes) == 2
