"""Many requests of one method: so many at once, an outcome for each, resumable."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sized
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import to_jsonable_python

from gleitzeit_core.errors import InvalidRequest, QueueFull, RequestError, ShuttingDown
from gleitzeit_core.journal import Journal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator
    from pathlib import Path

    from gleitzeit_core.clock import Clock

_END: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOutcome:
    """What became of one item: `value`, or `error`.

    Args:
        index: Its place among the items, from 0.
        key: Its name in the journal.
        value: What the method answered; from a journal, as JSON can hold it.
        error: Why there is no answer.
        resumed: Whether it was done by an earlier run.
    """

    index: int
    key: str
    value: Any = None
    error: RequestError | None = None
    resumed: bool = False


class Batch:
    """The outcomes, as they come when iterated, in the order of the items when awaited. Once, one way or the other.

    A queue that is full is waited for. Whoever leaves early, by ``aclose`` or by being cancelled, leaves nothing
    running. That the manager shuts down is no outcome: it ends the batch.

    Args:
        run: Carries one item out.
        items: See `ResourceManager.batch_execute`, as for what follows.
        method: For the journal.
        clock: For waiting.
        concurrency: At once, from 1.
        key: Names an item.
        journal: To go on from.
        progress: Told after each outcome.

    Raises:
        InvalidRequest: `concurrency` is below 1.
    """

    def __init__(
        self,
        run: Callable[[Mapping[str, Any]], Awaitable[Any]],
        items: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        method: str,
        clock: Clock,
        concurrency: int = 8,
        key: Callable[[Mapping[str, Any]], str] | None = None,
        journal: Path | None = None,
        progress: Callable[[int, int, int | None], None] | None = None,
    ) -> None:
        if concurrency < 1:
            raise InvalidRequest(f"concurrency must be at least 1, not {concurrency}", param="concurrency")
        self._run, self._items, self._clock = run, items, clock
        self._concurrency, self._key, self._progress = concurrency, key or digest, progress
        self._journal = None if journal is None else Journal(journal, method)
        self._total = len(items) if isinstance(items, Sized) else None
        self._done = self._failed = 0
        self._outcomes = self._all()

    def __repr__(self) -> str:
        """Counts."""
        return f"<Batch {self._done}/{'?' if self._total is None else self._total} done, {self._failed} failed>"

    def __aiter__(self) -> AsyncIterator[BatchOutcome]:
        """Outcomes as they come."""
        return self._outcomes

    def __await__(self) -> Generator[Any, None, list[BatchOutcome]]:
        """All outcomes, in the order of the items."""
        return self._collected().__await__()

    async def aclose(self) -> None:
        """Stop what runs. More than once is fine."""
        await self._outcomes.aclose()

    async def _collected(self) -> list[BatchOutcome]:
        try:
            return sorted([outcome async for outcome in self._outcomes], key=lambda outcome: outcome.index)
        finally:
            await self.aclose()

    async def _all(self) -> AsyncGenerator[BatchOutcome, None]:
        async with AsyncExitStack() as stack:
            if self._journal is not None:
                await stack.enter_async_context(self._journal)
            source = self._items
            items = aiter(source) if isinstance(source, AsyncIterable) else iter(source)
            running: set[asyncio.Task[BatchOutcome]] = set()
            # The next item is waited for beside what runs: it may take its time.
            coming: asyncio.Task[Any] | None = asyncio.create_task(_next(items))
            index = 0
            try:
                while coming is not None or running:
                    asked = {coming} if coming is not None and len(running) < self._concurrency else set()
                    await asyncio.wait(running | asked, return_when=asyncio.FIRST_COMPLETED)
                    if coming is not None and coming.done() and asked:
                        item, coming = coming.result(), None
                        if item is not _END:
                            running.add(asyncio.create_task(self._outcome(index, item)))
                            coming, index = asyncio.create_task(_next(items)), index + 1
                    for task in [task for task in running if task.done()]:
                        running.discard(task)
                        yield self._counted(task.result())
            finally:
                left = [*running, *([coming] if coming is not None else [])]
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)

    def _counted(self, outcome: BatchOutcome) -> BatchOutcome:
        self._done += 1
        self._failed += outcome.error is not None
        if self._progress is not None:
            self._progress(self._done, self._failed, self._total)
        return outcome

    async def _outcome(self, index: int, item: Mapping[str, Any]) -> BatchOutcome:
        key, journal = self._key(item), self._journal
        if journal is not None and key in journal:
            return BatchOutcome(index=index, key=key, value=await journal.value(key), resumed=True)
        value, error = None, None
        try:
            value = await self._patiently(item)
        except ShuttingDown:
            raise
        except RequestError as failure:
            error = failure
        if journal is not None:
            await journal.write(key, {"value": value, "error": None if error is None else error.as_dict()})
        return BatchOutcome(index=index, key=key, value=value, error=error)

    async def _patiently(self, item: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what a method answers is its own
        """Carry an item out, coming back for as long as the queue is full."""
        if not isinstance(item, Mapping):
            raise InvalidRequest(f"an item must be a mapping of parameters, not {type(item).__name__}")
        while True:
            try:
                return await self._run(item)
            except QueueFull as full:
                pause_s = full.retry_after_s
            again = asyncio.Event()
            timer = self._clock.call_at(self._clock.monotonic() + pause_s, again.set)
            try:
                await again.wait()
            finally:
                timer.cancel()


def digest(item: Mapping[str, Any]) -> str:
    """A name for `item`, the same for the same parameters."""
    plain = to_jsonable_python(item, bytes_mode="base64", fallback=str)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


async def _next(items: Iterator[Any] | AsyncIterator[Any]) -> Any:  # noqa: ANN401 - whatever they are
    return await anext(items, _END) if isinstance(items, AsyncIterator) else next(items, _END)
