from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_llamacpp.files import entry_of, locate
from gleitzeit_llamacpp.gguf import NotGGUF, read_header
from gleitzeit_llamacpp.options import ModelOptions

if TYPE_CHECKING:
    from pathlib import Path


def text(value: str) -> bytes:
    """A string as GGUF writes it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(*pairs: tuple[str, int, bytes], version: int = 3) -> bytes:
    """The beginning of a file."""
    head = b"GGUF" + struct.pack("<IQQ", version, 1, len(pairs))
    return head + b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in pairs)


ARCHITECTURE = ("general.architecture", 8, text("qwen3"))
CONTEXT = ("qwen3.context_length", 4, struct.pack("<I", 40960))
NUMBERS = ("qwen3.list", 9, struct.pack("<IQ3I", 4, 3, 1, 2, 3))
TAGS = ("general.tags", 9, struct.pack("<IQ", 8, 2) + text("chat") + text("en"))
WORDS = ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))
BEHIND = ("general.file_type", 4, struct.pack("<I", 7))


def test_the_packaged_model_says_what_it_is() -> None:
    """The real file, by its header alone."""
    header = read_header(locate(ModelOptions(path="smollm2")))
    assert header["general.architecture"] == "llama"
    assert header["llama.context_length"] == 8192


def test_single_values_are_read(tmp_path: Path) -> None:
    """Text and numbers, past lists of either, up to the tokenizer's."""
    file = tmp_path / "x.gguf"
    file.write_bytes(gguf(ARCHITECTURE, NUMBERS, TAGS, CONTEXT, ("flag", 7, b"\x01"), WORDS, BEHIND))
    assert read_header(file) == {"general.architecture": "qwen3", "qwen3.context_length": 40960, "flag": True}
    assert entry_of("x", file)["details"]["family"] == "qwen3"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (gguf(), {}),
        (gguf(ARCHITECTURE, version=1), {}),
        (b"GGUF", {}),
        (gguf(ARCHITECTURE, CONTEXT)[:-2], {"general.architecture": "qwen3"}),
        (gguf(ARCHITECTURE, ("odd", 99, b"")), {"general.architecture": "qwen3"}),
        (gguf(ARCHITECTURE, ("long", 8, struct.pack("<Q", 2**63))), {"general.architecture": "qwen3"}),
        (gguf(ARCHITECTURE, ("bad", 8, struct.pack("<Q", 1) + b"\xff")), {"general.architecture": "qwen3"}),
        (gguf(ARCHITECTURE, ("lists", 9, struct.pack("<IQ", 9, 1))), {"general.architecture": "qwen3"}),
        (gguf(ARCHITECTURE, ("texts", 9, struct.pack("<IQ", 8, 2**63)), CONTEXT), {"general.architecture": "qwen3"}),
        (gguf(ARCHITECTURE, ("many", 9, struct.pack("<IQ", 4, 2**63)), CONTEXT), {"general.architecture": "qwen3"}),
    ],
)
def test_a_damaged_header_gives_what_it_has(data: bytes, found: dict[str, Any], tmp_path: Path) -> None:
    """No length in a file, however wrong, is an error or a reason to read on."""
    file = tmp_path / "x.gguf"
    file.write_bytes(data)
    assert read_header(file) == found


def test_another_file_is_refused(tmp_path: Path) -> None:
    """The first four bytes tell."""
    file = tmp_path / "x.gguf"
    file.write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(NotGGUF, match="is not a GGUF file"):
        read_header(file)
