"""What holds for every strategy, whatever happens."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gleitzeit_core.errors import FailureKind, RequestError
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Result
from gleitzeit_core.strategies.base import NoOptions
from gleitzeit_strategies import options
from gleitzeit_strategies.consistent_hash import ConsistentHash
from gleitzeit_strategies.model_affinity import ModelAffinity
from gleitzeit_strategies.power_of_two import PowerOfTwo
from gleitzeit_strategies.speed import Adaptive, Ewma
from gleitzeit_strategies.testing import Bench
from gleitzeit_strategies.tiers import Locality, Priority, Tagged
from gleitzeit_strategies.weighted import Weighted

if TYPE_CHECKING:
    from gleitzeit_core.routing import Ticket

ALL: dict[Any, tuple[Any, Any]] = {
    Weighted: (NoOptions(), NoOptions()),
    PowerOfTwo: (options.PowerOfTwoOptions(), options.PowerOfTwoOptions(choices=3)),
    Ewma: (options.EwmaOptions(), options.EwmaOptions(time_constant_s=5)),
    Adaptive: (options.AdaptiveOptions(), options.AdaptiveOptions(choices=2)),
    ConsistentHash: (options.ConsistentHashOptions(), options.ConsistentHashOptions(key=["tenant"], bound=2)),
    ModelAffinity: (options.ModelAffinityOptions(), options.ModelAffinityOptions(load_s=1, horizon_s=0)),
    Priority: (options.PriorityOptions(tiers=["t0"]), options.PriorityOptions(tiers=["t1", "t0"], spill="down")),
    Locality: (options.LocalityOptions(tags=["t0"]), options.LocalityOptions(tags=["t1"], enough=2, spill="down")),
    Tagged: (options.TaggedOptions(none=["never"]), options.TaggedOptions(any=["t0"], strict=False)),
}
EVENTS = st.tuples(
    st.sampled_from(
        ["ask", "ask", "ask", "end", "end", "fail", "leave", "put", "warm", "down", "gone", "time", "reload"]
    ),
    st.integers(0, 7),
    st.integers(0, 3),
)
MODELS = ("", "a", "b", "c")


class Chaos:
    """Random events on a machine with one strategy."""

    def __init__(self, kind: Any, seed: int) -> None:  # noqa: ANN401 - any of them
        self.options = ALL[kind]
        self.bench = Bench(kind, self.options[0], seed=seed, max_queue=1000, timeout_s=None)
        self.tickets: list[Ticket] = []
        for number in range(3):
            self.put(number, number % 2)

    def put(self, number: int, warm: int, state: State = State.READY) -> None:
        """An instance comes or changes; all have all models but one."""
        has = [model for model in MODELS[1:] if model != MODELS[number % 5 % 4] or number == 0]
        self.bench.add(
            f"i{number}",
            state,
            capabilities=frozenset(f"model:{model}" for model in has),
            warm=frozenset(f"model:{model}" for model in has[:warm]),
            weight=(0.5, 1.0, 3.0)[number % 3],
            max_concurrent=1 + number % 3,
            tags=frozenset({f"t{number % 2}"}),
            details={"models": {"a": {"size": 4e9}, "b": {"size": 0}}},
        )

    def instance(self, number: int) -> Any:  # noqa: ANN401 - a record or None
        """The one called so, if it is there."""
        known = {record.instance.endpoint: record for record in self.bench.admission.pool}
        return known.get(f"i{number}")

    def happen(self, event: str, number: int, other: int) -> None:
        """One event."""
        granted, record = list(self.bench.granted), self.instance(number)
        match event:
            case "ask":
                model = frozenset({f"model:{MODELS[other]}"}) if other else frozenset[str]()
                with contextlib.suppress(RequestError):
                    asked = self.bench.submit(capabilities=model, affinity=str(number % 4), tenant=str(other))
                    self.tickets.append(asked)
            case "end" if granted:
                self.bench.end(granted[number % len(granted)], 0.1 + other, tokens=10 * other, first_s=0.1 * other)
            case "fail" if granted:
                kind = list(FailureKind)[number % len(FailureKind)]
                self.bench.release(granted[0], kind, retry_after_s=1.0, total_s=0.001)
            case "leave" if self.tickets:
                ticket = self.tickets[number % len(self.tickets)]
                if not self.bench.admission.cancel(ticket) and ticket in self.bench.granted:
                    self.bench.release(ticket, result=Result.CANCELLED)
            case "put" | "warm":
                self.put(number, other)
            case "down" if record is not None:
                self.bench.admission.set_state(record.instance.id, State.DOWN, "gone")
            case "gone" if record is not None:
                self.bench.admission.remove(record.instance.id)
            case "time":
                self.bench.clock.advance(10.0**other / 10)
            case "reload":
                for balancer in self.bench.admission.balancers:
                    balancer.strategy.reconfigure(self.options[other % 2])

    def check(self) -> None:
        """No slot but on an instance that can do it and has room for it."""
        for ticket, slot in self.bench.granted.items():
            assert ticket.request.requirements.allow(slot.instance)
        for record in self.bench.admission.pool:
            assert record.in_flight <= record.instance.max_concurrent or record.room <= 0

    def wind_up(self) -> None:
        """All that asked has its turn once the instances are well."""
        for number in range(3):
            self.put(number, 0)
            self.bench.admission.set_state(self.instance(number).instance.id, State.READY)
        for _ in range(len(self.tickets) + 20):
            for ticket in list(self.bench.granted):
                self.bench.end(ticket, 0.5)
            self.bench.clock.advance(400)
        assert not any(ticket.waits for ticket in self.tickets)
        assert self.bench.admission.pool.in_flight == 0


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
@given(seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_one_that_fails_at_once_gets_nothing_after_its_fifth_failure(kind: Any, seed: int) -> None:  # noqa: ANN401 - any of them
    """However attractive it looks, idle as it is: until its breaker lets one request through again."""
    bench = Bench(kind, ALL[kind][0], seed=seed)
    for name in ("good", "fine", "well", "bad"):
        bench.add(name, tags=frozenset({"t0"}))
    failures, since = 0, 0.0
    for number in range(400):
        ticket = bench.submit(affinity=str(number))
        if bench.where(ticket) == "bad":
            assert failures < 5 or bench.clock.monotonic() - since >= 5
            bench.clock.advance(0.001)
            failures, since = failures + 1, bench.clock.monotonic()
            bench.release(ticket, FailureKind.SERVER_ERROR, total_s=0.001)
        else:
            bench.clock.advance(0.01)
            bench.end(ticket, 0.01)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
@given(seed=st.integers(0, 99), events=st.lists(EVENTS, min_size=30, max_size=100))
@settings(max_examples=60, deadline=None)
def test_nothing_is_given_where_it_cannot_go_and_nobody_starves(
    kind: Any,  # noqa: ANN401 - any of them
    seed: int,
    events: list[tuple[str, int, int]],
) -> None:
    """Instances come, go, fail, are down, change what they have; options change; callers leave."""
    raised: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = raised.append  # type: ignore[method-assign] # all it does
    logger = logging.getLogger("gleitzeit_core")
    logger.addHandler(handler)
    try:
        chaos = Chaos(kind, seed)
        for event in events:
            chaos.happen(*event)
            chaos.check()
        chaos.wind_up()
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in raised if record.levelno >= logging.ERROR] == []
