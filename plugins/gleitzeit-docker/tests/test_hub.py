"""The hub's life on a real engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import ConfigurationError, InstanceFailure
from gleitzeit_core.resources import ChannelKind, Requirements, Speaks
from gleitzeit_core.testing.conformance import SupplyConformance
from gleitzeit_docker.containers import Container, config
from gleitzeit_docker.hub import DockerHub
from gleitzeit_docker.options import DockerOptions
from gleitzeit_docker.owners import OWNER
from gleitzeit_docker.profiles import AGENT_CAPABILITIES
from gleitzeit_docker.starting import started

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from docker.api.client import APIClient

    from gleitzeit_core.hub import ResourceHub

    Start = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.docker

ANY = Requirements(accepts=(Speaks("python-runner", ChannelKind.STREAM),))


@pytest.mark.usefixtures("engine")
class TestDockerHub(SupplyConformance):
    """As every hub that creates."""

    requirements = ANY
    limit = 2

    async def make_hub(self) -> ResourceHub[Any]:
        """One container, two at most."""
        return DockerHub(DockerOptions(image="gleitzeit-test-python", min_total=1, max_total=2, idle_ttl_s=0.2))


async def test_a_container_is_as_its_profile_says(pool: Start, engine: APIClient) -> None:
    """The engine itself says so: limits, capabilities, no network, nothing that can be written."""
    pooled = await pool(min_total=1, memory="100m", cpus=0.5, pids=50)
    found = engine.inspect_container(pooled.containers()[0].id)
    host = found["HostConfig"]
    assert (host["Memory"], host["MemorySwap"]) == (100 * 1024**2, 100 * 1024**2)
    assert (host["CpuQuota"], host["CpuPeriod"], host["PidsLimit"]) == (50_000, 100_000, 50)
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["Privileged"]) == ("none", True, False)
    assert (host["CapDrop"], sorted(host["CapAdd"])) == (["ALL"], list(AGENT_CAPABILITIES))
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["AutoRemove"]
    assert host["LogConfig"]["Type"] == "none"
    assert not found["Mounts"]
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]} == {"core": 0, "nofile": 1024}
    assert host["Tmpfs"] == {"/tmp": f"rw,nosuid,nodev,mode=1777,size={64 * 1024**2}"}  # noqa: S108 - the container's
    assert host["ShmSize"] == 16 * 1024**2
    assert found["Config"]["Healthcheck"] == {"Test": ["NONE"]}
    assert found["Config"]["OpenStdin"]
    assert found["Config"]["StdinOnce"]
    assert found["Config"]["Labels"][OWNER]


async def test_an_instance_says_what_it_is(pool: Start) -> None:
    """Its image with its digest, its engine, and what its runner can do."""
    pooled = await pool(min_total=1)
    details = pooled.ready()[0].details
    assert details["digest"].startswith("sha256:")
    assert details["engine"].startswith("unix://")
    assert details["runner"]["verified_reset"]
    assert details["profile"] == "sandboxed"


async def test_a_runtime_that_is_not_there_is_refused_loudly(pool: Start) -> None:
    """At start, with those that are there: nothing else is used instead."""
    with pytest.raises(ConfigurationError, match=r"no runtime 'runsc'; it has: .*runc"):
        await pool(runtime="runsc", min_total=1)


async def test_a_creation_that_is_cancelled_leaves_nothing(pool: Start, engine: APIClient) -> None:
    """Whenever that happens: after each of many moments, there is no container, and the hub goes on."""
    pooled = await pool(max_total=1)
    for step in range(12):
        coming = pooled.hub.next(1000 + step)
        task = asyncio.create_task(pooled.hub.create(coming))
        await asyncio.sleep(step * 0.03)
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        if not isinstance(result, BaseException):
            await pooled.hub.destroy(result)
        name = coming.endpoint.removeprefix("docker://")
        assert not engine.containers(all=True, filters={"name": name})
    assert not pooled.hub._containers


async def test_what_is_closed_by_its_user_is_not_used_again(pool: Start) -> None:
    """A provider that has seen something wrong closes the channel: after that use another comes."""
    pooled = await pool(min_total=1, max_total=1)
    first = pooled.ready()[0]
    async with pooled.dispatcher.lease(ANY) as lease:
        assert lease.instance.id == first.id
        await first.offers[0][1].aclose()
    await pooled.until(lambda: [each for each in pooled.ready() if each.id != first.id])
    assert len(pooled.ready()) == 1


@pytest.mark.parametrize(("user", "reusable"), [("00:00", True), ("nobody", False)])
async def test_whoever_the_agent_is_payloads_are_not_root(pool: Start, user: str, reusable: bool) -> None:  # noqa: FBT001
    """A name does not say who is root: the agent knows. One that is not cannot be somebody else for payloads."""
    pooled = await pool(min_total=1, user=user)
    assert [each.details["runner"]["separate_user"] for each in pooled.ready()] == [reusable]


async def test_one_that_ended_while_it_was_made_is_not_used(pool: Start) -> None:
    """The engine has told of it just before its runner said hello."""
    pooled = await pool()
    (watch,) = pooled.hub._fleet.watches.values()
    coming = pooled.hub.next(1)
    told = config(pooled.hub.options, pooled.hub._owner.labels, hub="x")
    # The hub knows of it, or would sweep it as one that was left behind.
    container = pooled.hub._containers["early"] = Container("gleitzeit-ended-early", watch.engine)
    container.id = await watch.engine.create(container.name, told)
    container.ended.set_result("the container was paused")
    try:
        with pytest.raises(InstanceFailure, match="was paused"):
            await started(container, coming, pooled.hub.options)
    finally:
        await container.stream.aclose()
        await watch.engine.remove(container.name)
        del pooled.hub._containers["early"]


async def test_single_use_means_one_use(pool: Start) -> None:
    """An untrusted container is gone after it, and another is warm for the next."""
    pooled = await pool(profile="untrusted", min_idle=1, max_total=2)
    await pooled.until(pooled.ready)
    seen = set()
    for _ in range(3):
        async with pooled.dispatcher.lease(ANY) as lease:
            seen.add(lease.instance.id)
    assert len(seen) == 3


async def test_what_is_no_runner_is_told_with_its_own_words(pool: Start) -> None:
    """What it wrote to its standard error stands in the hub's problem, and nothing is left of it."""
    pooled = await pool(min_total=1, python="cat")
    assert "the runner ended before it was ready; it said: cat: " in pooled.hub.problem
    assert not pooled.hub._containers


async def test_a_runner_without_memory_to_begin_is_told_so(pool: Start) -> None:
    """The engine knows why it ended."""
    pooled = await pool(min_total=1, memory="6m")
    assert "before it was ready; the container ended with status 137" in pooled.hub.problem


async def test_a_module_that_an_image_lacks_is_named(pool: Start) -> None:
    """With the place of the option that asks for it."""
    pooled = await pool(min_total=1, preload=["no_such_module"])
    assert f"hubs.{pooled.hub.name}.preload: module 'no_such_module' cannot be imported" in pooled.hub.problem
    assert not pooled.hub._containers


async def test_a_runner_that_is_nobody_needs_no_capabilities(pool: Start) -> None:
    """And is used once, as it cannot clean up after payloads that are itself."""
    pooled = await pool(min_total=1, user="65534:65534", capabilities=[])
    (first,) = pooled.ready()
    assert not first.details["runner"]["separate_user"]


async def test_closing_while_containers_are_made_leaves_none(pool: Start) -> None:
    """The fixture looks."""
    pooled = await pool(max_total=4)
    await pooled.hub.scale(ANY, 4)
    await asyncio.sleep(0.1)
    await pooled.dispatcher.aclose()
    assert not pooled.hub._containers
