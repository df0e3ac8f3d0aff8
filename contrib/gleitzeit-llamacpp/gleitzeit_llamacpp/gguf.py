"""The beginning of a GGUF file: what kind of model it holds.

The layout is llama.cpp's (``gguf.md`` in the ggml project, versions 2 and 3, little-endian): the magic, the version,
how many tensors and pairs there are, then the pairs themselves, each a key, a type and a value.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Scalar = int | float | bool | str

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_READ_BYTES: Final = 1024 * 1024
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TOKENIZER: Final = "tokenizer."


class NotGGUF(ValueError):
    """A file that is not in this format."""


def read_header(path: Path) -> Mapping[str, Scalar]:
    """The single values in the header, up to those of the tokenizer, behind which nothing is needed.

    A header that is cut off or makes no sense gives what could be read of it: whether the file is good is for llama.cpp
    to say.

    Raises:
        NotGGUF: It is no GGUF file.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_READ_BYTES)
    if not data.startswith(_MAGIC):
        raise NotGGUF(f"{path} is not a GGUF file")
    found: dict[str, Scalar] = {}
    try:
        found.update(_pairs(_Reader(data)))
    except (struct.error, UnicodeDecodeError):
        return found
    return found


class _Reader:
    """Reads values one after another; ``struct.error`` when there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = len(_MAGIC)

    def number(self, code: str) -> int | float | bool:
        value: int | float | bool
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        return str(self.skip(int(self.number("Q"))), "utf-8")

    def skip(self, size_bytes: int) -> bytes:
        if size_bytes > len(self._data) - self._at:
            raise struct.error("the data ends before")
        self._at += size_bytes
        return self._data[self._at - size_bytes : self._at]


def _pairs(reader: _Reader) -> Iterator[tuple[str, Scalar]]:
    if reader.number("I") not in _VERSIONS:
        return
    reader.number("Q")
    for _ in range(int(reader.number("Q"))):
        key, kind = reader.text(), int(reader.number("I"))
        if key.startswith(_TOKENIZER):
            return
        if kind == _STRING:
            yield key, reader.text()
        elif kind in _NUMBERS:
            yield key, reader.number(_NUMBERS[kind])
        elif kind == _ARRAY:
            _pass_list(reader)
        else:
            return


def _pass_list(reader: _Reader) -> None:
    kind, count = int(reader.number("I")), int(reader.number("Q"))
    if kind in _NUMBERS:
        reader.skip(count * struct.calcsize(_NUMBERS[kind]))
        return
    if kind != _STRING:
        raise struct.error("a list of what nobody knows")
    for _ in range(count):
        reader.text()
