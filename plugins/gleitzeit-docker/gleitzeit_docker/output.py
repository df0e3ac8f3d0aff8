"""How ``gleitzeit docker pull`` and ``build`` show progress: bars on a terminal, lines elsewhere, JSON for programs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gleitzeit_core.cli.output import printable, say_error, write, write_json

if TYPE_CHECKING:
    from gleitzeit_core.errors import GleitzeitError
    from gleitzeit_docker.images import Step


class Output(Protocol):
    """Where progress goes. Used as a context, which tidies up the terminal."""

    def __enter__(self) -> object:
        """Begin."""

    def __exit__(self, *exc_info: object) -> None:
        """End."""

    def tell(self, engine: str, step: Step) -> None:
        """Something goes on."""

    def failed(self, engine: str, error: GleitzeitError) -> None:
        """Something has failed."""


class JsonLines:
    """A line of JSON for each step: ``engine``, ``status``, and what else is known; ``error`` for a failure."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to tidy up."""

    def tell(self, engine: str, step: Step) -> None:
        """One line."""
        known = {key: value for key, value in asdict(step).items() if value not in ("", None)}
        write_json({"engine": engine, **known}, indent=None)

    def failed(self, engine: str, error: GleitzeitError) -> None:
        """One line, and the sentence on standard error as well."""
        write_json({"engine": engine, "error": error.as_dict()}, indent=None)
        say_error(f"{engine}: {error.message}")


class PlainLines:
    """A line whenever a part is at something new."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], str] = {}

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to tidy up."""

    def tell(self, engine: str, step: Step) -> None:
        """One line, unless it would say the same again."""
        if self._said.get((engine, step.layer)) != step.status:
            self._said[engine, step.layer] = step.status
            write(printable(": ".join(filter(None, [engine, step.layer, step.status]))))

    def failed(self, engine: str, error: GleitzeitError) -> None:
        """The sentence, on standard error."""
        say_error(f"{engine}: {error.message}")


class Bars:
    """A live bar for each part of an image that is downloaded or unpacked; what has no size is printed above them."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[label]}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __enter__(self) -> None:
        """Start drawing."""
        self._progress.start()

    def __exit__(self, *exc_info: object) -> None:
        """Draw for the last time, and give the cursor back."""
        self._progress.stop()

    def tell(self, engine: str, step: Step) -> None:
        """Move a bar, or print a line."""
        if not step.layer:
            self._progress.console.print(printable(f"{engine}: {step.status}"), markup=False, highlight=False)
            return
        key = (engine, step.layer)
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task("", total=None, label=printable(f"{engine} {step.layer}"))
        # None leaves what is there.
        done = None if step.total_bytes is None else step.done_bytes or 0
        text = printable(step.status)
        self._progress.update(self._tasks[key], description=text, total=step.total_bytes, completed=done)

    def failed(self, engine: str, error: GleitzeitError) -> None:
        """Leave the bars where they are, and say why above them."""
        text = printable(f"{engine}: {error.message}")
        self._progress.console.print(text, style="red", markup=False, highlight=False)


def output(*, as_json: bool) -> Output:
    """What fits where standard output goes."""
    if as_json:
        return JsonLines()
    return Bars(Console(highlight=False)) if sys.stdout.isatty() else PlainLines()
