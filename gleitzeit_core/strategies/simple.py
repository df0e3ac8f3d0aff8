"""Strategies that need no options."""

from __future__ import annotations

from bisect import bisect_right
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
        candidates = view.candidates
        begin = bisect_right(candidates, self._last, key=lambda c: c.instance.id)
        turns = (candidates[i % len(candidates)] for i in range(begin, begin + len(candidates)))
        chosen = next(candidate for candidate in turns if candidate.room > 0)
        self._last = chosen.instance.id
        return chosen


class RandomChoice(Strategy[NoOptions]):
    """Any free instance, with equal chances."""

    name = "random"

    def pick(self, request: Request, view: View) -> Candidate:  # noqa: ARG002 - every request is the same to it
        """Uniform over the free ones: a few tries find one, unless nearly all are busy."""
        for _ in range(4):
            candidate = self.random.choice(view.candidates)
            if candidate.room > 0:
                return candidate
        return self.random.choice(view.free)


class LeastLoaded(Strategy[NoOptions]):
    """The free instance with the least work in flight for its weight; ties at random."""

    name = "least_loaded"
    joins_loads = True

    def pick(self, request: Request, view: View) -> Candidate:  # noqa: ARG002 - every request is the same to it
        """The least of ``load``; among equals each has the same chance, or the first would get all light traffic."""
        return view.least_loaded(self.random)
