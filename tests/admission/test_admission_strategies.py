"""Strategies under admission: those that fail, that listen, that wait, and a sinkhole before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.strategies.base import WAIT, NoOptions, Strategy, Wait
from gleitzeit_core.strategies.simple import LeastLoaded, RandomChoice, RoundRobin
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from gleitzeit_core.requests import Request
    from gleitzeit_core.strategies.base import Candidate, View


def test_a_strategy_that_raises_does_not_cost_a_slot() -> None:
    """Strategies are plugins: their mistakes are logged, and the slot is right all the same."""

    class Broken(RoundRobin):
        def pick(self, *_: object) -> Any:  # noqa: ANN401 - it picks nothing
            raise LookupError("pick")

        def started(self, *_: object) -> None:
            raise LookupError("started")

        def finished(self, *_: object) -> None:
            raise LookupError("finished")

    machine = Machine(lambda random, clock: Broken(NoOptions(), random=random, clock=clock))
    machine.add("a")
    ticket = machine.submit()
    assert machine.where(ticket) == "a"
    machine.release(ticket)
    assert machine.admission.pool.in_flight == 0


@pytest.mark.parametrize("hears", ["started", "finished"])
def test_a_strategy_may_hear_of_beginnings_or_ends_alone(hears: str) -> None:
    """Who wants to know of one of them is told of it, for each try once."""
    heard: list[str] = []

    def hear(_: object, request: Request, *__: object) -> None:
        heard.append(request.id)

    curious = type("Curious", (RoundRobin,), {hears: hear})
    machine = Machine(lambda random, clock: curious(NoOptions(), random=random, clock=clock))
    machine.add("a")
    tickets = [machine.submit() for _ in range(3)]
    for ticket in tickets:
        machine.release(ticket)
    assert heard == [ticket.request.id for ticket in tickets]


@pytest.mark.parametrize("inner", [LeastLoaded, RoundRobin, RandomChoice])
def test_an_instance_that_fails_at_once_gets_no_pick_after_its_fifth_failure(inner: type[Strategy[NoOptions]]) -> None:
    """Fast failures are a sinkhole for whoever looks at load: after five in a row the others get everything."""
    machine = Machine(lambda random, clock: inner(NoOptions(), random=random, clock=clock))
    for name in ("good", "better", "sink"):
        machine.add(name, max_concurrent=4)
    failures = 0
    for _ in range(400):
        ticket = machine.submit()
        if machine.where(ticket) == "sink":
            failures += 1
            machine.release(ticket, FailureKind.SERVER_ERROR, total_s=0.001)
        else:
            machine.release(ticket)
        machine.clock.advance(0.001)
    assert failures == 5


def test_a_strategy_that_waits_decides_for_itself() -> None:
    """Where a strategy answers Wait although an instance is free, the request waits, and is asked again on every change."""

    class Picky(Strategy[NoOptions]):
        name = "picky"

        def pick(self, request: Request, view: View) -> Candidate | Wait:
            del request
            return next((c for c in view.free if c.instance.endpoint == "best"), WAIT)

    machine = Machine(lambda random, clock: Picky(NoOptions(), random=random, clock=clock))
    machine.add("other")
    ticket = machine.submit()
    assert ticket.waits
    machine.add("best")
    assert machine.where(ticket) == "best"
