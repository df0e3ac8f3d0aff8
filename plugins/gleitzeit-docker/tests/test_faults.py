"""What goes wrong from outside: containers that are killed, paused or removed, and engines that hang, vanish, come back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import subprocess
import tracemalloc  # noqa: F401 - else pytest imports it in whatever thread first warns of something, or in two
from typing import TYPE_CHECKING, Any

import docker
import pytest

from gleitzeit_core.errors import RequestError
from gleitzeit_core.resources import ChannelKind, Requirements, Speaks
from gleitzeit_docker.address import from_environment
from gleitzeit_docker.testing import EngineProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from docker.api.client import APIClient

    Start = Callable[..., Awaitable[Any]]

pytestmark = [
    pytest.mark.docker,
    pytest.mark.attacks,
    pytest.mark.faults,
    # The SDK leaves a socket that could not be connected to the garbage collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

ANY = Requirements(accepts=(Speaks("python-runner", ChannelKind.STREAM),))
SOCKET = from_environment().socket or "/var/run/docker.sock"


@pytest.fixture(autouse=True)
def no_garbage_for_others() -> Iterator[None]:
    """What is collected is collected here, where it may be."""
    yield
    gc.collect()


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[EngineProxy]:
    """A socket in front of the real engine."""
    async with EngineProxy(SOCKET, tmp_path / "engine.sock") as started:
        yield started


async def _works(pooled: Any) -> None:  # noqa: ANN401 - see conftest
    """Somebody gets a container, and its runner lives."""
    async with pooled.dispatcher.lease(ANY) as lease:
        assert not lease.instance.handle.stream.closed


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda engine, name: engine.kill(name), "ended with status 137"),
        (lambda engine, name: engine.kill(name, signal.SIGTERM), "ended|streams are closed"),
        (lambda engine, name: engine.pause(name), "was paused"),
        (lambda engine, name: engine.remove_container(name, force=True), "ended with status 137"),
    ],
    ids=["killed", "terminated", "paused", "removed"],
)
async def test_what_happens_to_a_container_from_outside_is_noticed_at_once(
    pool: Start,
    engine: APIClient,
    harm: Callable[[APIClient, str], None],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another comes for it; the pool has its size again, and nothing of the first is left."""
    pooled = await pool(min_total=2, max_total=2, check_interval_s=3600, discover_interval_s=3600)
    victim = pooled.ready()[0]
    if reason.startswith("ended|"):
        # The first process of a container takes no signal that it does not handle.
        harm(engine, victim.handle.name)
        await _works(pooled)
        return
    await asyncio.to_thread(harm, engine, victim.handle.name)
    await pooled.until(lambda: len(pooled.ready()) == 2 and victim.id not in [each.id for each in pooled.ready()])
    assert reason in caplog.text or "streams are closed" in caplog.text or "gone" in caplog.text
    await _works(pooled)
    await pooled.until(lambda: len(pooled.hub._containers) == 2)
    assert not engine.containers(all=True, filters={"name": victim.handle.name})


async def test_what_was_missed_is_found_when_all_are_compared(pool: Start, engine: APIClient) -> None:
    """Without any event: the next comparison shows that one is gone."""
    pooled = await pool(min_total=1, max_total=1, check_interval_s=3600, discover_interval_s=3600)
    (watch,) = pooled.hub._fleet.watches.values()
    await watch.aclose()
    victim = pooled.ready()[0]
    await asyncio.to_thread(engine.pause, victim.handle.name)
    await pooled.hub.discover()
    await pooled.until(lambda: [each for each in pooled.ready() if each.id != victim.id])


async def test_a_lease_on_a_container_that_is_killed_ends(pool: Start, engine: APIClient) -> None:
    """Whoever reads from it sees the end of the stream, and the next gets another."""
    pooled = await pool(min_total=1, max_total=1)
    async with pooled.dispatcher.lease(ANY) as lease:
        stream = lease.instance.handle.stream
        await asyncio.to_thread(engine.kill, lease.instance.handle.name)
        async with asyncio.timeout(20):
            assert await stream.receive() == b""
        assert stream.closed
    await pooled.until(lambda: pooled.ready() and pooled.ready()[0].id != lease.instance.id)


async def test_a_removal_that_is_in_progress_is_waited_for(pool: Start, engine: APIClient) -> None:
    """Whoever removes it at the same time: all succeed, and then it is gone (the engine answers 409 to all but one)."""
    pooled = await pool(min_total=1, max_total=1)
    (container,) = pooled.containers()
    await asyncio.gather(*(container.engine.remove(container.name) for _ in range(4)))
    assert not engine.containers(all=True, filters={"name": container.name})
    # One that never was is fine, too.
    await container.engine.remove("gleitzeit-there-is-none")


async def test_an_engine_that_hangs_is_down_and_then_up_again(proxy: EngineProxy, pool: Start) -> None:
    """Checks say so within the time that a call may take; nobody waits for ever; when it goes on, so do we."""
    pooled = await pool(engines=[proxy.url], min_total=1, max_total=1, call_timeout_s=1.5, check_timeout_s=5)
    (first,) = pooled.ready()
    proxy.hang()
    await asyncio.sleep(1.1)  # the last answer to a ping is good for a second
    assert "down" in await pooled.check(first) or "down" in await pooled.check(first)
    with pytest.raises(RequestError):
        await pooled.dispatcher.lease(ANY, timeout_s=1)
    proxy.go_on()
    await asyncio.sleep(1.1)
    assert "ready" in await pooled.check(first)
    await _works(pooled)


