"""``gleitzeit instances``: what there is in a running gateway's pool, and changing it while it runs."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from gleitzeit_core.cli.client import GatewayClient, understood
from gleitzeit_core.cli.commands import Command, LazyGroup
from gleitzeit_core.cli.connection import Connection, asks_gateway, connection_options
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.output import (
    Column,
    duration,
    is_interactive,
    note,
    printable,
    warn,
    write,
    write_json,
    write_table,
)
from gleitzeit_core.errors import UnknownName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_EMPTYING: Final = "draining"
_GRACE_S: Final = 30.0
_LOOK_AGAIN_S: Final = 0.25
_SHOWN_MAX: Final = 5
COLUMNS: Final = (
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


@click.group(
    cls=LazyGroup,
    prefix="instances",
    invoke_without_command=True,
    examples=(
        "gleitzeit instances",
        "gleitzeit instances add http://gpu2:11434 --weight 2",
        "gleitzeit instances drain gpu2",
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
    capabilities, warm, served, success_rate, p50_s, p95_s, p99_s, limit, breaker, degraded.
    """
    if ctx.invoked_subcommand is not None:
        return
    client = connection.client(invocation)
    with understood(client.url):
        status = client.status()
        found, degraded = status["instances"], problems(status)
        rows = [row(instance) for instance in found]
    if as_json:
        write_json({"instances": found})
        return
    for problem in degraded:
        warn(f"degraded hub {problem}")
    write_table(COLUMNS, rows)


def problems(status: Mapping[str, Any]) -> list[str]:
    """The hubs that cannot do all that they should, and why."""
    return [f"{hub['name']}: {hub['problem']}" for hub in status["hubs"] if hub.get("problem")]


def row(instance: Mapping[str, Any]) -> tuple[object, ...]:
    """One instance, as `COLUMNS` has it."""
    served, warm = instance["served"], instance["warm"]
    abilities = [f"{name.removeprefix('model:')}{'*' if name in warm else ''}" for name in instance["capabilities"]]
    return (
        instance["id"],
        instance["hub"],
        instance["state"],
        _busy(instance),
        served,
        f"{instance['success_rate']:.1%}" if served else None,
        duration(instance["p50_s"]) if served else None,
        duration(instance["p95_s"]) if served else None,
        ", ".join(abilities),
        instance["reason"],
    )


def _busy(instance: Mapping[str, Any]) -> str:
    """Requests in flight, of how many; what it has shown it can bear goes before what was configured."""
    limit, most = instance.get("limit") or instance["max_concurrent"], instance["max_concurrent"]
    return f"{instance['in_flight']}/{limit}" + (f" of {most}" if limit != most else "")


# -- changing it -----------------------------------------------------------------------------------------------------


_asks = asks_gateway("Print the answer as JSON.")


@instances.command(
    cls=Command,
    examples=(
        "gleitzeit instances add http://gpu2:11434 --weight 2",
        "gleitzeit instances add http://gpu3:8000 --type openai --tag gpu --model qwen3",
    ),
)
@click.argument("endpoint", metavar="URL")
@click.option("--type", "kind", help="What it is: a hub type that takes a URL.  [default: that of --hub, or ollama]")
@click.option("--hub", default="", help="The hub it joins.  [default: the only one of that type, or a new one]")
@click.option(
    "--weight", type=click.FloatRange(0, min_open=True), help="Its capacity, relative to others.  [default: 1]"
)
@click.option("--max-concurrent", type=click.IntRange(1), help="Requests it may work on at once.")
@click.option("--tag", "tags", multiple=True, help="A label; may be repeated.")
@click.option("--model", "models", multiple=True, help="A model it serves, if it cannot be asked; may be repeated.")
@_asks
def add(  # noqa: PLR0913 - its options
    client: GatewayClient,
    *,
    endpoint: str,
    kind: str | None,
    hub: str,
    weight: float | None,
    max_concurrent: int | None,
    tags: Sequence[str],
    models: Sequence[str],
    as_json: bool,
) -> None:
    """Add a server to the pool of a running gateway.

    It is checked at once, and stays until it is removed or the gateway ends: what should stay for good belongs in the
    configuration.
    """
    given: dict[str, Any] = {"url": endpoint, "hub": hub, "type": kind or ("" if hub else "ollama")}
    given |= {"weight": weight, "max_concurrent": max_concurrent, "tags": list(tags), "models": list(models)}
    body = {name: value for name, value in given.items() if value not in (None, "", [])}
    _tell(client, client.admin("POST", "/instances", body, timeout_s=60), as_json=as_json)


@instances.command(
    cls=Command, examples=("gleitzeit instances drain gpu2", "gleitzeit instances drain gpu2 --wait && ssh gpu2 reboot")
)
@click.argument("instance")
@click.option("--wait", is_flag=True, help="Return when it has no work left.")
@_asks
def drain(client: GatewayClient, *, instance: str, wait: bool, as_json: bool) -> None:
    """Let an instance finish what it has and give it nothing new.

    INSTANCE is an id, the beginning of one or of its host's name, or its URL. 'resume' brings it back.
    """
    name = find(client, instance)
    changed = client.admin("POST", f"{_path(name)}/drain")
    while wait and changed["state"] == _EMPTYING:
        time.sleep(_LOOK_AGAIN_S)
        # One of our own is gone when it is empty.
        changed = next((one for one in _listed(client) if one["id"] == name), {**changed, "state": "gone"})
    _tell(client, changed, as_json=as_json)


