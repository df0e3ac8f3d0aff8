"""A plugin with a hook spec of its own."""

from __future__ import annotations

from gleitzeit_core.hookspecs import hookimpl, hookspec


class Specs:
    """The hooks."""

    @hookspec
    def gleitzeit_pots(self, litres: int, colour: str) -> str:  # type: ignore[empty-body]
        """A pot of this size and colour."""


@hookimpl
def gleitzeit_register_hookspecs() -> list[str]:
    """Where the hooks are."""
    return ["gz_specs:Specs"]
