"""``gleitzeit top``: a running gateway, redrawn again and again."""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.client import understood
from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.connection import asks_gateway
from gleitzeit_core.cli.instances import COLUMNS, problems, row
from gleitzeit_core.cli.metrics import columns, numbers_row
from gleitzeit_core.cli.output import duration, is_interactive, printable, table
from gleitzeit_core.cli.status import QUEUES, queue_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.console import Console, Group

    from gleitzeit_core.cli.client import GatewayClient

_PIPE_WIDTH: Final = 200


@click.command(cls=Command, examples=("gleitzeit top", "gleitzeit top --interval 0.5", "gleitzeit top --once"))
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Show it once; so does a pipe.")
@asks_gateway()
def top(client: GatewayClient, *, interval_s: float, once: bool) -> None:
    """Watch a running gateway: requests, instances, models and queues. q or Ctrl-C leaves.

    Latencies are those of the last minutes; rates those since the last look.
    """
    from rich.console import Console  # noqa: PLC0415 - slow
    from rich.live import Live  # noqa: PLC0415 - slow

    watched = _Watched(client)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    if once or not sys.stdout.isatty():
        _print(console, watched.frame())
        return
    with Live(watched.frame(), console=console, screen=True, auto_refresh=False) as live, _keys() as pressed:
        while not pressed(interval_s):
            live.update(watched.frame(), refresh=True)


def _print(console: Console, frame: Group) -> None:
    with console.capture() as captured:
        console.print(frame)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


@contextmanager
def _keys() -> Iterator[Callable[[float], object]]:
    """A function that waits so many seconds and says whether a key to leave was pressed meanwhile."""
    if not is_interactive():
        yield time.sleep
        return
    import termios  # noqa: PLC0415 - not everywhere
    import tty  # noqa: PLC0415 - not everywhere

    before = termios.tcgetattr(sys.stdin)

    def pressed(wait_s: float) -> bool:
        ready, _, _ = select.select([sys.stdin], [], [], wait_s)
        # All at once and past Python's buffer, where `select` would not see it; an arrow key is more than an Esc.
        typed = os.read(sys.stdin.fileno(), 1024) if ready else None
        return typed in (b"", b"\x1b") or (typed is not None and b"q" in typed.lower())

    try:
        tty.setcbreak(sys.stdin)
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class _Watched:
    """One gateway, and what it had counted when it was last looked at."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self._last: tuple[float, Mapping[str, float]] | None = None

    def frame(self) -> Group:
        """How it is now.

        Raises:
            GatewayDown: It is gone.
            GatewayError: It refuses.
        """
        status, recent = self._client.status(), self._client.admin("GET", "/metrics?window=recent")
        with understood(self._client.url):
            return self._drawn(status, recent)

    def _drawn(self, status: Mapping[str, Any], recent: Mapping[str, Any]) -> Group:
        from rich.console import Group  # noqa: PLC0415 - slow
        from rich.text import Text  # noqa: PLC0415 - slow

        parts = [Text(printable(line)) for line in self._head(status, recent)]
        drawn: list[Any] = [*parts, Text(), table(COLUMNS, map(row, status["instances"]))]
        models = [numbers_row(name or "-", numbers) for name, numbers in recent["models"].items() if numbers["count"]]
        if models:
            drawn += [Text(), table(columns("model"), models)]
        if status["queues"]:
            drawn += [Text(), table(QUEUES, map(queue_row, status["queues"]))]
        return Group(*drawn)

    def _head(self, status: Mapping[str, Any], recent: Mapping[str, Any]) -> list[str]:
        requests = status["requests"]
        done = sum(count for how, count in requests.items() if how not in ("active", "waiting"))
        tokens = sum(instance["output_tokens"] for instance in status["instances"])
        rates = self._rates({"requests": done, "output tokens": tokens})
        numbers = recent["sum"]
        total, first = numbers["total_s"], numbers["first_output_s"]
        outcome = f"{numbers['count']} tries, {numbers['success_rate']:.1%} well"
        firsts = f"first output p50 {duration(first['p50'])} p95 {duration(first['p95'])}"
        totals = f"total p50 {duration(total['p50'])} p95 {duration(total['p95'])} p99 {duration(total['p99'])}"
        return [
            f"{self._client.url}  version {status['version']}  up {duration(status['uptime_s'])}",
            f"{requests['active']} active, {requests['waiting']} waiting   {rates}",
            f"last {duration(recent['window_s'])}: {outcome}   {firsts}   {totals}",
            *(f"degraded hub {problem}" for problem in problems(status)),
        ]

    def _rates(self, counted: Mapping[str, float]) -> str:
        now, last = time.monotonic(), self._last
        self._last = (now, counted)
        if last is None:
            return ""
        passed_s = max(now - last[0], 1e-6)
        rates = {name: max(0.0, count - last[1][name]) / passed_s for name, count in counted.items()}
        return "   ".join(f"{rate:.1f} {name}/s" for name, rate in rates.items())
