"""For tests of strategies: a machine with one strategy, and a view that notices who looks at all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from gleitzeit_core.requests import Outcome, Result, Usage
from gleitzeit_core.strategies.base import View
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from pydantic import BaseModel

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.pool import Record
    from gleitzeit_core.routing import Ticket
    from gleitzeit_core.strategies.base import Candidate, Strategy


class Bench(Machine):
    """A machine with one strategy, all objects of which are kept."""

    def __init__(self, kind: type[Strategy[Any]], options: BaseModel, *, seed: int = 0, **route: Any) -> None:  # noqa: ANN401 - any field
        self.strategies: list[Strategy[Any]] = []

        def make(random: Random, clock: Clock) -> Strategy[Any]:
            self.strategies.append(kind(options, random=random, clock=clock))
            return self.strategies[-1]

        super().__init__(make, seed=seed, **route)

    def end(self, ticket: Ticket, total_s: float = 1.0, *, tokens: int = 0, first_s: float | None = None) -> str:
        """A granted request ended well; where it was."""
        slot = self.granted.pop(ticket)
        usage = Usage(output_tokens=tokens) if tokens else None
        outcome = Outcome(result=Result.OK, total_s=total_s, first_output_s=first_s, usage=usage)
        self.admission.release(ticket, slot, outcome)
        return slot.instance.endpoint

    def one(self, total_s: float = 1.0, **fields: Any) -> str:  # noqa: ANN401 - any field
        """A request from its beginning to its end; where it was."""
        ticket = self.submit(**fields)
        self.clock.advance(total_s)
        return self.end(ticket, total_s)


class LookedAt(Sequence["Candidate"]):
    """Candidates that count how often somebody looks at one, and at all of them."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.inner, self.single, self.whole = candidates, 0, 0

    @overload
    def __getitem__(self, place: int) -> Candidate: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, place: int | slice) -> Candidate | Sequence[Candidate]:
        self.single += 1
        return self.inner[place]

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Candidate]:
        self.whole += 1
        return iter(self.inner)


class PoolView(View):
    """As the pool's own: it finds the least loaded, and whether there is room, without looking at all."""

    def __init__(self, candidates: LookedAt, least: Candidate) -> None:
        super().__init__(candidates)
        self.least = least

    def least_loaded(self, random: Random) -> Candidate:
        """As given."""
        del random
        return self.least

    def has_room(self) -> bool:
        """There is."""
        return True


def records(count: int, **fields: Any) -> list[Record]:  # noqa: ANN401 - any field
    """So many instances, each with room."""
    machine = Machine()
    return [machine.add(f"i{number:04}", **fields) for number in range(count)]
