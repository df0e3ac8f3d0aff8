"""The instances, their slots and their states: the lower half of the synchronous machine.

Every state change of an instance happens here, in a method that does no I/O. `Admission` calls these methods and hands
out the slots; nobody else does.

    STARTING ──created──> READY <──probe ok── DOWN
                          │  └──refused, probe failed──^
                          ├──401, 403──> MISCONFIGURED ──probe ok──> READY
                          └──drain──> DRAINING ──last slot freed──> gone
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from gleitzeit_core.breaker import BreakerPolicy, BreakerState, CircuitBreaker
from gleitzeit_core.errors import FailureKind
from gleitzeit_core.requests import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.resources import Requirements, ResourceInstance
    from gleitzeit_core.strategies.base import Candidate

_BACK_OFF_S = 1.0
_BACK_OFF_MAX_S = 60.0
_SNAPSHOTS_MAX = 1024


class State(StrEnum):
    """What an instance is good for."""

    STARTING = "starting"
    """Being created: counts as coming, takes nothing yet."""
    READY = "ready"
    DOWN = "down"
    MISCONFIGURED = "misconfigured"
    """It refuses our credentials."""
    DRAINING = "draining"
    """Finishes what it has and takes nothing new."""


class Record:
    """The pool's own record of an instance; strategies see it as a `Candidate`."""

    __slots__ = ("allowance", "breaker", "busy_until", "in_flight", "instance", "load", "reason", "room", "state")

    def __init__(self, instance: ResourceInstance, state: State, breaker: CircuitBreaker) -> None:
        self.instance = instance
        self.state = state
        self.reason = ""
        self.breaker = breaker
        self.in_flight = 0
        self.load = 0.0
        self.busy_until = 0.0
        # Slow start after a recovery: work it may have at once, doubled by each success. None: all it can.
        self.allowance: int | None = None
        self.room = 0
        self.recount(0.0)

    def __repr__(self) -> str:
        """Id, state and counts."""
        limit = self.instance.max_concurrent
        return f"<Record {self.instance.id} {self.state.value}, {self.in_flight}/{limit} in flight, {self.breaker!r}>"

    def recount(self, now: float) -> None:
        """Work out `load` and `room` anew; after every change of anything they depend on."""
        self.load = self.in_flight / self.instance.weight
        if self.state is not State.READY or self.busy_until > now:
            self.room = 0
            return
        limit = self.instance.max_concurrent
        self.room = (limit if self.allowance is None else min(limit, self.allowance)) - self.in_flight
        permits = self.breaker.room
        # An open breaker that `Snapshot` keeps in service for lack of others (panic) limits nothing.
        if permits is not None and self.breaker.state is BreakerState.HALF_OPEN:
            self.room = min(self.room, permits)

    def recovered(self) -> None:
        """Begin again slowly: one more than it has now, then twice as many with each success."""
        self.allowance = self.in_flight + 1

    def succeeded(self) -> None:
        """Let the slow start go on."""
        if self.allowance is not None:
            self.allowance *= 2
            if self.allowance >= self.instance.max_concurrent:
                self.allowance = None


@dataclass(slots=True, eq=False)
class Slot:
    """Capacity taken on an instance, to be freed exactly once.

    Args:
        record: Whose.
        instance: The instance as it was when the slot was taken.
        token: For its breaker.
        taken_at: On the monotonic clock.
    """

    record: Record
    instance: ResourceInstance
    token: int
    taken_at: float
    freed: bool = False
    progressed: bool = False

    def __repr__(self) -> str:
        """Which instance, and whether it is free again."""
        return f"<Slot on {self.instance.id}{', freed' if self.freed else ''}>"