async def test_a_hub_closes_while_its_engine_hangs(proxy: EngineProxy, pool: Start) -> None:
    """In a few times what a call may take. The runner goes with its channel; what is left, a later sweep removes."""
    pooled = await pool(engines=[proxy.url], min_total=1, max_total=1, call_timeout_s=1.5)
    proxy.hang()
    async with asyncio.timeout(10):
        await pooled.dispatcher.aclose()
    proxy.go_on()
    another = await pool(min_total=0)
    await another.hub.discover()


async def test_an_engine_that_vanishes_takes_its_containers_out_and_is_used_again(
    proxy: EngineProxy, pool: Start, engine: APIClient
) -> None:
    """Their streams are gone with it; meanwhile the hub says why it makes none; then the pool has its size again."""
    pooled = await pool(engines=[proxy.url], min_total=2, max_total=2, call_timeout_s=5)
    before = {each.id for each in pooled.ready()}
    await proxy.vanish()
    await pooled.until(lambda: not pooled.ready())
    assert "engine" in pooled.hub.problem
    with pytest.raises(RequestError, match="engine"):
        await pooled.dispatcher.lease(ANY, timeout_s=1)
    await proxy.come_back()
    await pooled.until(lambda: len(pooled.ready()) == 2)
    assert not before & {each.id for each in pooled.ready()}
    assert pooled.hub.problem == ""
    await pooled.hub.discover()
    names = {container.name for container in pooled.containers()}
    assert {name.lstrip("/") for each in _ours(engine, pooled) for name in each["Names"]} == names


async def test_one_engine_that_fails_does_not_stop_the_others(proxy: EngineProxy, pool: Start) -> None:
    """They share the work; when one vanishes, all of it goes to the other, and the hub names the one that is down."""
    engines = [{"url": proxy.url, "name": "far"}, {"url": f"unix://{SOCKET}", "name": "near"}]
    pooled = await pool(engines=engines, min_total=4, max_total=4)
    assert sorted(each.details["engine"] for each in pooled.ready()) == ["far", "far", "near", "near"]
    await proxy.vanish()
    await pooled.until(lambda: [each.details["engine"] for each in pooled.ready()] == ["near"] * 4)
    assert "far" in pooled.hub.problem
    await _works(pooled)
    await proxy.come_back()
    await pooled.until(lambda: not pooled.hub.problem)


async def test_an_engine_that_is_not_there_at_start_is_used_when_it_comes(pool: Start, tmp_path: Path) -> None:
    """The hub starts, says why it has none, and has them then."""
    proxy = EngineProxy(SOCKET, tmp_path / "later.sock")
    pooled = await pool(engines=[proxy.url], min_total=1)
    assert "cannot be reached" in pooled.hub.problem
    async with proxy:
        await pooled.until(pooled.ready)
        await _works(pooled)
        await pooled.dispatcher.aclose()


async def test_creating_on_an_engine_that_hangs_fails_in_time(proxy: EngineProxy, pool: Start) -> None:
    """With its name; and what it made meanwhile all the same is removed when it answers again."""
    pooled = await pool(engines=[proxy.url], max_total=1, call_timeout_s=1.5, check_interval_s=3600)
    proxy.hang()
    with pytest.raises(RequestError):
        await pooled.dispatcher.lease(ANY, timeout_s=8)
    proxy.go_on()
    await pooled.until(lambda: not (pooled.hub._containers or pooled.hub._retry or pooled.hub._fleet.why_none))
    await pooled.hub.discover()
    async with pooled.dispatcher.lease(ANY, timeout_s=20) as lease:
        assert lease.instance.handle.ready


@pytest.mark.slow
async def test_an_engine_of_our_own_that_is_restarted(pool: Start, tmp_path: Path) -> None:
    """Its containers are gone with it; when it runs again, the pool has its size."""
    own = await asyncio.to_thread(_OwnEngine, tmp_path)
    try:
        await asyncio.to_thread(own.start)
        await asyncio.to_thread(own.copy_image)
        pooled = await pool(engines=[own.url], min_total=2, max_total=2)
        before = {each.id for each in pooled.ready()}
        await asyncio.to_thread(own.stop)
        await pooled.until(lambda: not pooled.ready())
        await asyncio.to_thread(own.start)
        await pooled.until(lambda: len(pooled.ready()) == 2)
        assert not before & {each.id for each in pooled.ready()}
        await _works(pooled)
        await pooled.dispatcher.aclose()
    finally:
        await asyncio.to_thread(own.stop)


class _OwnEngine:
    """An engine that only this test uses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder}/own.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """With a root, a state and an address of its own, and no network."""
        folder = self._folder
        # In a network of its own: an engine without a bridge removes that of another.
        command = [
            "unshare",
            "--net",
            "dockerd",
            "--host",
            self.url,
            "--data-root",
            f"{folder}/data",
            "--exec-root",
            f"{folder}/exec",
        ]
        command += ["--pidfile", f"{folder}/own.pid", "--bridge", "none", "--iptables=false"]
        with (folder / "own.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(300):
            with contextlib.suppress(docker.errors.DockerException), contextlib.closing(self._client()) as client:
                client.ping()
                return
            os.sched_yield()
            signal.sigtimedwait([], 0.1)
        raise AssertionError((folder / "own.log").read_text())

    def _client(self) -> APIClient:
        return docker.APIClient(base_url=self.url)

    def copy_image(self) -> None:
        """From the engine of this machine."""
        with contextlib.closing(docker.APIClient(base_url=f"unix://{SOCKET}")) as here:
            image = b"".join(here.get_image("gleitzeit-test-python:latest"))
        with contextlib.closing(self._client()) as client:
            list(client.load_image(image))

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None
            shutil.rmtree(self._folder / "exec", ignore_errors=True)


def _ours(engine: APIClient, pooled: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - see conftest
    label = f"gleitzeit.owner={pooled.hub._owner.name}"
    return engine.containers(all=True, filters={"label": label})
