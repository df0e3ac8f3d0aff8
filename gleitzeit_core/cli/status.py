"""``gleitzeit status`` and ``gleitzeit instances``: what a running gateway is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.client import GatewayError
from gleitzeit_core.cli.commands import Command, LazyGroup
from gleitzeit_core.cli.connection import Connection, connection_options
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.output import Column, duration, write, write_json, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping

_COLUMNS: Final = (
    Column("id"),
    Column("hub"),
    Column("state", state=True),
    Column("busy", right=True),
    Column("served", right=True),
    Column("success", right=True),
    Column("p50", right=True),
    Column("p95", right=True),
    Column("can do (* ready now)"),
    Column("reason"),
)


@click.command(
    cls=Command,
    examples=(
        "gleitzeit status",
        "gleitzeit status --gateway http://gpu1:8484",
        "gleitzeit status --json | jq .requests",
    ),
)
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@pass_invocation
def status(invocation: Invocation, connection: Connection, *, as_json: bool) -> None:
    """Show what a running gateway is doing.

    JSON: version, configuration, uptime_s, requests (active, waiting, and how many ended how), hubs, instances, routes,
    methods.
    """
    client = connection.client(invocation)
    found = client.status()
    if as_json:
        write_json(found)
        return
    try:
        summary, rows = _summary(found, client.url), [_row(instance) for instance in found["instances"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _strange(client.url) from None
    write(summary)
    write_table(_COLUMNS, rows)


@click.group(
    cls=LazyGroup,
    prefix="instances",
    invoke_without_command=True,
    examples=(
        "gleitzeit instances",
        "gleitzeit instances --json | jq -r '.instances[] | select(.state != \"ready\") | .id'",
    ),
)
@connection_options
@click.option("--json", "as_json", is_flag=True, help='Print {"instances": [...]}.')
@pass_invocation
@click.pass_context
def instances(ctx: click.Context, invocation: Invocation, connection: Connection, *, as_json: bool) -> None:
    """List the instances of a running gateway and how they are.

    JSON, of each instance: id, hub, kind, endpoint, state, reason, ownership, in_flight, max_concurrent, weight, tags,
    capabilities, warm, served, success_rate, p50_s, p95_s, p99_s.
    """
    if ctx.invoked_subcommand is not None:
        return
    client = connection.client(invocation)
    try:
        found = client.status()["instances"]
        rows = [_row(instance) for instance in found]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _strange(client.url) from None
    if as_json:
        write_json({"instances": found})
    else:
        write_table(_COLUMNS, rows)


def _strange(url: str) -> GatewayError:
    return GatewayError(f"{url} has another idea of a status: is it a Gleitzeit gateway of this version?")


def _summary(found: Mapping[str, Any], url: str) -> str:
    """The lines above the table."""
    requests = dict(found["requests"])
    now = f"{requests.pop('active')} active, {requests.pop('waiting')} waiting"
    ended = ", ".join(f"{count} {how}" for how, count in requests.items())
    lines = {
        "gateway": f"{url}, version {found['version']}, up {duration(found['uptime_s'])}",
        "configuration": found["configuration"] or "none: the defaults",
        "requests": f"{now}; {ended}" if ended else now,
        "hubs": ", ".join(f"{h['name']} ({h['kind']}, {h['instances']})" for h in found["hubs"]) or "none",
        "routes": "; ".join(f"{' '.join(r['methods'])}: {r['strategy']}" for r in found["routes"]),
    }
    return "\n".join(f"{name:<15}{text}" for name, text in lines.items()) + "\n"


def _row(instance: Mapping[str, Any]) -> tuple[object, ...]:
    served, warm = instance["served"], instance["warm"]
    abilities = [f"{name.removeprefix('model:')}{'*' if name in warm else ''}" for name in instance["capabilities"]]
    return (
        instance["id"],
        instance["hub"],
        instance["state"],
        f"{instance['in_flight']}/{instance['max_concurrent']}",
        served,
        f"{instance['success_rate']:.1%}" if served else None,
        duration(instance["p50_s"]) if served else None,
        duration(instance["p95_s"]) if served else None,
        ", ".join(abilities),
        instance["reason"],
    )
