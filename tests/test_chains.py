from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from gleitzeit_core.errors import FailureKind, InstanceFailure, Unavailable
from gleitzeit_core.pool import State
from gleitzeit_core.strategies.base import WAIT, Filter, NoOptions, Strategy, View
from gleitzeit_core.strategies.chain import Chain
from gleitzeit_core.strategies.simple import LeastLoaded, RandomChoice, RoundRobin
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.conformance import StrategyConformance
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome, Request
    from gleitzeit_core.strategies.base import Candidate


class TagOptions(BaseModel):
    """Which tag."""

    model_config = ConfigDict(frozen=True)

    tag: str


class Tagged(Filter[TagOptions]):
    """Keeps what has a tag; all of it when everything has."""

    name = "tagged"

    def __init__(self, options: TagOptions, *, random: Random, clock: Clock) -> None:
        super().__init__(options, random=random, clock=clock)
        self.heard: list[str] = []

    def keep(self, request: Request, view: View) -> Sequence[Candidate]:
        """Those with the tag."""
        del request
        kept = [candidate for candidate in view.candidates if self.options.tag in candidate.instance.tags]
        return view.candidates if len(kept) == len(view.candidates) else kept

    def started(self, request: Request, candidate: Candidate) -> None:
        """Remembered."""
        self.heard.append(f"started {request.id} on {candidate.instance.endpoint}")

    def finished(self, request: Request, candidate: Candidate, outcome: Outcome) -> None:
        """Remembered."""
        self.heard.append(f"finished {request.id} on {candidate.instance.endpoint}: {outcome.result}")


Make = type[LeastLoaded] | type[RandomChoice] | type[RoundRobin]


def chain(*tags: str, picker: Make = LeastLoaded) -> Callable[[Random, Clock], Strategy[Any]]:
    """Makes a chain of `Tagged` filters and a picker."""

    def make(random: Random, clock: Clock) -> Strategy[Any]:
        filters = [Tagged(TagOptions(tag=tag), random=random, clock=clock) for tag in tags]
        return Chain.of([*filters, picker(NoOptions(), random=random, clock=clock)])

    return make


class TestChain(StrategyConformance):
    """A chain is a strategy like any other."""

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """One whose filter keeps everything: no instance has a tag that it asks for, and none is asked for."""

        class All(Tagged):
            def keep(self, request: Request, view: View) -> Sequence[Candidate]:
                del request
                return list(view.candidates)

        filters = [All(TagOptions(tag=""), random=random, clock=clock)]
        return Chain(filters, RoundRobin(NoOptions(), random=random, clock=clock))


@pytest.mark.parametrize("picker", [LeastLoaded, RandomChoice, RoundRobin])
@given(
    rooms=st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), min_size=1, max_size=10),
    seed=st.integers(0, 9),
)
def test_it_picks_what_every_filter_keeps_and_has_room(
    picker: Make,
    rooms: list[tuple[int, bool, bool]],
    seed: int,
) -> None:
    """Whatever is busy and however things are tagged; with nothing of that free it waits."""
    machine = Machine(seed=seed)
    good = []
    for number, (room, gpu, near) in enumerate(rooms):
        tags = frozenset([*(["gpu"] if gpu else []), *(["near"] if near else [])])
        record = machine.add(f"i{number:02}", max_concurrent=2, tags=tags)
        for _ in range(2 - room):
            machine.admission.pool.take(record)
        good += [record] if gpu and near and room else []
    ticket = machine.ticket()
    snapshot = machine.admission.pool.snapshot(None, ticket.request.requirements)
    if not snapshot.has_room():
        return
    picked = chain("gpu", "near", picker=picker)(Random(seed), machine.clock).pick(ticket.request, snapshot)
    assert picked in good if good else picked == WAIT


def test_a_filter_that_keeps_everything_leaves_the_quick_view() -> None:
    """The picker gets the pool's own snapshot, not a list of the same."""
    seen = []

    class Looking(LeastLoaded):
        def pick(self, request: Request, view: View) -> Candidate:
            seen.append(view)
            return super().pick(request, view)

    def make(random: Random, clock: Clock) -> Strategy[Any]:
        options = {"random": random, "clock": clock}
        return Chain([Tagged(TagOptions(tag="gpu"), **options)], Looking(NoOptions(), **options))

    machine = Machine(make)
    machine.add("a", tags=frozenset({"gpu"}))
    machine.submit()
    (balancer,) = machine.admission.balancers
    assert seen == [balancer.snapshot]


def test_requests_wait_for_what_the_filter_keeps() -> None:
    """Something else that is free is not taken instead; the slot is when it frees."""
    machine = Machine(chain("gpu"))
    machine.add("plain")
    machine.add("fast", tags=frozenset({"gpu"}), max_concurrent=1)
    first, second = machine.submit(), machine.submit()
    assert (machine.where(first), second.waits) == ("fast", True)
    machine.release(first)
    assert machine.where(second) == "fast"


