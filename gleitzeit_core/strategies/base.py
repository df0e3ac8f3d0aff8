"""What a strategy is.

A strategy chooses an instance for a request. It is synchronous, does no I/O, and takes time and randomness from
outside, so that the same code runs in production, in property tests and in a simulator. It sees a `View`: the
instances that could serve the request, busy ones included. How a try ended comes back once, through `finished`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Protocol, TypeVar

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


class Wait:
    """A strategy's answer when nothing free is better than waiting."""

    __slots__ = ()

    def __repr__(self) -> str:
        """``WAIT``."""
        return "WAIT"


WAIT: Final = Wait()


class View(Protocol):
    """What a strategy chooses from."""

    @property
    def candidates(self) -> Sequence[Candidate]:
        """All that could serve the request, busy ones included; in a stable order. Replaced, never changed."""

    @property
    def free(self) -> Sequence[Candidate]:
        """Those of `candidates` with a free slot now, in the same order; never empty in `Strategy.pick`."""


OptionsT = TypeVar("OptionsT", bound=BaseModel)


class Strategy(ABC, Generic[OptionsT]):
    """Base of all strategies. One object per route and capability set; never shared.

    Args:
        options: Checked already.
        random: The only source of randomness to use.
        clock: The only source of time to use.
    """

    name: ClassVar[str]

    def __init__(self, options: OptionsT, *, random: Random, clock: Clock) -> None:
        self.options = options
        self.random = random
        self.clock = clock

    @abstractmethod
    def pick(self, request: Request, view: View) -> Candidate | Wait:
        """Choose one of `view.free`, or answer `WAIT`. Must not block, raise or keep `view`."""

    def started(self, request: Request, candidate: Candidate) -> None:
        """`request` now has a slot on `candidate`."""

    def finished(self, request: Request, candidate: Candidate, outcome: Outcome) -> None:
        """A try on `candidate` ended. Called exactly once for each `started`."""
