"""A plugin that comes before the core in the alphabet and wants the core's names."""

from __future__ import annotations

from gleitzeit_core.hookspecs import SectionType, StrategyType, hookimpl

_NO_OPTIONS = "gleitzeit_core.strategies:NoOptions"


@hookimpl
def gleitzeit_register_strategies() -> list[StrategyType]:
    """The core's."""
    return [StrategyType(name="least_loaded", target="a_gz:Greedy", options=_NO_OPTIONS, summary="")]


@hookimpl
def gleitzeit_register_sections() -> list[SectionType]:
    """The core's."""
    return [SectionType(name="hubs", options=_NO_OPTIONS, summary="")]
