"""A second try beside one that is slow to answer: the first output wins, and the loser is cancelled.

After Dean and Barroso, "The Tail at Scale" (CACM 2013). A second try costs an instance's time, so it has a budget, and
comes only when nobody waits for that time: see `HedgePolicy` and `Admission.take_now`.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from copy import copy
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.runs import Run
from gleitzeit_core.tries import Try

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from gleitzeit_core.metrics import ResourceMetrics
    from gleitzeit_core.pool import Slot
    from gleitzeit_core.runs import Executor
    from gleitzeit_core.shell import Shell

# A quiet hour must not save up for a storm. (Fractions of 1 do not sum up to it exactly.)
_SAVED_MAX = 10.0
_ONE = 1.0 - 1e-9
_END = object()


class Hedging:
    """Says which requests may have a second try, and counts.

    Args:
        shell: Whose slots they take.
        metrics: Say what is slow; and where outcomes are counted.
    """

    def __init__(self, shell: Shell, metrics: ResourceMetrics) -> None:
        self.shell, self.metrics = shell, metrics
        self.started = 0
        """Second tries."""
        self.won = 0
        """Those that had the first output."""
        # For each route by name: second tries it has earned.
        self._saved: dict[str, float] = {}

    def __repr__(self) -> str:
        """Counts."""
        return f"<Hedging {self.started} started, {self.won} won>"

    def keep(self, routes: Iterable[str]) -> None:
        """Forget what all but these have saved."""
        self._saved = {name: self._saved[name] for name in routes if name in self._saved}

    def attempt(self, provider: Executor, run: Run, slot: Slot) -> Try | Race:
        """A try on `slot`: one that a second may join, if this is the first of a request that may be hedged."""
        policy = run.route.hedge
        if policy is not None and run.tries == 1 and run.method.replayable:
            route = run.route.name
            self._saved[route] = min(self._saved.get(route, 0.0) + policy.budget, _SAVED_MAX)
            # Work that cannot be cancelled would go on beside the winner.
            if self._saved[route] >= _ONE and slot.instance.cancellable:
                model = run.request.requirements.model
                slow_s = self.metrics.percentile_of_first_output(route, model, policy.percentile, policy.min_samples)
                if slow_s is not None:
                    return Race(self, provider, run, slot, slow_s=slow_s)
        return Try(provider, run, slot, shell=self.shell, metrics=self.metrics)

    def second(self, run: Run, first: Slot) -> tuple[Run, Slot] | None:
        """A slot for a second try of `run`, and what is on its way there; None when there is none to spare."""
        if self._saved.get(run.route.name, 0.0) < _ONE:
            return None
        admission = self.shell.admission
        other = Run(run.request, run.route, run.arrived_at, run.deadline, method=run.method)
        # Neither where the first is, nor where its work would go on beside the winner.
        instances = [record.instance for record in admission.pool]
        others = {(i.id, i.generation) for i in instances if i.id == first.instance.id or not i.cancellable}
        other.excluded = run.excluded | others
        slot = admission.take_now(other, warm=True)
        if slot is None:
            return None
        self._saved[run.route.name] -= 1.0
        self.started += 1
        run.tries += 1
        return other, slot


class Leg:
    """One of the two tries, until its first output. In a task of its own, so that a loser may end after its winner.

    Args:
        attempt: The try; its slot is freed, whatever happens.
        run: What is on its way there.
        shell: Whose slot it is.
        in_parts: Whether the answer is wanted so.
    """

    def __init__(self, attempt: Try, run: Run, shell: Shell, *, in_parts: bool) -> None:
        self.slot, self.run, self._shell = attempt.slot, run, shell
        self.parts = attempt.parts()
        self._begun = False
        self.task = shell.spawn(self._first_output(attempt, in_parts=in_parts))
        self.task.add_done_callback(self._free_unused)

    async def _first_output(self, attempt: Try, *, in_parts: bool) -> Any:  # noqa: ANN401 - what a method answers is its own
        self._begun = True
        return await (anext(self.parts, _END) if in_parts else attempt.whole())

    def _free_unused(self, _: asyncio.Task[Any]) -> None:
        # Cancelled before its first step, a task has not run at all, and so nothing in it has freed the slot.
        if not self._begun:
            self._shell.admission.release(self.run, self.slot, Outcome(result=Result.CANCELLED))

    def stop(self) -> asyncio.Task[None]:
        """Stop the work, and free its slot when it has stopped: then the task that this returns ends."""
        self.task.cancel()
        return self._shell.spawn(self._close())

    async def _close(self) -> None:
        await asyncio.wait((self.task,))
        await self.parts.aclose()


class Race:
    """A try that a second may join: it stands for a `Try`.

    Args:
        hedging: Says whether a second may.
        provider: Who carries the request out.
        run: The request.
        slot: Of the first try; later, of the one that counts.
        slow_s: How long the first has before the second begins.
    """

    def __init__(self, hedging: Hedging, provider: Executor, run: Run, slot: Slot, *, slow_s: float) -> None:
        self._hedging, self._provider, self._run, self.slot, self._slow_s = hedging, provider, run, slot, slow_s
        self._legs: list[Leg] = []
        self._open = 0
        self._in_parts = False
        self._decided: asyncio.Future[Leg] = asyncio.get_running_loop().create_future()

    async def whole(self) -> Any:  # noqa: ANN401 - what a method answers is its own
        """Carry it out."""
        return (await self._winner()).task.result()

    async def parts(self) -> AsyncGenerator[Any, None]:
        """Carry it out in parts."""
        self._in_parts = True
        leg = await self._winner()
        part = leg.task.result()
        try:
            while part is not _END:
                yield part
                with self._run:
                    part = await anext(leg.parts, _END)
        finally:
            await leg.parts.aclose()
            self._run.take_over(leg.run)

    async def _winner(self) -> Leg:
        """The leg whose first output, or failure, counts. When its caller leaves, it waits until both have stopped."""
        # What is on its way to the first instance may end after the request: it has an end of its own.
        first, clock = copy(self._run), self._hedging.shell.clock
        self._begin(first, self.slot)
        timer = clock.call_at(self.slot.taken_at + self._slow_s, self._join)
        try:
            # A whole answer is awaited in the request's block already.
            with self._run if self._in_parts else nullcontext():
                leg = await self._decided
        except BaseException:
            timer.cancel()
            # Judged as if it had been alone. The second did not have all the time there was.
            first.ending = self._run.ending
            await asyncio.wait([leg.stop() for leg in self._legs])
            self._run.take_over(first)
            raise
        timer.cancel()
        for other in self._legs:
            if other is not leg:
                other.stop()
        self.slot = leg.slot
        self._run.take_over(leg.run)
        leg.task.result()  # raises, if it failed
        self._hedging.won += leg is not self._legs[0]
        return leg

    def _begin(self, run: Run, slot: Slot) -> None:
        run.instance_id = slot.instance.id
        attempt = Try(self._provider, run, slot, shell=self._hedging.shell, metrics=self._hedging.metrics)
        leg = Leg(attempt, run, self._hedging.shell, in_parts=self._in_parts)
        self._legs.append(leg)
        self._open += 1
        leg.task.add_done_callback(lambda _: self._ended(leg))

    def _join(self) -> None:
        """The first is slow."""
        found = None if self._decided.done() else self._hedging.second(self._run, self.slot)
        if found is not None:
            self._begin(*found)

    def _ended(self, leg: Leg) -> None:
        """A leg has its first output, or has failed."""
        self._open -= 1
        if self._decided.done():
            return
        if leg.task.cancelled():
            self._decided.cancel()
            return
        failure = leg.task.exception()
        # The other goes on, unless the request itself is at fault.
        if self._open and isinstance(failure, InstanceFailure) and failure.kind is not FailureKind.REJECTED:
            self._run.excluded |= {(leg.slot.instance.id, leg.slot.instance.generation)}
        else:
            self._decided.set_result(leg)
