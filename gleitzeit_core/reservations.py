"""Parts of a route's capacity that are kept for a tenant or a model.

A request that matches no share may not take the last slots that the others still need; one that matches may use
everything. The shares count on what is usable now, work in flight and room together: while an instance starts slowly,
less is kept on it.
"""

from __future__ import annotations

from collections import Counter
from math import floor
from typing import TYPE_CHECKING, Self

from gleitzeit_core.resources import MODEL
from gleitzeit_core.strategies.base import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gleitzeit_core.pool import Pool, Record, Slot, Snapshot
    from gleitzeit_core.requests import Request
    from gleitzeit_core.routing import Share

_ROUNDING = 1e-9


def check_shares(route: str, shares: Iterable[Share]) -> None:
    """See to it that the shares of a route can be kept.

    Raises:
        ValueError: One is not above 0 and at most 1, or they come to more than 1.
    """
    parts = [share.share for share in shares]
    if not all(0 < part <= 1 for part in parts):
        raise ValueError(f"a share of route {route!r} must be above 0 and at most 1: {', '.join(map(str, parts))}")
    if sum(parts) > 1 + _ROUNDING:
        raise ValueError(f"the shares of route {route!r} come to {sum(parts):.0%}, which is more than there is")


class Reservation:
    """A share that is kept until it is released; also a context manager, which releases it.

    Args:
        route: The name of the route whose capacity it is part of.
        share: How much, and for whom.
        release: Called once.
    """

    __slots__ = ("_release", "route", "share")

    def __init__(self, route: str, share: Share, release: Callable[[Reservation], None]) -> None:
        self.route, self.share = route, share
        self._release: Callable[[Reservation], None] | None = release

    def __repr__(self) -> str:
        """How much for whom, and whether it still is."""
        return f"<Reservation on {self.route} {self.share}{'' if self.active else ', released'}>"

    @property
    def active(self) -> bool:
        """Whether it was not released yet."""
        return self._release is not None

    def release(self) -> None:
        """Keep it no longer. More than once is fine."""
        release, self._release = self._release, None
        if release is not None:
            release(self)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class _Kept:
    """All shares of one tenant and model together."""

    __slots__ = ("capability", "share", "tenant", "used")

    def __init__(self, tenant: str, model: str) -> None:
        self.tenant, self.capability = tenant, MODEL + model if model else ""
        self.share = 0.0
        self.used: Counter[Record] = Counter()

    def matches(self, request: Request) -> bool:
        wanted = not self.capability or self.capability in request.requirements.capabilities
        return wanted and (not self.tenant or self.tenant == request.tenant)

    def unmet(self, snapshot: Snapshot, slots: int) -> int:
        """Slots that it still needs of so many, as far as they are in `snapshot`."""
        used = sum(count for record, count in self.used.items() if snapshot.holds(record))
        return max(0, floor(self.share * slots + _ROUNDING) - used)


class _Capacity:
    """What is usable, and free, of the instances that have a capability; brought up to date from the pool's journal."""

    __slots__ = ("_journal", "_known", "_read", "free", "slots")

    def __init__(self, snapshot: Snapshot, capability: str) -> None:
        able = (r for r in snapshot.candidates if not capability or capability in r.instance.capabilities)
        # Of each, its room and its slots, as they are counted.
        self._known = dict.fromkeys(able, (0, 0))
        self._journal: list[Record] | None = None
        self._read = self.free = self.slots = 0

    def catch_up(self, journal: list[Record]) -> None:
        """Count what has changed."""
        changed = journal[self._read :] if journal is self._journal else list(self._known)
        self._journal, self._read = journal, len(journal)
        for record in changed:
            known = self._known.get(record)
            if known is not None:
                room = max(0, record.room)
                self._known[record] = new = (room, room + record.in_flight)
                self.free += new[0] - known[0]
                self.slots += new[1] - known[1]


