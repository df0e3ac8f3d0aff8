"""The configuration that is reloaded in tests, and what is told of its changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gleitzeit_core.reload import Change, Changes

LAN = "hubs: {lan: {type: ollama, instances: ['SERVER']}}\n"
QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}


def told(changes: Changes) -> list[tuple[str, str, bool, str]]:
    """The changes without their values."""
    return [(change.path, change.what, change.applied, change.note) for change in changes]


def found(changes: Changes, path: str) -> Change:
    """The one change there."""
    (change,) = [change for change in changes if change.path == path]
    return change
