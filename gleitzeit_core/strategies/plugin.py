"""The core's own plugin: its strategies and its store come through the same door as anyone's."""

from __future__ import annotations

from gleitzeit_core.hookspecs import StoreType, StrategyType, hookimpl

_NO_OPTIONS = "gleitzeit_core.strategies.base:NoOptions"


@hookimpl
def gleitzeit_register_strategies() -> list[StrategyType]:
    """Round robin, random and least loaded."""
    return [
        StrategyType(
            name="least_loaded",
            target="gleitzeit_core.strategies.simple:LeastLoaded",
            options=_NO_OPTIONS,
            summary="the instance with the least work in flight for its weight; ties at random (the default)",
            page="Use it when in doubt. It needs no tuning: an instance that is slow holds its requests longer and so "
            "gets fewer new ones, and weights tell it about machines of different size.",
        ),
        StrategyType(
            name="round_robin",
            target="gleitzeit_core.strategies.simple:RoundRobin",
            options=_NO_OPTIONS,
            summary="each free instance in turn",
            page="Use it for equal instances and requests of equal cost, or when you want to see every instance used. "
            "It ignores weights and load, so one slow instance slows its share of all requests.",
        ),
        StrategyType(
            name="random",
            target="gleitzeit_core.strategies.simple:RandomChoice",
            options=_NO_OPTIONS,
            summary="any free instance, with equal chances",
            page="Use it as a yardstick for the others, or when many gateways without shared state must not march in "
            "step. It ignores weights and load.",
        ),
    ]


@hookimpl
def gleitzeit_register_stores() -> list[StoreType]:
    """Memory."""
    return [
        StoreType(
            name="memory",
            target="gleitzeit_core.persistence:MemoryStore",
            options=_NO_OPTIONS,
            summary="in this process only, gone when it ends (the default)",
        )
    ]
