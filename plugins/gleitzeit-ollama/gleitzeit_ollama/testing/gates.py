"""Gates: when each token goes out. A test opens them; without one, tokens go as fast as they can."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable


@runtime_checkable
class Acquirable(Protocol):
    """Each token takes one: an `asyncio.Semaphore`, a `Gate`, a `Pace`."""

    def acquire(self) -> Awaitable[object]:
        """Wait until one more token may go out."""


@runtime_checkable
class Waitable(Protocol):
    """Tokens wait until it is set, and go freely from then on: an `asyncio.Event`."""

    def wait(self) -> Awaitable[object]:
        """Wait until tokens may go out."""


TokenGate = Acquirable | Waitable


class Gate:
    """Lets through as many tokens as it was told, in the order in which they came.

    Args:
        tokens: how many may pass at once.
        is_open: all may pass, and nothing is counted down.
    """

    def __init__(self, tokens: int = 0, *, is_open: bool = False) -> None:
        self._allowed = tokens
        self._is_open = is_open
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many tokens stand before the gate."""
        return len(self._waiters)

    def allow(self, tokens: int = 1) -> None:
        """Let `tokens` more pass, those that wait first."""
        self._allowed += tokens
        self._pass()

    def open(self) -> None:
        """Let everything pass until `close`."""
        self._is_open = True
        self._pass()

    def close(self) -> None:
        """Let nothing pass but what `allow` lets."""
        self._is_open = False

    async def acquire(self) -> None:
        """Wait for leave to pass; a caller that is cancelled gives its leave to the next."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._pass()
        try:
            await waiter
        except asyncio.CancelledError:
            self._give_back(waiter)
            raise

    def _give_back(self, waiter: asyncio.Future[None]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif not waiter.cancelled() and not self._is_open:
            self.allow(1)

    def _pass(self) -> None:
        while self._waiters and (self._is_open or self._allowed > 0):
            waiter = self._waiters.popleft()
            if waiter.done():
                continue
            self._allowed -= not self._is_open
            waiter.set_result(None)

    def __repr__(self) -> str:
        state = "open" if self._is_open else f"{self._allowed} allowed"
        return f"<Gate {state}, {self.waiting} waiting>"


class Pace:
    """Lets a token pass every `interval_s` seconds, per answer; for demonstrations and load."""

    def __init__(self, interval_s: float) -> None:
        if interval_s < 0:
            raise ValueError(f"interval_s must not be negative, got {interval_s}")
        self.interval_s = interval_s

    async def acquire(self) -> None:
        """Wait for the interval."""
        await asyncio.sleep(self.interval_s)

    def __repr__(self) -> str:
        return f"<Pace {self.interval_s} s>"


async def pass_gate(gate: TokenGate) -> None:
    """Wait until `gate` lets one token through."""
    if isinstance(gate, Acquirable):
        await gate.acquire()
    else:
        await gate.wait()
