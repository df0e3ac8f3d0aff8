"""What a queue knows of itself: whose turn it is, how fast it moves, and whom it turns away before it is full."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

_TENANTS_MAX = 1024
_RATE_S = 30.0
_RECENT_S = 10.0
_BANDS_MAX = 8


class Charge(NamedTuple):
    """What a tenant was charged for a request when it began to wait.

    Args:
        work_s: Expected, in seconds on a slot; 0 once a try of it has ended.
        period: Of the table it stands in.
    """

    work_s: float
    period: int


class FairShares:
    """Start-time fair queueing between the tenants of each priority, by work (Goyal et al., SIGCOMM 1996).

    Work is time on a slot. A tenant's next request begins where its last one ends, in work, or now if that is past: who
    asks for nothing saves nothing up. What a request is charged is what it is expected to take; when it ends, the
    difference to what it took is charged as well. With nobody waiting nobody is owed anything: then the table is
    cleared, and a new period begins.
    """

    __slots__ = ("_debts", "_ends", "_now", "_period")

    def __init__(self) -> None:
        self._now: dict[int, float] = {}
        # Where a tenant's next request begins, by band and tenant; and what it was not charged yet.
        self._ends: dict[tuple[int, str], float] = {}
        self._debts: dict[tuple[int, str], float] = {}
        self._period = 0

    def __repr__(self) -> str:
        """Counts."""
        return f"<FairShares {len(self._ends)} tenants>"

    def begin(self, band: int, tenant: str, work_s: float) -> tuple[float, Charge]:
        """Charge a tenant what is expected: when, in work, the request has its turn, and what was charged."""
        begins = max(self._now.get(band, 0.0), self._ends.get((band, tenant), 0.0))
        self._ends[band, tenant] = begins + work_s
        return begins, Charge(work_s, self._period)

    def granted(self, band: int, begins: float) -> None:
        """One that begins there has its turn: work has come so far."""
        self._now[band] = max(self._now.get(band, 0.0), begins)

    def settle(self, band: int, tenant: str, charge: Charge, work_s: float, at_least_s: float) -> float:
        """Charge a tenant the difference between what its request took and what it was charged for it.

        Small ones are put together until they come to `at_least_s`, because all its requests that wait must be moved by
        what comes out: 0 for nothing yet. Among requests of one tenant alone there is nothing to set right.
        """
        key = (band, tenant)
        if charge.period != self._period or key not in self._ends or len(self._ends) == 1:
            return 0.0
        debt = self._debts.pop(key, 0.0) + work_s - charge.work_s
        if abs(debt) < at_least_s:
            self._debts[key] = debt
            return 0.0
        # As those who wait are moved, or the tenant's next one would come before them.
        self._ends[key] = self.moved(band, self._ends[key], debt)
        return debt

    def moved(self, band: int, begins: float, difference_s: float) -> float:
        """Where a request that waits begins after its tenant was charged so much more; never before now."""
        return max(self._now.get(band, 0.0), begins + difference_s)

    def clear(self) -> None:
        """Nobody waits."""
        self._now.clear()
        self._ends.clear()
        self._debts.clear()
        self._period += 1

    def prune(self, waiting: Callable[[], set[tuple[int, str]]], count: int) -> None:
        """Keep the table small: callers choose bands, and perhaps tenants. Of too many, those who wait are kept."""
        if len(self._ends) > _TENANTS_MAX + 2 * count:
            keep = waiting()
            bands = {band for band, _ in keep}
            self._ends = {key: end for key, end in self._ends.items() if key in keep}
            self._debts = {key: debt for key, debt in self._debts.items() if key in keep}
            self._now = {band: now for band, now in self._now.items() if band in bands}


class ServiceRate:
    """Requests that end each second while somebody waits, with a memory of about half a minute.

    What is expected beforehand counts as one end, so the answer is of use from the first moment, and what was measured
    long ago gives way to it again.
    """

    __slots__ = ("_at", "_busy", "_busy_s", "_ends")

    def __init__(self) -> None:
        self._at = 0.0
        self._busy = False
        self._busy_s = 0.0
        self._ends = 0.0

    def busy(self, now: float, *, busy: bool) -> None:
        """Somebody waits from `now` on, or nobody any more."""
        self._pass(now)
        self._busy = busy

    def end(self, now: float) -> None:
        """A request has ended. It counts only while somebody waits."""
        if self._busy:
            self._pass(now)
            self._ends += 1.0

    def per_s(self, now: float, expected: float) -> float:
        """The rate, where `expected`, above 0, is what it would be by what else is known."""
        self._pass(now)
        return (self._ends + 1.0) / (self._busy_s + 1.0 / expected)

    def _pass(self, now: float) -> None:
        kept = exp((self._at - now) / _RATE_S)
        self._ends *= kept
        self._busy_s = self._busy_s * kept + (_RATE_S * (1.0 - kept) if self._busy else 0.0)
        self._at = now


class Shedding:
    """Turns away the lowest band, at random, before a queue is full of it and keeps out the others.

    Only when there is somebody to do it for: one in a higher band waits, or came within the last 10 seconds.
    """

    __slots__ = ("_came", "_random")

    def __init__(self, random: Random) -> None:
        self._random = random
        # Bands and when one of them last came, falling in band and rising in time: the first is the highest.
        self._came: list[tuple[int, float]] = []

    def came(self, band: int, now: float) -> None:
        """A request of this band has come and found everything busy."""
        came = self._came
        while came and came[-1][0] <= band:
            came.pop()
        while came and came[0][1] < now - _RECENT_S:
            del came[0]
        # Callers choose bands: beyond so many, the lowest is not worth remembering.
        if len(came) < _BANDS_MAX:
            came.append((band, now))

    def refuses(self, band: int, lowest: int, highest: int, fullness: float) -> bool:
        """Whether to turn away one of `band`, just come, where `lowest` to `highest` wait.

        Args:
            band: Its own.
            lowest: Of those that wait.
            highest: Of those that wait.
            fullness: How far the queue is between where shedding begins and its end, 0 to 1: the chance.
        """
        highest = max(highest, self._came[0][0] if self._came else highest)
        return fullness > 0.0 and band <= lowest and band < highest and self._random.random() < fullness
