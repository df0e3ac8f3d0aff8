"""Access lines: those of the requests that end in one turn of the loop are written together, in their order."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gleitzeit_gateway.access_line import AccessLines
from gleitzeit_gateway.line_handler import LineHandler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    import pytest

    from gleitzeit_gateway.testing import RunningGateway
    from gleitzeit_ollama.testing import OllamaServer

    Serve = Callable[..., Awaitable[RunningGateway]]

LOGGER = logging.getLogger("gleitzeit.access")


class Written(io.StringIO):
    """What is written, each time by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[list[str]] = []

    @property
    def lines(self) -> list[str]:
        """All of it."""
        return [line for lines in self.times for line in lines]

    def write(self, text: str) -> int:
        """Keep it, without the time and the level."""
        self.times.append([line.partition(" INFO ")[2] for line in text.splitlines()])
        return len(text)


@contextlib.contextmanager
def serving() -> Iterator[Written]:
    """Where the lines go, as ``gleitzeit serve`` sets it up. No fixture: after those pytest would listen as well."""
    stream, handlers, propagate = Written(), LOGGER.handlers[:], LOGGER.propagate
    LOGGER.handlers[:], LOGGER.propagate = [LineHandler(stream)], False
    LOGGER.setLevel(logging.INFO)
    try:
        yield stream
    finally:
        LOGGER.handlers[:], LOGGER.propagate = handlers, propagate
        LOGGER.setLevel(logging.NOTSET)


def call(number: int, *, access_log: bool = True) -> Any:  # noqa: ANN401 - a call
    """As much of a call as is looked at."""
    said = {"served": None, "failed_on": "", "model": "", "caller": SimpleNamespace(name="alice"), "error": ""}
    request, options = SimpleNamespace(method="GET", path=f"/{number}"), SimpleNamespace(access_log=access_log)
    return SimpleNamespace(id=f"id-{number}", request=request, options=options, **said)


async def test_the_lines_of_one_turn_are_written_together() -> None:
    """In their order, once the turn is over, and without those that are left out."""
    lines = AccessLines()
    with serving() as written:
        for number in range(3):
            lines.add(call(number, access_log=number != 1), 200, 0.0123)
        assert written.times == []
        await asyncio.sleep(0)
        assert written.times == [["id-0 GET /0 200 12.3ms key=alice", "id-2 GET /2 200 12.3ms key=alice"]]
        lines.add(call(3), 499, 0)
        await asyncio.sleep(0)
        assert written.times[1:] == [["id-3 GET /3 499 0.0ms key=alice"]]
    assert repr(lines) == "<AccessLines 0 to be written>"


async def test_a_turn_without_end_collects_no_more_than_so_many() -> None:
    """Nor is one of them lost, or written twice."""
    lines = AccessLines()
    with serving() as written:
        for number in range(1000):
            lines.add(call(number), 200, 0)
        assert len(written.times) == 3
        await asyncio.sleep(0)
    assert [line.split()[0] for line in written.lines] == [f"id-{number}" for number in range(1000)]


async def test_who_listens_otherwise_gets_records(caplog: pytest.LogCaptureFixture) -> None:
    """Each line is one, in the same order; and with a higher level there is none."""
    lines = AccessLines()
    caplog.set_level(logging.INFO, LOGGER.name)
    for number in range(2):
        lines.add(call(number), 200, 0)
    await asyncio.sleep(0)
    assert [message.split()[0] for message in caplog.messages] == ["id-0", "id-1"]
    caplog.set_level(logging.WARNING, LOGGER.name)
    lines.add(call(2), 200, 0)
    await asyncio.sleep(0)
    assert len(caplog.messages) == 2


async def test_a_handler_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The other lines are written all the same, and the log says why one was not."""

    class Picky(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "id-1" in record.getMessage():
                raise RuntimeError("not this one")
            taken.append(record.getMessage().split()[0])

    lines, picky = AccessLines(), Picky()
    taken: list[str] = []
    caplog.set_level(logging.INFO, LOGGER.name)
    LOGGER.addHandler(picky)
    try:
        for number in range(3):
            lines.add(call(number), 200, 0)
        await asyncio.sleep(0)
    finally:
        LOGGER.removeHandler(picky)
    assert taken == ["id-0", "id-2"]
    (failed,) = [record for record in caplog.records if record.exc_info]
    assert failed.getMessage() == "an access line was not written"


async def test_lines_of_a_gateway(serve: Serve, ollama: OllamaServer) -> None:
    """Each request has its line, and none is left when the gateway is closed."""
    gateway = await serve(ollama, access_log=True)
    with serving() as written:
        answers = await asyncio.gather(*(gateway.chat(stream=n % 2 == 0) for n in range(10)), gateway.ask("/nowhere"))
        await gateway.gateway.aclose()
    assert sorted(line.split()[0] for line in written.lines) == sorted(one.headers["X-Request-Id"] for one in answers)
    assert sum(" 200 " in line for line in written.lines) == 10
