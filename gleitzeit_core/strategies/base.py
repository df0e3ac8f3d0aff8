"""What a strategy is.

A strategy chooses an instance for a request. It is synchronous, does no I/O, and takes time and randomness from
outside, so that the same code runs in production, in property tests and in a simulator. It sees a `View`: the
instances that could serve the request, busy ones included. How a try ended comes back once, through `finished`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome, Request
    from gleitzeit_core.resources import ResourceInstance


class NoOptions(BaseModel):
    """For a strategy, hub or provider without options: any key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Candidate(Protocol):
    """An instance as a strategy sees it. The numbers are live."""

    @property
    def instance(self) -> ResourceInstance:
        """The instance."""

    @property
    def in_flight(self) -> int:
        """Requests it works on for this process."""

    @property
    def load(self) -> float:
        """Requests in flight divided by weight."""

    @property
    def room(self) -> int:
        """Requests it could take now; 0 or less when it is busy."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A strategy's answer when nothing free is better than waiting.

    Args:
        again_s: Ask again after so many seconds, even if nothing has happened by then; None: only when something has.
    """

    again_s: float | None = None


WAIT: Final = Wait()


class View:
    """What a strategy chooses from. At least one candidate has room when `Strategy.pick` is asked.

    Args:
        candidates: All that could serve the request, busy ones included, in order of id. Replaced, never changed.
    """

    __slots__ = ("candidates",)

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates

    @property
    def free(self) -> Sequence[Candidate]:
        """Those of `candidates` with room now, in the same order. Found anew each time: costly for many."""
        return [candidate for candidate in self.candidates if candidate.room > 0]

    def least_loaded(self, random: Random) -> Candidate:
        """The one with room and the least `Candidate.load`; among equals each has the same chance."""
        least = inf
        alike: list[Candidate] = []
        for candidate in self.candidates:
            if candidate.room > 0:
                load = candidate.load
                if load < least:
                    least, alike = load, [candidate]
                elif load == least:
                    alike.append(candidate)
        return alike[int(random.random() * len(alike))]

    def holds(self, candidate: Candidate) -> bool:
        """Whether it is one of `candidates`."""
        return candidate in self.candidates

    def has_room(self) -> bool:
        """Whether any of `candidates` has."""
        for candidate in self.candidates:  # noqa: SIM110 - asked for every request: a generator takes twice as long
            if candidate.room > 0:
                return True
        return False


OptionsT = TypeVar("OptionsT", bound=BaseModel)


class Strategy(ABC, Generic[OptionsT]):
    """Base of all strategies. One object per route and capability set; never shared.

    Args:
        options: Checked already.
        random: The only source of randomness to use.
        clock: The only source of time to use.
    """

    name: ClassVar[str]
    narrows: ClassVar[bool] = False
    """Whether there may be instances that are up and that it never gives to a request: then `considers` is asked."""
    joins_loads: ClassVar[bool] = False
    """Whether it is shown only the instances that load a model, while some do and none has it. Not for a strategy that
    itself weighs what is in memory, or that has reasons of its own to prefer an instance."""
    waiting: int = 0
    """How many requests wait now for what this strategy serves."""

    def __init__(self, options: OptionsT, *, random: Random, clock: Clock) -> None:
        self.options, self.random, self.clock = options, random, clock

    def __str__(self) -> str:
        """Its name."""
        return self.name

    def reconfigure(self, options: OptionsT) -> None:
        """Go on with other options, and keep what was learned."""
        self.options = options

    def resembles(self, other: Strategy[Any]) -> bool:
        """Whether `other` differs from this one by its options at most: then this one is reconfigured, not replaced."""
        return type(self) is type(other)

    @abstractmethod
    def pick(self, request: Request, view: View) -> Candidate | Wait:
        """Choose one of `view.candidates` that has room, or answer `WAIT`. Must not block, raise or keep `view`."""

    def considers(self, request: Request, view: View) -> bool:  # noqa: ARG002 - a default
        """Whether any of `view.candidates`, busy or not, is one that `request` may ever be given."""
        return True

    def queued(self, waiting: int) -> None:
        """So many requests `waiting` now. Called whenever that changes."""
        self.waiting = waiting

    def started(self, request: Request, candidate: Candidate) -> None:
        """`request` now has a slot on `candidate`."""

    def finished(self, request: Request, candidate: Candidate, outcome: Outcome) -> None:
        """A try on `candidate` ended. Called exactly once for each `started`."""


class Filter(Strategy[OptionsT]):
    """A strategy that narrows down what those after it in a chain choose from, such as to one's own zone.

    Alone, or as the last of a chain, it picks the least loaded of what it keeps.
    """

    narrows = True

    @abstractmethod
    def keep(self, request: Request, view: View) -> Sequence[Candidate]:
        """Those of `view.candidates` that the next may choose from, in the same order.

        With none of them free there is a wait; with none at all, and nothing coming, the request fails.
        """

    def considers(self, request: Request, view: View) -> bool:
        """Whether it keeps any."""
        return bool(self.keep(request, view))

    def pick(self, request: Request, view: View) -> Candidate | Wait:
        """The least loaded of those kept."""
        kept = View(self.keep(request, view))
        return kept.least_loaded(self.random) if kept.has_room() else WAIT
