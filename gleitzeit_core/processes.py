"""Signals to a process and all that it has started.

Start it with ``start_new_session=True``: it leads a group of its own then, whose id is that of the process.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal


def signal_group(leader: int, number: signal.Signals) -> None:
    """To the whole group, which outlives its leader while anybody is in it. One that is gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
