"""Work that waits for a test, and a test that waits for the rest."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

# What a test waits for comes within this many seconds, on a slow machine too.
PATIENCE_S = 30.0

T = TypeVar("T", bound="Todo")


class Todo:
    """Something that an instance or its hub has to do. It ends when a test says so.

    Args:
        what: For people.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.cancelled = False
        self._end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        """What, and how it is."""
        state = "cancelled" if self.cancelled else "done" if self._end.done() else "open"
        return f"<{type(self).__name__} {self.what}, {state}>"

    def finish(self, result: object = None) -> None:
        """It succeeded."""
        if not self._end.done():
            self._end.set_result(result)

    def fail(self, error: BaseException) -> None:
        """It failed."""
        if not self._end.done():
            self._end.set_exception(error)
            self._end.exception()  # Whether anybody waits for it is not our affair.

    async def wait(self) -> Any:  # noqa: ANN401 - what `finish` was given
        """Its end. It remembers when whoever waits was cancelled."""
        try:
            return await self._end
        except asyncio.CancelledError:
            self.cancelled = True
            raise


class Todos(Generic[T]):
    """Things to do, in the order in which they came."""

    def __init__(self) -> None:
        self.all: list[T] = []
        self._taken = 0
        self._more = asyncio.Event()

    def __repr__(self) -> str:
        """All."""
        return f"<Todos {self.all}>"

    def add(self, todo: T) -> T:
        """One more."""
        self.all.append(todo)
        self._more.set()
        return todo

    async def next(self) -> T:
        """The next one that nobody took; waits until it is there."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.all) <= self._taken:
                self._more.clear()
                await self._more.wait()
        self._taken += 1
        return self.all[self._taken - 1]

    async def take(self, count: int) -> list[T]:
        """The next `count`."""
        return [await self.next() for _ in range(count)]


async def turns(count: int = 20) -> None:
    """Let the others run for a while."""
    for _ in range(count):
        await asyncio.sleep(0)
