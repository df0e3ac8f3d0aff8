"""How ``gleitzeit models pull`` shows its progress: bars on a terminal, lines elsewhere, JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Protocol

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gleitzeit_core.cli.output import printable, say_error, size, write, write_json
from gleitzeit_ollama.downloads import SUCCESS

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from gleitzeit_core.errors import GleitzeitError
    from gleitzeit_ollama.downloads import PullProgress

_STEP_PERCENT = 10


class Output(Protocol):
    """Where progress goes. Used as a context, which tidies up the terminal."""

    def __enter__(self) -> object:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object:
        """End."""

    def add(self, instance_id: str, label: str) -> None:
        """A pull to this instance begins; `label` is what people know it by."""

    def tell(self, step: PullProgress) -> None:
        """It goes on."""

    def failed(self, instance_id: str, error: GleitzeitError) -> None:
        """It has failed."""


@dataclass(slots=True)
class _Parts:
    """The parts of one pull that have a size: an instance announces one after the other."""

    completed_bytes: dict[str, int] = field(default_factory=dict)
    total_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, step: PullProgress) -> None:
        if step.digest and step.total_bytes:
            self.total_bytes[step.digest] = step.total_bytes
            self.completed_bytes[step.digest] = step.completed_bytes or 0


class JsonLines:
    """A line of JSON for each step: ``instance``, ``status``, and what else is known; ``error`` for a failure."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to tidy up."""

    def add(self, instance_id: str, label: str) -> None:
        """Say nothing: the first step names the instance."""

    def tell(self, step: PullProgress) -> None:
        """One line."""
        known = {key: value for key, value in asdict(step).items() if value not in ("", None)}
        write_json({"instance": known.pop("instance_id"), **known}, indent=None)

    def failed(self, instance_id: str, error: GleitzeitError) -> None:
        """One line, and the sentence on standard error as well."""
        write_json({"instance": instance_id, "error": error.as_dict()}, indent=None)
        say_error(error.message)


class PlainLines:
    """A line whenever an instance says something new, and for every tenth of a part."""

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}
        self._said: dict[str, str] = {}

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to tidy up."""

    def add(self, instance_id: str, label: str) -> None:
        """Remember the label."""
        self._labels[instance_id] = label

    def tell(self, step: PullProgress) -> None:
        """One line, unless it would say the same again."""
        text = step.status
        if step.total_bytes:
            tenths = (step.completed_bytes or 0) * 100 // step.total_bytes // _STEP_PERCENT
            text += f": {tenths * _STEP_PERCENT} % of {size(step.total_bytes)}"
        if self._said.get(step.instance_id) != text:
            self._said[step.instance_id] = text
            write(printable(f"{self._labels[step.instance_id]}: {text}"))

    def failed(self, instance_id: str, error: GleitzeitError) -> None:
        """The sentence, which names the instance, on standard error."""
        self._said.pop(instance_id, None)
        say_error(error.message)


class Bars:
    """A live bar for each instance, over all the parts it has announced so far."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[label]}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._parts: dict[str, _Parts] = {}

    def __enter__(self) -> None:
        """Start drawing."""
        self._progress.start()

    def __exit__(self, *exc_info: object) -> None:
        """Draw for the last time, and give the cursor back."""
        self._progress.stop()

    def add(self, instance_id: str, label: str) -> None:
        """One more bar."""
        self._tasks[instance_id] = self._progress.add_task("", total=None, label=printable(label))
        self._parts[instance_id] = _Parts()

    def tell(self, step: PullProgress) -> None:
        """Move a bar."""
        parts = self._parts[step.instance_id]
        parts.add(step)
        total: float | None = sum(parts.total_bytes.values()) or None
        completed: float = sum(parts.completed_bytes.values())
        if step.status == SUCCESS and total is None:
            total = completed = 1  # Nothing had to be downloaded: a full bar.
        task = self._tasks[step.instance_id]
        self._progress.update(task, total=total, completed=completed, description=printable(step.status))

    def failed(self, instance_id: str, error: GleitzeitError) -> None:
        """Leave the bar where it is, and say why above it."""
        self._progress.update(self._tasks[instance_id], description="failed")
        self._progress.console.print(printable(error.message), style="red", markup=False, highlight=False)
