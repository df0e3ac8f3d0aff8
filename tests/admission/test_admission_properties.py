"""The machine under thousands of random events: what must hold after each of them."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.pool import State
from gleitzeit_core.routing import OfferKind
from gleitzeit_core.strategies.simple import LeastLoaded, RandomChoice, RoundRobin

from .chaos import NAMES, Chaos

if TYPE_CHECKING:
    from gleitzeit_core.strategies.base import NoOptions, Strategy

KINDS = (*FailureKind, None, None, None, None)


class ChaosMachine(RuleBasedStateMachine):
    """Hypothesis chooses the events, and finds the shortest list of them that breaks a rule."""

    chaos: Chaos

    @initialize(
        inner=st.sampled_from([LeastLoaded, RoundRobin, RandomChoice]), seed=st.integers(0, 99), recycles=st.booleans()
    )
    def begin(self, inner: type[Strategy[NoOptions]], seed: int, recycles: bool) -> None:  # noqa: FBT001 - drawn
        """Begin."""
        self.chaos = Chaos(inner, seed)
        self.chaos.machine.shelf.recycles = recycles

    @rule(
        capability=st.integers(0, 3),
        priority=st.integers(0, 1),
        tenant=st.sampled_from(["", "t"]),
        cost=st.sampled_from([1.0, 5.0]),
        times=st.integers(1, 4),
    )
    def submit(self, capability: int, priority: int, tenant: str, cost: float, times: int) -> None:
        """Requests come."""
        for _ in range(times):
            self.chaos.submit(capability, priority, tenant, cost)

    @rule(number=st.integers(0, 20))
    def cancel(self, number: int) -> None:
        """A caller leaves."""
        self.chaos.cancel(number)

    @rule(number=st.integers(0, 20), kind=st.sampled_from(KINDS))
    def release(self, number: int, kind: FailureKind | None) -> None:
        """A try ends."""
        self.chaos.release(number, kind)

    @rule(number=st.integers(0, 20), kind=st.sampled_from([FailureKind.LOST, FailureKind.SERVER_ERROR]))
    def retry(self, number: int, kind: FailureKind) -> None:
        """A try fails and is repeated."""
        self.chaos.retry(number, kind)

    @rule(capability=st.integers(0, 3), number=st.integers(0, 20), warm=st.booleans())
    def take_now(self, capability: int, number: int, warm: bool) -> None:  # noqa: FBT001 - drawn
        """A second try."""
        self.chaos.take_now(capability, number, warm=warm)

    @rule(
        inner=st.sampled_from([LeastLoaded, RoundRobin, RandomChoice]),
        kept=st.integers(0, 2),
        chained=st.booleans(),
        gone=st.booleans(),
    )
    def set_routes(self, inner: type[Strategy[NoOptions]], kept: int, chained: bool, gone: bool) -> None:  # noqa: FBT001 - drawn
        """The routes change."""
        self.chaos.set_routes(inner, kept, chained=chained, gone=gone)

    @rule(kept=st.integers(0, 2), release=st.booleans())
    def reserve(self, kept: int, release: bool) -> None:  # noqa: FBT001 - drawn
        """Reservations come and go."""
        self.chaos.reserve(kept, release=release)

    @rule(number=st.integers(0, 20))
    def progress(self, number: int) -> None:
        """First output."""
        self.chaos.progress(number)

    @rule(keep=st.booleans())
    def recycled(self, keep: bool) -> None:  # noqa: FBT001 - drawn
        """Cleaned up."""
        self.chaos.recycled(keep=keep)

    @rule(
        name=st.sampled_from(NAMES),
        capability=st.integers(0, 3),
        state=st.sampled_from([State.READY, State.STARTING, State.DOWN]),
        anew=st.booleans(),
    )
    def put(self, name: str, capability: int, state: State, anew: bool) -> None:  # noqa: FBT001 - drawn
        """An instance comes or changes."""
        self.chaos.put(name, capability, state, anew=anew)

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from([State.READY, State.DOWN, State.MISCONFIGURED]))
    def set_state(self, name: str, state: State) -> None:
        """A probe speaks."""
        self.chaos.set_state(name, state)

    @rule(name=st.sampled_from(NAMES))
    def drain(self, name: str) -> None:
        """An instance shall end."""
        self.chaos.drain(name)

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        """An instance is gone."""
        self.chaos.remove(name)

    @rule(kind=st.sampled_from(list(OfferKind)))
    def offer(self, kind: OfferKind) -> None:
        """A hub can do more, or less."""
        self.chaos.offer(kind)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 6.0, 70.0, 400.0]))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.chaos.advance(seconds)

    @invariant()
    def check(self) -> None:
        """What must hold."""
        self.chaos.check()

    def teardown(self) -> None:
        """All ends."""
        if hasattr(self, "chaos"):
            self.chaos.finish()


TestChaos = ChaosMachine.TestCase
TestChaos.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("inner", [LeastLoaded, RoundRobin, RandomChoice])
def test_ten_thousand_random_events_leave_nothing_behind(inner: type[Strategy[NoOptions]]) -> None:
    """However the events come, every rule holds after each, and in the end every slot, ticket and timer is gone."""
    random, chaos = Random(7), Chaos(inner, 7)
    weights = {"submit": 30, "release": 22, "retry": 5, "cancel": 5, "progress": 5, "put": 4, "set_state": 4}
    weights |= {"drain": 1, "remove": 1, "offer": 1, "advance": 5, "take_now": 2, "set_routes": 1, "reserve": 1}
    events = random.choices(list(weights), weights=list(weights.values()), k=3_500)
    for event in events:
        number, name = random.randrange(20), random.choice(NAMES)
        match event:
            case "submit":
                chaos.submit(random.randrange(4), random.randrange(2), random.choice("abc"), random.uniform(0.1, 9))
            case "release":
                chaos.release(number, random.choice(KINDS))
            case "retry":
                chaos.retry(number, random.choice([FailureKind.LOST, FailureKind.SERVER_ERROR]))
            case "cancel" | "progress" | "drain" | "remove":
                getattr(chaos, event)(number if event in ("cancel", "progress") else name)
            case "put":
                chaos.put(name, random.randrange(4), random.choice([State.READY, State.STARTING]), anew=number < 5)
            case "set_state":
                chaos.set_state(name, random.choice([State.READY, State.READY, State.DOWN]))
            case "offer":
                chaos.offer(random.choice(list(OfferKind)))
            case "take_now":
                chaos.take_now(random.randrange(4), number, warm=number % 2 == 0)
            case "set_routes":
                kind = random.choice([LeastLoaded, RoundRobin, RandomChoice])
                chaos.set_routes(kind, number % 3, chained=number % 2 == 0, gone=number == 1)
            case "reserve":
                chaos.reserve(number % 3, release=number < 12)
            case "advance":
                chaos.advance(random.expovariate(0.2))
        chaos.check()
    chaos.finish()
