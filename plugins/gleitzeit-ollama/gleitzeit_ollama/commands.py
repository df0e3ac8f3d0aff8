"""The command ``gleitzeit models pull``. It needs no running gateway: it talks to the servers itself."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.connection import Connection, connection_options
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.errors import GleitzeitError, NoCapableInstance
from gleitzeit_ollama.downloads import PullProgress
from gleitzeit_ollama.local import hubs_of, running
from gleitzeit_ollama.pull_output import Bars, JsonLines, PlainLines
from gleitzeit_ollama.remote import RemoteModels
from gleitzeit_ollama.where import Where

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_ollama.fleet import Fleet, Member
    from gleitzeit_ollama.hub import OllamaHub
    from gleitzeit_ollama.pull_output import Output

_FAILED: Final = 1
_EXAMPLES: Final = (
    "gleitzeit models pull llama3.2",
    "gleitzeit models pull llama3.2 --replicas 2",
    "gleitzeit models pull llama3.2:1b --instance http://gpu1:11434 --instance http://gpu2:11434",
    "gleitzeit models pull llama3.2 --gateway http://gateway:8484",
    "gleitzeit models pull llama3.2 --json | jq -r .status",
)


@click.command("pull", cls=Command, examples=_EXAMPLES)
@click.argument("model", metavar="NAME")
@click.option(
    "--instance",
    "instances",
    multiple=True,
    metavar="ID|NAME|URL",
    help="Pull to this instance; may be repeated. A URL need not be in the configuration.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="So many servers have it in the end, at least.  [default: 1]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each step.")
@connection_options
@pass_invocation
def pull(
    invocation: Invocation,
    /,
    model: str,
    instances: Sequence[str],
    connection: Connection,
    *,
    replicas: int | None,
    as_json: bool,
) -> None:
    """Download the model NAME to Ollama servers, and show the progress.

    Without --instance it goes to all servers that have the model already, which updates it, and to those with the most
    room until --replicas have it. No gateway need run; one that does sees the model at its next health check. With
    --gateway that gateway pulls: callers who want the same share a download, and a URL must be of its pool.

    JSON: instance, status, digest, total_bytes, completed_bytes, as far as they are known; or instance and error.
    """
    if instances and replicas:
        raise click.UsageError("--replicas chooses the servers, and so does --instance: give one of them")
    where = Where(replicas=replicas or 0, named=tuple(instances))
    output = _output(as_json=as_json)
    if connection.url:
        remote = RemoteModels(connection.client(invocation).url, connection.key)
        done = asyncio.run(_pull_there(remote, model, where, output))
    else:
        done = asyncio.run(_pull(hubs_of(invocation, named=bool(instances)), model, where, output))
    if not done:
        raise click.exceptions.Exit(_FAILED)


def _output(*, as_json: bool) -> Output:
    if as_json:
        return JsonLines()
    return Bars(Console(highlight=False)) if sys.stdout.isatty() else PlainLines()


async def _pull_there(remote: RemoteModels, model: str, where: Where, output: Output) -> bool:
    """Have a gateway pull. Whether it succeeded."""
    with output:
        output.add(remote.url, remote.url)
        try:
            async with contextlib.aclosing(remote.pull(model, where)) as lines:
                async for line in lines:
                    output.tell(_step(remote.url, line))
        except GleitzeitError as error:
            output.failed(remote.url, error)
            return False
    return True


def _step(name: str, line: dict[str, Any]) -> PullProgress:
    return PullProgress(
        instance_id=name,
        status=str(line.get("status", "")),
        digest=str(line.get("digest", "")),
        total_bytes=line.get("total"),
        completed_bytes=line.get("completed"),
    )


async def _pull(hubs: Sequence[OllamaHub], model: str, where: Where, output: Output) -> bool:
    """Pull to all targets at once. Whether all succeeded."""
    async with running(hubs, where.named) as fleet:
        targets = await _targets(fleet, model, where)
        with output:
            for target in targets:
                output.add(target.id, _label(target.instance))
            succeeded = await _all(_pull_one(target, model, output) for target in targets)
    return all(succeeded)


async def _targets(fleet: Fleet, model: str, where: Where) -> list[Member]:
    try:
        return await fleet.targets(model, where)
    except NoCapableInstance as error:
        raise NoCapableInstance(f"{error}; name a server with --instance http://HOST:11434") from None


async def _all(works: Iterable[Coroutine[Any, Any, bool]]) -> list[bool]:
    """What they return. When one raises, the others are stopped first."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pull_one(target: Member, model: str, output: Output) -> bool:
    """Whether it succeeded."""
    try:
        async with contextlib.aclosing(target.hub.pull(model, instances=[target.id])) as steps:
            async for step in steps:
                output.tell(step)
    except GleitzeitError as error:
        output.failed(target.id, error)
        return False
    return True


def _label(instance: ResourceInstance) -> str:
    return instance.details["name"] or instance.endpoint
