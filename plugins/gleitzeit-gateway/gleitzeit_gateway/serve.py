"""The command ``gleitzeit serve``."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any

import click
import uvloop

from gleitzeit_core.cli.context import pass_invocation
from gleitzeit_core.errors import GleitzeitError, PluginError
from gleitzeit_core.pool import State
from gleitzeit_gateway.options import GatewayOptions
from gleitzeit_gateway.server import Gateway
from gleitzeit_llm import models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gleitzeit_core.cli.context import Invocation
    from gleitzeit_core.manager import ResourceManager


logger = logging.getLogger(__name__)

_INTERRUPTED = 130


@click.command()
@click.option("--host", help="Where to listen; beyond loopback only with keys.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0 takes any free port.  [default: 8484]")
@click.option(
    "--instance",
    "instances",
    multiple=True,
    metavar="[TYPE=]URL",
    help="Pool this server; may be repeated. TYPE is 'ollama' (the default) or 'openai'.",
)
@click.option("--strategy", help="How an instance is chosen; see 'gleitzeit strategies'.")
@click.option("--allow-anonymous", is_flag=True, default=None, help="Listen beyond loopback without keys.")
@click.option("--grace", "grace_s", type=click.FloatRange(0), help="Seconds running answers may take at shutdown.")
@click.option("--access-log/--no-access-log", default=None, help="One line per request on standard error.")
@click.option("-v", "--verbose", is_flag=True, help="Say more on standard error.")
@pass_invocation
def serve(invocation: Invocation, /, instances: Sequence[str], *, verbose: bool, **flags: Any) -> None:  # noqa: ANN401 - click's values
    r"""Run the gateway: one address for everything in the pool.

    Without a configuration it looks for Ollama (OLLAMA_HOST, then loopback ports 11434-11439) and pools what it finds;
    where there is none it starts a small embedded model.

    \b
    Examples:
      gleitzeit serve
      gleitzeit serve --instance http://gpu1:11434 --instance http://gpu2:11434
      gleitzeit serve --instance openai=http://gpu3:8000 --strategy least_loaded
      gleitzeit serve --config gleitzeit.yaml
    """
    _set_up_logging(verbose=verbose)
    manager = invocation.manager(_overrides(instances, flags))
    raise click.exceptions.Exit(uvloop.run(_serve(manager)))


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
        found["routes"] = [{"methods": ["*"], "strategy": strategy}]
    return found


def _set_up_logging(*, verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[handler])
    access = logging.getLogger("gleitzeit.access")
    access.setLevel(logging.INFO)
    logging.getLogger("gleitzeit_core").setLevel(logging.INFO if verbose else logging.WARNING)


class GatewayError(GleitzeitError):
    """The gateway cannot run."""

    code = "gateway"


class _Stop:
    """Signals: the first asks to drain, the second to stop now."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()
        self.status = 0
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signal, number)

    def _signal(self, number: signal.Signals) -> None:
        if self.asked.is_set():
            self.insisted.set()
            return
        self.status = _INTERRUPTED if number == signal.SIGINT else 0
        self.asked.set()


async def _serve(manager: ResourceManager) -> int:
    stop = _Stop()
    options = _options(manager)
    starting = asyncio.ensure_future(manager.__aenter__())
    if not await _unless(stop.asked, starting):
        return stop.status
    gateway = Gateway(manager, options)
    try:
        try:
            await gateway.start()
        except OSError as error:
            raise GatewayError(f"cannot listen on {gateway.url}: {error.strerror or error}") from error
        _greet(manager, gateway)
        await stop.asked.wait()
        click.echo(f"draining: running answers have {options.grace_s:g} s; once more to stop now", err=True)
        if not await _unless(stop.insisted, asyncio.ensure_future(gateway.aclose())):
            stop.status = _INTERRUPTED
    finally:
        await manager.aclose()
    return stop.status


def _options(manager: ResourceManager) -> GatewayOptions:
    found = manager.config.sections.get("gateway")
    if not isinstance(found, GatewayOptions):
        raise PluginError("the plugin 'gateway' is disabled or broken: see 'gleitzeit plugins'")
    return found


async def _unless(event: asyncio.Event, work: asyncio.Future[Any]) -> bool:
    """Wait for `work`, or cancel it when `event` comes first. Whether it was done."""
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait({waiting, work}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if work.done():
        work.result()
        return True
    work.cancel()
    await asyncio.wait({work})
    return False


def _greet(manager: ResourceManager, gateway: Gateway) -> None:
    """The address, the instances, the models and two commands to paste."""
    reports = manager.instances()
    click.echo(f"Gleitzeit listens on {gateway.url}")
    click.echo("instances:")
    for report in reports:
        reason = f" ({report.reason})" if report.reason else ""
        click.echo(f"  {report.state:<13} {report.instance.kind:<9} {report.instance.endpoint}{reason}")
    if not reports:
        click.echo("  none yet: 'gleitzeit serve --instance URL', or a configuration from 'gleitzeit init'")
    names = models.names(tuple(r.instance for r in reports if r.state == State.READY))
    click.echo(f"models: {', '.join(names) or 'none yet'}")
    if names:
        body = f'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "hi"}}]}}'
        click.echo("try:")
        click.echo(f"  curl {gateway.url}/api/chat -d '{body}'")
        click.echo(f"  curl {gateway.url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'")
    sys.stdout.flush()
