"""A plugin that implements another plugin's hook, and is loaded before it."""

from __future__ import annotations

from gleitzeit_core.hookspecs import hookimpl


@hookimpl
def gleitzeit_pots(litres: int) -> str:
    """Takes only the argument it needs."""
    return f"a pot of {litres} l"
