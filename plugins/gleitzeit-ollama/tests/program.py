"""The program ``gleitzeit``, run in a thread of this process."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gleitzeit_core.cli import main

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class Done:
    """How a run of the program ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever it is
        """What was printed, as JSON."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was printed, as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


async def gleitzeit(capfd: pytest.CaptureFixture[str], *arguments: str) -> Done:
    """Run it; what was printed before does not count."""
    capfd.readouterr()
    status = await asyncio.to_thread(main, arguments)
    return Done(status, *capfd.readouterr())
