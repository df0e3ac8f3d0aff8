"""The command ``gleitzeit serve``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click
import uvloop

from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.context import pass_invocation
from gleitzeit_core.errors import ConfigurationError, GleitzeitError, PluginError
from gleitzeit_gateway.greeting import greeting
from gleitzeit_gateway.line_handler import LineHandler
from gleitzeit_gateway.options import GatewayOptions
from gleitzeit_gateway.reloading import reload_on_signal
from gleitzeit_gateway.server import Gateway
from gleitzeit_gateway.workers import Worker, reserve, supervise

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from gleitzeit_core.cli.context import Invocation
    from gleitzeit_core.errors import Problem
    from gleitzeit_core.manager import ResourceManager

_INTERRUPTED: Final = 130
_MOMENT_S: Final = 1.0
_YOUNG_OBJECTS: Final = 50_000
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@click.command(
    cls=Command,
    examples=(
        "gleitzeit serve",
        "gleitzeit serve --instance http://gpu1:11434 --instance http://gpu2:11434",
        "gleitzeit serve --instance openai=http://gpu3:8000 --strategy least_loaded",
        "gleitzeit serve --config gleitzeit.yaml --workers 4",
    ),
)
@click.option("--host", help="Where to listen; beyond loopback only with keys.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0 takes any free port.  [default: 8484]")
@click.option(
    "--instance",
    "instances",
    multiple=True,
    metavar="[TYPE=]URL",
    help="Pool this server; may be repeated. TYPE is 'ollama' (the default) or 'openai'.",
)
@click.option("--strategy", help="How an instance is chosen, on every route; see 'gleitzeit strategies'.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Processes that listen; several only over servers that run by themselves.  [default: 1]",
)
@click.option("--allow-anonymous", is_flag=True, default=None, help="Listen beyond loopback without keys.")
@click.option("--grace", "grace_s", type=click.FloatRange(0), help="Seconds running answers may take at shutdown.")
@click.option("--access-log/--no-access-log", default=None, help="One line per request on standard error.")
@click.option("-v", "--verbose", is_flag=True, help="Say more on standard error.")
@pass_invocation
def serve(invocation: Invocation, /, instances: Sequence[str], *, verbose: bool, **flags: Any) -> None:  # noqa: ANN401 - click's values
    """Run the gateway: one address for everything in the pool.

    Without a configuration it looks for Ollama (OLLAMA_HOST, then loopback ports 11434-11439) and pools what it finds;
    where there is none it starts a small embedded model.

    SIGHUP lets it read its configuration again; what runs goes on.
    """
    _set_up_logging(verbose=verbose)
    strategy = flags.get("strategy")
    try:
        manager = invocation.manager(_overrides(instances, flags))
    except ConfigurationError as error:
        raise ConfigurationError([_told(problem, strategy) for problem in error.problems]) from error
    raise click.exceptions.Exit(_run(manager))


def _run(manager: ResourceManager) -> int:
    """Serve, in this process or in several; the exit status."""
    options = _options(manager)
    if options.workers == 1:
        return uvloop.run(_serve(manager, options))
    try:
        port, held = reserve(options.host.strip("[]"), options.port)
    except OSError as error:
        raise _cannot_listen(f"{options.host}:{options.port}", error) from error
    # Each of several workers comes back from here, in a process of its own.
    worker = supervise(options.workers)
    if isinstance(worker, int):
        return worker
    for one in held:
        one.close()
    return uvloop.run(_serve(manager, options.model_copy(update={"port": port}), worker))


def _overrides(instances: Sequence[str], flags: dict[str, Any]) -> dict[str, Any]:
    """Flags, in the shape of a configuration."""
    strategy = flags.pop("strategy")
    found: dict[str, Any] = {"gateway": {key: value for key, value in flags.items() if value is not None}}
    hubs: dict[str, Any] = {}
    for text in instances:
        kind, equals, url = text.partition("=")
        if not equals or "/" in kind:
            kind, url = "ollama", text
        hubs.setdefault(kind, {"type": kind, "instances": []})["instances"].append({"url": url})
    if hubs:
        found["hubs"] = hubs
    if strategy:
        found["routes"] = partial(_with_strategy, strategy)
    return found


def _told(problem: Problem, strategy: str | None) -> Problem:
    """The same; for a strategy that lacks options, with where those can be given, which is not after --strategy."""
    lacks_options = ".strategy" in problem.path and not problem.message.startswith("unknown")
    if not strategy or not lacks_options:
        return problem
    said = f"--strategy takes no options; 'gleitzeit strategies show {strategy}' has an example for a configuration"
    return replace(problem, suggestion=said)


def _with_strategy(strategy: str, routes: object) -> object:
    """The routes of a configuration with this strategy, and one for all that is left.

    What is no list, or in it no route, stays as it is: the check reports it.
    """
    if not isinstance(routes, list | None):
        return routes
    changed = [{**route, "strategy": strategy} if isinstance(route, dict) else route for route in routes or ()]
    if any(isinstance(route, dict) and route.get("methods") == ["*"] for route in changed):
        return changed
    return [*changed, {"methods": ["*"], "strategy": strategy}]


def _set_up_logging(*, verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[handler])
    for name in ("gleitzeit.access", "gleitzeit.reload"):
        logging.getLogger(name).setLevel(logging.INFO)
    access = logging.getLogger("gleitzeit.access")
    access.addHandler(LineHandler(sys.stderr))
    access.propagate = False
    # No line names them, and finding them out costs more than writing it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class GatewayError(GleitzeitError):
    """The gateway cannot run."""

    code = "gateway"


class _Signals:
    """The first asks to drain, the second to stop now; from then on they do what they do to any program.

    SIGHUP asks to reload. It also comes when the terminal is closed, and then it asks to drain.
    """

    def __init__(self, *, told_by_another: bool) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()
        self.reload = asyncio.Event()
        self._in_terminal = os.isatty(0)
        self.status = 0
        self._loop = asyncio.get_running_loop()
        # A worker ignores Ctrl-C, which comes to all processes of a terminal.
        for number in (signal.SIGTERM,) if told_by_another else _SIGNALS:
            self._loop.add_signal_handler(number, self._signal, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _hang_up(self) -> None:
        if not self._in_terminal or os.isatty(0):
            self.reload.set()
        elif not self.asked.is_set():
            self._signal(signal.SIGHUP)

    def _signal(self, number: signal.Signals) -> None:
        if not self.asked.is_set():
            self.status = _INTERRUPTED if number == signal.SIGINT else 0
            self.asked.set()
            return
        self.status = 128 + number
        self.insisted.set()
        for each in _SIGNALS:
            self._loop.remove_signal_handler(each)


async def _serve(manager: ResourceManager, options: GatewayOptions, worker: Worker | None = None) -> int:
    """Run until a signal comes; the exit status."""
    stop = _Signals(told_by_another=worker is not None)
    if worker is not None:
        worker.take_signals()
    gateway = Gateway(manager, options, worker)
    try:
        # First of all: who starts a second one by mistake hears of it before anything else is started.
        await _bind(gateway)
        if await _unless(stop.asked, manager.__aenter__()):
            await gateway.start()
            _spare_the_collector()
            if worker is None or worker.number == 1:
                hubs = manager.dispatcher.shell.hubs.values()
                click.echo(greeting(gateway.url, manager.instances(), hubs, keys_needed=bool(options.keys)))
            await _unless(stop.asked, reload_on_signal(manager, stop.reload))
            with contextlib.suppress(OSError):  # The terminal may be gone.
                grace_s = gateway.options.grace_s
                if worker is None or worker.number == 1:
                    click.echo(f"draining: running answers have {grace_s:g} s; once more to stop now", err=True)
            await _unless(stop.insisted, gateway.drain())
    finally:
        try:
            await _close(manager, stop)
        finally:
            await gateway.aclose()
    return stop.status


def _spare_the_collector() -> None:
    """Have the cycle collector leave alone what is there for good, and look at the rest less often.

    A request leaves no cycles behind, but makes enough objects to have it look at everything every few requests: a
    sixth of the time of a small answer. It now looks after some hundred requests, which hold some megabytes at most.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 50)


