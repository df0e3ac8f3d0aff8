"""A plugin with a hub type that another has, and a strategy of its own."""

from __future__ import annotations

from gleitzeit_core.hookspecs import HubType, StrategyType, hookimpl

_NO_OPTIONS = "gleitzeit_core.strategies:NoOptions"


@hookimpl
def gleitzeit_register_hubs() -> list[HubType]:
    """A name that is taken."""
    return [HubType(name="lamp", target="gz_two:Hub", options=_NO_OPTIONS, summary="Other lamps.")]


@hookimpl
def gleitzeit_register_strategies() -> list[StrategyType]:
    """A name that is free."""
    return [StrategyType(name="darkest", target="gz_two:Darkest", options=_NO_OPTIONS, summary="The darkest.")]
