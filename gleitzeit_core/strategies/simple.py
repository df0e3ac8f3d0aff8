"""Strategies that need no options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.strategies.base import Candidate, NoOptions, Strategy, View

if TYPE_CHECKING:
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Request


class RoundRobin(Strategy[NoOptions]):
    """Each free instance in turn.

    The turn is kept as the id that went last, not as a position, so that it stays fair while instances come and go.
    """

    name = "round_robin"

    def __init__(self, options: NoOptions, *, random: Random, clock: Clock) -> None:
        super().__init__(options, random=random, clock=clock)
        self._last = ""

    def pick(self, request: Request, view: View) -> Candidate:  # noqa: ARG002 - every request is the same to it
        """The free one whose id follows the last; the first again after the end."""
        following = [c for c in view.free if c.instance.id > self._last] or view.free
        chosen = min(following, key=lambda c: c.instance.id)
        self._last = chosen.instance.id
        return chosen


class RandomChoice(Strategy[NoOptions]):
    """Any free instance, with equal chances."""

    name = "random"

    def pick(self, request: Request, view: View) -> Candidate:  # noqa: ARG002 - every request is the same to it
        """Uniform over the free ones."""
        return view.free[self.random.randrange(len(view.free))]


class LeastLoaded(Strategy[NoOptions]):
    """The free instance with the least work in flight for its weight; ties at random."""

    name = "least_loaded"

    def pick(self, request: Request, view: View) -> Candidate:  # noqa: ARG002 - every request is the same to it
        """The least of ``load``; among equals each has the same chance, or the first would get all light traffic."""
        loads = [candidate.load for candidate in view.free]
        least = min(loads)
        best = [candidate for candidate, load in zip(view.free, loads, strict=True) if load == least]
        return best[0] if len(best) == 1 else best[self.random.randrange(len(best))]
