"""Access lines: those of one turn of the loop in one write, none of them lost."""

from __future__ import annotations

import asyncio
import io
import logging
import re

from gleitzeit_gateway.line_handler import LineHandler


class Stream(io.StringIO):
    """Keeps each write by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        """Keep it."""
        self.writes.append(text)
        return len(text)


def logger_to(stream: io.StringIO) -> logging.Logger:
    """A logger of its own."""
    logger = logging.getLogger("tests.lines")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [LineHandler(stream)]
    return logger


async def test_the_lines_of_one_turn_are_one_write() -> None:
    """In order, each with its date, once the turn is over."""
    stream = Stream()
    logger = logger_to(stream)
    for number in range(3):
        logger.info("line %d", number)
    assert stream.writes == []
    await asyncio.sleep(0)
    (written,) = stream.writes
    lines = written.splitlines()
    assert [line.rpartition("INFO ")[2] for line in lines] == ["line 0", "line 1", "line 2"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ", line) for line in lines)
    logger.info("next")
    await asyncio.sleep(0)
    assert len(stream.writes) == 2


async def test_very_many_lines_are_not_held_back() -> None:
    """A turn that logs without end does not collect without end."""
    stream = Stream()
    logger = logger_to(stream)
    for _ in range(1000):
        logger.info("x")
    assert len(stream.writes) == 3
    await asyncio.sleep(0)
    assert "".join(stream.writes).count("\n") == 1000


def test_without_a_loop_a_line_is_written_at_once() -> None:
    """There is no turn to wait for."""
    stream = Stream()
    logger_to(stream).info("x")
    assert len(stream.writes) == 1


async def test_lines_are_written_when_logging_ends() -> None:
    """What was logged in the last turn is written when the program ends."""
    stream = Stream()
    logger = logger_to(stream)
    logger.info("x")
    logger.handlers[0].flush()
    assert len(stream.writes) == 1
    await asyncio.sleep(0)
    assert len(stream.writes) == 1


async def test_a_stream_that_is_gone_does_no_harm() -> None:
    """The terminal may be closed."""
    stream = io.StringIO()
    logger = logger_to(stream)
    stream.close()
    logger.info("x")
    await asyncio.sleep(0)
    logger.info("y")
    await asyncio.sleep(0)


async def test_a_line_without_a_record_is_the_same_line() -> None:
    """Whichever way it comes, it looks the same, and the order is kept."""
    stream = Stream()
    logger = logger_to(stream)
    handler = LineHandler.alone_at(logger)
    assert handler is not None
    logger.info("x %d", 1)
    handler.write(["x 1"])
    await asyncio.sleep(0)
    first, second = "".join(stream.writes).splitlines()
    assert first[23:] == second[23:] == " INFO x 1"


def test_a_logger_that_others_listen_to_has_records() -> None:
    """Further handlers, filters and parents get what they are there for."""
    logger = logger_to(Stream())
    assert LineHandler.alone_at(logger) is logger.handlers[0]
    logger.propagate = True
    assert LineHandler.alone_at(logger) is None
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    assert LineHandler.alone_at(logger) is None
    logger.handlers[:] = [LineHandler(Stream())]
    logger.handlers[0].addFilter(lambda _: True)
    assert LineHandler.alone_at(logger) is None
