"""Requests with the same key go to the same instance, unless it has more than its share."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Final

from gleitzeit_core.strategies.base import Candidate, Strategy, View
from gleitzeit_strategies.keys import key_of
from gleitzeit_strategies.options import ConsistentHashOptions
from gleitzeit_strategies.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome, Request

_LOOKED_AT: Final = 64
_KEYS_KEPT: Final = 1024


class ConsistentHash(Strategy[ConsistentHashOptions]):
    """Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2018).

    No instance works on more than `bound` times its share, by weight, of what this strategy has in flight; further
    requests with its keys go to the next instance in each key's own order. A request without a key goes to the least
    loaded.
    """

    name = "consistent_hash"

    def __init__(self, options: ConsistentHashOptions, *, random: Random, clock: Clock) -> None:
        super().__init__(options, random=random, clock=clock)
        self.ring = Ring()
        self._seen: Sequence[Candidate] = ()
        self._here: dict[str, Candidate] = {}
        self._weight = 0.0
        self._in_flight: dict[str, int] = {}
        self._total = 0
        # Of requests that wait: they are asked about again and again.
        self._keys: OrderedDict[str, str] = OrderedDict()

    def reconfigure(self, options: ConsistentHashOptions) -> None:
        """Go on with other options; the ring stays."""
        super().reconfigure(options)
        self._keys.clear()

    def pick(self, request: Request, view: View) -> Candidate:
        """The first in the key's order that is free and has not more than its share."""
        if view.candidates is not self._seen:
            self._meet(view)
        key = self._key(request)
        if not key:
            return view.least_loaded(self.random)
        fallback: Candidate | None = None
        for name in islice(self.ring.preference(key), _LOOKED_AT):
            candidate = self._here[name]
            if candidate.room > 0:
                if self._in_flight.get(name, 0) < self._limit(candidate):
                    return candidate
                fallback = fallback or candidate
        # All that it looked at are full or over their share: others keep those busy that are not.
        return fallback or view.least_loaded(self.random)

    def started(self, request: Request, candidate: Candidate) -> None:
        """One more there."""
        self._keys.pop(request.id, None)
        name = candidate.instance.id
        self._in_flight[name] = self._in_flight.get(name, 0) + 1
        self._total += 1

    def finished(self, request: Request, candidate: Candidate, outcome: Outcome) -> None:  # noqa: ARG002 - any end
        """One fewer there."""
        name = candidate.instance.id
        left = self._in_flight.get(name, 0) - 1
        if left < 0:
            return
        self._total -= 1
        if left:
            self._in_flight[name] = left
        else:
            del self._in_flight[name]

    def _limit(self, candidate: Candidate) -> int:
        """What it may have at most, with one more in flight than now."""
        share = candidate.instance.weight / self._weight
        return ceil(self.options.bound * share * (self._total + 1))

    def _key(self, request: Request) -> str:
        key = self._keys.get(request.id)
        if key is None:
            key = self._keys[request.id] = key_of(request, self.options.key, self.options.prompt_chars)
            if len(self._keys) > _KEYS_KEPT:
                self._keys.popitem(last=False)
        return key

    def _meet(self, view: View) -> None:
        """Others are there than before."""
        self._seen = view.candidates
        self._here = {candidate.instance.id: candidate for candidate in view.candidates}
        weights = {name: candidate.instance.weight for name, candidate in self._here.items()}
        self._weight = sum(weights.values())
        self.ring.update(weights)
