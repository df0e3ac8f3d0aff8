"""The commands ``gleitzeit docker images``, ``pull``, ``build``, ``ps`` and ``prune``. No gateway is asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from gleitzeit_core.cli.commands import Command, LazyGroup
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.output import Column, note, say_error, size, write, write_json, write_table
from gleitzeit_docker.errors import DockerError
from gleitzeit_docker.images import find, full_name
from gleitzeit_docker.images import pull as pull_steps
from gleitzeit_docker.local import engines_of, everywhere, hubs_of, images_wanted
from gleitzeit_docker.output import Output, output
from gleitzeit_docker.recipe import DEFAULT_TAG, arguments_for_pip, context, dockerfile
from gleitzeit_docker.recipe import build as build_steps

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from gleitzeit_docker.engine import Engine
    from gleitzeit_docker.images import Step
    from gleitzeit_docker.options import DockerOptions

F = TypeVar("F", bound="Callable[..., Any]")

_FAILED: Final = 1
_BASE: Final = "python:3.12-slim"

docker = LazyGroup(
    "docker",
    prefix="docker",
    help="""The Docker Engines that hubs of type 'docker' use: their images, and the containers on them.

    Each command is about the engines of the configuration; without such hubs, about $DOCKER_HOST or this machine's
    engine. No gateway need run. A hub pulls its image by itself, in the background; until it is there, requests fail
    at once and say so. To have it there before, pull it, or build one with the packages that your code needs.
    """,
    examples=(
        "gleitzeit docker images                         # which are needed, and which are there",
        "gleitzeit docker build --requirements needs.txt # an image with packages: gleitzeit-runner:latest",
        "gleitzeit docker ps                             # the containers of hubs, and whether their owner lives",
        "gleitzeit docker prune --dry-run                # what dead owners have left behind",
    ),
)


def engine_option(command: F) -> F:
    """Adds ``--engine``."""
    text = "On this engine, as in DOCKER_HOST; may be repeated.  [default: those of the configuration]"
    return click.option("--engine", "engines", multiple=True, metavar="URL", help=text)(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@click.command("images", cls=Command, examples=("gleitzeit docker images", "gleitzeit docker images --json"))
@engine_option
@json_option
@pass_invocation
def images(invocation: Invocation, /, engines: Sequence[str], *, as_json: bool) -> None:
    """Show the images that hubs need, where they are, and their digests.

    The digest is the one by which a registry knows the image; of one that was built or imported here, it is that of its
    configuration. Exit status 1: one is missing, or an engine does not answer.
    """
    rows = asyncio.run(_images(hubs_of(invocation, engines)))
    if as_json:
        write_json(rows)
    else:
        columns = [
            Column("image"),
            Column("engine"),
            Column("state", state=True),
            Column("digest"),
            Column("size", right=True),
        ]
        shown = ("image", "engine", "state", "digest")
        write_table(
            [*columns, Column("hubs")],
            [
                (*(row[key] for key in shown), row["size_bytes"] and size(row["size_bytes"]), ", ".join(row["hubs"]))
                for row in rows
            ],
        )
    for row in rows:
        if row["error"]:
            say_error(f"{row['engine']}: {row['error']}")
    if any(row["state"] != "ready" for row in rows):
        note("to get one that is missing: gleitzeit docker pull")
        raise click.exceptions.Exit(_FAILED)


async def _images(hubs: Mapping[str, DockerOptions]) -> list[dict[str, Any]]:
    async with engines_of(hubs) as engines:
        wanted = [(image, engine, names) for image, on in images_wanted(hubs).items() for engine, names in on.items()]
        return await asyncio.gather(*(_image(engines[engine], image, names) for image, engine, names in wanted))


async def _image(engine: Engine, name: str, hubs: Sequence[str]) -> dict[str, Any]:
    row = {
        "image": name,
        "engine": engine.name,
        "hubs": list(hubs),
        "id": "",
        "digest": "",
        "created": "",
        "size_bytes": 0,
    }
    try:
        found = await find(engine, name)
    except DockerError as error:
        return {**row, "state": "down", "error": error.message}
    if found is None:
        return {**row, "state": "missing", "error": ""}
    digest = found.digests[0].partition("@")[2] if found.digests else found.id
    about = {"id": found.id, "digest": digest, "created": found.created, "size_bytes": found.size_bytes}
    return {**row, **about, "state": "ready", "error": ""}


@click.command(
    "pull",
    cls=Command,
    examples=(
        "gleitzeit docker pull",
        "gleitzeit docker pull python:3.12-slim --engine tcp://box:2375",
        "gleitzeit docker pull --json | jq -r .status",
    ),
)
@click.argument("image", required=False)
@engine_option
@json_option
@pass_invocation
def pull(invocation: Invocation, /, image: str | None, engines: Sequence[str], *, as_json: bool) -> None:
    """Pull IMAGE to the engines, and show the progress; without IMAGE, all that hubs need, each where it is needed.

    Credentials are those that 'docker login' has kept on this machine. Ctrl-C stops it; what has come stays.
    """
    hubs = hubs_of(invocation, engines)
    if not asyncio.run(_pull(hubs, image, output(as_json=as_json))):
        raise click.exceptions.Exit(_FAILED)


async def _pull(hubs: Mapping[str, DockerOptions], image: str | None, out: Output) -> bool:
    stall_s = max(options.pull_stall_timeout_s for options in hubs.values())
    async with engines_of(hubs) as engines:
        if image is None:
            pairs = [(engines[name], wanted) for wanted, on in images_wanted(hubs).items() for name in on]
        else:
            pairs = [(engine, full_name(image)) for engine in engines.values()]
        with out:
            works = (_told(engine, pull_steps(engine, name, stall_timeout_s=stall_s), out) for engine, name in pairs)
            return all(await asyncio.gather(*works))


async def _told(engine: Engine, steps: AsyncGenerator[Step, None], out: Output) -> bool:
    """Show how something goes on. Whether it ended well."""
    try:
        async with contextlib.aclosing(steps) as running:
            async for step in running:
                out.tell(engine.name, step)
    except DockerError as error:
        out.failed(engine.name, error)
        return False
    return True


@click.command(
    "build",
    cls=Command,
    examples=(
        "gleitzeit docker build --requirements needs.txt",
        "gleitzeit docker build --requirements needs.txt --base python:3.13-slim --tag science:1",
        "gleitzeit docker build --requirements needs.txt --recipe > Dockerfile",
    ),
)
@click.option(
    "--requirements",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Packages to install, as pip reads them.",
)
@click.option(
    "--base", default=_BASE, show_default=True, metavar="IMAGE", help="What to begin with; with python3 and pip."
)
@click.option("--tag", default=DEFAULT_TAG, show_default=True, metavar="NAME", help="What the image will be called.")
@click.option("--pull/--no-pull", "newer", default=False, help="Look for a newer base first.  [default: no]")
@click.option("--recipe", is_flag=True, help="Only print the recipe (a Dockerfile).")
@engine_option
@json_option
@pass_invocation
def build(
    invocation: Invocation,
    /,
    requirements: Path | None,
    base: str,
    tag: str,
    engines: Sequence[str],
    *,
    newer: bool,
    recipe: bool,
    as_json: bool,
) -> None:
    """Build an image for Python runners: a base, and the packages that your code may import.

    The runner itself is not in it: it comes when a container starts. Then name the image in the configuration, as in
    'sandbox: {type: docker, image: gleitzeit-runner}'.
    """
    text = dockerfile(base, with_requirements=requirements is not None)
    if recipe:
        write(text, end="")
        return
    packed = context(text, None if requirements is None else requirements.read_bytes())
    try:
        arguments = {} if requirements is None else arguments_for_pip(os.environ)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    out = output(as_json=as_json)
    if not asyncio.run(_build(hubs_of(invocation, engines), tag, packed, arguments, newer=newer, out=out)):
        raise click.exceptions.Exit(_FAILED)


async def _build(
    hubs: Mapping[str, DockerOptions],
    tag: str,
    packed: bytes,
    arguments: Mapping[str, str],
    *,
    newer: bool,
    out: Output,
) -> bool:
    stall_s = max(options.pull_stall_timeout_s for options in hubs.values())
    async with engines_of(hubs) as engines:
        with out:
            works = (
                _told(
                    engine,
                    build_steps(engine, tag, packed, arguments=arguments, pull=newer, stall_timeout_s=stall_s),
                    out,
                )
                for engine in engines.values()
            )
            return all(await asyncio.gather(*works))


@click.command("ps", cls=Command, examples=("gleitzeit docker ps", "gleitzeit docker ps --json"))
@engine_option
@json_option
@pass_invocation
def ps(invocation: Invocation, /, engines: Sequence[str], *, as_json: bool) -> None:
    """Show the containers of hubs, of all processes that use these engines.

    The owner of a container is the process that made it: alive; dead, so that the next process to look removes it; or
    elsewhere, on another machine or of another user, which cannot be judged from here and is never touched.
    """
    found, failures = asyncio.run(_containers(hubs_of(invocation, engines)))
    if as_json:
        write_json([asdict(each) for each in found])
    else:
        titles = ("name", "hub", "image", "status", "owner", "engine")
        write_table(
            [Column(title) for title in titles],
            [(each.name, each.hub, each.image, each.status, each.life, each.engine) for each in found],
        )
    _say(failures)


@click.command("prune", cls=Command, examples=("gleitzeit docker prune --dry-run", "gleitzeit docker prune"))
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@engine_option
@json_option
@pass_invocation
def prune(invocation: Invocation, /, engines: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Remove the containers whose owner is dead.

    Every process with such a hub does the same when it starts and from time to time. An owner is dead when nobody holds
    the lock of its file, which the kernel drops with the process; age does not count.
    """
    removed, failures = asyncio.run(_prune(hubs_of(invocation, engines), dry_run=dry_run))
    if as_json:
        write_json({"removed": [] if dry_run else removed, "would_remove": removed if dry_run else []})
    else:
        for name in removed:
            write(f"{'would remove' if dry_run else 'removed'} {name}")
        if not removed:
            note("no owner that is dead has left anything behind")
    _say(failures)


async def _containers(hubs: Mapping[str, DockerOptions]) -> tuple[list[Any], dict[str, DockerError]]:
    async with engines_of(hubs) as engines:
        return await everywhere(engines)


async def _prune(hubs: Mapping[str, DockerOptions], *, dry_run: bool) -> tuple[list[str], dict[str, DockerError]]:
    async with engines_of(hubs) as engines:
        found, failures = await everywhere(engines)
        dead = [each for each in found if each.life == "dead"]
        removed = []
        for each in dead:
            try:
                if not dry_run:
                    await engines[each.engine].remove(each.id)
                removed.append(each.name)
            except DockerError as error:
                failures[each.engine] = error
        return removed, failures


def _say(failures: Mapping[str, DockerError]) -> None:
    for engine, error in failures.items():
        say_error(f"{engine}: {error.message}")
    if failures:
        raise click.exceptions.Exit(_FAILED)
