# ruff: noqa: S101 - assertions are what these classes are made of
"""What every strategy must do."""

from __future__ import annotations

from abc import abstractmethod
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.strategies.base import View, Wait
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.conformance.base import Conformance
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from gleitzeit_core.clock import Clock
    from gleitzeit_core.pool import Record
    from gleitzeit_core.strategies.base import Strategy


class StrategyConformance(Conformance):
    """What every strategy must do."""

    may_wait: ClassVar[bool] = False
    """Whether it may answer Wait although an instance is free."""
    uses_all: ClassVar[bool] = True
    """Whether equal instances all get work in the end."""

    @abstractmethod
    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """A new one."""

    def machine(self, seed: int = 0) -> Machine:
        """A machine that uses it."""
        return Machine(self.make_strategy, seed=seed)

    def test_it_has_a_name(self) -> None:
        """The one it is registered under."""
        assert self.make_strategy(Random(0), ManualClock()).name

    def test_it_picks_what_is_free(self) -> None:
        """Never a busy one, whichever are."""
        machine, random = self.machine(), Random(1)
        records = [machine.add(f"i{number}", max_concurrent=2) for number in range(6)]
        strategy = self.make_strategy(Random(2), machine.clock)
        for _ in range(200):
            slots = self._fill(machine, records, random)
            ticket = machine.ticket()
            # The pool's own view, and a part of it as a retry or a chain has it.
            whole = machine.admission.pool.snapshot(None, ticket.request.requirements)
            for view in (whole, View([record for record in records if record is records[0] or record.room > 0])):
                picked = strategy.pick(ticket.request, view)
                if isinstance(picked, Wait):
                    assert self.may_wait
                else:
                    assert picked.room > 0
                    assert picked in view.candidates
            for slot in slots:
                machine.admission.pool.free(slot)

    @staticmethod
    def _fill(machine: Machine, records: list[Record], random: Random) -> list[Any]:
        # One stays free, or there would be nothing to pick.
        busy = random.sample(records, random.randrange(len(records)))
        return [machine.admission.pool.take(record) for record in busy for _ in range(record.room)]

    def test_a_single_instance_is_used(self) -> None:
        """Again and again."""
        machine = self.machine()
        machine.add("only")
        for _ in range(10):
            ticket = machine.submit()
            assert machine.where(ticket) == "only" or self.may_wait
            self._end(machine)

    def test_it_decides_the_same_way_again(self) -> None:
        """Time and randomness come from outside only."""
        runs = []
        for _ in range(2):
            machine = self.machine(seed=3)
            for number in range(5):
                machine.add(f"i{number}")
            runs.append(self._served(machine, 60))
        assert runs[0] == runs[1]

    def test_it_lives_with_instances_that_come_and_go(self) -> None:
        """What is gone is not picked, what is new is not ignored."""
        machine = self.machine()
        for number in range(4):
            machine.add(f"i{number}")
        self._served(machine, 20)
        machine.admission.remove(machine.record("i0").instance.id)
        machine.add("new")
        served = self._served(machine, 200)
        assert "i0" not in served
        assert "new" in served or not self.uses_all

    def test_it_goes_on_with_other_options(self) -> None:
        """Given anew while work is in flight, even the same ones disturb nothing."""
        machine = self.machine()
        for number in range(3):
            machine.add(f"i{number}")
        running = [machine.submit() for _ in range(3)]
        for balancer in machine.admission.balancers:
            balancer.strategy.reconfigure(balancer.strategy.options)
        self._served(machine, 20)
        assert not any(ticket in machine.granted for ticket in running)
        assert machine.admission.pool.in_flight == 0

    def test_it_knows_how_many_wait(self) -> None:
        """It is told of each that begins to wait, and of each that does so no more."""
        machine = self.machine()
        machine.add("only", max_concurrent=1)
        waiting = [machine.submit() for _ in range(4)]
        (balancer,) = machine.admission.balancers
        counts = [balancer.strategy.waiting]
        machine.admission.cancel(waiting[-1])
        counts.append(balancer.strategy.waiting)
        self._end(machine)
        assert [*counts, balancer.strategy.waiting] == [3, 2, 1]

    def test_equals_share_the_work(self) -> None:
        """None of four equal instances is left out of two hundred requests."""
        machine = self.machine()
        for number in range(4):
            machine.add(f"i{number}")
        assert len(set(self._served(machine, 200))) == 4 or not self.uses_all  # noqa: PLR2004 - the four above

    def test_a_failure_does_not_confuse_it(self) -> None:
        """Every end is one it can take: good, bad, and cancelled."""
        machine = self.machine()
        for number in range(3):
            machine.add(f"i{number}", max_concurrent=1)
        for turn in range(90):
            ticket = machine.submit()
            if ticket in machine.granted:
                slot = machine.granted.pop(ticket)
                result = list(Result)[turn % len(Result)]
                machine.admission.release(ticket, slot, Outcome(result=result, total_s=0.1))
            machine.clock.advance(0.1)
        assert machine.admission.pool.in_flight == 0

    def _served(self, machine: Machine, times: int) -> list[str]:
        served = []
        for _ in range(times):
            ticket = machine.submit()
            served.append(machine.where(ticket))
            self._end(machine)
        return served

    @staticmethod
    def _end(machine: Machine) -> None:
        machine.clock.advance(0.1)
        for ticket in tuple(machine.granted):
            machine.release(ticket)
