"""Where admission is tested: capabilities, an instance that is busy, and the order in which others get its slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gleitzeit_core.routing import Ticket
    from gleitzeit_core.testing.machine import Machine

X = frozenset({"x"})
Y = frozenset({"y"})


def busy(machine: Machine, name: str = "a", **changes: Any) -> Ticket:  # noqa: ANN401 - any field
    """An instance with one slot, which is taken."""
    machine.add(name, max_concurrent=1, **changes)
    return machine.submit()


def order(machine: Machine, holder: Ticket) -> list[str]:
    """The ids of those that wait, in the order in which they get the one slot. Each takes as long as it costs."""
    served = []
    while holder in machine.granted:
        machine.release(holder, total_s=holder.request.cost)
        if not machine.granted:
            break
        (holder,) = machine.granted
        served.append(holder.request.id)
    return served
