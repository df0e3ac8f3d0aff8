"""What is found out once for the head of a request holds for those with the same head, and for no others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .conftest import RunningGateway, Serve

KEY: Final = "a-key-that-nobody-guesses"
OTHER: Final = "another-key-that-nobody-guesses"
KEYS: Final = [{"name": "alice", "key": KEY}, {"name": "bob", "key": OTHER, "methods": []}]


class Line:
    """One connection, on which one request after the other is sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, key: str, *more: str, path: str = "/admin/usage", host: str = "localhost") -> int:
        """Ask for something; the status."""
        fields = [f"GET {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {key}", *more]
        self._writer.write("\r\n".join((*fields, "", "")).encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.decode().splitlines() if line.lower().startswith("content-length:"))
        await self._reader.readexactly(int(length.partition(":")[2]))
        return int(head.split()[1])

    def close(self) -> None:
        """Leave."""
        self._writer.close()


async def line_to(gateway: RunningGateway) -> Line:
    """A new connection."""
    return Line(*await asyncio.open_connection("127.0.0.1", gateway.gateway.port))


async def test_a_key_that_is_taken_away(serve: Serve) -> None:
    """On a connection that has been let in all along, a key stops to count with the options that do not have it."""
    gateway = await serve(keys=KEYS)
    line = await line_to(gateway)
    assert [await line.ask(KEY) for _ in range(3)] == [200, 200, 200]
    options = gateway.gateway.options
    gateway.gateway.reconfigure(options.model_copy(update={"keys": options.keys[1:]}))
    assert [await line.ask(KEY), await line.ask(KEY), await line.ask(OTHER)] == [401, 401, 200]
    gateway.gateway.reconfigure(options)
    assert await line.ask(KEY) == 200
    line.close()


async def test_fewer_headers_than_before(serve: Serve) -> None:
    """A head that was small enough is none with options that allow less, on a connection that stays open as well."""
    gateway = await serve(keys=KEYS)
    line = await line_to(gateway)
    assert [await line.ask(KEY) for _ in range(2)] == [200, 200]
    gateway.gateway.reconfigure(gateway.gateway.options.model_copy(update={"max_headers": 1}))
    assert await line.ask(KEY) == 431
    line.close()


async def test_what_differs_is_judged_anew(serve: Serve) -> None:
    """On one connection: another key, no good key, another host, a page, a loop, another path."""
    gateway = await serve(keys=KEYS, allowed_hosts=["gpu.example"])
    line = await line_to(gateway)
    assert await line.ask(KEY) == 200
    assert await line.ask(KEY[:-1] + "x") == 401
    assert await line.ask(KEY) == 200
    assert await line.ask(KEY, host="gpu.example") == 200
    assert await line.ask(KEY, host="elsewhere.example") == 403
    assert await line.ask(KEY, "Origin: http://elsewhere.example") == 403
    assert await line.ask(KEY, "Via: " + ", ".join(f"1.1 gleitzeit-{n}" for n in range(9))) == 508
    assert await line.ask(KEY, path="/nothing") == 404
    assert await line.ask(KEY) == 200
    line.close()
