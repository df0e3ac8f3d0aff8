"""Python in containers: runs in a pooled runner against `docker exec python3`, and what a warm supply is worth.

All are measured in one run, on the same engine and image, in rounds that alternate; medians count, and the figures that
matter are ratios. `docker exec` is the command of that name; what it costs over the engine's API, without a process of
its own, stands beside it.

    python benchmarks/containers.py                    # needs a Docker Engine and the image of `make test-image`
    python benchmarks/containers.py --runs 20 --only runs,many

Ours run on uvloop, as in `gleitzeit serve`. llm-sandbox takes part where it is installed: pip install llm-sandbox.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import docker
import uvloop

from gleitzeit_core.resources import ChannelKind, Requirements, Speaks
from gleitzeit_docker.address import from_environment
from gleitzeit_docker.hub import DockerHub
from gleitzeit_docker.options import DockerOptions
from gleitzeit_python.provider import PythonProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

IMAGE: Final = "gleitzeit-test-python:latest"
CODE: Final = "print(1)"
RUNNER: Final = Requirements(accepts=(Speaks("python-runner", ChannelKind.STREAM),))
AT_ONCE: Final = 32
POOL: Final = 4
CREATED: Final = 24
_MS: Final = 1000
_ROUNDS: Final = 5
# A run in a forked interpreter takes so much less that there can be more of them in a round.
_MORE: Final = 10
_BEAT_S: Final = 0.002


class Verdict:
    """Ratios, and whether each is what it should be."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def ratio(self, what: str, value: float, least: float | None = None) -> None:
        """Print one, with its bar."""
        bar = "" if least is None else f"  (bar: {least:g}x)"
        print(f"  {what:58} {value:8.1f}x{bar}")
        if least is not None and value < least:
            self.missed.append(what)


@asynccontextmanager
async def pooled(**given: Any) -> AsyncIterator[tuple[PythonProvider, DockerHub]]:  # noqa: ANN401 - as in a configuration
    """A provider on a hub of its own."""
    hub = DockerHub(DockerOptions.model_validate({"image": IMAGE, **given}))
    async with PythonProvider(hub=hub) as provider:
        yield provider, hub


@contextlib.contextmanager
def plain(client: docker.APIClient, count: int) -> Iterator[list[str]]:
    """Containers that sleep, for exec."""
    config = client.create_host_config(network_mode="none", auto_remove=True)
    made = [client.create_container(IMAGE, ["sleep", "600"], host_config=config)["Id"] for _ in range(count)]
    try:
        for each in made:
            client.start(each)
        yield made
    finally:
        for each in made:
            client.remove_container(each, force=True)


def command(container: str) -> None:
    """What people do for each run."""
    words = ["docker", "exec", container, "python3", "-c", CODE]
    if subprocess.run(words, capture_output=True, check=True).stdout.strip() != b"1":  # noqa: S603 - a container's id
        raise SystemExit("docker exec gives a wrong answer")


def execute(client: docker.APIClient, container: str) -> None:
    """What libraries do."""
    made = client.exec_create(container, ["python3", "-c", CODE])
    if client.exec_start(made["Id"]).strip() != b"1":
        raise SystemExit("docker exec gives a wrong answer")


async def run(provider: PythonProvider, interpreter: str) -> None:
    """One run in the pool."""
    answer = await provider.execute("python/execute", {"code": CODE, "interpreter": interpreter})
    if answer["stdout"] != "1\n":
        raise SystemExit(f"a wrong answer: {answer}")


