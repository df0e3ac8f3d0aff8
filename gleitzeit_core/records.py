"""What the pool knows of each instance: its state, its slots, and snapshots of those that can serve something."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from gleitzeit_core.breaker import BreakerState
from gleitzeit_core.resources import Ownership
from gleitzeit_core.strategies.base import View

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from gleitzeit_core.breaker import CircuitBreaker
    from gleitzeit_core.clock import TimerHandle
    from gleitzeit_core.pool import Pool
    from gleitzeit_core.resources import ResourceInstance


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


# Conditions that are no states: what `Record.condition` says besides.
EJECTED = "ejected"
DEGRADED = "degraded"
DRAINED = "drained"
# Every request asks for these several times; to look a member up in its enumeration takes as long as a call.
_READY = State.READY
_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Record:
    """The pool's own record of an instance; strategies see it as a `Candidate`."""

    __slots__ = (
        *("allowance", "announced", "breaker", "busy_until", "condition", "degraded", "idle_since", "in_flight"),
        *("instance", "limit", "load", "on_work", "proved", "reason", "room", "state", "timer"),
        *("_at_limit", "_most", "_steady", "_worth"),
    )

    def __init__(self, instance: ResourceInstance, state: State, breaker: CircuitBreaker, now: float = 0.0) -> None:
        self.instance, self.state, self.breaker = instance, state, breaker
        self.reason = ""
        self.in_flight = 0
        # What has had output here, and what was said to be ready then: it is ready until something else is said.
        self.proved: dict[frozenset[str], frozenset[str]] = {}
        # When its last work ended, or it came, on the monotonic clock.
        self.idle_since = now
        # Why it is worth less than it could be, by who says so; such a one counts half.
        self.degraded: dict[str, str] = {}
        # Work it may have at once, learned from its busy answers; None for what its instance says.
        self.limit: int | None = None
        self._at_limit = 0
        # It asked to be left alone until then, on the monotonic clock; 0.0 for never.
        self.busy_until = 0.0
        # Slow start after a recovery: work it may have at once, doubled by each success. None: all it can.
        self.allowance: int | None = None
        self.timer: tuple[float, TimerHandle] | None = None
        # The condition that observers were last told of.
        self.announced = ""
        # Called when it gets work while it has none.
        self.on_work: Callable[[], None] | None = None
        self.recount()

    def __repr__(self) -> str:
        """Id, state and counts."""
        took = f"{self.in_flight}/{self.capacity} in flight"
        return f"<Record {self.instance.id} {self.condition}, {took}, {self.breaker!r}>"

    def recount(self) -> None:
        """Work out `condition`, `load` and `room` anew; after every change of anything they depend on."""
        self.condition = self._condition()
        self._worth = self.instance.weight / 2 if self.degraded else self.instance.weight
        self.load = self.in_flight / self._worth
        ready = self.state is _READY and not self.busy_until
        self._steady = ready and self.breaker.state is _CLOSED
        if not ready:
            self.room = 0
            return
        if self.limit is not None and self.limit >= self.instance.max_concurrent:
            self.limit = None
        self._most = self.capacity if self.allowance is None else min(self.capacity, self.allowance)
        self.room = self._most - self.in_flight
        # An open breaker that `Snapshot` keeps in service for lack of others (panic) limits nothing.
        if self.breaker.state is _HALF_OPEN:
            self.room = min(self.room, self.breaker.room or 0)

    def count(self, more: int) -> None:
        """So much more is in flight, or less: while all is well, nothing else has to be looked at for that."""
        self.in_flight = now = self.in_flight + more
        if self._steady:
            self.load = now / self._worth
            self.room = self._most - now
        else:
            self.recount()

    def _condition(self) -> str:
        """The state, for people.

        What is ready may be ``ejected`` by its breaker or ``degraded``. An external instance that has drained is
        ``drained``: it stays known and gets nothing, until somebody resumes it.
        """
        if self.state is _READY:
            return EJECTED if self.breaker.state is _OPEN else DEGRADED if self.degraded else _READY
        external = self.instance.ownership is Ownership.EXTERNAL
        drained = self.state is State.DRAINING and external and not self.in_flight
        return DRAINED if drained else self.state

    @property
    def serving(self) -> bool:
        """Whether it is given work as a matter of course: its condition is ``ready`` or ``degraded``."""
        return self.state is _READY and self.breaker.state is not _OPEN

    @property
    def why(self) -> str:
        """The reason for its condition, for a person; empty when there is nothing to say."""
        condition = self.condition
        because = self.breaker.why if condition == EJECTED else self.reason
        return because or ("; ".join(self.degraded.values()) if condition == DEGRADED else "")

    @property
    def capacity(self) -> int:
        """Requests it works on at once: its learned `limit`, or what its instance says."""
        return self.instance.max_concurrent if self.limit is None else self.limit

    def succeeded(self) -> None:
        """Let the slow start go on, and a learned limit grow: by one after as many successes at the limit.

        Additive increase, multiplicative decrease: Chiu and Jain, "Analysis of the increase and decrease algorithms
        for congestion avoidance" (1989). The decrease is known here: one less than what was too much.
        """
        if self.allowance is not None:
            self.allowance *= 2
            if self.allowance >= self.capacity:
                self.allowance = None
        if self.limit is not None and self.in_flight >= self.limit:
            self._at_limit += 1
            if self._at_limit >= self.limit:
                self.limit, self._at_limit = self.limit + 1, 0

    def too_much(self) -> None:
        """It says that it is busy: what it has now, the try that it refused included, is more than it can take."""
        self.limit, self._at_limit = max(1, self.in_flight - 1), 0


