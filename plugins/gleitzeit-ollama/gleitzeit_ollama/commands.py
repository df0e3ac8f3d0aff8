"""The command ``gleitzeit models pull``. It needs no running gateway: it talks to the servers itself."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import GleitzeitError, NoCapableInstance, UnknownName
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import InstanceOptions, OllamaOptions, checked_options
from gleitzeit_ollama.processes import LOOPBACK, Servers
from gleitzeit_ollama.pull_output import Bars, JsonLines, PlainLines
from gleitzeit_ollama.pulls import choose

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence

    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_ollama.pull_output import Output

_FAILED: Final = 1
_EXAMPLES: Final = (
    "gleitzeit models pull llama3.2",
    "gleitzeit models pull llama3.2:1b --instance http://gpu1:11434 --instance http://gpu2:11434",
    "gleitzeit models pull llama3.2 --json | jq -r .status",
)


@dataclass(frozen=True, slots=True)
class _Target:
    hub: OllamaHub
    instance: ResourceInstance


@click.command("pull", cls=Command, examples=_EXAMPLES)
@click.argument("model", metavar="NAME")
@click.option(
    "--instance",
    "instances",
    multiple=True,
    metavar="ID|NAME|URL",
    help="Pull to this instance; may be repeated. A URL need not be in the configuration.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each step.")
@pass_invocation
def pull(invocation: Invocation, /, model: str, instances: Sequence[str], *, as_json: bool) -> None:
    """Download the model NAME to Ollama servers, and show the progress.

    Without --instance it goes to all servers that have the model already, which updates it, or else to the one with the
    most room. No gateway need run; one that does sees the model at its next health check.

    JSON: instance, status, digest, total_bytes, completed_bytes, as far as they are known; or instance and error.
    """
    hubs = _hubs(invocation, named=bool(instances))
    if not asyncio.run(_pull(hubs, model, instances, _output(as_json=as_json))):
        raise click.exceptions.Exit(_FAILED)


def _output(*, as_json: bool) -> Output:
    if as_json:
        return JsonLines()
    return Bars(Console(highlight=False)) if sys.stdout.isatty() else PlainLines()


def _hubs(invocation: Invocation, *, named: bool) -> list[OllamaHub]:
    """Those of the configuration. Nothing else that it names is started: no store, no container, no other server.

    Raises:
        ConfigurationError: It is wrong.
        NoCapableInstance: It has hubs, but no such one, and no instance is named on the command line.
    """
    config = invocation.configuration()
    if not config.explicit_hubs:
        return [OllamaHub()]
    sections = config.hubs.values()
    hubs = [
        OllamaHub(_borrowing(s.options, s.name), name=s.name) for s in sections if isinstance(s.options, OllamaOptions)
    ]
    if not hubs and not named:
        raise NoCapableInstance("the configuration has no hub of type 'ollama'; name a server with --instance URL")
    return hubs


def _borrowing(options: OllamaOptions, hub: str) -> OllamaOptions:
    """Options with the servers that a gateway has started. Only where none runs one is started, for this command."""
    if options.managed is None:
        return options
    ports = Servers(options.managed, hub).in_use()
    if not ports:
        one = options.managed.model_copy(update={"min_instances": 1, "max_instances": 1})
        return options.model_copy(update={"managed": one})
    running = [InstanceOptions(url=f"http://{LOOPBACK}:{port}") for port in ports]
    return options.model_copy(update={"managed": None, "instances": [*options.instances, *running]})


async def _pull(hubs: Sequence[OllamaHub], model: str, given: Sequence[str], output: Output) -> bool:
    """Pull to all targets at once. Whether all succeeded."""
    async with _running() as dispatcher:
        for hub in hubs:
            await dispatcher.shell.add_hub(hub)
        targets = await (_named(dispatcher, hubs, given) if given else _chosen(hubs, model))
        with output:
            for target in targets:
                output.add(target.instance.id, _label(target.instance))
            succeeded = await _all(_pull_one(target, model, output) for target in targets)
    return all(succeeded)


async def _all(works: Iterable[Coroutine[Any, Any, bool]]) -> list[bool]:
    """What they return. When one raises, the others are stopped first."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _running() -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher()
    try:
        yield dispatcher
    finally:
        await dispatcher.aclose()


async def _named(dispatcher: Dispatcher, hubs: Sequence[OllamaHub], given: Sequence[str]) -> list[_Target]:
    found: dict[str, _Target] = {}
    strangers = []
    for name in given:
        target = _find(hubs, name)
        if target is None:
            strangers.append(name)
        else:
            found[target.instance.id] = target
    if strangers:
        hub = OllamaHub(_options_for(hubs, strangers), name="command line")
        await dispatcher.shell.add_hub(hub)
        found |= {instance.id: _Target(hub, instance) for instance in hub.instances}
    return list(found.values())


def _find(hubs: Sequence[OllamaHub], name: str) -> _Target | None:
    for hub in hubs:
        with contextlib.suppress(UnknownName):
            return _Target(hub, hub.find(name))
    return None


def _options_for(hubs: Sequence[OllamaHub], given: Sequence[str]) -> OllamaOptions:
    """Options with the servers that are named by URL only.

    Raises:
        UnknownName: One is named otherwise.
        ConfigurationError: A URL is wrong.
    """
    known = [instance.id for hub in hubs for instance in hub.instances]
    for name in given:
        if "://" not in name:
            raise UnknownName("instance", name, known, "or give a URL: http://HOST:11434")
    return checked_options({"instances": list(given)})


async def _chosen(hubs: Sequence[OllamaHub], model: str) -> list[_Target]:
    results = await asyncio.gather(*(hub.survey() for hub in hubs), return_exceptions=True)
    hub_of: dict[str, OllamaHub] = {}
    answering: list[ResourceInstance] = []
    for hub, result in zip(hubs, results, strict=True):
        if not isinstance(result, BaseException):
            answering += result
            hub_of |= {instance.id: hub for instance in result}
    if not answering:
        error = next(result for result in results if isinstance(result, BaseException))
        if isinstance(error, NoCapableInstance):
            raise NoCapableInstance(f"{error}; name a server with --instance http://HOST:11434")
        raise error
    return [_Target(hub_of[instance.id], instance) for instance in choose(answering, model)]


async def _pull_one(target: _Target, model: str, output: Output) -> bool:
    """Whether it succeeded."""
    instance_id = target.instance.id
    try:
        async with contextlib.aclosing(target.hub.pull(model, instances=[instance_id])) as steps:
            async for step in steps:
                output.tell(step)
    except GleitzeitError as error:
        output.failed(instance_id, error)
        return False
    return True


def _label(instance: ResourceInstance) -> str:
    return instance.details["name"] or instance.endpoint
