"""What the tests of gleitzeit-docker share: an engine and an image, or a reason to skip; and hubs that run on it."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import docker
import pytest

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.pool import State
from gleitzeit_docker.address import from_environment
from gleitzeit_docker.hub import DockerHub
from gleitzeit_docker.options import DockerOptions
from gleitzeit_docker.owners import OWNER, PLACE, Owner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from docker.api.client import APIClient

    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_core.runs import InstanceReport
    from gleitzeit_docker.containers import Container

IMAGE = "gleitzeit-test-python:latest"
LIMIT_S = 30


@dataclass(frozen=True)
class Pooled:
    """A hub that runs."""

    hub: DockerHub
    dispatcher: Dispatcher

    def reports(self) -> list[InstanceReport]:
        """How the instances are."""
        return self.dispatcher.reports()

    def ready(self) -> list[ResourceInstance]:
        """Those that are ready."""
        return [report.instance for report in self.reports() if report.state == State.READY]

    def containers(self) -> list[Container]:
        """Those in use."""
        return [instance.handle for instance in self.ready()]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a change of an instance after which `condition` holds."""
        changed = asyncio.Event()
        self.dispatcher.shell.listen(lambda _: changed.set())
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), 0.1)
                changed.clear()

    async def check(self, instance: ResourceInstance) -> str:
        """Let the health monitor check one now; return its state then, and why."""
        await self.dispatcher.shell.health.check(instance.id)
        found = [report for report in self.reports() if report.instance.id == instance.id]
        return f"{found[0].state}: {found[0].reason}" if found else "gone"


def options(**given: Any) -> DockerOptions:  # noqa: ANN401 - as in a configuration
    """Options with the test image."""
    return DockerOptions.model_validate({"image": IMAGE, **given})


@asynccontextmanager
async def running(**given: Any) -> AsyncIterator[Pooled]:  # noqa: ANN401 - as in a configuration
    """Run a hub with these options."""
    dispatcher, hub = Dispatcher(), DockerHub(options(**given))
    try:
        await dispatcher.shell.add_hub(hub)
        yield Pooled(hub, dispatcher)
    finally:
        await dispatcher.aclose()


@pytest.fixture
async def run_hub(state: Path) -> AsyncIterator[Callable[..., Awaitable[Pooled]]]:  # noqa: ARG001 - for its owner
    """Runs a hub with the options it is given, on whatever engine, until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(**given: Any) -> Pooled:  # noqa: ANN401 - as above
            return await stack.enter_async_context(running(**given))

        yield start


@pytest.fixture
async def pool(
    engine: APIClient,  # noqa: ARG001 - it must be there
    run_hub: Callable[..., Awaitable[Pooled]],
) -> Callable[..., Awaitable[Pooled]]:
    """Runs a hub on the real engine, as `run_hub`."""
    return run_hub


@pytest.fixture(scope="session")
def engine_here() -> Iterator[APIClient]:
    """A real engine with the test image; a reason to skip where there is none."""
    address = from_environment()
    try:
        client = docker.APIClient(address.url, timeout=LIMIT_S, tls=address.tls_for_sdk())
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker Engine answers (tools/docker-engine.sh start): {error}")
    with contextlib.closing(client):
        if not client.images(IMAGE):
            pytest.skip(f"the engine has no image {IMAGE} (make test-image)")
        yield client


@pytest.fixture
def engine(engine_here: APIClient, state: Path) -> Iterator[APIClient]:
    """A real engine, on which the test leaves nothing behind."""
    yield engine_here
    left = of_this_test(engine_here, state)
    for each in left:
        with contextlib.suppress(docker.errors.APIError):
            engine_here.remove_container(each["Id"], force=True)
    assert not [(each["Names"], each["Status"]) for each in left]


def of_this_test(client: APIClient, state: Path) -> list[dict[str, Any]]:
    """The containers whose owners have their files in the test's directory."""
    owner = Owner.begin(state / "gleitzeit" / "docker")
    try:
        return client.containers(all=True, filters={"label": [OWNER, f"{PLACE}={owner.place}"]})
    finally:
        owner.close()


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory for state, so that no test judges the owners of another; and no configuration of this machine's."""
    monkeypatch.delenv("GLEITZEIT_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
    return tmp_path / "state"
