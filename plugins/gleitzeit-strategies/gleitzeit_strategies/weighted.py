"""Each in turn, as often as its weight says."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from gleitzeit_core.strategies.base import Candidate, NoOptions, Strategy, View
from gleitzeit_strategies.drawing import FEW

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Request

# Busy ones that lose their turn before the pool is asked which are free.
_SKIPS: Final = 16


class Weighted(Strategy[NoOptions]):
    """Smooth weighted round robin, in a time that grows with the logarithm of the number of instances.

    Each instance has its turns at (k - 1/2) / weight on a line of its own, and the earliest turn of all is next: stride
    scheduling (Waldspurger 1995) with the phases of Sainte-Laguë's method. Within each cycle of turns as many as all
    weights together, every instance has exactly its weight's number, spread as evenly as can be, as with nginx's smooth
    weighted round robin, which looks at all instances for each pick.

    A busy instance loses its turn, so that it is not flooded when it is free again. One that was away comes back where
    it was on the line, but never before now.
    """

    name = "weighted"

    def __init__(self, options: NoOptions, *, random: Random, clock: Clock) -> None:
        super().__init__(options, random=random, clock=clock)
        self._now = 0.0
        # When each has its next turn, also of those that are away for now; and the same as a heap, where an entry that
        # does not agree is out of date.
        self._turns: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._seen: Sequence[Candidate] = ()
        self._here: dict[str, Candidate] = {}

    def pick(self, request: Request, view: View) -> Candidate:  # noqa: ARG002 - every request is the same to it
        """The free one whose turn is next."""
        if view.candidates is not self._seen:
            self._meet(view)
        for _ in range(_SKIPS):
            turn, candidate = self._next()
            self._take_turn(candidate, turn)
            if candidate.room > 0:
                self._now = turn
                return candidate
        return self._any_free(view)

    def _next(self) -> tuple[float, Candidate]:
        while True:
            turn, name = heapq.heappop(self._heap)
            candidate = self._here.get(name)
            if candidate is not None and self._turns[name] == turn:
                return turn, candidate

    def _take_turn(self, candidate: Candidate, turn: float) -> None:
        name, weight = candidate.instance.id, candidate.instance.weight
        self._turns[name] = following = turn + 1.0 / weight
        heapq.heappush(self._heap, (following, name))

    def _any_free(self, view: View) -> Candidate:
        """With most of them busy: among few the one whose turn is next, among many the least loaded."""
        if len(view.candidates) <= FEW:
            chosen = min(view.free, key=lambda candidate: self._turns[candidate.instance.id])
        else:
            chosen = view.least_loaded(self.random)
        self._take_turn(chosen, max(self._turns[chosen.instance.id], self._now))
        if len(self._heap) > 2 * len(self._here) + FEW:
            self._rebuild()
        return chosen

    def _meet(self, view: View) -> None:
        """Others are there than before."""
        self._seen = view.candidates
        self._here = {candidate.instance.id: candidate for candidate in view.candidates}
        for name, candidate in self._here.items():
            first = self._now + 0.5 / candidate.instance.weight
            self._turns[name] = max(self._turns.get(name, first), self._now)
        if len(self._turns) > 2 * len(self._here) + FEW:
            self._turns = {name: turn for name, turn in self._turns.items() if name in self._here}
        self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [(self._turns[name], name) for name in self._here]
        heapq.heapify(self._heap)
