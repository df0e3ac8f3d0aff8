"""Python runs in child processes, forked and fresh, against `python3 -c` for each.

All are measured in one run with the same interpreter, in rounds that alternate; medians count, and the figures that
matter are ratios.

    python benchmarks/python_runs.py
    python benchmarks/python_runs.py --runs 50
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from typing import TYPE_CHECKING, Final

from gleitzeit_process.hub import ProcessHub
from gleitzeit_process.options import ProcessOptions
from gleitzeit_python.provider import PythonProvider

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[[], Awaitable[None]]

CODE: Final = "print(1)"
AT_ONCE: Final = 32
POOL: Final = 4
_MS: Final = 1000
_ROUNDS: Final = 5


async def command() -> None:
    """`python3 -c`, isolated as the runners are."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", CODE, stdout=pipe, stderr=pipe)
    said, _ = await process.communicate()
    if said != b"1\n":
        raise RuntimeError(f"it says {said!r}")


def pooled(provider: PythonProvider, interpreter: str) -> Run:
    """A run in the pool."""

    async def run() -> None:
        answer = await provider.execute("python/execute", {"code": CODE, "interpreter": interpreter})
        if answer["stdout"] != "1\n":
            raise RuntimeError(f"it says {answer}")

    return run


async def one_by_one(ways: dict[str, Run], runs: int) -> dict[str, float]:
    """The median time of each way, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, run in ways.items():
            for _ in range(runs):
                began = time.perf_counter()
                await run()
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in times.items()}


async def at_once(ways: dict[str, Run], runs: int) -> dict[str, float]:
    """Runs per second of each way, with so many callers at once; the median of the rounds."""
    rates: dict[str, list[float]] = {name: [] for name in ways}

    async def caller(run: Run, share: int) -> None:
        for _ in range(share):
            await run()

    for _ in range(_ROUNDS):
        for name, run in ways.items():
            share = max(1, runs // AT_ONCE)
            began = time.perf_counter()
            await asyncio.gather(*(caller(run, share) for _ in range(AT_ONCE)))
            rates[name].append(share * AT_ONCE / (time.perf_counter() - began))
    return {name: statistics.median(found) for name, found in rates.items()}


async def main(runs: int) -> None:
    """Print what each way takes, and how they compare."""
    async with PythonProvider(hub=ProcessHub(ProcessOptions(min_total=POOL, max_total=POOL))) as provider:
        ways: dict[str, Run] = {"python3 -c": command}
        ways |= {name: pooled(provider, name) for name in ("forked", "fresh")}
        alone, together = await one_by_one(ways, runs), await at_once(ways, runs * 2)
    print(f"{'':12} {'one by one':>14} {'':>8} {f'{AT_ONCE} at once':>16}")
    for name in ways:
        faster, more = alone["python3 -c"] / alone[name], together[name] / together["python3 -c"]
        print(f"{name:12} {alone[name] * _MS:11.1f} ms {faster:7.1f}x {together[name]:12.0f} /s {more:7.1f}x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=30, help="of each kind in each round")
    asyncio.run(main(parser.parse_args().runs))
