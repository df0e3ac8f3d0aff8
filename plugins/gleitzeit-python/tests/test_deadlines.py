"""A run's own time, and that of its route."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE, Dispatcher
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_python.provider import CLOSE, EXECUTE, PythonProvider


async def _left_s(route_s: float | None, own_s: float | None, asked_s: float | None) -> float | None:
    provider = PythonProvider()
    dispatcher = Dispatcher([replace(DEFAULT_ROUTE, timeout_s=route_s)], clock=ManualClock())
    provider.bind(dispatcher)
    params = {"code": "1"} if own_s is None else {"code": "1", "timeout_s": own_s}
    deadline = provider.request(EXECUTE, params, timeout_s=asked_s).deadline
    await dispatcher.aclose()
    return None if deadline is None else round(deadline - dispatcher.clock.wall(), 6)


@pytest.mark.parametrize(
    ("route_s", "own_s", "asked_s", "left_s"),
    [
        (600.0, None, None, None),
        (600.0, 599.0, None, None),
        (600.0, 600.0, None, 1200.0),
        (600.0, 900.0, None, 1500.0),
        (0.5, 1.0, None, 1.5),
        (None, 900.0, None, None),
        (600.0, 900.0, 5.0, 5.0),
    ],
)
async def test_a_run_that_asks_for_more_than_its_route_gives_gets_it(
    route_s: float | None, own_s: float | None, asked_s: float | None, left_s: float | None
) -> None:
    """Besides what it may wait; unless its caller says when the answer is of no use any more."""
    assert await _left_s(route_s, own_s, asked_s) == left_s


async def test_in_a_session_too() -> None:
    """It is the same run; and closing one has no time of its own."""
    provider, dispatcher = PythonProvider(), Dispatcher(clock=ManualClock())
    provider.bind(dispatcher)
    long = provider.request(EXECUTE, {"code": "1", "session": "a", "timeout_s": 900})
    assert long.deadline == dispatcher.clock.wall() + 1500
    assert provider.request(CLOSE, {"session": "a"}).deadline is None
    await dispatcher.aclose()
