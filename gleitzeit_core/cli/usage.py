"""``gleitzeit usage``: what each key, model or instance of a running gateway has used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import click

from gleitzeit_core.cli.client import understood
from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.connection import asks_gateway
from gleitzeit_core.cli.output import Column, duration, note, size, write_json, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.cli.client import GatewayClient

LABELS: Final = ("key", "model", "instance")
_WINDOWS: Final = {
    "total": "since the gateway was started",
    "day": "in the last 23 to 24 hours",
    "hour": "in the last 55 to 60 minutes",
}
_NUMBERS: Final = (
    Column("requests", right=True),
    Column("failed", right=True),
    Column("cancelled", right=True),
    Column("tokens in", right=True),
    Column("tokens out", right=True),
    Column("bytes in/out", right=True),
    Column("time", right=True),
)


def _labels(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Some of `LABELS`, with commas between, each once."""
    found = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    for part in found:
        if part not in LABELS:
            raise click.BadParameter(f"{part!r} is not one of {', '.join(LABELS)}", ctx, param)
    return found


@click.command(
    cls=Command,
    examples=(
        "gleitzeit usage",
        "gleitzeit usage --by key,model --window day",
        "gleitzeit usage --by instance --json | jq .sum.output_tokens",
    ),
)
@click.option(
    "--by",
    default="key",
    show_default=True,
    metavar="LABELS",
    callback=_labels,
    help="A line for each key, model or instance; several of these with commas between, such as key,model.",
)
@click.option("--window", type=click.Choice(list(_WINDOWS)), default="total", show_default=True, help="Of which time.")
@asks_gateway("Print everything as JSON.")
def usage(client: GatewayClient, *, by: tuple[str, ...], window: str, as_json: bool) -> None:
    """Show what was used: requests, tokens, bytes, and time on instances.

    With a key that is not marked 'admin', only what that key has used. '-' stands for no key, no model, no instance.

    JSON: window, by, rows (each with what it is by, requests, failed, cancelled, tries, input_tokens, output_tokens,
    bytes_in, bytes_out and time_s), sum.
    """
    found = client.admin("GET", f"/usage?{urlencode({'by': ','.join(by), 'window': window})}")
    if as_json:
        write_json(found)
        return
    with understood(client.url):
        rows = [(*(row[label] for label in by), *_numbers(row)) for row in found["rows"]]
        rows.append(("(all)", *[""] * (len(by) - 1), *_numbers(found["sum"])))
    write_table((*map(Column, by), *_NUMBERS), rows)
    note(_WINDOWS[window])


def _numbers(used: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        used["requests"],
        used["failed"],
        used["cancelled"],
        f"{used['input_tokens']:,}",
        f"{used['output_tokens']:,}",
        f"{size(used['bytes_in'])} / {size(used['bytes_out'])}",
        duration(used["time_s"]),
    )
