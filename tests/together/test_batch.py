"""Batches: an outcome for each item, so many at once, resumable, and nothing left running."""

from __future__ import annotations

import asyncio
import json
import resource
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.batch import Batch, BatchOutcome, digest
from gleitzeit_core.errors import InvalidRequest, NoCapableInstance, QueueFull, ShuttingDown, UnknownMethod
from gleitzeit_core.journal import Journal
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_ollama.testing import OllamaServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
    from pathlib import Path

Item = dict[str, Any]
BAD = NoCapableInstance("no instance has it")


async def times_two(item: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what a method answers
    """Twice its number; 13 fails."""
    if item["n"] == 13:
        raise BAD
    return 2 * item["n"]


def batch(
    items: Any,  # noqa: ANN401 - of either kind
    run: Callable[[Mapping[str, Any]], Awaitable[Any]] = times_two,
    clock: ManualClock | None = None,
    **options: Any,  # noqa: ANN401 - those of a batch
) -> Batch:
    """A batch of numbers."""
    return Batch(run, items, method="m/double", clock=clock or ManualClock(), **options)


def numbers(*given: int) -> list[Item]:
    """Items."""
    return [{"n": n} for n in given]


class Gate:
    """Requests that answer when a test says so."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.answers: dict[int, asyncio.Future[Any]] = {}
        self.left = 0
        self._news = asyncio.Event()

    async def __call__(self, item: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what a test says
        """Wait for the answer."""
        number = item["n"]
        self.asked.append(number)
        self.answers[number] = asyncio.get_running_loop().create_future()
        self._news.set()
        try:
            return await self.answers[number]
        finally:
            self.left += 1

    async def until(self, count: int) -> None:
        """Until so many were asked."""
        while len(self.asked) < count:
            self._news.clear()
            await self._news.wait()


async def test_awaited_it_gives_an_outcome_for_each_in_order() -> None:
    """Those that fail are among them, with what they failed with."""
    outcomes = await batch(numbers(1, 13, 3))
    assert [(o.index, o.value, o.error, o.resumed) for o in outcomes] == [
        (0, 2, None, False),
        (1, None, BAD, False),
        (2, 6, None, False),
    ]


async def test_iterated_it_gives_them_as_they_come() -> None:
    """The quick one first; and no more than so many are on their way."""
    gate = Gate()
    outcomes = aiter(batch(numbers(1, 2, 3, 4), gate, concurrency=2))
    first = asyncio.ensure_future(anext(outcomes))
    await gate.until(2)
    assert gate.asked == [1, 2]
    gate.answers[2].set_result("two")
    assert (await first).value == "two"
    second = asyncio.ensure_future(anext(outcomes))
    await gate.until(3)
    assert gate.asked == [1, 2, 3]
    gate.answers[1].set_result("one")
    assert (await second).index == 0
    third = asyncio.ensure_future(anext(outcomes))
    await gate.until(4)
    gate.answers[4].set_result("four")
    assert (await third).index == 3
    gate.answers[3].set_result("three")
    assert [outcome.index async for outcome in outcomes] == [2]


async def test_items_are_asked_for_when_there_is_room() -> None:
    """An endless source is no trouble: at most one more than fits is taken from it."""
    taken: list[int] = []

    def endless() -> Iterator[Item]:
        n = 0
        while True:
            taken.append(n)
            yield {"n": n}
            n += 1

    gate = Gate()
    running = batch(endless(), gate, concurrency=3)
    first = asyncio.ensure_future(anext(aiter(running)))
    await gate.until(3)
    gate.answers[0].set_result(None)
    await first
    assert len(taken) <= 5
    await running.aclose()
    assert gate.left == len(gate.asked)


async def test_a_slow_source_holds_up_no_outcome() -> None:
    """What is done is told while the next item is still to come."""
    more = asyncio.Event()

    async def source() -> AsyncIterator[Item]:
        yield {"n": 1}
        await more.wait()
        yield {"n": 2}

    outcomes = aiter(batch(source()))
    assert (await anext(outcomes)).value == 2
    more.set()
    assert [outcome.value async for outcome in outcomes] == [4]


@pytest.mark.parametrize("items", [[], ()])
async def test_no_items_no_outcomes(items: Iterable[Item]) -> None:
    """An empty batch ends at once."""
    assert await batch(items) == []


async def test_a_source_that_fails_ends_the_batch() -> None:
    """Its error comes out, and nothing runs on."""

    def source() -> Iterator[Item]:
        yield {"n": 1}
        raise ValueError("line 2 of the file is broken")

    gate = Gate()
    before = asyncio.all_tasks()
    with pytest.raises(ValueError, match="line 2"):
        await batch(source(), gate)
    assert asyncio.all_tasks() == before


async def test_progress_is_told_after_each() -> None:
    """How many are done, how many of them failed, how many there will be; None where nobody knows."""
    told: list[tuple[int, int, int | None]] = []
    await batch(numbers(13, 1), concurrency=1, progress=lambda *counts: told.append(counts))
    await batch(iter(numbers(1)), progress=lambda *counts: told.append(counts))
    assert told == [(1, 1, 2), (2, 1, 2), (1, 0, None)]


async def test_an_item_that_is_no_mapping_is_an_outcome() -> None:
    """The others go on."""
    outcomes = await batch([{"n": 1}, "n"])
    assert outcomes[0].value == 2
    assert isinstance(outcomes[1].error, InvalidRequest)


def test_at_least_one_at_once() -> None:
    """Else nothing would ever happen."""
    with pytest.raises(InvalidRequest, match="at least 1, not 0"):
        batch([], concurrency=0)


async def test_a_full_queue_is_waited_for() -> None:
    """As long as it says, as often as it says; it is no outcome."""
    clock, full, answers = ManualClock(), asyncio.Event(), [1.5, 2.0, None]

    async def run(item: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what a method answers
        wait_s = answers.pop(0)
        full.set()
        if wait_s is not None:
            raise QueueFull(size=4, limit=4, retry_after_s=wait_s)
        return item["n"]

    running = asyncio.create_task(_all(batch(numbers(7), run, clock)))
    for wait_s in (1.5, 2.0):
        await full.wait()
        full.clear()
        await _settled()
        clock.advance(wait_s - 0.1)
        await _settled()
        assert not full.is_set()
        clock.advance(0.2)
    assert [outcome.value for outcome in await running] == [7]


async def _all(running: Batch) -> list[BatchOutcome]:
    return await running


async def _settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_shutdown_ends_it() -> None:
    """It is no outcome of an item: what is left would fail the same way."""

    async def run(item: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what a method answers
        raise ShuttingDown("shutting down") if item["n"] else BAD

    outcomes = aiter(batch(numbers(0, 1, 2, 3), run, concurrency=1))
    assert (await anext(outcomes)).error is BAD
    with pytest.raises(ShuttingDown):
        await anext(outcomes)


async def test_cancelled_it_leaves_nothing_running() -> None:
    """Neither requests nor the wait for the next item."""
    before, gate = asyncio.all_tasks(), Gate()
    running = asyncio.create_task(_all(batch(numbers(1, 2, 3), gate, concurrency=2)))
    await gate.until(2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert gate.left == 2
    assert asyncio.all_tasks() == before


async def test_left_while_it_waits_for_a_full_queue() -> None:
    """The timer is gone with it."""
    clock, asked = ManualClock(), asyncio.Event()

    async def run(item: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what a method answers
        del item
        asked.set()
        raise QueueFull(size=4, limit=4, retry_after_s=9.0)

    running = asyncio.create_task(_all(batch(numbers(1), run, clock)))
    await asked.wait()
    await _settled()
    assert clock.pending == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert clock.pending == 0


def test_a_digest_depends_on_the_parameters_only() -> None:
    """Not on their order; bytes are fine."""
    assert digest({"a": 1, "b": b"\xff"}) == digest({"b": b"\xff", "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


async def test_its_repr_counts(tmp_path: Path) -> None:
    """For logs; so does a journal's."""
    assert repr(batch([])) == "<Batch 0/0 done, 0 failed>"
    running = batch(numbers(1, 13, 3), journal=tmp_path / "journal")
    assert repr(running) == "<Batch 0/3 done, 0 failed>"
    await running
    assert repr(running) == "<Batch 3/3 done, 1 failed>"
    async with Journal(tmp_path / "journal", "m/double") as journal:
        assert repr(journal) == f"<Journal {tmp_path}/journal, 2 done>"


# -- the journal


async def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    """Another run gets its value from the journal; what failed, and what is new, is done."""
    path = tmp_path / "journal"
    await batch(numbers(1, 13), journal=path)
    gate = Gate()
    running = asyncio.create_task(_all(batch(numbers(13, 1, 5), gate, journal=path)))
    await gate.until(2)
    assert sorted(gate.asked) == [5, 13]
    for number in (5, 13):
        gate.answers[number].set_result(0)
    outcomes = await running
    assert [(o.value, o.resumed) for o in outcomes] == [(0, False), (2, True), (0, False)]
    assert [o.resumed for o in await batch(numbers(13, 1, 5), journal=path)] == [True, True, True]


async def test_keys_name_items(tmp_path: Path) -> None:
    """An item is known by its key, whatever else it holds."""
    path = tmp_path / "journal"
    await batch([{"n": 1, "id": "a"}], key=lambda item: item["id"], journal=path)
    (outcome,) = await batch([{"n": 5, "id": "a"}], key=lambda item: item["id"], journal=path)
    assert (outcome.key, outcome.value, outcome.resumed) == ("a", 2, True)


async def test_each_outcome_is_a_line(tmp_path: Path) -> None:
    """That people and programs can read; bytes as base64."""
    path = tmp_path / "journal"

    async def run(item: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what a method answers
        if item["n"] == 13:
            raise BAD
        return {"image": b"\xff"}

    await batch(numbers(1, 13), run, key=lambda item: str(item["n"]), concurrency=1, journal=path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"key": "1", "method": "m/double", "value": {"image": "_w=="}, "error": None},
        {"key": "13", "method": "m/double", "value": None, "error": BAD.as_dict()},
    ]


async def test_a_line_that_was_torn_off_is_done_again(tmp_path: Path) -> None:
    """As after a power cut; what is written next stands on a line of its own."""
    path = tmp_path / "journal"
    await batch(numbers(1, 2), concurrency=1, journal=path)
    path.write_bytes(path.read_bytes()[:-5])
    assert [o.resumed for o in await batch(numbers(1, 2), journal=path)] == [True, False]
    assert [o.resumed for o in await batch(numbers(1, 2), journal=path)] == [True, True]


@pytest.mark.parametrize(
    "line", ["a diary", "[]", '{"key": "a"}', "3", '{"key": [], "method": "m/double", "error": null}']
)
async def test_another_file_is_no_journal(tmp_path: Path, line: str) -> None:
    """It is named with its line, and left as it is."""
    path, before = tmp_path / "notes.txt", asyncio.all_tasks()
    path.write_text(f"{line}\n")
    with pytest.raises(InvalidRequest, match=r"notes\.txt:1: not a line of a journal"):
        await batch(numbers(1), journal=path)
    assert path.read_text() == f"{line}\n"
    assert asyncio.all_tasks() == before


async def test_a_disk_that_is_full_ends_it_and_spoils_nothing(tmp_path: Path) -> None:
    """The line that did not fit is done again when there is room; those before it are not."""
    path, before = tmp_path / "journal", resource.getrlimit(resource.RLIMIT_FSIZE)
    await batch(numbers(1), journal=path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            await batch(numbers(1, 2), journal=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [o.resumed for o in await batch(numbers(1, 2, 3), journal=path)] == [True, False, False]
    assert [o.resumed for o in await batch(numbers(1, 2, 3), journal=path)] == [True, True, True]


async def test_another_method_has_other_lines(tmp_path: Path) -> None:
    """The same parameters are another piece of work there."""
    path = tmp_path / "journal"
    await Batch(times_two, numbers(1), method="m/other", clock=ManualClock(), journal=path)
    (outcome,) = await batch(numbers(1), journal=path)
    assert not outcome.resumed


async def test_a_journal_that_cannot_be_opened(tmp_path: Path) -> None:
    """Nothing is done before."""
    gate = Gate()
    with pytest.raises(FileNotFoundError):
        await batch(numbers(1), gate, journal=tmp_path / "gone" / "journal")
    assert not gate.asked


async def test_cancelled_amid_its_journal(tmp_path: Path) -> None:
    """Whole lines are left, whenever it comes; another run goes on from there."""
    path = tmp_path / "journal"
    for steps in range(0, 60, 3):
        running = asyncio.create_task(_all(batch(numbers(*range(20)), journal=path)))
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not path.exists() or all(json.loads(line) for line in path.read_text().splitlines())
    assert [o.value for o in await batch(numbers(*range(12)), journal=path)] == [2 * n for n in range(12)]


# -- of a manager


async def test_a_manager_runs_a_batch(tmp_path: Path) -> None:
    """Against a server: at most so many at once, and an outcome for each."""
    async with OllamaServer() as server:
        hubs = {"lan": {"type": "ollama", "instances": [{"url": server.url, "max_concurrent": 8}]}}
        async with ResourceManager.from_config(overrides={"hubs": hubs}) as manager:
            items = [
                {"model": "nope" if n == 3 else "smollm2", "messages": [{"role": "user", "content": f"word {n}"}]}
                for n in range(6)
            ]
            outcomes = await manager.batch_execute("llm/chat", items, concurrency=2, journal=tmp_path / "journal")
            with pytest.raises(UnknownMethod):
                manager.batch_execute("llm/nope", [])
            again = await manager.batch_execute("llm/chat", items, journal=tmp_path / "journal", timeout_s=5.0)
    assert server.max_in_flight <= 2
    assert [outcome.error is None for outcome in outcomes] == [True, True, True, False, True, True]
    assert outcomes[5].value["message"]["content"] == again[5].value["message"]["content"]
    assert [outcome.resumed for outcome in again] == [True, True, True, False, True, True]
