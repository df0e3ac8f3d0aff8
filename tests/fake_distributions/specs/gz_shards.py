"""A plugin that fails when its hook is called."""

from __future__ import annotations

from gleitzeit_core.hookspecs import hookimpl


@hookimpl
def gleitzeit_pots(litres: int) -> str:
    """Drops it."""
    raise RuntimeError(f"dropped {litres} l")
