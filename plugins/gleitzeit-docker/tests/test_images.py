"""Images: pulled once, in the background, with progress; missing ones are named; others are built."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import tarfile
from typing import TYPE_CHECKING, Any

import docker
import pytest

from gleitzeit_core.errors import RequestError
from gleitzeit_core.resources import ChannelKind, Requirements, Speaks
from gleitzeit_docker.address import from_environment
from gleitzeit_docker.engine import Engine
from gleitzeit_docker.errors import EngineDown, ImageMissing
from gleitzeit_docker.images import Images, Progress, Step, find, full_name, pull
from gleitzeit_docker.recipe import build, context, dockerfile
from gleitzeit_docker.testing import Registry

from .waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from docker.api.client import APIClient

    Start = Callable[..., Awaitable[Any]]

ANY = Requirements(accepts=(Speaks("python-runner", ChannelKind.STREAM),))
TINY = "gleitzeit-tiny-test:latest"


@pytest.fixture(scope="module")
def saved(engine_here: APIClient) -> bytes:
    """A tiny image of noise, as ``docker save`` writes it; the engine keeps nothing of it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("noise")
        entry.size = 2_000_000
        archive.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    engine_here.import_image_from_data(packed.getvalue(), TINY.partition(":")[0], "latest")
    try:
        return b"".join(engine_here.get_image(TINY))
    finally:
        engine_here.remove_image(TINY, force=True)


@pytest.fixture
def registry(saved: bytes, engine_here: APIClient) -> Iterator[Registry]:
    """A registry that has it; what is pulled from it is removed."""
    with Registry(saved) as started:
        yield started
        with contextlib.suppress(docker.errors.APIError):
            engine_here.remove_image(started.image, force=True)


@pytest.fixture
async def here(engine: APIClient) -> AsyncIterator[Engine]:  # noqa: ARG001 - it must be there
    """The real engine, as the plugin sees it."""
    made = Engine(from_environment(), name="here", timeout_s=20)
    yield made
    await made.aclose()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("python", "python:latest"),
        ("python:3.12-slim", "python:3.12-slim"),
        ("127.0.0.1:5000/tiny", "127.0.0.1:5000/tiny:latest"),
        ("tiny@sha256:abc", "tiny@sha256:abc"),
    ],
)
def test_a_name_without_a_tag_means_latest(given: str, meant: str) -> None:
    """Else an engine would pull all the tags there are."""
    assert full_name(given) == meant


def test_progress_is_over_all_layers() -> None:
    """What is complete counts whole; unpacking does not begin again."""
    progress = Progress()
    assert progress.percent is None
    for step in (
        Step("Downloading", "a", 50, 100),
        Step("Downloading", "b", 0, 300),
        Step("Extracting", "a", 1, 100),
        Step("Download complete", "a"),
    ):
        progress.note(step)
    assert progress.percent == 25


@pytest.mark.docker
async def test_an_image_is_pulled_with_its_digest(here: Engine, registry: Registry) -> None:
    """Step by step, and known by its digest then."""
    assert await find(here, registry.image) is None
    steps = [step async for step in pull(here, registry.image, stall_timeout_s=20)]
    assert any(step.total_bytes for step in steps)
    # A tag is no part of an image, for which a bar would be drawn.
    assert steps[0] == Step("Pulling from tiny:latest")
    assert f"Digest: {registry.digest}" in [step.status for step in steps]
    found = await find(here, registry.image)
    assert found is not None
    assert [digest.partition("@")[2] for digest in found.digests] == [registry.digest]


@pytest.mark.docker
async def test_an_image_that_no_registry_has_is_named(here: Engine, registry: Registry) -> None:
    """In the engine's own words, with the name."""
    with pytest.raises(ImageMissing, match=r"other:1 cannot be pulled: .*not found|unknown"):
        _ = [step async for step in pull(here, registry.image.replace("tiny:latest", "other:1"), stall_timeout_s=20)]


@pytest.mark.docker
async def test_a_registry_that_is_not_there_is_said(here: Engine) -> None:
    """It is an error of the pull, and of nothing else."""
    with pytest.raises(Exception, match="refused"):
        _ = [step async for step in pull(here, "127.0.0.1:1/tiny", stall_timeout_s=20)]


@pytest.mark.docker
async def test_a_pull_that_stalls_has_failed(here: Engine, registry: Registry) -> None:
    """After the time it may be silent."""
    registry.open.clear()
    with pytest.raises(EngineDown, match=r"silent for 0\.5 s"):
        _ = [step async for step in pull(here, registry.image, stall_timeout_s=0.5)]


