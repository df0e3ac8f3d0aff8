"""What this distribution adds: eight strategies and two filters."""

from __future__ import annotations

from gleitzeit_core.hookspecs import StrategyType, hookimpl
from gleitzeit_strategies.pages import PAGES

_OPTIONS = "gleitzeit_strategies.options"


@hookimpl
def gleitzeit_register_strategies() -> list[StrategyType]:
    """All of them."""
    return [
        StrategyType(
            name="weighted",
            target="gleitzeit_strategies.weighted:Weighted",
            options="gleitzeit_core.strategies.base:NoOptions",
            summary="each free instance in turn, as often as its weight says, evenly spread",
            page=PAGES["weighted"],
        ),
        StrategyType(
            name="power_of_two",
            target="gleitzeit_strategies.power_of_two:PowerOfTwo",
            options=f"{_OPTIONS}:PowerOfTwoOptions",
            summary="the less loaded of two free instances drawn at random",
            page=PAGES["power_of_two"],
        ),
        StrategyType(
            name="ewma",
            target="gleitzeit_strategies.speed:Ewma",
            options=f"{_OPTIONS}:EwmaOptions",
            summary="the better of two by measured time per token and work in flight",
            page=PAGES["ewma"],
        ),
        StrategyType(
            name="adaptive",
            target="gleitzeit_strategies.speed:Adaptive",
            options=f"{_OPTIONS}:AdaptiveOptions",
            summary="the least work in flight for its measured speed; needs no weights",
            page=PAGES["adaptive"],
        ),
        StrategyType(
            name="consistent_hash",
            target="gleitzeit_strategies.consistent_hash:ConsistentHash",
            options=f"{_OPTIONS}:ConsistentHashOptions",
            summary="the same instance for the same user, session or prompt, within bounds of load",
            page=PAGES["consistent_hash"],
        ),
        StrategyType(
            name="model_affinity",
            target="gleitzeit_strategies.model_affinity:ModelAffinity",
            options=f"{_OPTIONS}:ModelAffinityOptions",
            summary="where an answer is expected first, the loading of models counted in",
            page=PAGES["model_affinity"],
        ),
        StrategyType(
            name="priority",
            target="gleitzeit_strategies.tiers:Priority",
            options=f"{_OPTIONS}:PriorityOptions",
            summary="tiers of tags, the next only when the first is down or full",
            page=PAGES["priority"],
            filters=True,
        ),
        StrategyType(
            name="locality",
            target="gleitzeit_strategies.tiers:Locality",
            options=f"{_OPTIONS}:LocalityOptions",
            summary="near instances first: a filter for the head of a chain",
            page=PAGES["locality"],
            filters=True,
        ),
        StrategyType(
            name="tagged",
            target="gleitzeit_strategies.tiers:Tagged",
            options=f"{_OPTIONS}:TaggedOptions",
            summary="only instances with the right tags: a filter for the head of a chain",
            page=PAGES["tagged"],
            filters=True,
        ),
    ]
