"""Who watches what becomes of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.requests import FinishedRequest


class Watcher:
    """An observer that remembers."""

    observes_requests = True

    def __init__(self) -> None:
        self.changes: list[InstanceChange] = []
        self.finished: list[FinishedRequest] = []

    def instance_changed(self, change: InstanceChange) -> None:
        """Remember."""
        self.changes.append(change)

    def request_finished(self, finished: FinishedRequest) -> None:
        """Remember."""
        self.finished.append(finished)
