"""The ``gleitzeit`` program.

Exit status: 0 it worked; 1 it did not; 2 it was called wrongly, or the configuration is wrong; 130 Ctrl-C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.cli.app import root
from gleitzeit_core.cli.context import Invocation
from gleitzeit_core.cli.failures import guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

PROGRAM = "gleitzeit"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: Those of the command line; None for this process's own.

    Returns:
        The exit status.
    """
    invocation = Invocation()
    return guarded(lambda: root.run(PROGRAM, arguments, invocation), invocation)
