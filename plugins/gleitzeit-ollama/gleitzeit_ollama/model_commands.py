"""The commands ``gleitzeit models copy``, ``rm``, ``show``, ``load`` and ``unload``.

Each works through a gateway, if one is named or runs where the configuration says, or else talks to the servers itself.
"""

from __future__ import annotations

import asyncio
import json
import re
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.connection import Connection, connection_options
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.output import note, write, write_json
from gleitzeit_ollama.local import hubs_of, running
from gleitzeit_ollama.remote import RemoteModels
from gleitzeit_ollama.where import Where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from gleitzeit_ollama.fleet import Fleet, Member

_ALL_HELP: Final = "On this instance; may be repeated.  [default: everywhere]"
_ADMIN: Final = "/admin/models"


class _Models(Protocol):
    """Who carries a command out. Each call returns the ids of the instances that did it."""

    async def copy(self, source: str, destination: str, where: Where) -> list[str]: ...

    async def delete(self, model: str, where: Where) -> list[str]: ...

    async def load(self, model: str, keep_alive: str | int | None, where: Where) -> list[str]: ...

    async def unload(self, model: str, where: Where) -> list[str]: ...

    async def show(self, model: str, where: Where) -> Mapping[str, Any]: ...


class _Here:
    """In this process."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def copy(self, source: str, destination: str, where: Where) -> list[str]:
        body = {"source": source, "destination": destination}
        return await self._on_all("POST", "/api/copy", body, source, where)

    async def delete(self, model: str, where: Where) -> list[str]:
        return await self._on_all("DELETE", "/api/delete", {"model": model}, model, where)

    async def load(self, model: str, keep_alive: str | int | None, where: Where) -> list[str]:
        return _ids(await self._fleet.load(model, where, keep_alive))

    async def unload(self, model: str, where: Where) -> list[str]:
        return _ids(await self._fleet.unload(model, where))

    async def show(self, model: str, where: Where) -> Mapping[str, Any]:
        return await self._fleet.show(model, where)

    async def _on_all(self, verb: str, path: str, body: Mapping[str, str], model: str, where: Where) -> list[str]:
        members = self._fleet.everywhere(where)
        return _ids(await self._fleet.on_all(members, verb, path, json.dumps(body).encode(), model))


class _There:
    """In a gateway."""

    def __init__(self, remote: RemoteModels) -> None:
        self._remote = remote

    async def copy(self, source: str, destination: str, where: Where) -> list[str]:
        body = {"source": source, "destination": destination}
        return (await self._remote.ask("POST", "/api/copy", body, where))[0]

    async def delete(self, model: str, where: Where) -> list[str]:
        return (await self._remote.ask("DELETE", "/api/delete", {"model": model}, where))[0]

    async def load(self, model: str, keep_alive: str | int | None, where: Where) -> list[str]:
        body: dict[str, Any] = {"model": model}
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        return await self._memory("load", body, where)

    async def unload(self, model: str, where: Where) -> list[str]:
        return await self._memory("unload", {"model": model}, where)

    async def show(self, model: str, where: Where) -> Mapping[str, Any]:
        if where.named:
            note("the gateway chooses whom it asks about a model")
        return (await self._remote.ask("POST", "/api/show", {"model": model}, where))[1]

    async def _memory(self, what: str, body: Mapping[str, Any], where: Where) -> list[str]:
        _, answer = await self._remote.ask("POST", f"{_ADMIN}/{what}", body, where)
        return [str(name) for name in answer.get("instances", [])]


def _ids(members: Sequence[Member]) -> list[str]:
    return [member.id for member in members]


def _use(
    invocation: Invocation,
    connection: Connection,
    where: Where,
    work: Callable[[_Models], Awaitable[Any]],
    *,
    local: bool,
) -> Any:  # noqa: ANN401 - what `work` returns
    client = connection.client(invocation)
    if not local and (connection.url or client.listening()):
        return asyncio.run(_awaited(work(_There(RemoteModels(client.url, connection.key)))))
    return asyncio.run(_locally(invocation, where, work))


async def _awaited(work: Awaitable[Any]) -> Any:  # noqa: ANN401 - what `work` returns
    return await work


async def _locally(invocation: Invocation, where: Where, work: Callable[[_Models], Awaitable[Any]]) -> Any:  # noqa: ANN401 - what `work` returns
    hubs = hubs_of(invocation, named=bool(where.named))
    async with running(hubs, where.named) as fleet:
        return await work(_Here(fleet))


def _options(function: Callable[..., None]) -> Callable[..., None]:
    """What all of these commands have. They get `use`, which carries a piece of work out, `where` and `as_json`."""

    @click.option("--instance", "instances", multiple=True, metavar="ID|NAME|URL", help=_ALL_HELP)
    @click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
    @click.option("--local", is_flag=True, help="Talk to the servers from here, even if a gateway runs.")
    @connection_options
    @pass_invocation
    @wraps(function)
    def wrapped(
        invocation: Invocation,
        /,
        *args: Any,  # noqa: ANN401 - the command's own
        connection: Connection,
        instances: Sequence[str],
        local: bool,
        **kwargs: Any,  # noqa: ANN401 - the command's own
    ) -> None:
        where = Where(named=tuple(instances))

        def use(work: Callable[[_Models], Awaitable[Any]]) -> Any:  # noqa: ANN401 - what `work` returns
            return _use(invocation, connection, where, work, local=local)

        function(*args, use=use, where=where, **kwargs)

    return wrapped


def _say(model: str, verb: str, ids: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        write_json({"model": model, "instances": list(ids)})
    else:
        write(f"{verb} {model} on {', '.join(ids) or 'no instance'}")


@click.command("copy", cls=Command, examples=("gleitzeit models copy llama3.2 mine",))
@click.argument("source", metavar="NAME")
@click.argument("destination", metavar="NEW_NAME")
@_options
def copy(*, source: str, destination: str, use: Callable[..., Any], where: Where, as_json: bool) -> None:
    """Give the model NAME a second name, on every server that has it.

    JSON: model (the new name), instances.
    """
    ids = use(lambda models: models.copy(source, destination, where))
    _say(destination, "made", ids, as_json=as_json)


@click.command(
    "rm",
    cls=Command,
    examples=("gleitzeit models rm llama3.2", "gleitzeit models rm mine other --instance http://gpu1:11434"),
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_options
def remove(*, names: Sequence[str], use: Callable[..., Any], where: Where, as_json: bool) -> None:
    """Delete models from every server that has them.

    JSON: a line for each with model, instances.
    """

    async def work(models: _Models) -> None:
        for name in names:
            _say_line(name, await models.delete(name, where), as_json=as_json)

    use(work)


def _say_line(model: str, ids: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        write_json({"model": model, "instances": list(ids)}, indent=None)
    else:
        _say(model, "deleted", ids, as_json=False)


@click.command("load", cls=Command, examples=("gleitzeit models load llama3.2 --keep-alive 1h",))
@click.argument("model", metavar="NAME")
@click.option("--keep-alive", metavar="TIME", help="How long it stays: 30m, 1h, -1 for ever.  [default: the server's]")
@_options
def load(*, model: str, keep_alive: str | None, use: Callable[..., Any], where: Where, as_json: bool) -> None:
    """Load the model NAME into memory, and wait until it is there.

    Without --instance it is loaded on one server that has it: where it is in memory already, or where the most room is.

    JSON: model, instances.
    """
    # Ollama takes a number for seconds, and a text only with its unit.
    time = int(keep_alive) if keep_alive and re.fullmatch(r"-?\d{1,9}", keep_alive, re.ASCII) else keep_alive
    ids = use(lambda models: models.load(model, time, where))
    _say(model, "loaded", ids, as_json=as_json)


@click.command("unload", cls=Command, examples=("gleitzeit models unload llama3.2",))
@click.argument("model", metavar="NAME")
@_options
def unload(*, model: str, use: Callable[..., Any], where: Where, as_json: bool) -> None:
    """Take the model NAME out of memory on every server; requests that run finish first.

    JSON: model, instances (those that had it in memory).
    """
    ids = use(lambda models: models.unload(model, where))
    _say(model, "unloaded", ids, as_json=as_json)


@click.command(
    "show", cls=Command, examples=("gleitzeit models show llama3.2", "gleitzeit models show llama3.2 --json")
)
@click.argument("model", metavar="NAME")
@_options
def show(*, model: str, use: Callable[..., Any], where: Where, as_json: bool) -> None:
    """Show what a server says about the model NAME.

    JSON: what Ollama's /api/show answers.
    """
    found = use(lambda models: models.show(model, where))
    if as_json:
        write_json(found)
        return
    for label, value in _facts(model, found):
        write(f"{label:<14}{value}")


def _facts(model: str, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    details, info = found.get("details"), found.get("model_info")
    details, info = details if isinstance(details, dict) else {}, info if isinstance(info, dict) else {}
    family = info.get("general.architecture")
    abilities = found.get("capabilities")
    facts = {
        "model": model,
        "architecture": family or details.get("family"),
        "parameters": details.get("parameter_size"),
        "quantization": details.get("quantization_level"),
        "context": info.get(f"{family}.context_length"),
        "embedding": info.get(f"{family}.embedding_length"),
        "can": ", ".join(map(str, abilities)) if isinstance(abilities, list) else None,
        "parent": details.get("parent_model"),
        "system": found.get("system"),
    }
    settings = str(found.get("parameters") or "").splitlines()
    told = [(label, str(value)) for label, value in facts.items() if value]
    return told + [("set" if not number else "", line) for number, line in enumerate(settings)]
