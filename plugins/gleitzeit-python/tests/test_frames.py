"""Frames, however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_python.agent import frames

CONTENTS = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**64 - 1), st.binary(max_size=300)), max_size=5)


@given(CONTENTS, st.lists(st.integers(1, 50), min_size=1, max_size=100))
def test_what_is_sent_arrives(sent: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    """Cut anywhere, the same frames come out in the same order."""
    data = b"".join(frames.frame(*one) for one in sent)
    decoder, found = frames.Decoder(), []
    while data:
        size = cuts[len(found) % len(cuts)]
        found += decoder.feed(data[:size])
        data = data[size:]
    assert found == sent


@pytest.mark.parametrize(
    "size", [0, 1, frames.MAX_CONTENT_BYTES, frames.MAX_CONTENT_BYTES + 1, 3 * frames.MAX_CONTENT_BYTES]
)
def test_long_content_goes_in_several(size: int) -> None:
    """All but the last piece say that there is more; none is longer than a frame may be."""
    content = bytes(range(256)) * (size // 256 + 1)
    found = frames.Decoder().feed(frames.frames(frames.RUN, 7, content[:size]))
    assert [kind for kind, _, _ in found] == [frames.MORE] * (len(found) - 1) + [frames.RUN]
    assert all(len(piece) <= frames.MAX_CONTENT_BYTES and fence == 7 for _, fence, piece in found)
    assert b"".join(piece for _, _, piece in found) == content[:size]


@pytest.mark.parametrize("size", [0, 10, 2 * frames.MAX_CONTENT_BYTES])
@pytest.mark.parametrize("name", ["a", "ä/b", "n" * 1000, "\udcff"])
def test_file_goes_in_several(name: str, size: int) -> None:
    """Each piece carries the name; an empty file has one."""
    found = [
        frames.file_part(content) for _, _, content in frames.Decoder().feed(frames.file_frames(name, 1, b"x" * size))
    ]
    assert {label for label, _ in found} == {name}
    assert b"".join(piece for _, piece in found) == b"x" * size


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\5abc"])
def test_file_without_a_name(content: bytes) -> None:
    """Is none."""
    with pytest.raises(frames.BadFrame):
        frames.file_part(content)


def test_frame_that_is_too_long() -> None:
    """It is refused before anything of it is kept."""
    with pytest.raises(frames.BadFrame, match="4294967295 bytes"):
        frames.Decoder().feed(b"\1" + b"\0" * 8 + b"\xff" * 4)
