"""The progress of several servers that do the same, told as if one did it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_ollama.downloads import IN_BAND, SUCCESS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gleitzeit_ollama.downloads import PullProgress


class Merged:
    """Makes lines as Ollama writes them from the steps of several instances, so that its own client can show them.

    A status is told when the first instance comes to it, and once. Of a part that is transferred, as much is done as
    the slowest instance has; one that is through or has failed holds nothing up. ``success`` is not told: that is for
    whoever knows how all of them have ended. The steps of a single instance stay as they are.

    Args:
        instance_ids: Who takes part.
    """

    def __init__(self, instance_ids: Iterable[str]) -> None:
        self._going = set(instance_ids)
        self._alone = len(self._going) == 1
        self._said: set[str] = set()
        self._done_bytes: dict[str, dict[str, int]] = {}

    def __repr__(self) -> str:
        """How many go on."""
        return f"<Merged {len(self._going)} going on>"

    def drop(self, instance_id: str) -> None:
        """This one has ended."""
        self._going.discard(instance_id)

    def line(self, step: PullProgress) -> dict[str, Any] | None:
        """What to tell now; None for nothing."""
        if step.status == SUCCESS:
            self.drop(step.instance_id)
            return None
        if step.digest:
            return _line(step, step.completed_bytes if self._alone else self._least(step))
        if not self._alone and step.status in self._said:
            return None
        self._said.add(step.status)
        return _line(step, step.completed_bytes)

    def _least(self, step: PullProgress) -> int:
        done = self._done_bytes.setdefault(step.digest, {})
        done[step.instance_id] = step.completed_bytes or 0
        others = [done.get(name, 0) for name in self._going]
        return min(others, default=done[step.instance_id])


def _line(step: PullProgress, completed: int | None) -> dict[str, Any]:
    """In the order of Ollama, which leaves out what is empty or zero."""
    known = {"status": step.status, "digest": step.digest, "total": step.total_bytes, "completed": completed}
    return {key: value for key, value in known.items() if value or key == "status"}


def combined(failures: Sequence[BaseException]) -> BaseException:
    """One failure for several: theirs, when they say the same or there is one; or else all that they say."""
    ours = [failure for failure in failures if isinstance(failure, InstanceFailure)]
    if len(ours) < len(failures):
        return next(failure for failure in failures if not isinstance(failure, InstanceFailure))
    said = {failure.body for failure in ours}
    if len(ours) == 1 or (len(said) == 1 and None not in said):
        return ours[0]
    text = "; ".join(map(str, ours))
    if None in said:
        return InstanceFailure(FailureKind.SERVER_ERROR, text)
    return InstanceFailure(FailureKind.SERVER_ERROR, text, status=IN_BAND, body=json.dumps({"error": text}).encode())
