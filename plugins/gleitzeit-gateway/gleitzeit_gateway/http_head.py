"""The head of a request. Nearly all requests of one connection have the same: it is read, and judged, once."""

from __future__ import annotations

import re
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from aiohttp import HttpVersion10, HttpVersion11
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

if TYPE_CHECKING:
    from aiohttp import HttpVersion

_VERSIONS: Final = {"1.1": HttpVersion11, "1.0": HttpVersion10}
_SIMPLE_PATH: Final = re.compile(r"/[\w/.~:@!$&'()*+,;=-]*", re.ASCII)
_DEFAULT_TYPE: Final = "application/octet-stream"
_LENGTH: Final = "Content-Length"
_LENGTH_LINE: Final = re.compile(rb"\r\nContent-Length: ([0-9]{1,15})(?=\r\n)", re.IGNORECASE)
_LENGTH_BYTES: Final = len("\r\nContent-Length: ")
_END: Final = b"\r\n\r\n"


class Head:
    """A head. All but the body's length stands in it; it does not change.

    Args:
        method: In capitals.
        target: What was asked for, as it was sent.
        version: ``1.1`` or ``1.0``.
        headers: Case does not count in their names.
        keep_alive: Whether another request may follow.

    Attributes:
        path: Decoded, without the query.
        encoding: How the body is compressed; empty for not at all.
        invites: Whether the sender waits to be told that its body is welcome.
        verdict: What whoever answers makes of it, for the next request with this head; theirs alone.

    Raises:
        ValueError: What was asked for is no URL.
    """

    __slots__ = (
        "_url",
        "encoding",
        "headers",
        "invites",
        "keep_alive",
        "method",
        "path",
        "target",
        "verdict",
        "version",
    )

    def __init__(self, method: str, target: str, version: str, headers: CIMultiDict[str], *, keep_alive: bool) -> None:
        self.method, self.target, self.keep_alive = method, target, keep_alive
        self.version: HttpVersion = _VERSIONS[version]
        self.headers = CIMultiDictProxy(headers)
        said = headers.get("Content-Encoding", "").strip().lower()
        self.encoding = said if said in ("gzip", "deflate", "br", "zstd") else ""
        self.invites = headers.get("Expect", "").lower() == "100-continue" and self.version >= HttpVersion11
        self._url: URL | None = None
        self.path = target if _SIMPLE_PATH.fullmatch(target) else self.url.path
        self.verdict: object = None

    def __repr__(self) -> str:
        """What was asked for, without a query, which may hold a secret."""
        return f"<Head {self.method} {self.path}>"

    @property
    def url(self) -> URL:
        """What was asked for."""
        if self._url is None:
            self._url = _parsed(self.target)
        return self._url

    @property
    def content_type(self) -> str:
        """In lower case, without parameters; ``application/octet-stream`` when nothing is said."""
        said = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return said if said.count("/") == 1 else _DEFAULT_TYPE

    def headers_for(self, length: str) -> CIMultiDictProxy[str]:
        """The headers, of a request whose body has another length than that of the first one with this head."""
        if self.headers.get(_LENGTH) == length:
            return self.headers
        headers = self.headers.copy()
        headers[_LENGTH] = length
        return CIMultiDictProxy(headers)


class Written:
    """A head as it came: another one that has the same bytes, but for its body's length, need not be read.

    Args:
        head: What was read from it.
        data: From its first byte to its last.
    """

    __slots__ = ("_at", "_others", "head")

    def __init__(self, head: Head, data: bytes) -> None:
        self.head = head
        # Where the digits of the length stand, 0 for nowhere; and all else.
        found = _LENGTH_LINE.search(data)
        self._at, end = (0, 0) if found is None else found.span(1)
        self._others = data[: self._at] + data[end:]

    def __repr__(self) -> str:
        """What was read from it."""
        return f"<Written {self.head!r}>"

    def again(self, data: bytes) -> tuple[str | None, int]:
        """Whether `data` begins with it once more.

        Returns:
            The body's length, None where none is said; and where the body begins, 0 where this is another head.
        """
        at, end, length = self._at, data.find(_END) + len(_END), None
        others = data[:end]
        if at:
            found = _LENGTH_LINE.match(data, at - _LENGTH_BYTES)
            if found is None:
                return None, 0
            length = found[1].decode("ascii")
            others = data[:at] + data[at + len(length) : end]
        # There may be a key in it: where it differs from the last one must not be told by time.
        return (length, end) if compare_digest(others, self._others) else (None, 0)


def _parsed(target: str) -> URL:
    """A target as a URL; its path is as it stands, escapes and dots included."""
    if not target.startswith("/"):
        url = URL(target, encoded=True)
        if not url.scheme and target != "*":
            raise ValueError("no absolute URL")
        return url
    path, _, rest = target.partition("#")[0].partition("?")
    return URL.build(path=path, query_string=rest, encoded=True)
