"""``gleitzeit plugins``: what is installed, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.output import Column, warn, write_json, write_table
from gleitzeit_core.errors import nearest
from gleitzeit_core.plugin_loading import KINDS

if TYPE_CHECKING:
    from gleitzeit_core.plugins import PluginHost, PluginRecord

_COLUMNS: Final = (
    Column("name"),
    Column("distribution"),
    Column("version"),
    Column("status", state=True),
    Column("provides"),
    Column("reason"),
)


@click.command(
    cls=Command,
    examples=("gleitzeit plugins", "gleitzeit plugins --json | jq '.plugins[] | select(.status != \"ok\")'"),
)
@click.option("--json", "as_json", is_flag=True, help='Print {"plugins": [...]}.')
@pass_invocation
def plugins(invocation: Invocation, *, as_json: bool) -> None:
    """List the plugins: who brings each, what it provides, and if it cannot be used, why.

    A plugin is a distribution with an entry point in the group 'gleitzeit', or a file that the configuration names. One
    that is broken never stops the others.

    JSON, of each plugin: name, distribution, version, status (ok, disabled, failed, incompatible or conflict), provides
    (kind, name, summary), reason, source.
    """
    host = invocation.host()
    found = [_described(record) for record in host.records]
    if as_json:
        write_json({"plugins": found})
    else:
        write_table(_COLUMNS, [_row(plugin) for plugin in found])
    _warn(host)


def _described(record: PluginRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version or None,
        "status": record.status,
        "provides": [{"kind": KINDS[type(it)][0], "name": it.name, "summary": it.summary} for it in record.provides],
        "reason": record.reason or None,
        "source": record.source,
    }


def _row(plugin: dict[str, Any]) -> tuple[object, ...]:
    kinds: dict[str, list[str]] = {}
    for it in plugin["provides"]:
        kinds.setdefault(it["kind"], []).append(it["name"])
    provides = "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items())
    return (
        plugin["name"],
        plugin["distribution"],
        plugin["version"],
        plugin["status"],
        provides,
        plugin["reason"],
    )


def _warn(host: PluginHost) -> None:
    """One line, for those who do not read the table."""
    broken = [record.name for record in host.records if record.status not in ("ok", "disabled")]
    if broken:
        warn(f"{len(broken)} of {len(host.records)} plugins cannot be used in full: {', '.join(broken)}")
    for name in host.unknown_disabled:
        hint = nearest(name, (record.name for record in host.records))
        warn(f"plugins.disabled names {name!r}, which nothing has" + (f"; {hint}" if hint else ""))
