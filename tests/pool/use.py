"""How the tests of the pool use its instances, well and badly, and what they look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.requests import Outcome, Result

if TYPE_CHECKING:
    from gleitzeit_core.records import Slot, Snapshot
    from gleitzeit_core.testing.machine import Machine


def snapshot(machine: Machine) -> Snapshot:
    """Of all instances."""
    return machine.admission.pool.snapshot(None, machine.ticket().request.requirements)


def serving(machine: Machine) -> list[str]:
    """Endpoints of those that are given work."""
    return [record.instance.endpoint for record in snapshot(machine).candidates]


def use(machine: Machine, name: str, kind: FailureKind | None = None, retry_after_s: float | None = None) -> None:
    """One try on an instance, whatever the strategy would say."""
    pool = machine.admission.pool
    slot = pool.take(machine.record(name))
    outcome = Outcome(result=Result.FAILED if kind else Result.OK, kind=kind, retry_after_s=retry_after_s)
    machine.admission.release(machine.ticket(), slot, outcome)


def busy(machine: Machine, *slots: Slot) -> None:
    """The tries on these slots are refused as too many; there is no need to wait."""
    for slot in slots:
        outcome = Outcome(result=Result.FAILED, kind=FailureKind.BUSY, retry_after_s=0.0)
        machine.admission.release(machine.ticket(), slot, outcome)
    machine.clock.advance(0.0)


def good(machine: Machine, *slots: Slot) -> None:
    """The tries on these slots end well."""
    for slot in slots:
        machine.admission.release(machine.ticket(), slot, Outcome(result=Result.OK))
