"""``gleitzeit models``: the models there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from gleitzeit_core.cli.client import GatewayError
from gleitzeit_core.cli.commands import LazyGroup
from gleitzeit_core.cli.connection import Connection, connection_options
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.output import Column, size, write_json, write_table

_COLUMNS: Final = (
    Column("name"),
    Column("parameters", right=True),
    Column("quantization"),
    Column("size", right=True),
    Column("modified"),
)
_NOTE: Final = Column("note")
_UNKNOWN_DATE: Final = "0001-01-01"


@click.group(
    cls=LazyGroup,
    prefix="models",
    invoke_without_command=True,
    examples=("gleitzeit models", "gleitzeit models --json | jq -r '.models[].name'"),
)
@connection_options
@click.option("--json", "as_json", is_flag=True, help='Print {"models": [...]}.')
@pass_invocation
@click.pass_context
def models(ctx: click.Context, invocation: Invocation, connection: Connection, *, as_json: bool) -> None:
    """List the models, or manage them with the commands below.

    Asks the gateway; where none runs, the instances are asked directly. One that is stale was seen before, but no
    instance that has it answers now.

    JSON, of each model: name, family, parameters, quantization, size_bytes, modified_at, digest, alias_of (the model
    that the name stands for) and stale. What is unknown is null.
    """
    if ctx.invoked_subcommand is not None:
        return
    with connection.backend(invocation) as backend:
        found = listed(backend.models())
    if as_json:
        write_json({"models": found})
        return
    notes = [_note(model) for model in found]
    rows = [_row(model) for model in found]
    if any(notes):
        write_table((*_COLUMNS, _NOTE), [(*row, note) for row, note in zip(rows, notes, strict=True)])
    else:
        write_table(_COLUMNS, rows)


def listed(answer: object) -> list[dict[str, Any]]:
    """The models in an Ollama list, by name, with keys of our own that stay.

    Raises:
        GatewayError: It is no such list.
    """
    entries = answer.get("models") if isinstance(answer, Mapping) else None
    if not isinstance(entries, list) or not all(
        isinstance(e, Mapping) and isinstance(e.get("name"), str) for e in entries
    ):
        raise GatewayError("the answer is no list of models: is it a Gleitzeit gateway?", "strange_answer")
    return sorted(map(_described, entries), key=lambda model: str(model["name"]))


def _described(entry: Mapping[str, Any]) -> dict[str, Any]:
    details = entry.get("details")
    details = details if isinstance(details, Mapping) else {}
    modified = str(entry.get("modified_at") or "")
    bytes_ = entry.get("size")
    return {
        "name": entry["name"],
        "family": details.get("family") or None,
        "parameters": details.get("parameter_size") or None,
        "quantization": details.get("quantization_level") or None,
        "size_bytes": bytes_ if isinstance(bytes_, int) and bytes_ > 0 else None,
        "modified_at": None if modified.startswith(_UNKNOWN_DATE) else modified or None,
        "digest": entry.get("digest") or None,
        "alias_of": entry.get("alias_of") or None,
        "stale": bool(entry.get("stale")),
    }


def _row(model: Mapping[str, Any]) -> tuple[object, ...]:
    size_bytes, modified = model["size_bytes"], model["modified_at"]
    return (
        model["name"],
        model["parameters"],
        model["quantization"],
        size_bytes and size(size_bytes),
        modified and modified[:10],
    )


def _note(model: Mapping[str, Any]) -> str:
    """What else there is to say of it; mostly nothing."""
    alias = f"alias of {model['alias_of']}" if model["alias_of"] else ""
    return ", ".join(filter(None, (alias, "stale" if model["stale"] else "")))