@pytest.mark.docker
async def test_a_pull_that_fails_again_and_again_is_told_of_once(
    here: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine without a registry is to have a readable log."""
    images = Images("127.0.0.1:1/tiny", stall_timeout_s=20, arrived=lambda _: None)
    for _ in range(3):
        await images.pull(here)
        assert "refused" in images.why_missing(here)
    assert len([record for record in caplog.records if "cannot be pulled" in record.getMessage()]) == 1


@pytest.mark.docker
async def test_pulls_of_one_image_are_one(here: Engine, registry: Registry) -> None:
    """However many want it: the registry is asked once for each layer; and all are told when it has come."""
    arrived = asyncio.Event()
    images = Images(registry.image, stall_timeout_s=20, arrived=lambda _: arrived.set())
    registry.open.clear()
    tasks = {images.pull(here) for _ in range(5)}
    assert len(tasks) == 1
    await until(lambda: "being pulled (" in images.why_missing(here))
    registry.open.set()
    await asyncio.wait_for(arrived.wait(), 20)
    assert images.on(here) is not None
    blobs = [path for path in registry.asked if "/blobs/" in path]
    assert len(blobs) == len(set(blobs))


@pytest.mark.docker
async def test_a_hub_says_that_its_image_comes_and_goes_on_when_it_is_there(pool: Start, registry: Registry) -> None:
    """Requests meanwhile fail at once, with the reason and how far it is; nobody waits for a download."""
    registry.open.clear()
    pooled = await pool(image=registry.image, min_total=0)
    await until(lambda: "is being pulled (" in pooled.hub.problem)
    with pytest.raises(
        RequestError, match=rf"is being pulled.*; 'gleitzeit docker pull {registry.image}' waits for it"
    ):
        await pooled.dispatcher.lease(ANY, timeout_s=5)
    registry.open.set()
    await until(lambda: not pooled.hub.problem)
    # There is no program in this one, and the engine says so.
    with pytest.raises(RequestError, match="python3"):
        await pooled.dispatcher.lease(ANY, timeout_s=5)


@pytest.mark.docker
async def test_an_image_that_is_missing_is_named_by_the_hub(pool: Start) -> None:
    """With what to do; the hub runs all the same, and is used when somebody has built it."""
    pooled = await pool(image="gleitzeit-there-is-none:1", pull="never", min_total=1)
    assert "image gleitzeit-there-is-none:1 is missing on unix:" in pooled.hub.problem
    assert "gleitzeit docker pull" in pooled.hub.problem
    with pytest.raises(RequestError, match="is missing"):
        await pooled.dispatcher.lease(ANY, timeout_s=5)


@pytest.mark.docker
async def test_an_image_that_goes_and_comes_back_is_used_again(pool: Start, engine: APIClient) -> None:
    """Removed behind our back, the next creation says so; tagged again, the next look at the engine finds it."""
    engine.tag("gleitzeit-test-python:latest", "gleitzeit-comes-and-goes", "1")
    pooled = await pool(image="gleitzeit-comes-and-goes:1", pull="never", max_total=2)
    engine.remove_image("gleitzeit-comes-and-goes:1")
    with pytest.raises(RequestError, match="gleitzeit-comes-and-goes"):
        await pooled.dispatcher.lease(ANY, timeout_s=5)
    assert "is missing" in pooled.hub.problem
    engine.tag("gleitzeit-test-python:latest", "gleitzeit-comes-and-goes", "1")
    try:
        await pooled.hub.discover()
        async with pooled.dispatcher.lease(ANY, timeout_s=20) as lease:
            assert lease.instance.handle.ready
        await pooled.dispatcher.aclose()
    finally:
        engine.remove_image("gleitzeit-comes-and-goes:1")


def test_the_recipe_installs_what_is_asked_for() -> None:
    """And nothing when nothing is."""
    assert "pip install" not in dockerfile("python:3.12-slim", with_requirements=False)
    text = dockerfile("python:3.12-slim", with_requirements=True)
    assert text.startswith("FROM python:3.12-slim\n")
    with tarfile.open(fileobj=io.BytesIO(context(text, b"numpy\n"))) as archive:
        assert archive.getnames() == ["Dockerfile", "requirements.txt"]


@pytest.mark.docker
async def test_an_image_is_built(here: Engine, engine: APIClient) -> None:
    """From a base that is there; what does not work is said in the engine's words."""
    packed = context(dockerfile("gleitzeit-test-python", with_requirements=False), None)
    tag = "gleitzeit-built-test:1"
    try:
        steps = [s async for s in build(here, tag, packed, arguments={}, pull=False, stall_timeout_s=30)]
        assert any("Successfully" in step.status for step in steps)
        assert await find(here, tag) is not None
    finally:
        engine.remove_image(tag)
    broken = context("FROM gleitzeit-test-python\nRUN exit 3\n", None)
    with pytest.raises(ImageMissing, match="code: 3"):
        _ = [s async for s in build(here, tag, broken, arguments={}, pull=False, stall_timeout_s=30)]
