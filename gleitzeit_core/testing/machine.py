"""`Admission` without asyncio: events in by hand, effects recorded."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from gleitzeit_core.admission import Admission
from gleitzeit_core.effects import Granted, Recycle, Rejected
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Outcome, Request, Result
from gleitzeit_core.resources import ChannelKind, Requirements, ResourceInstance, Speaks, instance_id
from gleitzeit_core.routing import Offer, OfferKind, Route, Ticket
from gleitzeit_core.strategies.base import NoOptions
from gleitzeit_core.strategies.simple import LeastLoaded
from gleitzeit_core.testing.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_core.breaker import BreakerPolicy
    from gleitzeit_core.clock import Clock
    from gleitzeit_core.effects import Effect
    from gleitzeit_core.errors import FailureKind, RequestError
    from gleitzeit_core.pool import Record, Slot
    from gleitzeit_core.strategies.base import Strategy

E = TypeVar("E")

ECHO = Speaks("echo", ChannelKind.CALL)


class EchoChannel:
    """A call channel that answers with the message."""

    kind = ChannelKind.CALL

    async def call(self, message: bytes) -> bytes:
        """The message."""
        return message


_CHANNEL = EchoChannel()


def make_instance(name: str, **changes: Any) -> ResourceInstance:  # noqa: ANN401 - any field
    """An instance that speaks `ECHO` and must not be probed; `changes` are fields of `ResourceInstance`."""
    fields: dict[str, Any] = {
        "id": instance_id("echo", name),
        "hub": "echo",
        "kind": "echo",
        "endpoint": name,
        "offers": (("echo", _CHANNEL),),
        "probe": False,
    }
    return ResourceInstance(**{**fields, **changes})


class Shelf:
    """A `Supplier` that offers what a test puts on it."""

    def __init__(self, name: str = "echo") -> None:
        self.name = name
        self.recycles = False
        self.running = True
        self.occupied: Callable[[], None] | None = None
        self.answer = Offer(OfferKind.READY)

    def offer(self, requirements: Requirements) -> Offer:
        """What was put there."""
        del requirements
        return self.answer


class Machine:
    """The machine, a clock, and what came out.

    Args:
        strategy: Its class; None for least loaded.
        seed: Of the only source of randomness.
        policy: Of the breakers.
        route: Fields of `Route`, such as ``max_queue``.
    """

    def __init__(
        self,
        strategy: Callable[[Random, Clock], Strategy[Any]] | None = None,
        *,
        seed: int = 0,
        policy: BreakerPolicy | None = None,
        **route: Any,  # noqa: ANN401 - any field
    ) -> None:
        self.clock = ManualClock()
        self.random = Random(seed)
        self.effects: list[Effect] = []
        self.granted: dict[Ticket, Slot] = {}
        self.rejected: dict[Ticket, RequestError] = {}
        self.admission = Admission(clock=self.clock, random=self.random, deliver=self._deliver, policy=policy)
        self.shelf = Shelf()
        self.admission.suppliers[self.shelf.name] = self.shelf
        make = strategy or (lambda random, clock: LeastLoaded(NoOptions(), random=random, clock=clock))
        self.route = Route(**{"name": "all", "methods": ("*",), "strategy": make, **route})

    def __repr__(self) -> str:
        """The machine's."""
        return repr(self.admission)

    def _deliver(self, effect: Effect) -> None:
        self.effects.append(effect)
        match effect:
            case Granted(ticket, slot):
                self.granted[ticket] = slot
            case Rejected(ticket, error):
                self.rejected[ticket] = error

    def taken(self, kind: type[E]) -> list[E]:
        """The effects of one kind since the last time this was asked, in order."""
        found: list[E] = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return found

    # -- instances ---------------------------------------------------------------------------------------------

    def add(self, name: str, state: State = State.READY, **changes: Any) -> Record:  # noqa: ANN401 - any field
        """An instance is there, or has changed."""
        instance = make_instance(name, **changes)
        self.admission.put(instance, state)
        return self.record(name)

    def record(self, name: str) -> Record:
        """The record of the instance called `name`."""
        return self.admission.pool.records[instance_id("echo", name)]

    # -- requests ----------------------------------------------------------------------------------------------

    def ticket(self, *, capabilities: frozenset[str] = frozenset(), **fields: Any) -> Ticket:  # noqa: ANN401 - any field
        """A request that was not submitted yet; `fields` are those of `Request`."""
        needs = Requirements(accepts=(ECHO,), capabilities=capabilities)
        request = Request(**{"method": "echo/say", "requirements": needs, **fields})
        return Ticket(request, self.route, self.clock.monotonic())

    def submit(self, ticket: Ticket | None = None, **fields: Any) -> Ticket:  # noqa: ANN401 - any field
        """Submit a request; with a slot at once it is among `granted`, as if it had waited.

        Raises:
            RequestError: It cannot be served.
        """
        ticket = ticket or self.ticket(**fields)
        slot = self.admission.submit(ticket)
        if slot is not None:
            self.granted[ticket] = slot
        return ticket

    def release(
        self,
        ticket: Ticket,
        kind: FailureKind | None = None,
        *,
        result: Result | None = None,
        retry_after_s: float | None = None,
        total_s: float = 1.0,
    ) -> Slot:
        """The try of a granted request ended: well, or as `kind` or `result` say."""
        slot = self.granted.pop(ticket)
        slot.used = True
        ended = result or (Result.FAILED if kind else Result.OK)
        outcome = Outcome(result=ended, kind=kind, total_s=total_s, retry_after_s=retry_after_s)
        self.admission.release(ticket, slot, outcome)
        return slot

    def recycle(self, *, keep: bool = True) -> None:
        """Carry out the recycling that was asked for."""
        for effect in self.taken(Recycle):
            self.admission.recycled(effect.slot, keep=keep)

    def where(self, ticket: Ticket) -> str:
        """The endpoint a request was granted; empty while it has none."""
        slot = self.granted.get(ticket)
        return slot.instance.endpoint if slot else ""
