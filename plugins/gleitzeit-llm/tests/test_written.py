"""Heads as they come: which of them are the same, and where their bodies begin."""

from __future__ import annotations

import pytest

from gleitzeit_llm.written import MAX_WRITTEN_BYTES, Written, written

SIZED = b"POST / HTTP/1.1\r\nAuthorization: Bearer secret\r\ncontent-length: 2\r\nX: y\r\n\r\n"
BARE = b"GET / HTTP/1.1\r\nAuthorization: Bearer secret\r\n\r\n"


@pytest.mark.parametrize("before", [b"", b"\r\n", b"GET / HTTP/1.1\r\ncontent-length: 9\r\n\r\n"])
@pytest.mark.parametrize("behind", [b"", b"{}", b"\r\n\r\n"])
@pytest.mark.parametrize("length", [0, 7, 10**14, 10**15 - 1])
def test_a_head_again(before: bytes, behind: bytes, length: int) -> None:
    """It has the same bytes, but for the digits of its length, wherever it stands."""
    again = SIZED.replace(b": 2", b": %d" % length)
    assert Written(SIZED).again(before + again + behind, len(before)) == (length, len(before + again))


def test_a_head_without_a_length_again() -> None:
    """All of its bytes are the same."""
    assert Written(BARE).again(BARE + b"GET") == (0, len(BARE))
    assert Written(BARE).again(SIZED) == (0, 0)
    assert Written(SIZED).again(BARE) == (0, 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"secret", b"Secret"),
        (b": 2", b": "),
        (b": 2", b": 1" + b"0" * 15),
        (b": 2", b": +2"),
        (b"y", b"yy"),
        (b"y", b""),
    ],
)
def test_another_head(old: bytes, new: bytes) -> None:
    """Any other difference is one."""
    assert Written(SIZED).again(SIZED.replace(old, new, 1)) == (0, 0)


@pytest.mark.parametrize("count", range(len(SIZED)))
def test_a_part_of_a_head(count: int) -> None:
    """What has not come to its end yet is no head."""
    assert Written(SIZED).again(SIZED[:count]) == (0, 0)
    assert written(SIZED[:count]) is None


def test_a_head_of_its_own_kind() -> None:
    """Nothing of what follows a head is taken for a part of it, and whether it says a length is told."""
    found = written(SIZED + b"{}\r\n\r\n")
    assert found is not None
    assert (found.sized, found.again(SIZED + b"{}")) == (True, (2, len(SIZED)))
    found = written(BARE)
    assert found is not None
    assert not found.sized


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n" + SIZED,
        SIZED.replace(b"\r\n", b"\n"),
        SIZED.replace(b": 2\r\n", b": 2\n"),
        SIZED.replace(b"X: y", b" more"),
        SIZED.replace(b"X: y", b"X : y"),
        SIZED.replace(b"X: y", b"X"),
        SIZED.replace(b"y", b"y\ry"),
        SIZED.replace(b"y", b"y" * MAX_WRITTEN_BYTES),
    ],
    ids=["a line before", "LF", "one LF", "folded", "a space", "no colon", "CR", "long"],
)
def test_heads_that_are_not_kept(head: bytes) -> None:
    """Where anybody could see the end of a line, of a field or of the head elsewhere."""
    assert written(head) is None


def test_nothing_of_a_head_is_shown() -> None:
    """There may be a key in it."""
    assert "secret" not in repr(Written(SIZED))
