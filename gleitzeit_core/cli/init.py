"""``gleitzeit init``: a configuration to start from."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.output import note, write
from gleitzeit_core.cli.template import configuration_template
from gleitzeit_core.config_reading import FILE_NAME
from gleitzeit_core.errors import GleitzeitError

if TYPE_CHECKING:
    from gleitzeit_core.plugins import PluginHost


@click.command(
    cls=Command,
    examples=(
        "gleitzeit init",
        "gleitzeit init --output ~/.config/gleitzeit/gleitzeit.yaml",
        "gleitzeit init --output -",
    ),
)
@click.option("--output", default=FILE_NAME, show_default=True, metavar="FILE", help="Where to; - is standard output.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@pass_invocation
def init(invocation: Invocation, output: str, *, force: bool) -> None:
    """Write a commented configuration with every section and option of what is installed.

    As written it changes nothing: each value in it is a default, or commented out.
    """
    text = configuration_template(_all_plugins(invocation))
    if output == "-":
        write(text, end="")
        return
    path = Path(output).expanduser()
    _write(path, text, force=force)
    where = "" if output == FILE_NAME else f" --config {path}"
    note(f"wrote {path}; when you have changed it, check it with 'gleitzeit config check{where}'")


def _all_plugins(invocation: Invocation) -> PluginHost:
    """A broken configuration is no reason not to write a new one."""
    return invocation.lenient_host()[0]


def _write(path: Path, text: str, *, force: bool) -> None:
    """The whole file or nothing; one that is there is replaced only by `force`."""
    if path.is_dir():
        raise click.UsageError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise click.UsageError(f"there is no folder {path.parent}")
    if path.exists() and not force:
        raise click.UsageError(f"{path} is there already; --force replaces it")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise GleitzeitError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
