# ruff: noqa: S101 - assertions are what these classes are made of
"""What all conformance classes share: the guard of the standard tests."""

from __future__ import annotations

import asyncio
from abc import ABC
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# A hub or a provider that answers at all answers within this many seconds, on a slow machine too.
PATIENCE_S = 30.0


def standard_tests(kind: type) -> dict[str, Callable[..., Any]]:
    """The tests that `kind` inherits from this package, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.rpartition(".")[0] == __package__:
            found |= {name: test for name, test in vars(base).items() if name.startswith("test_")}
    return found


def _reason(test: object) -> str:
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "xfail"]
    return str(marks[0].kwargs.get("reason", "")) if marks else ""


class Conformance(ABC):  # noqa: B024 - those that are built on it have the abstract methods
    """Base of all conformance classes."""

    def test_no_standard_test_is_left_out(self) -> None:
        """A standard test is neither deleted nor replaced, except by one marked ``xfail(reason=...)``."""
        kind = type(self)
        for name, standard in standard_tests(kind).items():
            own = getattr(kind, name)
            kept = own is standard or _reason(own)
            assert kept, f"{kind.__name__}.{name} replaces a standard test: mark it pytest.mark.xfail(reason=...)"


async def no_task_is_left(before: set[asyncio.Task[Any]]) -> None:
    """Fail if there are tasks that were not there before."""
    # What was cancelled gets the turn it needs to end.
    for _ in range(3):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before
    assert not left, f"tasks are left: {left}"
