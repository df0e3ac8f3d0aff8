"""The Ollama servers of a configuration, for commands that talk to them without a gateway."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import NoCapableInstance, UnknownName
from gleitzeit_ollama.fleet import Fleet
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import InstanceOptions, OllamaOptions, checked_options
from gleitzeit_ollama.processes import LOOPBACK, Servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gleitzeit_core.cli.context import Invocation


def hubs_of(invocation: Invocation, *, named: bool) -> list[OllamaHub]:
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
        one = options.managed.model_copy(update={"min_total": 1, "max_total": 1})
        return options.model_copy(update={"managed": one})
    running = [InstanceOptions(url=f"http://{LOOPBACK}:{port}") for port in ports]
    return options.model_copy(update={"managed": None, "instances": [*options.instances, *running]})


@contextlib.asynccontextmanager
async def running(hubs: Sequence[OllamaHub], named: Sequence[str] = ()) -> AsyncIterator[Fleet]:
    """Run these hubs, and one more for servers that are named by a URL and are in none of them.

    Raises:
        UnknownName: One is named otherwise.
        ConfigurationError: A URL is wrong, or a hub cannot start.
    """
    dispatcher = Dispatcher()
    try:
        for hub in hubs:
            await dispatcher.shell.add_hub(hub)
        strangers = [name for name in named if not _is_known(hubs, name)]
        if strangers:
            known = [instance.id for hub in hubs for instance in hub.instances]
            more = OllamaHub(_options_for(strangers, known), name="command line")
            await dispatcher.shell.add_hub(more)
            hubs = [*hubs, more]
        yield Fleet(hubs)
    finally:
        await dispatcher.aclose()


def _is_known(hubs: Sequence[OllamaHub], name: str) -> bool:
    for hub in hubs:
        with contextlib.suppress(UnknownName):
            hub.find(name)
            return True
    return False


def _options_for(names: Sequence[str], known: Sequence[str]) -> OllamaOptions:
    """Options with the servers that are named by URL only."""
    for name in names:
        if "://" not in name:
            raise UnknownName("instance", name, known, "or give a URL: http://HOST:11434")
    return checked_options({"instances": list(names)})
