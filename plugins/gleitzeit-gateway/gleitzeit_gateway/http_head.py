"""The head of a request. Nearly all requests of one connection have the same: it is read, and judged, once."""

from __future__ import annotations

import re
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
# A sender may number requests of its own; but what it sends goes into a log.
_ID: Final = re.compile(r"[\w.:-]{1,64}", re.ASCII)


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
        request_id: What the sender calls the request; empty for nothing, or for what could do harm in a log.
        length: Of the body, in bytes; None where none is said.
        chunked: Whether the body comes in chunks, which say where it ends.
        encoding: How the body is compressed; empty for not at all.
        invites: Whether the sender waits to be told that its body is welcome.
        verdict: What whoever answers makes of it, for the next request with this head; theirs alone.

    Raises:
        ValueError: What was asked for is no URL.
    """

    __slots__ = (
        *("_url", "chunked", "encoding", "headers", "invites", "keep_alive", "length", "method", "path"),
        *("request_id", "target", "verdict", "version"),
    )

    def __init__(self, method: str, target: str, version: str, headers: CIMultiDict[str], *, keep_alive: bool) -> None:
        self.method, self.target = method, target
        self.keep_alive = keep_alive and method != "CONNECT"
        self.version: HttpVersion = _VERSIONS[version]
        self.headers = CIMultiDictProxy(headers)
        # What follows the head of CONNECT is no body, whatever is said.
        length = None if method == "CONNECT" else headers.get(_LENGTH)
        self.length = None if length is None else int(length)
        self.chunked = method != "CONNECT" and "Transfer-Encoding" in headers
        given = headers.get("X-Request-Id", "")
        self.request_id = given if _ID.fullmatch(given) else ""
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

    def headers_for(self, length: int | None) -> CIMultiDictProxy[str]:
        """The headers, of a request whose body has another length than that of the first one with this head."""
        if self.length == length:
            return self.headers
        headers = self.headers.copy()
        headers[_LENGTH] = str(length)
        return CIMultiDictProxy(headers)


def _parsed(target: str) -> URL:
    """A target as a URL; its path is as it stands, escapes and dots included."""
    if not target.startswith("/"):
        url = URL(target, encoded=True)
        if not url.scheme and target != "*":
            raise ValueError("no absolute URL")
        return url
    path, _, rest = target.partition("#")[0].partition("?")
    return URL.build(path=path, query_string=rest, encoded=True)