class Slot:
    """Capacity taken on an instance, to be freed exactly once. What is not given begins with the values of the class.

    Args:
        record: Whose.
        instance: The instance as it was when the slot was taken.
        token: For its breaker.
        taken_at: On the monotonic clock.
    """

    freed: bool = False
    progressed: bool = False
    used: bool = False
    """Whether work was begun on it. What was not used need not be made ready again."""
    loads: frozenset[str] = frozenset()
    """What its request may have to wait for there; empty for nothing, and from its first output on."""

    def __init__(self, record: Record, instance: ResourceInstance, token: int, taken_at: float) -> None:
        self.record, self.instance, self.token, self.taken_at = record, instance, token, taken_at

    def __repr__(self) -> str:
        """Which instance, and whether it is free again."""
        return f"<Slot on {self.instance.id}{', freed' if self.freed else ''}>"


class Snapshot(View):
    """The instances that can meet some requirements. What it is made of is replaced on change, never changed.

    Args:
        records: All that could, whatever their state, in order of id.
    """

    __slots__ = ("ejected", "records")

    candidates: tuple[Record, ...]

    def __init__(self, records: Sequence[Record]) -> None:
        up = [r for r in records if r.state is _READY]
        ejected = [r for r in up if r.breaker.state is _OPEN]
        # At most half of those that are up are ejected, the earliest to come back last of all; the others stay in
        # service (panic mode): with nearly all failing, the fault is more likely in what is asked than in each of them.
        kept_out = sorted(ejected, key=lambda r: r.breaker.until or 0.0, reverse=True)[: len(up) // 2]
        self.ejected = frozenset(kept_out)
        super().__init__(tuple(r for r in up if r not in self.ejected) if kept_out else tuple(up))
        self.records = tuple(records)

    def __repr__(self) -> str:
        """Counts."""
        counts = f"{len(self.records)} instances, {len(self.candidates)} serving, {len(self.ejected)} ejected"
        return f"<{type(self).__name__} {counts}>"


class Crowd(Snapshot):
    """A snapshot of many. Those with room are kept grouped by load: a pick takes the same time among 4,096 as among 64.

    The groups are brought up to date from the pool's journal when they are looked at. For a few, that takes longer than
    to look at each of them.

    Args:
        records: As above.
        pool: Theirs.
    """

    __slots__ = ("_groups", "_journal", "_places", "_pool", "_read")

    def __init__(self, records: Sequence[Record], pool: Pool) -> None:
        super().__init__(records)
        self._pool, self._read = pool, 0
        self._journal: list[Record] | None = None
        # By load; and where each candidate stands: its group and its place in there, None when it has no room.
        self._groups: dict[float, list[Record]] = {}
        self._places: dict[object, tuple[float, int] | None] = dict.fromkeys(self.candidates)

    def least_loaded(self, random: Random) -> Record:
        """The one with room and the least load, ties at random."""
        self._catch_up()
        group = self._groups[min(self._groups)]
        return group[int(random.random() * len(group))]

    def holds(self, candidate: object) -> bool:
        """Whether it is one of `candidates`."""
        return candidate in self._places

    def has_room(self) -> bool:
        """Whether any of `candidates` has."""
        self._catch_up()
        return bool(self._groups)

    def _catch_up(self) -> None:
        journal = self._pool.journal
        # All at the first look, or if so much has happened since the last that the journal was begun anew.
        changed = journal[self._read :] if journal is self._journal else self.candidates
        self._journal, self._read = journal, len(journal)
        groups, places = self._groups, self._places
        for record in changed:
            if record not in places:
                continue
            place, load = places[record], record.load if record.room > 0 else None
            if place is not None:
                if place[0] == load:
                    continue
                # The last of its group takes its place there.
                group = groups[place[0]]
                last = group.pop()
                if last is not record:
                    group[place[1]] = last
                    places[last] = place
                if not group:
                    del groups[place[0]]
            if load is None:
                places[record] = None
            else:
                group = groups.setdefault(load, [])
                places[record] = (load, len(group))
                group.append(record)
