"""What the core costs: a no-op through it against a bare asyncio task, and the memory of what waits and what idles."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from random import Random
from typing import TYPE_CHECKING, Any

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.dispatch import DEFAULT_ROUTE, Dispatcher
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method, Outcome, Request, Result
from gleitzeit_core.resources import ChannelKind, HttpChannel, ResourceInstance, Speaks, instance_id
from gleitzeit_core.runs import Run
from gleitzeit_core.strategies.base import NoOptions
from gleitzeit_core.strategies.simple import LeastLoaded, RandomChoice, RoundRobin
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gleitzeit_core.resources import Channel

REQUESTS = 5_000
ROUNDS = 7
WAITERS = 200
SPEAKS = Speaks("noop", ChannelKind.HTTP)
DONE = Outcome(result=Result.OK, total_s=0.001)


async def noop() -> None:
    """The work."""


class NoopHub(ResourceHub[HubOptions]):
    """So many instances, none of which is ever checked."""

    kind = "noop"

    def __init__(self, count: int) -> None:
        super().__init__(HubOptions())
        self._count = count

    async def discover(self) -> Iterable[ResourceInstance]:
        """All of them."""
        return [
            ResourceInstance(
                id=instance_id("noop", f"noop-{number}"),
                hub=self.name,
                kind=self.kind,
                endpoint=f"noop-{number}",
                offers=(("noop", HttpChannel(f"http://noop-{number}")),),
                probe=False,
                max_concurrent=1,
            )
            for number in range(self._count)
        ]


class NoopProvider(Provider[NoOptions]):
    """Does nothing on an instance."""

    protocol = "noop"
    methods = (Method(name="noop/run", summary="nothing", replayable=True),)
    accepts = (SPEAKS,)

    async def execute_on(self, instance: ResourceInstance, api: str, channel: Channel, request: Request) -> Any:  # noqa: ANN401, ARG002 - see Provider
        """Nothing."""
        await noop()


async def microseconds(work: Callable[[], Awaitable[Any]]) -> float:
    """The best of several rounds, per call."""
    best = float("inf")
    for _ in range(ROUNDS):
        gc.collect()
        began = time.perf_counter()
        for _ in range(REQUESTS):
            await work()
        best = min(best, time.perf_counter() - began)
    return best / REQUESTS * 1e6


async def bare() -> None:
    """What asyncio itself takes for the same."""
    await asyncio.create_task(noop())


async def costs(count: int) -> None:
    """A no-op through the core, with so many instances."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    provider = NoopProvider(hub=NoopHub(count))
    async with provider:
        gc.collect()
        instance_bytes = (tracemalloc.get_traced_memory()[0] - before) / count
        tracemalloc.stop()
        base_us = await microseconds(bare)
        core_us = await microseconds(lambda: provider.execute("noop/run"))
        print(
            f"{count:5d} instances: execute / bare task = {core_us / base_us:.2f}  ({core_us:.1f} / {base_us:.1f} us)"
        )
        print(f"{count:5d} instances: {instance_bytes:.0f} bytes for each that idles")
        picks(count, base_us)


def picks(count: int, base_us: float) -> None:
    """A slot taken and given back on the synchronous machine, for each strategy, with so many instances."""
    for strategy in (LeastLoaded, RoundRobin, RandomChoice):
        machine = Machine(lambda random, clock, kind=strategy: kind(NoOptions(), random=random, clock=clock))
        for number in range(count):
            machine.add(f"noop-{number}")
        ticket = machine.ticket()
        best = float("inf")
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for _ in range(REQUESTS):
                slot = machine.admission.submit(ticket)
                if slot is not None:
                    machine.admission.release(ticket, slot, DONE)
            best = min(best, time.perf_counter() - began)
        us = best / REQUESTS * 1e6
        print(f"{count:5d} instances: pick by {strategy.name} / bare task = {us / base_us:.2f}  ({us:.1f} us)")


async def waiters() -> None:
    """The memory of a request that waits."""
    dispatcher = Dispatcher(random=Random(1), clock=SystemClock())
    provider = NoopProvider()
    provider.bind(dispatcher)
    hub = NoopHub(1)
    await dispatcher.shell.add_hub(hub)
    admission, method = dispatcher.shell.admission, provider.method("noop/run")

    def run() -> Run:
        return Run(provider.request("noop/run"), DEFAULT_ROUTE, time.monotonic(), method=method)

    admission.submit(run())
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    waiting = [run() for _ in range(WAITERS)]
    for one in waiting:
        admission.submit(one)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    print(f"{used / WAITERS:.0f} bytes for each request that waits, the request included")
    for one in waiting:
        admission.cancel(one)
    await dispatcher.aclose()


async def main() -> None:
    """All of it."""
    await costs(64)
    await costs(4096)
    await waiters()


if __name__ == "__main__":
    asyncio.run(main())
