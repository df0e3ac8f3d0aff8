"""What a run came to, also when the code lies about it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gleitzeit_python.agent import frames
from gleitzeit_python.answers import Collector, content

DONE = {
    "exit_status": 0,
    "killed_by": "",
    "timed_out": False,
    "oom_killed": False,
    "truncated": [],
    "alive": False,
}


def collected(*found: tuple[int, bytes], **done: object) -> dict[str, Any]:
    """The answer from these frames and a last one."""
    collector = Collector()
    for kind, payload in found:
        list(collector.take(kind, payload))
    list(collector.take(frames.DONE, json.dumps({**DONE, **done}).encode()))
    return collector.answer()


def said(**what: object) -> tuple[int, bytes]:
    """What the code's process says of its result."""
    return frames.RESULT, json.dumps(what).encode()


def test_characters_that_are_cut_are_put_together() -> None:
    """However output is cut, its characters come whole, and no earlier than they can."""
    collector = Collector()
    data = "aä\U0001f600".encode()
    parts = [part for n in range(len(data)) for part in collector.take(frames.STDOUT, data[n : n + 1])]
    assert parts == [{"stdout": "a"}, {"stdout": "ä"}, {"stdout": "\U0001f600"}]


def test_what_is_cut_at_the_end() -> None:
    """The beginning of a character that never came whole is shown as such."""
    collector = Collector()
    assert list(collector.take(frames.STDERR, b"x\xc3")) == [{"stderr": "x"}]
    assert list(collector.take(frames.DONE, json.dumps(DONE).encode())) == [{"stderr": "\ufffd"}]
    assert collector.answer()["stderr"] == "x\ufffd"


def test_exit_status_is_the_agents() -> None:
    """The code cannot say how its process ended; in a session that goes on, there is nobody else to say it."""
    assert collected(said(status=0), exit_status=3)["exit_status"] == 3
    assert collected(said(status=1), exit_status=None, alive=True)["exit_status"] == 1
    assert collected(said(status="x"), exit_status=None, alive=True)["exit_status"] is None


@pytest.mark.parametrize(
    ("what", "result"),
    [
        ({"result": "[1, {}]"}, [1, {}]),
        ({"result": "NaN"}, "NaN"),
        ({"result": "{"}, "{"),
        ({"result": "[" * 100_000}, "[" * 100_000),
        ({"result": '"\\\\ud800"'}, "\\ud800"),
        ({"result": '"\\ud800"'}, '"\\ud800"'),
        ({"result": 5}, None),
        ({"repr": "<x>"}, "<x>"),
        ({"repr": "\ud800"}, "?"),
        ({"repr": []}, None),
        ({}, None),
    ],
)
def test_result_can_always_be_written(what: dict[str, object], result: object) -> None:
    """Whatever the code says, the answer is JSON."""
    answer = collected(said(**what))
    assert answer["result"] == result
    json.dumps(answer, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("payload", [b"", b"[]", b"5", b"{", b"\xff", b"[" * 100_000])
def test_what_is_said_is_nonsense(payload: bytes) -> None:
    """Then there is no result."""
    assert collected((frames.RESULT, payload))["result"] is None


def test_files() -> None:
    """In pieces, under names that may be no text."""
    data = frames.Decoder().feed(frames.file_frames("a", 1, b"x" * (2 << 20)) + frames.file_frames("\udcff", 1, b""))
    answer = collected(*((kind, piece) for kind, _, piece in data))
    assert {name: file["size"] for name, file in answer["files"].items()} == {"a": 2 << 20, "?": 0}
    assert content(answer["files"]["a"]) == b"x" * (2 << 20)


@pytest.mark.parametrize("value", ["ä", "ä".encode(), {"base64": "w6Q="}])
def test_content_of_a_file(value: object) -> None:
    """As text, as bytes, or as an answer has it."""
    assert content(value) == "ä".encode()
