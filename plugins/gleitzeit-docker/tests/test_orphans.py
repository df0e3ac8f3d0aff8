"""Owners that are killed, and owners that live beside each other on one engine."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_docker.owners import HUB, OWNER, PLACE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from docker.api.client import APIClient

    Start = Callable[..., Awaitable[Any]]

pytestmark = [pytest.mark.docker, pytest.mark.attacks]

IMAGE = "gleitzeit-test-python:latest"
OTHER = """
import asyncio, sys
from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_docker.hub import DockerHub
from gleitzeit_docker.options import DockerOptions

async def main():
    hub = DockerHub(DockerOptions.model_validate({options}))
    await Dispatcher().shell.add_hub(hub)
    print(hub._owner.name, *(c.id for c in hub._containers.values()), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
SERVER = "import http.server as h; h.HTTPServer(('', 8000), h.SimpleHTTPRequestHandler).serve_forever()"


class Other:
    """Another process with a hub."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as in a configuration
        code = OTHER.replace("{options}", repr({"image": IMAGE, "min_total": 2, **options}))
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.owner, *self.containers = self.process.stdout.readline().split()

    def kill(self) -> None:
        """As nobody can prepare for."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """End it in any case."""
        self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def other(engine: APIClient) -> Iterator[Callable[..., Other]]:  # noqa: ARG001 - it must be there
    """Starts other processes."""
    started: list[Other] = []

    def start(**options: Any) -> Other:  # noqa: ANN401 - as in a configuration
        started.append(Other(**options))
        return started[-1]

    yield start
    for each in started:
        each.close()


def of(engine: APIClient, owner: str) -> list[str]:
    """The containers of an owner."""
    return [each["Id"] for each in engine.containers(all=True, filters={"label": f"{OWNER}={owner}"})]


async def _gone(engine: APIClient, owner: str) -> None:
    async with asyncio.timeout(20):
        while await asyncio.to_thread(of, engine, owner):
            await asyncio.sleep(0.02)


async def test_runners_go_by_themselves_when_their_owner_is_killed(
    engine: APIClient, other: Callable[..., Other]
) -> None:
    """Their input ends with it, and so do they: no sweep is needed."""
    killed = await asyncio.to_thread(other)
    assert len(of(engine, killed.owner)) == 2
    await asyncio.to_thread(killed.kill)
    await _gone(engine, killed.owner)


async def test_servers_of_an_owner_that_was_killed_are_swept(
    engine: APIClient, other: Callable[..., Other], pool: Start
) -> None:
    """At the start of the next process, or at its next look; those of an owner that lives are not touched."""
    server = {"api": "openai", "port": 8000, "network": "bridge", "command": ["python3", "-c", SERVER]}
    one, two, three = await asyncio.gather(*(asyncio.to_thread(other, **server) for _ in range(3)))
    await asyncio.to_thread(one.kill)
    assert len(of(engine, one.owner)) == 2
    pooled = await pool()
    assert not of(engine, one.owner)
    await asyncio.to_thread(two.kill)
    assert len(of(engine, two.owner)) == 2
    await pooled.hub.discover()
    assert not of(engine, two.owner)
    assert len(of(engine, three.owner)) == 2
    await asyncio.to_thread(three.kill)
    await pooled.hub.discover()


async def test_two_owners_never_touch_each_others(pool: Start) -> None:
    """However often both compare and sweep."""
    one, two = await asyncio.gather(pool(min_total=2), pool(min_total=2))
    before = {instance.id for pooled in (one, two) for instance in pooled.ready()}
    assert len(before) == 4
    for _ in range(3):
        await asyncio.gather(one.hub.discover(), two.hub.discover())
    assert {instance.id for pooled in (one, two) for instance in pooled.ready()} == before
    await one.dispatcher.aclose()
    await two.hub.discover()
    assert len(two.ready()) == 2


@pytest.mark.parametrize("what", ["another machine", "another start of it", "a container beside"])
async def test_owners_elsewhere_are_not_judged(pool: Start, engine: APIClient, what: str) -> None:
    """Nobody here can know whether they live: their containers stay, for as long as they want."""
    pooled = await pool()
    start, folder = pooled.hub._owner.place.split("/")
    places = {"another machine": ["f" * len(start), folder], "another start of it": ["0", folder]}
    place = "/".join(places.get(what, [start, "0"]))
    config = engine.create_container_config(IMAGE, "sleep 60", labels={OWNER: "a" * 32, PLACE: place, HUB: "x"})
    theirs = engine.create_container_from_config(config)["Id"]
    try:
        await pooled.hub.discover()
        assert of(engine, "a" * 32) == [theirs]
    finally:
        engine.remove_container(theirs, force=True)


async def test_what_we_have_forgotten_ourselves_is_swept(pool: Start, engine: APIClient) -> None:
    """Such as one that an engine has made after it had seemed to hang."""
    pooled = await pool(min_total=1)
    config = engine.create_container_config(IMAGE, "sleep 60", labels=pooled.hub._owner.labels)
    lost = engine.create_container_from_config(config, "gleitzeit-forgotten")["Id"]
    await pooled.hub.discover()
    assert lost not in of(engine, pooled.hub._owner.name)
    assert len(of(engine, pooled.hub._owner.name)) == 1
    assert len(pooled.ready()) == 1


async def test_files_of_dead_owners_are_removed(pool: Start, other: Callable[..., Other], state: Path) -> None:
    """The directory does not grow with every process that was killed."""
    killed = await asyncio.to_thread(other, min_total=0)
    await asyncio.to_thread(killed.kill)
    folder = state / "gleitzeit" / "docker"
    assert (folder / f"{killed.owner}.lock").exists()
    pooled = await pool()
    assert not (folder / f"{killed.owner}.lock").exists()
    await pooled.dispatcher.aclose()
    assert [path.name for path in folder.iterdir()] == ["place"]
