"""All strategies of this plugin pass what everybody's must."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gleitzeit_core.strategies.base import NoOptions, Strategy
from gleitzeit_core.testing.conformance import StrategyConformance
from gleitzeit_strategies import options
from gleitzeit_strategies.consistent_hash import ConsistentHash
from gleitzeit_strategies.model_affinity import ModelAffinity
from gleitzeit_strategies.power_of_two import PowerOfTwo
from gleitzeit_strategies.speed import Adaptive, Ewma
from gleitzeit_strategies.tiers import Locality, Priority, Tagged
from gleitzeit_strategies.weighted import Weighted

if TYPE_CHECKING:
    from random import Random

    from gleitzeit_core.clock import Clock


class TestWeighted(StrategyConformance):
    """By weight."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """As configured without options."""
        return Weighted(NoOptions(), random=random, clock=clock)


class TestPowerOfTwo(StrategyConformance):
    """Two at random."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """As configured without options."""
        return PowerOfTwo(options.PowerOfTwoOptions(), random=random, clock=clock)


class TestEwma(StrategyConformance):
    """By time per token."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """As configured without options."""
        return Ewma(options.EwmaOptions(), random=random, clock=clock)


class TestAdaptive(StrategyConformance):
    """By speed."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """As configured without options."""
        return Adaptive(options.AdaptiveOptions(), random=random, clock=clock)


class TestConsistentHash(StrategyConformance):
    """By key, of which the requests here have none."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """As configured without options."""
        return ConsistentHash(options.ConsistentHashOptions(), random=random, clock=clock)


class TestModelAffinity(StrategyConformance):
    """By model, of which the requests here have none: it never waits then."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """As configured without options."""
        return ModelAffinity(options.ModelAffinityOptions(), random=random, clock=clock)


class TestPriority(StrategyConformance):
    """By tier; the instances here belong to none."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """With one tier."""
        return Priority(options.PriorityOptions(tiers=[["local"]]), random=random, clock=clock)


class TestLocality(StrategyConformance):
    """By nearness; the instances here are all far away."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """With one zone."""
        return Locality(options.LocalityOptions(tags=["zone-a"]), random=random, clock=clock)


class TestTagged(StrategyConformance):
    """By tag; the instances here lack the forbidden one."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """With a tag to avoid."""
        return Tagged(options.TaggedOptions(none=["spot"]), random=random, clock=clock)
