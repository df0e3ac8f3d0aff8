"""What is sent on a connection of our own: where to, in which words, and what never is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.resources import HttpChannel
from gleitzeit_llm.connections import origin_of, target
from gleitzeit_llm.exchange import request_head

from .saying import OK, saying

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_llm.upstream import Upstream

    Serve = Callable[..., Awaitable[Any]]


async def test_a_request_as_it_is_sent(serve: Serve, upstream: Upstream) -> None:
    """The base path comes first, the host is named, and what belongs to the connection is ours to say."""
    server = await serve(saying(OK + b"Content-Length: 2\r\n\r\n{}"))
    own = {"X-Own": "ü", "content-length": "7", "Connection": "close", "accept": "text/plain"}
    channel = HttpChannel(server.url.replace("://", "://me:secret@") + "/base", headers=own)
    await upstream.request(channel, "POST", "/a b?c=d", b"{}")
    (heard,) = server.heard
    assert heard.path == "/base/a%20b?c=d"
    assert heard.headers == {
        "host": server.url.removeprefix("http://"),
        "authorization": "Basic bWU6c2VjcmV0",
        "accept-encoding": "identity",
        "user-agent": "gleitzeit",
        "content-type": "application/json",
        "content-length": "2",
        "x-own": "ü",
        "accept": "text/plain",
    }


@pytest.mark.parametrize(
    ("url", "host", "port", "header"),
    [
        ("http://gpu1:11434", "gpu1", 11434, "gpu1:11434"),
        ("http://gpu1", "gpu1", 80, "gpu1"),
        ("https://gpu1", "gpu1", 443, "gpu1"),
        ("https://gpu1:80/x/", "gpu1", 80, "gpu1:80"),
        ("http://[::1]:8000", "::1", 8000, "[::1]:8000"),
        ("http://bücher.example", "xn--bcher-kva.example", 80, "xn--bcher-kva.example"),
    ],
)
def test_origins(url: str, host: str, port: int, header: str) -> None:
    """An address has a host, a port and a name for the server."""
    origin = origin_of(url)
    assert (origin.host, origin.port, origin.host_header) == (host, port, header)
    assert origin.secure == url.startswith("https")


@pytest.mark.parametrize("path", ["/a\r\nX: y", "/a b", "/ä", "/a#b"])
def test_a_path_cannot_break_out_of_its_line(path: str) -> None:
    """Whatever it is, one line has it."""
    origin = origin_of("http://gpu1")
    assert target(origin, path).isascii()
    head = request_head(origin, HttpChannel("http://gpu1"), "GET", path, None)
    assert head.count(b"\r\n") == 6
    assert len(head.split(b"\r\n")[0].split(b" ")) == 3


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "ä"])
def test_a_header_with_such_a_name_is_not_sent(name: str) -> None:
    """Its value is not repeated."""
    with pytest.raises(ValueError, match="name that cannot be sent") as caught:
        request_head(origin_of("http://x"), HttpChannel("http://x", headers={name: "secret"}), "GET", "/", None)
    assert "secret" not in str(caught.value)