class Snapshot:
    """The instances that can meet some requirements, as they are now. Replaced on change, never changed.

    Args:
        records: All that could, whatever their state, in order of id.
    """

    __slots__ = ("ejected", "records", "serving")

    def __init__(self, records: tuple[Record, ...]) -> None:
        self.records = records
        up = [r for r in records if r.state is State.READY]
        ejected = [r for r in up if r.breaker.state is BreakerState.OPEN]
        # At most half of those that are up are ejected, the earliest to come back last of all; the others stay in
        # service (panic mode): with nearly all failing, the fault is more likely in what is asked than in each of them.
        kept_out = sorted(ejected, key=lambda r: r.breaker.until or 0.0, reverse=True)[: len(up) // 2]
        self.ejected = frozenset(r.instance.id for r in kept_out)
        self.serving = tuple(r for r in up if r.instance.id not in self.ejected)

    def __repr__(self) -> str:
        """Counts."""
        return f"<Snapshot {len(self.records)} instances, {len(self.serving)} serving, {len(self.ejected)} ejected>"

    @property
    def starting(self) -> int:
        """How many are being created."""
        return sum(1 for r in self.records if r.state is State.STARTING)


@dataclass(frozen=True, slots=True)
class PoolView:
    """What a strategy chooses from; see `strategies.base.View`."""

    candidates: tuple[Candidate, ...]
    free: list[Candidate]


class Pool:
    """All instances of all hubs.

    Args:
        clock: Time.
        random: For the breakers' jitter.
        policy: Of every breaker.
        on_timer: Called with a record after time alone has changed what it can take.
    """

    def __init__(
        self, *, clock: Clock, random: Random, policy: BreakerPolicy, on_timer: Callable[[Record], None]
    ) -> None:
        self._clock, self._random, self._policy, self._on_timer = clock, random, policy, on_timer
        self.records: dict[str, Record] = {}
        self._snapshots: dict[tuple[frozenset[str] | None, Requirements], Snapshot] = {}

    def __repr__(self) -> str:
        """Counts."""
        return f"<Pool {len(self.records)} instances, {self.in_flight} in flight>"

    def __iter__(self) -> Iterator[Record]:
        """All records, in order of arrival."""
        return iter(list(self.records.values()))

    @property
    def in_flight(self) -> int:
        """Slots taken, over all instances."""
        return sum(record.in_flight for record in self.records.values())

    def put(self, instance: ResourceInstance, state: State) -> Record:
        """Add an instance, or replace its record's instance by a newer one.

        A higher generation is a new start: its breaker and its state begin anew, and what still runs on the old one is
        counted against the old one.
        """
        record = self.records.get(instance.id)
        if record is None or record.instance.generation < instance.generation:
            breaker = CircuitBreaker(self._policy, clock=self._clock, random=self._random)
            record = self.records[instance.id] = Record(instance, state, breaker)
        elif record.instance == instance and record.state is not State.STARTING:
            return record
        else:
            record.instance = instance
            if record.state is State.STARTING:
                record.state = state
        self._touch(record)
        return record

    def remove(self, record: Record) -> bool:
        """Forget an instance. False when it was forgotten before, or replaced by a newer generation."""
        if self.records.get(record.instance.id) is not record:
            return False
        del self.records[record.instance.id]
        record.state = State.DRAINING
        self._touch(record)
        return True

    def set_state(self, record: Record, state: State, reason: str) -> bool:
        """Change an instance's state. True when it was another; a draining one stays so."""
        record.reason = reason
        if record.state is state or record.state is State.DRAINING:
            return False
        if state is State.READY and record.state in (State.DOWN, State.MISCONFIGURED):
            record.recovered()
        record.state = state
        self._touch(record)
        return True

    def snapshot(self, hubs: frozenset[str] | None, requirements: Requirements) -> Snapshot:
        """The instances of `hubs` (None for all) that meet `requirements`."""
        key = (hubs, requirements)
        found = self._snapshots.get(key)
        if found is None:
            records = [
                record
                for record in self.records.values()
                if (hubs is None or record.instance.hub in hubs) and requirements.allow(record.instance)
            ]
            found = Snapshot(tuple(sorted(records, key=lambda r: r.instance.id)))
            # Callers name what they need, so the keys are theirs: what matches nothing is not kept, the rest is bounded.
            if len(self._snapshots) >= _SNAPSHOTS_MAX:
                self._snapshots.clear()
            if records:
                self._snapshots[key] = found
        return found

    def take(self, record: Record) -> Slot:
        """Take a slot on an instance that has room."""
        record.in_flight += 1
        token = record.breaker.start()
        now = self._clock.monotonic()
        record.recount(now)
        if record.breaker.state is not BreakerState.CLOSED:
            self._arm(record)
        return Slot(record, record.instance, token, now)

    def progress(self, slot: Slot) -> None:
        """First output: that is what success means."""
        if slot.progressed:
            return
        slot.progressed = True
        record = slot.record
        if record.breaker.success(slot.token):
            record.recovered()
            self._touch(record)
        record.succeeded()
        record.recount(self._clock.monotonic())

    def judge(self, slot: Slot, outcome: Outcome) -> None:
        """Let an outcome count for or against its instance, before the slot is freed."""
        if outcome.result is Result.OK:
            self.progress(slot)
        elif outcome.result is Result.FAILED and outcome.kind is not None:
            self._judge_failure(slot, outcome.kind, outcome)
        else:
            slot.record.breaker.neutral(slot.token)

    def _judge_failure(self, slot: Slot, kind: FailureKind, outcome: Outcome) -> None:
        record = slot.record
        current = self.records.get(record.instance.id) is record
        if kind is FailureKind.REFUSED and current:
            self._refused(record)
        elif kind is FailureKind.UNAUTHORIZED and current:
            self.set_state(record, State.MISCONFIGURED, "refuses our credentials")
        elif kind is FailureKind.BUSY:
            record.breaker.neutral(slot.token)
            self._back_off(record, outcome.retry_after_s)
        elif kind is FailureKind.REJECTED:
            record.breaker.neutral(slot.token)
        elif record.breaker.failure(slot.token):
            self._touch(record)

    def _refused(self, record: Record) -> None:
        """Out at once. What nobody may probe comes back by time alone, through its breaker."""
        if record.instance.probe:
            self.set_state(record, State.DOWN, "refused the connection")
        elif record.breaker.state is not BreakerState.OPEN:
            record.breaker.trip()
            self._touch(record)

    def _back_off(self, record: Record, retry_after_s: float | None) -> None:
        asked = _BACK_OFF_S if retry_after_s is None else retry_after_s
        until = self._clock.monotonic() + min(max(asked, 0.0), _BACK_OFF_MAX_S)
        record.busy_until = max(record.busy_until, until)
        self._clock.call_at(until, lambda: self._timer(record))

    def free(self, slot: Slot) -> bool:
        """Give a slot back. False, and nothing happens, when it was given back before."""
        if slot.freed:
            return False
        slot.freed = True
        slot.record.in_flight -= 1
        slot.record.recount(self._clock.monotonic())
        return True

    def _touch(self, record: Record) -> None:
        """After a change that decides who may serve."""
        self._snapshots.clear()
        record.recount(self._clock.monotonic())
        self._arm(record)

    def _arm(self, record: Record) -> None:
        when = record.breaker.next_change()
        if when is not None and self.records.get(record.instance.id) is record:
            self._clock.call_at(when, lambda: self._timer(record))

    def _timer(self, record: Record) -> None:
        if self.records.get(record.instance.id) is not record:
            return
        if record.breaker.tick():
            self._touch(record)
        record.recount(self._clock.monotonic())
        self._on_timer(record)
