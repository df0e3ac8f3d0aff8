"""``gleitzeit reload``: let a running gateway read its configuration again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.client import GatewayError, understood
from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.connection import asks_gateway
from gleitzeit_core.cli.output import Column, note, write_json, write_table
from gleitzeit_core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.cli.client import GatewayClient

_COLUMNS: Final = (Column("what"), Column("where"), Column("before"), Column("after"), Column("note"))
_TIMEOUT_S: Final = 120.0


@click.command(
    cls=Command, examples=("gleitzeit reload --dry-run", "gleitzeit reload", "gleitzeit reload --json | jq .changes")
)
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@asks_gateway('Print {"dry_run": ..., "changes": [...]}.')
def reload(client: GatewayClient, *, dry_run: bool, as_json: bool) -> None:
    """Let a running gateway read its configuration file again, and say what changed. Nothing that runs is dropped.

    A configuration with mistakes changes nothing. What can only change with a restart is marked so. The signal SIGHUP
    does the same.

    JSON, of each change: path, what (added, removed, changed), before, after, applied, note.
    """
    try:
        found = client.admin("POST", f"/reload{'?dry_run=1' if dry_run else ''}", {}, timeout_s=_TIMEOUT_S)
    except GatewayError as error:
        if not error.problems:
            raise
        raise _mistakes(error.problems) from None
    if as_json:
        write_json(found)
        return
    with understood(client.url):
        rows = [_row(change) for change in found["changes"]]
    if rows:
        write_table(_COLUMNS, rows)
    note("nothing has changed" if not rows else "nothing of this was done: --dry-run" if dry_run else "done")


def _mistakes(problems: tuple[Mapping[str, Any], ...]) -> ConfigurationError:
    names = ("path", "message", "suggestion", "place")
    return ConfigurationError([Problem(**{name: str(one.get(name, "")) for name in names}) for one in problems])


def _row(change: Mapping[str, Any]) -> tuple[object, ...]:
    remark = change["note"] if change["applied"] else change["note"] or "not applied"
    return change["what"], change["path"], _shown(change["before"]), _shown(change["after"]), remark


def _shown(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
