"""What the synchronous machine wants done: the shell around it does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gleitzeit_core.errors import RequestError
    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.pool import Slot
    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.resources import Requirements, ResourceInstance
    from gleitzeit_core.routing import Ticket


@dataclass(frozen=True, slots=True)
class Granted:
    """A waiting request has a slot now."""

    ticket: Ticket
    slot: Slot


@dataclass(frozen=True, slots=True)
class Rejected:
    """A waiting request will get none."""

    ticket: Ticket
    error: RequestError


@dataclass(frozen=True, slots=True)
class Recycle:
    """An instance must be made ready again, then `Admission.recycled` called; its slot stays taken until then."""

    slot: Slot
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Scale:
    """A hub should see to it that `wanted` instances that meet `requirements` are being created."""

    hub: str
    requirements: Requirements
    wanted: int


@dataclass(frozen=True, slots=True)
class Changed:
    """An instance came, went or changed; for observers and stores."""

    change: InstanceChange


@dataclass(frozen=True, slots=True)
class Suspect:
    """An instance failed in a way that a probe should look into now."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class Emptied:
    """A draining instance has no work left; its hub may retire it."""

    instance: ResourceInstance


Effect = Granted | Rejected | Recycle | Scale | Changed | Suspect | Emptied