def test_a_filter_alone_or_in_the_last_place_picks_the_least_loaded_of_what_it_keeps() -> None:
    """So ``strategy: locality`` means something."""
    for tags in (("gpu",), ("near", "gpu")):
        machine = Machine(
            lambda random, clock, tags=tags: Chain.of(
                [Tagged(TagOptions(tag=tag), random=random, clock=clock) for tag in tags]
            )
        )
        for name in ("a", "b"):
            machine.add(name, tags=frozenset({"gpu", "near"}))
        machine.add("c")
        assert Counter(machine.where(machine.submit()) for _ in range(8)) == {"a": 4, "b": 4}
        assert machine.submit().waits


def test_what_picks_cannot_stand_before_the_end() -> None:
    """It says which."""
    clock = ManualClock()
    picker = RoundRobin(NoOptions(), random=Random(0), clock=clock)
    with pytest.raises(ValueError, match="round_robin picks and does not filter: only the last of a chain may do that"):
        Chain.of([picker, picker])


def test_one_alone_is_no_chain() -> None:
    """It is itself."""
    picker = RoundRobin(NoOptions(), random=Random(0), clock=ManualClock())
    assert Chain.of([picker]) is picker


def test_every_member_hears_of_beginnings_and_ends() -> None:
    """Filters as well as the picker, also after one of them failed."""

    class Broken(Tagged):
        def started(self, *_: object) -> None:
            raise LookupError("started")

        def finished(self, *_: object) -> None:
            raise LookupError("finished")

    made: list[Chain] = []

    def make(random: Random, clock: Clock) -> Strategy[Any]:
        options = {"random": random, "clock": clock}
        tagged = TagOptions(tag="gpu")
        made.append(Chain([Broken(tagged, **options), Tagged(tagged, **options)], Tagged(tagged, **options)))
        return made[0]

    machine = Machine(make)
    machine.add("a", tags=frozenset({"gpu"}))
    ticket = machine.submit(id="1")
    machine.release(ticket)
    for member in made[0].members[1:]:
        assert isinstance(member, Tagged)
        assert member.heard == ["started 1 on a", "finished 1 on a: ok"]


def test_it_is_reconfigured_member_by_member() -> None:
    """Each keeps what it has learned, and gets its own part of the options."""
    clock = ManualClock()
    old = chain("gpu", picker=RoundRobin)(Random(0), clock)
    new = chain("near", picker=RoundRobin)(Random(0), clock)
    assert isinstance(old, Chain)
    kept = old.members
    assert old.resembles(new)
    old.reconfigure(new.options)
    assert old.members == kept
    assert old.members[0].options == TagOptions(tag="near")
    assert old.options == new.options


@pytest.mark.parametrize(
    "other", [chain("gpu", "near"), chain("gpu", picker=LeastLoaded), chain(picker=RoundRobin), chain()]
)
def test_a_chain_of_others_is_another(other: Callable[[Random, Clock], Strategy[Any]]) -> None:
    """Longer, shorter, or with another picker."""
    clock = ManualClock()
    assert not chain("gpu", picker=RoundRobin)(Random(0), clock).resembles(other(Random(0), clock))


def test_it_shows_its_members() -> None:
    """In their order."""
    assert repr(chain("gpu")(Random(0), ManualClock())) == "<Chain tagged -> least_loaded>"


@pytest.mark.parametrize("alone", [True, False])
def test_what_a_filter_leaves_nothing_of_is_refused_at_once(alone: bool) -> None:  # noqa: FBT001 - a parameter
    """Busy ones that it keeps are waited for; when none that it keeps is up, nor coming, those who wait are told."""

    def make(random: Random, clock: Clock) -> Strategy[Any]:
        only = Tagged(TagOptions(tag="far"), random=random, clock=clock)
        return only if alone else Chain([only], LeastLoaded(NoOptions(), random=random, clock=clock))

    machine = Machine(make)
    machine.add("near")
    far = machine.add("far", tags=frozenset({"far"}), max_concurrent=1)
    machine.submit()
    waiting = machine.submit()
    assert waiting not in machine.rejected
    machine.admission.set_state(far.instance.id, State.DOWN, "refused the connection")
    error = machine.rejected[waiting]
    assert isinstance(error, Unavailable)
    assert "far is down (refused the connection)" in error.message
    assert f"left out by the route's strategy {'tagged' if alone else 'tagged -> least_loaded'}" in error.message
    with pytest.raises(Unavailable, match="near is ready"):
        machine.submit()
    machine.admission.set_state(far.instance.id, State.READY, "")
    machine.release(next(iter(machine.granted)))
    assert machine.where(machine.submit()) == "far"


def test_a_retry_that_its_filter_leaves_nothing_gets_the_first_error() -> None:
    """It does not wait for an instance that it may not be given again."""
    machine = Machine(
        lambda random, clock: Chain(
            [Tagged(TagOptions(tag="far"), random=random, clock=clock)],
            LeastLoaded(NoOptions(), random=random, clock=clock),
        )
    )
    machine.add("near")
    machine.add("far", tags=frozenset({"far"}))
    ticket = machine.submit()
    slot = machine.release(ticket, FailureKind.SERVER_ERROR)
    ticket.excluded |= {(slot.instance.id, slot.instance.generation)}
    ticket.last_failure = InstanceFailure(FailureKind.SERVER_ERROR, "the first error")
    with pytest.raises(InstanceFailure, match="the first error"):
        machine.submit(ticket)