@instances.command(cls=Command, examples=("gleitzeit instances resume gpu2",))
@click.argument("instance")
@_asks
def resume(client: GatewayClient, *, instance: str, as_json: bool) -> None:
    """Give an instance work again that was drained."""
    _tell(client, client.admin("POST", f"{_path(find(client, instance))}/resume"), as_json=as_json)


@instances.command(
    cls=Command, examples=("gleitzeit instances remove gpu2", "gleitzeit instances remove gpu2 --grace 5 --yes")
)
@click.argument("instance")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0),
    default=_GRACE_S,
    show_default=True,
    help="Seconds its work may take.",
)
@click.option("--yes", is_flag=True, help="Do not ask first, as is done on a terminal.")
@_asks
def remove(client: GatewayClient, *, instance: str, grace_s: float, yes: bool, as_json: bool) -> None:
    """Let an instance finish what it has, then forget it. One that is not ours goes on running.

    It stays away until it is added again or the gateway is started anew, even if a search would find it.
    """
    name = find(client, instance)
    if not yes and is_interactive() and not click.confirm(f"Remove {printable(name)} from the pool?", err=True):
        note("it stays")
        raise click.exceptions.Exit(1)
    answer = client.admin("DELETE", f"{_path(name)}?grace_s={grace_s:g}", timeout_s=grace_s + 15)
    if as_json:
        write_json(answer)
    else:
        note(f"removed {name}")


@instances.command(cls=Command, examples=("gleitzeit instances show gpu2", "gleitzeit instances show gpu2 --json"))
@click.argument("instance")
@_asks
def show(client: GatewayClient, *, instance: str, as_json: bool) -> None:
    """Show all that is known of one instance, its last health checks among it."""
    found = client.admin("GET", _path(find(client, instance)))
    if as_json:
        write_json(found)
        return
    with understood(client.url):
        facts, checks = _facts(found), [_check(check) for check in found["health"]]
    write("\n".join(f"{name:<15}{text}" for name, text in facts.items()))
    if checks:
        write("")
        write_table(_CHECKS, checks)


def _facts(found: Mapping[str, Any]) -> dict[str, str]:
    served = found["served"]
    times = ", ".join(f"p{share} {duration(found[f'p{share}_s'])}" for share in (50, 95, 99))
    facts = {
        "id": found["id"],
        "endpoint": found["endpoint"],
        "hub": f"{found['hub']} ({found['kind']}, {found['ownership']})",
        "state": " ".join(filter(None, (found["state"], f"({found['reason']})" if found["reason"] else ""))),
        "degraded": "; ".join(found["degraded"]),
        "breaker": found["breaker"],
        "busy": _busy(found),
        "weight": f"{found['weight']:g}",
        "tags": ", ".join(found["tags"]),
        "can do": ", ".join(found["capabilities"]),
        "ready now": ", ".join(found["warm"]),
        "served": f"{served}, {found['success_rate']:.1%} well; {times}" if served else "nothing yet",
    }
    return {name: text for name, text in facts.items() if text}


def _check(check: Mapping[str, Any]) -> tuple[object, ...]:
    at = datetime.fromtimestamp(check["at"]).astimezone()
    return f"{at:%H:%M:%S}", "ok" if check["ok"] else "failed", duration(check["took_s"]), check["reason"]


_CHECKS: Final = (Column("checked at"), Column("result", state=True), Column("took", right=True), Column("reason"))


# -- which one -------------------------------------------------------------------------------------------------------


def find(client: GatewayClient, given: str) -> str:
    """The id of the instance that a person means: by its id, the beginning of one or of its host, or its URL.

    Raises:
        UnknownName: None is meant.
        UsageError: More than one could be.
    """
    with understood(client.url):
        known = {one["id"]: (one["endpoint"], one["kind"]) for one in _listed(client)}
    exact = [name for name, (endpoint, _) in known.items() if given.rstrip("/") in (name, endpoint.rstrip("/"))]
    meant = exact or [
        name
        for name, (endpoint, kind) in known.items()
        if name.startswith((given, f"{kind}-{given}")) or endpoint.partition("://")[2].startswith(given)
    ]
    if given and len(meant) == 1:
        return str(meant[0])
    if given and meant:
        some = ", ".join(sorted(meant)[:_SHOWN_MAX]) + (", ..." if len(meant) > _SHOWN_MAX else "")
        raise click.UsageError(f"{given!r} could be any of {len(meant)} instances, say which: {some}")
    raise UnknownName("instance", given, known, are="there is")


def _listed(client: GatewayClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.admin("GET", "/instances")["instances"]
    return found


def _path(instance_id: str) -> str:
    return f"/instances/{quote(instance_id, safe='')}"


def _tell(client: GatewayClient, changed: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json(changed)
        return
    with understood(client.url):
        cells = row(changed)
    write_table(COLUMNS, [cells])
