"""A plugin with a hook that nobody calls."""

from __future__ import annotations

from gleitzeit_core.hookspecs import hookimpl


@hookimpl
def gleitzeit_register_hub() -> list[object]:
    """One letter is missing."""
    return []