async def _close(manager: ResourceManager, stop: _Signals) -> None:
    """Close it, however long that takes, unless somebody insists: then only a moment longer, to end child processes."""
    closing, insisted = asyncio.ensure_future(manager.aclose()), asyncio.ensure_future(stop.insisted.wait())
    try:
        await asyncio.wait({closing, insisted}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({closing}, timeout=_MOMENT_S)
        if closing.done():
            closing.result()
    finally:
        insisted.cancel()
        closing.cancel()
        await asyncio.wait({closing, insisted}, timeout=_MOMENT_S)


async def _bind(gateway: Gateway) -> None:
    try:
        await gateway.bind()
    except OSError as error:
        raise _cannot_listen(gateway.url, error) from error


def _cannot_listen(where: str, error: OSError) -> GatewayError:
    # asyncio's own sentence says the address once more; a name that is not known has no number of the system's.
    why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
    hint = "; choose another port with --port" if error.errno == errno.EADDRINUSE else ""
    return GatewayError(f"cannot listen on {where}: {why}{hint}")


def _options(manager: ResourceManager) -> GatewayOptions:
    found = manager.config.sections.get("gateway")
    if not isinstance(found, GatewayOptions):
        raise PluginError("the plugin 'gateway' is disabled or broken: see 'gleitzeit plugins'")
    return found


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Wait for `work`, or cancel it when `event` comes first. Whether it was done."""
    waiting, working = asyncio.ensure_future(event.wait()), asyncio.ensure_future(work)
    try:
        await asyncio.wait({waiting, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        waiting.cancel()
        working.cancel()
        await asyncio.wait({waiting, working})
