"""``gleitzeit metrics``: rates, latencies and tokens of a running gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.client import understood
from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.connection import asks_gateway
from gleitzeit_core.cli.output import Column, duration, note, size, write_json, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.cli.client import GatewayClient

GROUPS: Final = {"instance": "instances", "model": "models", "route": "routes", "method": "methods", "api": "apis"}
_TIMES: Final = {"wait_s": "wait", "first_output_s": "first output", "per_token_s": "per token", "total_s": "total"}
_NUMBERS: Final = (
    Column("tries", right=True),
    Column("success", right=True),
    *(Column(f"{title} p50/p95/p99", right=True) for title in _TIMES.values()),
    Column("tokens in/out", right=True),
    Column("bytes in/out", right=True),
)


@click.command(
    cls=Command,
    examples=(
        "gleitzeit metrics",
        "gleitzeit metrics --by model --total",
        "gleitzeit metrics --json | jq .sum.total_s.p95",
    ),
)
@click.option("--by", type=click.Choice(list(GROUPS)), default="instance", show_default=True, help="A line for each.")
@click.option("--total", is_flag=True, help="Since the gateway was started, not only of the last minutes.")
@asks_gateway("Print everything as JSON.")
def metrics(client: GatewayClient, *, by: str, total: bool, as_json: bool) -> None:
    """Show how many tries there were, how they ended, how long they took and what they produced.

    JSON: window_s (null for all time), sum, instances, models, routes, methods, apis (what callers speak; the library's
    own are in none); in each count, success_rate, results, wait_s, first_output_s, per_token_s and total_s (each with
    p50, p95, p99), input_tokens, output_tokens, bytes_in, bytes_out.
    """
    found = client.admin("GET", f"/metrics?window={'total' if total else 'recent'}")
    if as_json:
        write_json(found)
        return
    with understood(client.url):
        rows = [numbers_row(name, numbers) for name, numbers in found[GROUPS[by]].items() if numbers["count"]]
        rows.append(numbers_row("(all)", found["sum"]))
        since = f"in the last {duration(found['window_s'])}" if not total else "since it was started"
    write_table(columns(by), rows)
    note(since)


def columns(by: str) -> tuple[Column, ...]:
    """The head of a table of numbers, a line for each `by`."""
    return (Column(by), *_NUMBERS)


def numbers_row(name: str, numbers: Mapping[str, Any]) -> tuple[object, ...]:
    """The numbers of one instance, model, route or method."""
    if not numbers["count"]:
        return (name, 0, *[None] * (len(_NUMBERS) - 1))
    return (
        name,
        numbers["count"],
        f"{numbers['success_rate']:.1%}",
        *(_times(numbers[key]) for key in _TIMES),
        _pair(f"{numbers['input_tokens']:,}", f"{numbers['output_tokens']:,}"),
        _pair(size(numbers["bytes_in"]), size(numbers["bytes_out"])),
    )


def _times(percentiles: Mapping[str, float]) -> str:
    """Three times, which may be 0; empty when nothing was measured."""
    found = [percentiles[share] for share in ("p50", "p95", "p99")]
    return " / ".join(map(duration, found)) if percentiles["count"] else ""


def _pair(read: str, written: str) -> str:
    nothing = {read, written} <= {"0", "0 B"}
    return "" if nothing else f"{read} / {written}"
