"""What the core costs: time against a bare asyncio task of the same run, memory of a pick, an instance, a waiter.

`execute` is a no-op through everything, hub to metrics. A pick is a slot taken and given back on the synchronous
machine: the strategy, and what it learns from the end. Every strategy that is installed is there.
"""

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
from gleitzeit_core.plugins import PluginHost
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method, Outcome, Request, Result
from gleitzeit_core.resources import ChannelKind, HttpChannel, ResourceInstance, Speaks, instance_id
from gleitzeit_core.runs import Run
from gleitzeit_core.strategies.base import NoOptions
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from pydantic import BaseModel

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.resources import Channel
    from gleitzeit_core.strategies.base import Strategy

REQUESTS = 5_000
PICKS = 2_000
# What a strategy must be told, where it must be; half of the instances are near.
OPTIONS: dict[str, dict[str, Any]] = {
    "locality": {"tags": ["near"]},
    "priority": {"tiers": ["near"]},
    "tagged": {"all": ["near"]},
}
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


async def microseconds(*works: Callable[[], Awaitable[Any]]) -> list[float]:
    """The best of several rounds for each, per call. In turn, as a machine that others use has good and bad times."""
    best = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for number, work in enumerate(works):
            gc.collect()
            began = time.perf_counter()
            for _ in range(REQUESTS):
                await work()
            best[number] = min(best[number], time.perf_counter() - began)
    return [seconds / REQUESTS * 1e6 for seconds in best]


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
        base_us, core_us = await microseconds(bare, lambda: provider.execute("noop/run"))
        print(
            f"{count:5d} instances: execute / bare task = {core_us / base_us:.2f}  ({core_us:.1f} / {base_us:.1f} us)"
        )
        print(f"{count:5d} instances: {instance_bytes:.0f} bytes for each that idles")
        picks(count, base_us)


def picks(count: int, base_us: float) -> None:
    """Time and memory of a pick, for each strategy, with so many instances."""
    host = PluginHost.load()
    for name, found in sorted(host.strategies.items()):
        kind, options = host.load_target(found), host.load_options(found)(**OPTIONS.get(name, {}))
        machine = Machine(_maker(kind, options))
        for number in range(count):
            machine.add(f"noop-{number}", tags=frozenset(("near",)) if number % 2 else frozenset())
        _picked_s(machine, 1)
        gc.collect()
        tracemalloc.start()
        _picked_s(machine, PICKS)
        kept = tracemalloc.get_traced_memory()[0] / PICKS
        tracemalloc.stop()
        us = min(_picked_s(machine, PICKS) for _ in range(ROUNDS)) / PICKS * 1e6
        print(
            f"{count:5d} instances: pick by {name} / bare task = {us / base_us:.2f}  ({us:.1f} us),"
            f" {kept:.0f} bytes kept of each of the first {PICKS}"
        )


def _maker(kind: type[Strategy[Any]], options: BaseModel) -> Callable[[Random, Clock], Strategy[Any]]:
    return lambda random, clock: kind(options, random=random, clock=clock)


def _picked_s(machine: Machine, times: int) -> float:
    ticket, admission = machine.ticket(), machine.admission
    began = time.perf_counter()
    for _ in range(times):
        slot = admission.submit(ticket)
        if slot is not None:
            admission.release(ticket, slot, DONE)
    return time.perf_counter() - began


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
