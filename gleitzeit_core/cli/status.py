"""``gleitzeit status`` and ``gleitzeit queues``: what a running gateway is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.client import understood
from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.connection import asks_gateway
from gleitzeit_core.cli.instances import COLUMNS, problems, row
from gleitzeit_core.cli.output import Column, duration, write, write_json, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.cli.client import GatewayClient

QUEUES: Final = (
    Column("route"),
    Column("for"),
    Column("waiting", right=True),
    Column("limit", right=True),
    Column("oldest", right=True),
    Column("served/s", right=True),
    Column("expected wait", right=True),
    Column("tenants"),
    Column("bands"),
)


@click.command(
    cls=Command,
    examples=(
        "gleitzeit status",
        "gleitzeit status --gateway http://gpu1:8484",
        "gleitzeit status --json | jq .requests",
    ),
)
@asks_gateway("Print everything as JSON.")
def status(client: GatewayClient, *, as_json: bool) -> None:
    """Show what a running gateway is doing.

    JSON: version, configuration, uptime_s, requests (active, waiting, and how many ended how), hedges, queues, hubs
    (name, kind, state (ready or degraded), instances, and problem, empty when there is none), instances, routes,
    methods.
    """
    found = client.status()
    if as_json:
        write_json(found)
        return
    with understood(client.url):
        summary, rows = _summary(found, client.url), [row(instance) for instance in found["instances"]]
    write(summary)
    write_table(COLUMNS, rows)


@click.command(cls=Command, examples=("gleitzeit queues", "gleitzeit queues --json | jq '.queues[].expected_wait_s'"))
@asks_gateway('Print {"queues": [...]}.')
def queues(client: GatewayClient, *, as_json: bool) -> None:
    """Show who waits: a line for each queue that is not empty.

    JSON, of each queue: route, needs, model, waiting, limit, oldest_s, rate_per_s, expected_wait_s, tenants and bands
    (how many wait, by tenant and by priority).
    """
    found = client.admin("GET", "/queues")
    if as_json:
        write_json(found)
        return
    with understood(client.url):
        rows = [queue_row(queue) for queue in found["queues"]]
    if rows:
        write_table(QUEUES, rows)
    else:
        write("nobody waits")


def queue_row(queue: Mapping[str, Any]) -> tuple[object, ...]:
    """One queue, as `QUEUES` has it."""
    shares = [
        ", ".join(f"{name or '-'}: {count}" for name, count in queue[key].items()) for key in ("tenants", "bands")
    ]
    return (
        queue["route"],
        queue["model"] or queue["needs"],
        queue["waiting"],
        queue["limit"],
        duration(queue["oldest_s"]),
        f"{queue['rate_per_s']:.2f}",
        duration(queue["expected_wait_s"]),
        *shares,
    )


def _summary(found: Mapping[str, Any], url: str) -> str:
    """The lines above the table."""
    requests = dict(found["requests"])
    now = f"{requests.pop('active')} active, {requests.pop('waiting')} waiting"
    ended = ", ".join(f"{count} {how}" for how, count in requests.items())
    lines = {
        "gateway": f"{url}, version {found['version']}, up {duration(found['uptime_s'])}",
        "configuration": found["configuration"] or "none: the defaults",
        "requests": f"{now}; {ended}" if ended else now,
        "hedges": _hedges(found.get("hedges", {})),
        "hubs": ", ".join(map(_hub, found["hubs"])) or "none",
        "problems": "; ".join(problems(found)),
        "routes": "; ".join(f"{' '.join(r['methods'])}: {r['strategy']}" for r in found["routes"]),
    }
    return "\n".join(f"{name:<15}{text}" for name, text in lines.items() if text) + "\n"


def _hub(hub: Mapping[str, Any]) -> str:
    """Its name, kind, number of instances, and that it cannot do all it should."""
    degraded = ", degraded" if hub.get("problem") else ""
    return f"{hub['name']} ({hub['kind']}, {hub['instances']}{degraded})"


def _hedges(hedges: Mapping[str, int]) -> str:
    """Second tries beside slow ones; empty while there was none."""
    return f"{hedges['started']} begun, {hedges['won']} answered first" if hedges.get("started") else ""
