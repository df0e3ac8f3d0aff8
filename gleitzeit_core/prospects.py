"""Whether waiting can help a request, and the sentence for its caller when it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.errors import NoCapableInstance, Unavailable
from gleitzeit_core.pool import Pool, Record, Snapshot, State
from gleitzeit_core.resources import Ownership
from gleitzeit_core.routing import OfferKind, Supplier, Ticket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.balancing import LoadBalancer
    from gleitzeit_core.clock import Clock
    from gleitzeit_core.errors import RequestError
    from gleitzeit_core.resources import Requirements

_SHOWN_MAX = 20


class Prospects:
    """What is, or will be, there for those who wait.

    Args:
        pool: What is there.
        suppliers: The hubs, by name.
        clock: Time.
    """

    def __init__(self, pool: Pool, suppliers: Mapping[str, Supplier], clock: Clock) -> None:
        self._pool, self._suppliers, self._clock = pool, suppliers, clock

    def hopeless(self, balancer: LoadBalancer, ticket: Ticket) -> RequestError | None:
        """Why waiting cannot help; None when it can."""
        snapshot = balancer.snapshot
        if balancer.considers(ticket) or any(map(self._coming, snapshot.records)):
            return None
        if ticket.patient_until > self._clock.monotonic():
            return None
        offers = [supplier.offer(balancer.requirements) for supplier in self.suppliers_of(balancer)]
        if any(offer.kind is OfferKind.CREATABLE for offer in offers):
            return None
        if ticket.last_failure is not None:
            return ticket.last_failure
        reasons = [offer.reason for offer in offers if offer.reason]
        if snapshot.candidates:
            reasons.append(f"those that are up are left out by the route's strategy {balancer.strategy}")
        return self._nobody(snapshot, balancer.requirements, "; ".join(reasons))

    def _coming(self, record: Record) -> bool:
        """Whether it is being created, or retired just now, which may make room for another."""
        instance, supplier = record.instance, self._suppliers.get(record.instance.hub)
        if record.state is State.DRAINING and not record.in_flight and instance.ownership is not Ownership.EXTERNAL:
            return supplier is not None and supplier.running
        return record.state is State.STARTING

    def _nobody(self, snapshot: Snapshot, requirements: Requirements, why: str) -> RequestError:
        why = f"; {why}" if why else ""
        needs = requirements.describe()
        if snapshot.records:
            names = [record.instance.id for record in snapshot.records]
            states = ", ".join(_described(record) for record in snapshot.records[:_SHOWN_MAX])
            can = "can be used" if snapshot.candidates else "is up"
            return Unavailable(f"no instance {can} for {needs}: {states}{why}", instances=names)
        if why:
            return Unavailable(f"no instance can be had for {needs}{why}")
        have = sorted({c for record in self._pool.records.values() for c in record.instance.capabilities})
        shown = ", ".join([*have[:_SHOWN_MAX], *(["..."] if len(have) > _SHOWN_MAX else [])])
        # What has never been well has not said what it can do; it may be just the one.
        unknown = [_described(r) for r in self._pool if not r.instance.capabilities and r.state is not State.READY]
        doubt = f"; {', '.join(unknown[:_SHOWN_MAX])}" if unknown else ""
        message = f"no instance has {needs}; there is: {shown or 'nothing'}{doubt}"
        return NoCapableInstance(message, needed=sorted(requirements.capabilities))

    def suppliers_of(self, balancer: LoadBalancer) -> list[Supplier]:
        """The hubs that may be asked for more instances."""
        hubs = balancer.route.hubs
        return [s for name, s in self._suppliers.items() if s.running and (hubs is None or name in hubs)]


def _described(record: Record) -> str:
    text = f"{record.instance.endpoint} is {record.condition}"
    return f"{text} ({record.why})" if record.why else text
