"""Strategies that measure how fast instances are: `ewma` and `adaptive`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from pydantic import BaseModel

from gleitzeit_core.strategies.base import Candidate, Strategy, View
from gleitzeit_strategies.drawing import draw
from gleitzeit_strategies.learned import Speeds
from gleitzeit_strategies.options import AdaptiveOptions, EwmaOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome, Request


class _Measured(Protocol):
    time_constant_s: float
    choices: int


OptionsT = TypeVar("OptionsT", bound=BaseModel)


class _BySpeed(Strategy[OptionsT]):
    """What both have in common: measuring, and choosing the best of a few free ones."""

    def __init__(self, options: OptionsT, *, random: Random, clock: Clock) -> None:
        super().__init__(options, random=random, clock=clock)
        self.speeds = Speeds(self._measured.time_constant_s, clock.monotonic())
        self._seen: Sequence[Candidate] = ()

    @property
    def _measured(self) -> _Measured:
        return self.options  # type: ignore[return-value] # the options of both have these

    def reconfigure(self, options: OptionsT) -> None:
        """Go on with other options, and keep what was measured."""
        super().reconfigure(options)
        self.speeds.time_constant_s = self._measured.time_constant_s

    def pick(self, request: Request, view: View) -> Candidate:  # noqa: ARG002 - every request is the same to it
        """The one of those drawn with the least estimated time; ties at random."""
        if view.candidates is not self._seen:
            self._tidy(view)
        drawn = draw(view, self.random, self._measured.choices)
        if len(drawn) == 1:
            return drawn[0]
        now = self.clock.monotonic()
        return min(drawn, key=lambda candidate: self.expected_s(candidate, now))

    def expected_s(self, candidate: Candidate, now: float) -> float:
        """How long a unit of work would take there, with one more in flight than now."""
        return self.speeds.pace_s(candidate.instance.id, now) * self._after(candidate)

    @staticmethod
    def _after(candidate: Candidate) -> float:
        # One that is degraded counts for more than what is in flight on it.
        factor = candidate.load * candidate.instance.weight / candidate.in_flight if candidate.in_flight else 1.0
        return (candidate.in_flight + 1) * max(factor, 1.0)

    def started(self, request: Request, candidate: Candidate) -> None:
        """A try began."""
        self.speeds.started(request, candidate.instance.id, self.clock.monotonic())

    def finished(self, request: Request, candidate: Candidate, outcome: Outcome) -> None:
        """Learn from it."""
        self.speeds.finished(request, candidate.instance.id, outcome, self.clock.monotonic())

    def _tidy(self, view: View) -> None:
        self._seen = view.candidates
        if len(self.speeds) > 2 * len(view.candidates) + 64:
            self.speeds.forget_all_but({candidate.instance.id for candidate in view.candidates})


class Ewma(_BySpeed[EwmaOptions]):
    """The lower of two by time per token and work in flight, after Finagle's "peak EWMA" with two choices.

    Unlike there, it is time per token and not per request that is measured, because answers differ in length a thousand
    times more than instances in speed. The age of the oldest request that has not ended, spread over the tokens of a
    usual answer, is the least that an instance is taken to need: one that hangs is avoided before anything ends.
    """

    name = "ewma"

    def expected_s(self, candidate: Candidate, now: float) -> float:
        """How long a token would take there, with one more in flight than now."""
        name = candidate.instance.id
        floor_s = self.speeds.oldest_s(name, now) / self.speeds.units(now)
        return max(self.speeds.pace_s(name, now), floor_s) * self._after(candidate)


class Adaptive(_BySpeed[AdaptiveOptions]):
    """The least work in flight for its measured speed: least loaded, with weights that are learned."""

    name = "adaptive"