class Shares:
    """The shares of one route: those of its configuration, and reservations.

    Work that was begun before its route had any share is not known here, and counts as nobody's.

    Args:
        route: Its name.
        configured: Those of the route itself.
        pool: Whose capacity it is.
    """

    def __init__(self, route: str, configured: tuple[Share, ...], pool: Pool) -> None:
        self.route, self._pool = route, pool
        self._configured: tuple[Share, ...] = ()
        self._reservations: list[Reservation] = []
        self._kept: tuple[_Kept, ...] = ()
        self._held: dict[Slot, Request] = {}
        # What was worked out: for as long as the same instances serve, and until the pool's journal grows.
        self._capacities: dict[tuple[Snapshot, str], _Capacity] = {}
        self._version = -1
        self._views: dict[tuple[Snapshot, tuple[_Kept, ...]], View] = {}
        self._journal: list[Record] = []
        self._read = -1
        self.configure(configured)

    def __repr__(self) -> str:
        """Counts."""
        return f"<Shares of {self.route}, {len(self._kept)} kept, {len(self._held)} slots>"

    def check(self, configured: Iterable[Share], *more: Share) -> None:
        """See to it that `configured` and `more` can be kept beside what is reserved.

        Raises:
            ValueError: They cannot.
        """
        check_shares(self.route, [*configured, *(reservation.share for reservation in self._reservations), *more])

    def configure(self, configured: tuple[Share, ...]) -> None:
        """Keep these instead of those that came with the route before."""
        self.check(configured)
        self._configured = configured
        self._rebuild()

    def reserve(self, share: Share, changed: Callable[[], None]) -> Reservation:
        """Keep `share` as well; `changed` is called after it was released.

        Raises:
            ValueError: There is not so much left.
        """
        self.check(self._configured, share)

        def release(reservation: Reservation) -> None:
            self._reservations.remove(reservation)
            self._rebuild()
            changed()

        reservation = Reservation(self.route, share, release)
        self._reservations.append(reservation)
        self._rebuild()
        return reservation

    def _rebuild(self) -> None:
        kept: dict[tuple[str, str], _Kept] = {}
        for share in (*self._configured, *(reservation.share for reservation in self._reservations)):
            one = kept.setdefault((share.tenant, share.model), _Kept(share.tenant, share.model))
            one.share += share.share
        self._kept = tuple(kept.values())
        for slot, request in self._held.items():
            self._count(slot, request, 1)
        self._read = -1

    def taken(self, slot: Slot, request: Request) -> None:
        """`request` has a slot."""
        self._held[slot] = request
        self._count(slot, request, 1)

    def freed(self, slot: Slot) -> None:
        """A slot, of this route or of another, is free again."""
        request = self._held.pop(slot, None)
        if request is not None:
            self._count(slot, request, -1)

    def _count(self, slot: Slot, request: Request, by: int) -> None:
        for kept in self._kept:
            if kept.matches(request):
                kept.used[slot.record] += by
                if not kept.used[slot.record]:
                    del kept.used[slot.record]

    def view(self, request: Request, snapshot: Snapshot) -> View:
        """The part of `snapshot` on which `request` may take a slot now."""
        others = tuple(kept for kept in self._kept if not kept.matches(request))
        if not others:
            return snapshot
        # Many who wait are looked at for one event: what holds for the first holds for the others.
        if self._journal is not self._pool.journal or self._read != len(self._journal):
            self._views.clear()
            self._journal, self._read = self._pool.journal, len(self._pool.journal)
        found = self._views.get((snapshot, others))
        if found is None:
            found = self._views[snapshot, others] = self._open(snapshot, others)
        return found

    def _open(self, snapshot: Snapshot, others: tuple[_Kept, ...]) -> View:
        """What is left of `snapshot` when `others` get what they still need.

        Shares for a model need slots on instances that have it; those for a tenant, on any. So a slot is to be had
        where more are free than the shares for that model need, and more in all than all of them need.
        """
        needed: Counter[str] = Counter()
        for kept in others:
            needed[kept.capability] += kept.unmet(snapshot, self._capacity(snapshot, kept.capability).slots)
        needed[""] = needed.total()
        closed = {name for name, need in needed.items() if need and self._capacity(snapshot, name).free <= need}
        if "" in closed:
            return View(())
        return View([r for r in snapshot.candidates if not closed & r.instance.capabilities]) if closed else snapshot

    def _capacity(self, snapshot: Snapshot, capability: str) -> _Capacity:
        if self._version != self._pool.version:
            self._version = self._pool.version
            self._capacities.clear()
        found = self._capacities.get((snapshot, capability))
        if found is None:
            found = self._capacities[snapshot, capability] = _Capacity(snapshot, capability)
        found.catch_up(self._pool.journal)
        return found
