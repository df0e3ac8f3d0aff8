"""The instances, their slots and their states: the lower half of the synchronous machine.

Every state change of an instance happens here, in a method that does no I/O. `Admission` calls these methods and hands
out the slots; nobody else does.

    STARTING ──created──> READY <──probe ok── DOWN
                          │  └──refused, probe failed──^
                          ├──401, 403──> MISCONFIGURED ──probe ok──> READY
                          └──drain──> DRAINING ──last slot freed──> gone, or drained: ──resume──> DOWN
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gleitzeit_core.breaker import BreakerState, CircuitBreaker
from gleitzeit_core.errors import FailureKind
from gleitzeit_core.loads import Loads
from gleitzeit_core.records import Crowd, Record, Slot, Snapshot, State
from gleitzeit_core.requests import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from gleitzeit_core.breaker import BreakerPolicy
    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.resources import Requirements, ResourceInstance

__all__ = ["Pool", "Record", "Slot", "Snapshot", "State"]

_BACK_OFF_S = 1.0
_BACK_OFF_MAX_S = 60.0
_JOURNAL_MAX = 4096
# To look at so many takes no longer than to keep them in order.
_FEW = 16
# Looked up once: see the records' module.
_CLOSED, _OK = BreakerState.CLOSED, Result.OK
# Says nothing of how well it is.
_NO_MARK = frozenset((FailureKind.BUSY, FailureKind.DECLINED, FailureKind.REJECTED))
# Degraded from this part of recent tries failed, and so many tries, until less than the second part fail.
_DEGRADED_FROM, _DEGRADED_BELOW, _DEGRADED_MIN = 0.1, 0.05, 20


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
        # Grows with every change of who may serve: a snapshot of an earlier version is out of date.
        self.version = 0
        self._journal: list[Record] | None = None
        self.loads = Loads()

    def __repr__(self) -> str:
        """Counts."""
        return f"<Pool {len(self.records)} instances, {self.in_flight} in flight>"

    def __iter__(self) -> Iterator[Record]:
        """All records, in order of arrival."""
        return iter(list(self.records.values()))

    @property
    def journal(self) -> list[Record]:
        """Every record whose load or room has changed since somebody first looked here; now and then begun anew."""
        if self._journal is None:
            self._journal = []
        return self._journal

    @property
    def in_flight(self) -> int:
        """Slots taken, over all instances."""
        return sum(record.in_flight for record in self.records.values())

    def holds(self, record: Record) -> bool:
        """Whether this record is current: neither removed nor replaced by a newer generation."""
        return self.records.get(record.instance.id) is record

    def put(self, instance: ResourceInstance, state: State) -> Record:
        """Add an instance, or replace its record's instance by a newer one; one of a lower generation is ignored.

        A higher generation is a new start: its breaker and its state begin anew, and what still runs on the old one is
        counted against the old one. Otherwise `state` counts only for an instance that is new or was being created.
        """
        record = self.records.get(instance.id)
        if record is None or record.instance.generation < instance.generation:
            if record is not None:
                self.remove(record)
            breaker = CircuitBreaker(self._policy, clock=self._clock, random=self._random)
            record = self.records[instance.id] = Record(instance, state, breaker, self._clock.monotonic())
        elif record.instance.generation > instance.generation:
            return record
        else:
            same = record.instance == instance and record.state is not State.STARTING
            record.instance = instance
            if same:
                return record
            if record.state is State.STARTING:
                record.state = state
        self._touch(record)
        return record

    def remove(self, record: Record) -> None:
        """Forget an instance."""
        del self.records[record.instance.id]
        record.state = State.DRAINING
        self._touch(record)

    def set_state(self, record: Record, state: State, reason: str) -> None:
        """Change an instance's state; a draining one stays so."""
        record.reason = reason
        if record.state is state or record.state is State.DRAINING:
            return
        if record.state is State.READY:
            record.allowance = 1
        elif state is State.READY and record.allowance is not None:
            # Begin again slowly: one more than it has now, then twice as many with each success.
            record.allowance = record.in_flight + 1
        record.state = state
        self._touch(record)

    def resume(self, record: Record) -> None:
        """Take a draining instance back: down until its next check, or ready when nobody may check it."""
        record.state = State.DOWN if record.instance.probe else State.READY
        record.reason = "" if record.state is State.READY else "resumed; not checked yet"
        self._touch(record)

    def set_degraded(self, record: Record, source: str, reason: str) -> None:
        """`source` says why an instance counts only half; with an empty reason, that it no longer does."""
        if reason != record.degraded.get(source, ""):
            record.degraded.pop(source, None)
            if reason:
                record.degraded[source] = reason
            self._recount(record)
            self._arm(record)

    def snapshot(self, hubs: frozenset[str] | None, requirements: Requirements) -> Snapshot:
        """The instances of `hubs` (None for all) that meet `requirements`, as they are now."""
        records = [
            record
            for record in self.records.values()
            if (hubs is None or record.instance.hub in hubs) and requirements.allow(record.instance)
        ]
        records.sort(key=lambda r: r.instance.id)
        return Snapshot(records) if len(records) <= _FEW else Crowd(records, self)

    def take(self, record: Record) -> Slot:
        """Take a slot on an instance that has room."""
        if record.on_work is not None and not record.in_flight:
            record.on_work()
        token = record.breaker.start()
        record.count(1)
        self._note(record)
        if record.breaker.state is not _CLOSED:
            self._arm(record)
        return Slot(record, record.instance, token, self._clock.monotonic())

    def use(self, record: Record) -> Slot:
        """Begin work under a slot that is taken already, as a lease's is: it counts, and has nothing to free."""
        slot = self.take(record)
        self.free(slot)
        return slot

    def progress(self, slot: Slot) -> None:
        """First output: that is what success means."""
        if slot.progressed:
            return
        slot.progressed = True
        record = slot.record
        if slot.loads:
            self.loads.end(slot, ready=True)
        if record.breaker.success(slot.token):
            record.allowance = record.in_flight + 1
            self._touch(record)
        elif record.allowance is not None or record.limit is not None:
            record.succeeded()
            self._recount(record)
        if record.degraded:
            self._weigh(record)

    def judge(self, slot: Slot, outcome: Outcome) -> None:
        """Let an outcome count for or against its instance, before the slot is freed."""
        record = slot.record
        record.idle_since = max(record.idle_since, slot.taken_at + outcome.total_s)
        if outcome.result is _OK:
            self.progress(slot)
        elif outcome.result is Result.FAILED and outcome.kind is not None:
            self._judge_failure(slot, outcome.kind, outcome.retry_after_s)
        else:
            record.breaker.neutral(slot.token)

    def _judge_failure(self, slot: Slot, kind: FailureKind, retry_after_s: float | None) -> None:
        record = slot.record
        out = kind in (FailureKind.REFUSED, FailureKind.UNAUTHORIZED)
        # Once it is out for this reason, the others that were on their way to it say nothing new.
        if kind in _NO_MARK or (out and record.state is not State.READY):
            record.breaker.neutral(slot.token)
        else:
            if record.breaker.failure(slot.token, kind.value.replace("_", " ")):
                self._touch(record)
            self._weigh(record)
        if kind is FailureKind.BUSY:
            record.too_much()
            self._leave_alone(record, _BACK_OFF_S if retry_after_s is None else min(retry_after_s, _BACK_OFF_MAX_S))
        elif kind is FailureKind.UNAUTHORIZED:
            self.set_state(record, State.MISCONFIGURED, "refuses our credentials")
        elif kind is FailureKind.REFUSED:
            self.set_state(record, State.DOWN, "refused the connection")
        if out and not record.instance.probe:
            # Nobody may ask how it is, so the next request after a while does.
            self._leave_alone(record, self._policy.open_s)

    def _weigh(self, record: Record) -> None:
        """Degraded while many of its recent tries fail, but too few for its breaker."""
        calls, failures = record.breaker.recent()
        rate = failures / calls if calls else 0.0
        if rate < _DEGRADED_BELOW:
            self.set_degraded(record, "errors", "")
        elif rate >= _DEGRADED_FROM and calls >= _DEGRADED_MIN and "errors" not in record.degraded:
            self.set_degraded(record, "errors", f"{failures} of the last {calls} tries failed")

    def _leave_alone(self, record: Record, seconds: float) -> None:
        record.busy_until = max(record.busy_until, self._clock.monotonic() + seconds)
        self._recount(record)
        self._arm(record)

    def free(self, slot: Slot) -> bool:
        """Give a slot back. False, and nothing happens, when it was given back before."""
        if slot.freed:
            return False
        slot.freed = True
        if slot.loads:
            self.loads.end(slot, ready=False)
        slot.record.count(-1)
        self._note(slot.record)
        return True

    def _recount(self, record: Record) -> None:
        record.recount()
        self._note(record)

    def _note(self, record: Record) -> None:
        if self._journal is not None:
            if len(self._journal) >= _JOURNAL_MAX:
                self._journal = []
            self._journal.append(record)

    def _touch(self, record: Record) -> None:
        """After a change that decides who may serve."""
        self.version += 1
        self._recount(record)
        self._arm(record)

    def _arm(self, record: Record) -> None:
        """Keep one timer for a record, at the first moment when time alone changes something."""
        moments: list[float | None] = []
        if self.holds(record):
            moments = [record.breaker.next_change(), record.busy_until]
            if "errors" in record.degraded:
                moments.append(record.breaker.forgets_at)
        when = min((moment for moment in moments if moment), default=None)
        if record.timer is not None:
            if record.timer[0] == when:
                return
            record.timer[1].cancel()
        record.timer = None if when is None else (when, self._clock.call_at(when, partial(self._timer, record)))

    def _timer(self, record: Record) -> None:
        record.timer = None
        if 0.0 < record.busy_until <= self._clock.monotonic():
            record.busy_until = 0.0
            if record.state in (State.DOWN, State.MISCONFIGURED) and not record.instance.probe:
                self.set_state(record, State.READY, "")
        if record.breaker.tick():
            self._touch(record)
        if record.degraded:
            self._weigh(record)
        # A loop's timer may come a little early; then nothing has changed, and it is set again.
        self._recount(record)
        self._arm(record)
        self._on_timer(record)
