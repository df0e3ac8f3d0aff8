"""When a process that crashed is started again."""

from __future__ import annotations

from typing import Final

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 30.0
STEADY_S: Final = 60.0
QUICK_S: Final = 5.0
QUICK_CRASHES: Final = 5


class Restarts:
    """The pauses before each new start of one process: twice as long every time, until it has run for a while.

    A crash within `QUICK_S` seconds after it began to serve, or before it did, is a quick one; after `QUICK_CRASHES` of
    them in a row nothing is to be hoped for.
    """

    def __init__(self) -> None:
        self._pause_s = FIRST_PAUSE_S
        self._quick = 0

    def __repr__(self) -> str:
        """The next pause and the count."""
        return f"<Restarts next after {self._pause_s:g} s, {self._quick} quick crashes>"

    def crashed(self, served_s: float) -> float | None:
        """Seconds to wait before the next start; None to give up.

        Args:
            served_s: How long it served; 0 when it never did.
        """
        if served_s >= STEADY_S:
            self._pause_s = FIRST_PAUSE_S
        self._quick = self._quick + 1 if served_s < QUICK_S else 0
        if self._quick >= QUICK_CRASHES:
            return None
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, LONGEST_PAUSE_S)
        return pause_s