async def timed(work: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        found.append(time.perf_counter() - began)
    return found


@contextlib.contextmanager
def llm_sandbox() -> Iterator[Callable[[], None] | None]:
    """A run by llm-sandbox, in a container that it keeps; None where it is not installed."""
    if importlib.util.find_spec("llm_sandbox") is None:
        yield None
        return
    from llm_sandbox import SandboxSession  # noqa: PLC0415 - there or not

    with SandboxSession(image=IMAGE, lang="python", keep_template=True, skip_environment_setup=True) as session:

        def once() -> None:
            if session.run(CODE).stdout.strip() != "1":
                raise SystemExit("llm-sandbox gives a wrong answer")

        yield once


async def one_at_a_time(client: docker.APIClient, verdict: Verdict, runs: int) -> None:
    """Warm runs, one after another."""
    with plain(client, 1) as (container,), llm_sandbox() as theirs:
        async with pooled(min_total=1, max_total=1) as (provider, _):
            ways: dict[str, Callable[[], Any]] = {
                "docker exec python3": lambda: asyncio.to_thread(command, container),
                "the same over the engine's API": lambda: asyncio.to_thread(execute, client, container),
                "fresh": lambda: run(provider, "fresh"),
                "forked": lambda: run(provider, "forked"),
            }
            if theirs is not None:
                ways["llm-sandbox"] = lambda: asyncio.to_thread(theirs)
            found: dict[str, list[float]] = {name: [] for name in ways}
            for way in ways.values():
                await way()
            for _ in range(_ROUNDS):
                for name, way in ways.items():
                    found[name] += await timed(way, runs * (_MORE if name == "forked" else 1))
    medians = {name: statistics.median(times) for name, times in found.items()}
    print("warm print(1), one at a time")
    for name, median in medians.items():
        print(f"  {name:58} {median * _MS:8.2f} ms")
    verdict.ratio("forked against docker exec", medians["docker exec python3"] / medians["forked"], 30)
    verdict.ratio("fresh against docker exec", medians["docker exec python3"] / medians["fresh"], 1.7)
    verdict.ratio("forked against the API", medians["the same over the engine's API"] / medians["forked"])
    if "llm-sandbox" in medians:
        verdict.ratio("forked against llm-sandbox", medians["llm-sandbox"] / medians["forked"])
    else:
        print("  llm-sandbox is not installed here")


async def many_at_once(client: docker.APIClient, verdict: Verdict, runs: int) -> None:
    """32 callers, on as many containers for both."""
    with plain(client, POOL) as containers, ThreadPoolExecutor(AT_ONCE) as threads:
        async with pooled(min_total=POOL, max_total=POOL) as (provider, _):
            loop = asyncio.get_running_loop()
            rates: dict[str, list[float]] = {"exec": [], "forked": []}
            for _ in range(3):
                began = time.perf_counter()
                await asyncio.gather(
                    *(
                        loop.run_in_executor(threads, command, containers[number % POOL])
                        for number in range(AT_ONCE * 2)
                    )
                )
                rates["exec"].append(AT_ONCE * 2 / (time.perf_counter() - began))

                async def caller() -> None:
                    for _ in range(runs):
                        await run(provider, "forked")

                began = time.perf_counter()
                await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
                rates["forked"].append(AT_ONCE * runs / (time.perf_counter() - began))
    print(f"{AT_ONCE} at once on {POOL} containers")
    for name, found in rates.items():
        print(f"  {name:58} {statistics.median(found):8.1f} runs/s")
    verdict.ratio(
        "forked against docker exec", statistics.median(rates["forked"]) / statistics.median(rates["exec"]), 20
    )


async def acquire(hub: DockerHub, provider: PythonProvider) -> None:
    """Get a container, and give it back; a single-use one is gone then."""
    del hub
    async with provider.dispatcher.lease(RUNNER):
        pass


async def warm_and_cold(verdict: Verdict, runs: int) -> None:
    """A container of an untrusted profile, which each use gets anew: from a warm supply, and made for the request."""
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    async with (
        pooled(profile="untrusted", min_idle=2, max_total=4) as (warm, warm_hub),
        pooled(profile="untrusted", max_total=4) as (cold, cold_hub),
    ):
        for _ in range(runs):
            while len([each for each in warm.dispatcher.reports() if each.state == "ready"]) < 2:  # noqa: ASYNC110, PLR2004 - both are there again
                await asyncio.sleep(0.01)
            found["warm"] += await timed(lambda: acquire(warm_hub, warm), 1)
            found["cold"] += await timed(lambda: acquire(cold_hub, cold), 1)
    medians = {name: statistics.median(times) for name, times in found.items()}
    print("acquire from an untrusted supply")
    for name, median in medians.items():
        print(f"  {name:58} {median * _MS:8.2f} ms")
    verdict.ratio("warm against cold", medians["cold"] / medians["warm"])


async def longest_stall() -> None:
    """How long the loop does nothing else while 24 containers are made."""
    gaps = [0.0]

    async def watch() -> None:
        while True:
            due = time.perf_counter() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            gaps.append(time.perf_counter() - due)

    async with pooled(max_total=1) as (provider, _):
        await run(provider, "forked")  # what is imported once, in a thread, is not to be measured
    watching = asyncio.create_task(watch())
    began = time.perf_counter()
    async with pooled(min_total=CREATED, max_total=CREATED, memory="64m") as (_, hub):
        took_s = time.perf_counter() - began
        if len(hub.instances) != CREATED:
            raise SystemExit(f"only {len(hub.instances)} were made: {hub.problem}")
        watching.cancel()
    print(f"{CREATED} containers are made in {took_s:.1f} s, {CREATED / took_s:.1f} a second")
    late = sorted(gaps)
    print(f"  {'longest stall of the loop meanwhile':58} {late[-1] * _MS:8.1f} ms")
    print(f"  {'99 of 100 are shorter than':58} {late[len(late) * 99 // 100] * _MS:8.1f} ms")


async def main() -> int:
    """All of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=6, help="in each round")
    parser.add_argument("--only", default="runs,many,warm,stall", help="parts: runs, many, warm, stall")
    given = parser.parse_args()
    parts, verdict = given.only.split(","), Verdict()
    try:
        client = docker.APIClient(from_environment().url)
    except docker.errors.DockerException as error:
        print(f"no Docker Engine answers, so there is nothing to measure: {error}")
        return 0
    with contextlib.closing(client):
        if not client.images(IMAGE):
            print(f"the engine has no image {IMAGE}: make test-image")
            return 0
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        if "runs" in parts:
            await one_at_a_time(client, verdict, given.runs)
        if "many" in parts:
            await many_at_once(client, verdict, given.runs)
        if "warm" in parts:
            await warm_and_cold(verdict, given.runs)
        if "stall" in parts:
            await longest_stall()
    for missed in verdict.missed:
        print(f"below its bar: {missed}", file=sys.stderr)
    return int(bool(verdict.missed))


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
