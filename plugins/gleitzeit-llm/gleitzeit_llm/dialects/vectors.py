"""Embeddings: lists of numbers, or base64 of little-endian 32-bit floats, as OpenAI's client asks for by default."""

from __future__ import annotations

import base64
import math
import struct
from typing import TYPE_CHECKING

from gleitzeit_llm.protocol import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Sequence

_FLOAT_BYTES = 4


def to_base64(vector: Sequence[float]) -> str:
    """Pack a vector."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def from_base64(packed: str) -> list[float]:
    """Unpack a vector.

    Raises:
        UpstreamError: It is not base64, or not made of whole floats.
    """
    try:
        raw = base64.b64decode(packed, validate=True)
        return list(struct.unpack(f"<{len(raw) // _FLOAT_BYTES}f", raw))
    except (ValueError, struct.error):
        raise UpstreamError("the instance's answer has an embedding that is not base64 of floats") from None


def shorten(vector: list[float], dimensions: int) -> list[float]:
    """Cut a vector to its first `dimensions` numbers and bring it back to length one, as Ollama does.

    Zero and less keep all of them.

    Some OpenAI servers (llama.cpp) take `dimensions` without a word and answer all of them.
    """
    if dimensions <= 0 or len(vector) <= dimensions:
        return vector
    short = vector[:dimensions]
    length = math.hypot(*short)
    return [value / length for value in short] if length else short
