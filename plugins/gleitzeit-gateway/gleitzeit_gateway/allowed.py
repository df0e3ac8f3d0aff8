"""Entries of ``allowed_hosts`` and ``allowed_origins``: what could never match is a mistake, and told as such."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

_NAME: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_HOST: Final = re.compile(_NAME)
_ORIGIN: Final = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*)://(?:{_NAME}|\[[0-9A-Fa-f:.]+\])(:[0-9]{{1,5}})?/?")
_USUAL: Final = {"http": ":80", "https": ":443"}


def host(text: str) -> str:
    """`text`, if a Host header can name it.

    Raises:
        ValueError: It cannot; says what was meant, perhaps.
    """
    if text == "*" or _HOST.fullmatch(text) or _is_address(text.strip("[]")):
        return text
    bare = ""
    with contextlib.suppress(ValueError):
        bare = urlsplit(text if "://" in text else f"//{text}").hostname or ""
    hint = f": write {bare!r}" if _HOST.fullmatch(bare) else ""
    raise ValueError(f"{text!r} is no name of a host: it has no scheme, port or path, and '*' stands alone{hint}")


def origin(text: str) -> str:
    """`text`, if a browser can send it as an Origin; ``null`` is what it sends for pages without one.

    Raises:
        ValueError: It cannot; says what was meant, perhaps.
    """
    if text in ("*", "null"):
        return text
    found = _ORIGIN.fullmatch(text)
    if found is None:
        with contextlib.suppress(ValueError):
            parts = urlsplit(text if "://" in text else f"https://{text}")
            found = _ORIGIN.fullmatch(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
        hint = "" if found is None else f": write {found[0]!r}"
        raise ValueError(f"{text!r} is no origin: it is scheme://host[:port] and no more, and '*' stands alone{hint}")
    if found[2] is not None and found[2] == _USUAL.get(found[1].lower()):
        bare = f"{found[1]}://{urlsplit(text).hostname}"
        raise ValueError(f"browsers leave out the usual port of {found[1]}: write {bare!r}")
    return text


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
