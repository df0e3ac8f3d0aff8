"""Embeddings made from a text's hash: the same text, the same vector."""

from __future__ import annotations

import base64
import hashlib
import math
import struct

_BYTES_PER_NUMBER = 2


def raw_vector(text: str, length: int) -> list[float]:
    """Return `length` numbers between -2 and 2, as `/api/embeddings` gives them."""
    size = length * _BYTES_PER_NUMBER
    noise = hashlib.shake_128(text.encode("utf-8", errors="replace")).digest(size)
    whole = struct.unpack(f"<{length}h", noise)
    # A half beside it keeps each number a fraction, also where the noise is 0.
    return [(number + 0.5) / 2**14 for number in whole]


def unit_vector(text: str, length: int, dimensions: int) -> list[float]:
    """Return a vector of length 1, cut to `dimensions` numbers where that is fewer (0: not cut)."""
    vector = raw_vector(text, length)[: dimensions or None]
    norm = math.sqrt(sum(number * number for number in vector))
    return [number / norm for number in vector]


def to_base64(vector: list[float]) -> str:
    """Return the vector as little-endian 32-bit floats in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
