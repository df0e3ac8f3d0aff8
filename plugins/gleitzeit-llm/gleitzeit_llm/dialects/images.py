"""Images: Ollama has bare base64, OpenAI data URLs."""

from __future__ import annotations

import binascii
import re

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import values

_DATA_URL = re.compile(r"data:(?:image/[\w.+-]+)?;base64,", re.IGNORECASE)
# Enough for the longest signature below, and a whole number of base64's groups of four.
_HEAD_CHARACTERS = 16
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)


def to_url(value: object, param: str) -> str:
    """A data URL for an image in base64; its type is read off the image's first bytes.

    Raises:
        InvalidRequest: It is not base64. Only the beginning is looked at: the server decodes the rest anyway.
    """
    image = values.text(value, param)
    try:
        head = binascii.a2b_base64(image[:_HEAD_CHARACTERS], strict_mode=True)
    except ValueError:
        raise InvalidRequest(f"{param!r} must be an image in base64, neither a path nor a URL", param=param) from None
    return f"data:{_media_type(head)};base64,{image}"


def from_url(value: object, param: str) -> str:
    """The base64 of a data URL.

    Raises:
        InvalidRequest: It is something else, such as the address of a remote image.
    """
    url = values.text(value, param)
    head = _DATA_URL.match(url)
    if head is None:
        raise InvalidRequest(
            f"{param!r} must be a data URL (data:image/png;base64,...): images are not fetched from elsewhere",
            param=param,
        )
    return url[head.end() :]


def _media_type(head: bytes) -> str:
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    # Servers decode by content; a type that names an unknown image wrongly does no harm.
    return next((kind for signature, kind in _SIGNATURES if head.startswith(signature)), "image/jpeg")
