"""What commands print: tables and JSON on standard output, remarks on standard error.

Colours appear on terminals only, and nowhere if NO_COLOR is set. Into a pipe, tables are as wide as they need to be.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.table import Table

_PIPE_WIDTH: Final = 10_000
_CONTROLS: Final = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}
_STATE_STYLES: Final = {
    "ok": "green",
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    "degraded": "yellow",
    "drained": "yellow",
    "ejected": "yellow",
    "conflict": "yellow",
    "disabled": "dim",
    "down": "red",
    "misconfigured": "red",
    "failed": "red",
    "incompatible": "red",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Args:
        title: Its head.
        right: Whether it is aligned to the right, as numbers are.
        state: Whether it holds states, which have colours.
    """

    title: str
    right: bool = False
    state: bool = False


def printable(text: str) -> str:
    """`text` with its control characters made visible: what servers send must not command the terminal."""
    return text.translate(_CONTROLS)


def write(text: str, *, end: str = "\n") -> None:
    """Print text at once; on a terminal with its control characters visible, elsewhere exactly as it is."""
    shown = printable(text) if _is_terminal(sys.stdout) else text
    click.echo(shown + end, nl=False, color=True)  # else click would remove from a pipe what looks like a colour


def write_json(data: Any, *, indent: int | None = 2) -> None:  # noqa: ANN401 - anything that is JSON
    """Print JSON: indented, or on one line if `indent` is None.

    Raises:
        ValueError: Something in it has no place in JSON, such as infinity.
    """
    click.echo(json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False))


def write_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
    """Print a table. A cell that is None, empty or False is shown as a dash."""
    console = _console()
    with console.capture() as captured:
        console.print(table(columns, rows))
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> Table:
    """The same table, for whoever prints it."""
    from rich.table import Table  # noqa: PLC0415 - slow
    from rich.text import Text  # noqa: PLC0415 - slow

    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column.title.upper(), justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        cells = [_cell(value) for value in row]
        styles = [_STATE_STYLES.get(cell, "") if c.state else "" for c, cell in zip(columns, cells, strict=True)]
        made.add_row(*(Text(cell, style) for cell, style in zip(cells, styles, strict=True)))
    return made


def note(text: str) -> None:
    """A remark, dim, on standard error."""
    _remark(click.style(printable(text), dim=True))


def warn(text: str) -> None:
    """A warning, on standard error."""
    _remark(click.style("Warning:", fg="yellow") + f" {printable(text)}")


def say_error(text: str) -> None:
    """What went wrong, on standard error."""
    _remark(click.style("Error:", fg="red") + f" {printable(text)}")


def is_interactive() -> bool:
    """Whether a person types."""
    return _is_terminal(sys.stdin)


def _remark(text: str) -> None:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    click.echo(text, err=True, color=False if plain else None)


def _cell(value: object) -> str:
    return printable(str(value)) if value or (value == 0 and value is not False) else "-"


def _is_terminal(stream: Any) -> bool:  # noqa: ANN401 - text streams, or None
    return stream is not None and stream.isatty()


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - slow

    return Console(file=sys.stdout, width=None if _is_terminal(sys.stdout) else _PIPE_WIDTH, highlight=False)


def duration(seconds: float) -> str:
    """For people: ``0.8 ms``, ``12 s``, ``3 h``."""
    for limit_s, unit_s, unit in ((1, 0.001, "ms"), (120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit_s:
            return f"{_digits(seconds / unit_s)} {unit}"
    return f"{_digits(seconds / 86_400)} d"


def size(count_bytes: float) -> str:
    """For people, in decimal units: ``1.2 GB``."""
    for limit, unit_bytes, unit in ((1e3, 1, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if count_bytes < limit:
            return f"{_digits(count_bytes / unit_bytes)} {unit}"
    return f"{_digits(count_bytes / 1e12)} TB"


def _digits(value: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits
