"""Which instances a caller means, and the progress of several told as one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import ClosedError, FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_ollama.downloads import PullProgress
from gleitzeit_ollama.merging import Merged, combined
from gleitzeit_ollama.where import Where

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", Where()),
        ("  ", Where()),
        ("all", Where(every=True)),
        ("3", Where(replicas=3)),
        ("a", Where(named=("a",))),
        (" a , http://gpu1:11434,", Where(named=("a", "http://gpu1:11434"))),
        ("2,3", Where(named=("2", "3"))),
    ],
)
def test_where_is_read_and_written(text: str, where: Where) -> None:
    """Each form means one thing, and is written so that it is read again as the same."""
    assert Where.parse(text) == where
    assert Where.parse(where.text) == where


@pytest.mark.parametrize("text", ["0", "10001", "9" * 5000, ",", " , ", "all,a"])
def test_where_that_means_nothing(text: str) -> None:
    """What is none of the forms is refused."""
    with pytest.raises(InvalidRequest):
        Where.parse(text)


def _step(instance: str, status: str, completed: int | None = None, total: int | None = None) -> PullProgress:
    digest = "" if total is None else "sha256:1"
    return PullProgress(
        instance_id=instance, status=status, digest=digest, total_bytes=total, completed_bytes=completed
    )


def _told(merged: Merged, steps: Sequence[PullProgress]) -> list[dict[str, object]]:
    return [line for step in steps if (line := merged.line(step)) is not None]


def test_one_alone_is_told_as_it_is() -> None:
    """Nothing is left out but success, repetitions included; zero and unknown are left out, as Ollama does."""
    steps = [_step("a", "x"), _step("a", "x"), _step("a", "p", None, 9), _step("a", "p", 0, 9), _step("a", "p", 9, 9)]
    part = {"status": "p", "digest": "sha256:1", "total": 9}
    expected = [{"status": "x"}, {"status": "x"}, part, part, {**part, "completed": 9}]
    assert _told(Merged(["a"]), [*steps, _step("a", "success")]) == expected


def test_a_status_is_told_once() -> None:
    """When the first comes to it."""
    merged = Merged(["a", "b"])
    steps = [_step("a", "x"), _step("b", "x"), _step("b", "y"), _step("a", "success"), _step("a", "y")]
    assert _told(merged, steps) == [{"status": "x"}, {"status": "y"}]
    assert repr(merged) == "<Merged 1 going on>"


def test_the_slowest_says_how_much_is_done() -> None:
    """One that has not begun holds it at nothing; one that has ended, either way, holds nothing up."""
    merged = Merged(["a", "b", "c"])

    def done(step: PullProgress) -> object:
        line = merged.line(step)
        return None if line is None else line.get("completed", 0)

    assert done(_step("a", "p", 5, 9)) == 0
    assert done(_step("b", "p", 3, 9)) == 0
    assert done(_step("c", "p", 9, 9)) == 3
    merged.drop("b")
    assert done(_step("c", "p", 9, 9)) == 5
    merged.line(_step("a", "success"))
    assert done(_step("c", "p", 9, 9)) == 9
    merged.drop("c")
    assert done(_step("c", "p", 9, 9)) == 9


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100)), max_size=60))
def test_progress_never_goes_back(news: list[tuple[str, int]]) -> None:
    """As long as no server's own does, whatever the order in which they are heard."""
    merged, best, told = Merged(["a", "b", "c"]), dict.fromkeys("abc", 0), []
    for name, completed in news:
        best[name] = max(best[name], completed)
        line = merged.line(_step(name, "p", best[name], 100))
        assert line is not None
        told.append(line.get("completed", 0))
    assert told == sorted(told)
    assert not told or told[-1] == min(best.values())


def _failure(text: str, body: bytes | None = None, status: int | None = 500) -> InstanceFailure:
    return InstanceFailure(FailureKind.SERVER_ERROR, text, status=status, body=body)


def test_failures_become_one() -> None:
    """One is itself; the same words are said once; different ones are all told; a mistake of ours goes first."""
    one, same, other = _failure("1: no", b"no"), _failure("2: no", b"no"), _failure("3: full", b"full")
    silent, closed = _failure("4: gone", None, None), ClosedError("closed")
    assert combined([one]) is one
    assert combined([one, same]) is one
    both = combined([one, other])
    assert isinstance(both, InstanceFailure)
    assert (both.status, json.loads(both.body or b"")) == (500, {"error": "1: no; 3: full"})
    mixed = combined([one, silent])
    assert isinstance(mixed, InstanceFailure)
    assert (str(mixed), mixed.status, mixed.body) == ("1: no; 4: gone", None, None)
    assert combined([silent, _failure("5: gone", None, None)]).args == ("4: gone; 5: gone",)
    assert combined([one, closed]) is closed
