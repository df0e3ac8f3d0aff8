"""Ways to see from outside whether an instance is well: it answers HTTP, it takes connections, a command says so.

A hub's own `check` speaks the instance's api and also finds out what it can do. Where that is too much, too little, or
not allowed, a configuration names one of these instead:

    health_probe: {type: http, path: /health, status: [200, 204]}
    health_probe: {type: tcp}
    health_probe: {type: command, command: [/usr/local/bin/gpu-is-fine, --quick]}

None of them has a time limit of its own: the check that it is part of has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.processes import signal_group
from gleitzeit_core.resources import HttpChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.resources import ResourceInstance

_PORTS = {"http": 80, "https": 443}


class TcpProbe(BaseModel):
    """Well is what takes a connection: with its TLS handshake, where the instance is reached by ``https``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["tcp"]
    port: int | None = Field(default=None, ge=1, le=65535, description="Another than the instance's own.")

    async def examine(self, instance: ResourceInstance) -> None:
        """See whether `instance` is well.

        Raises:
            InstanceFailure: It is not.
        """
        async with _connection(_channel(instance), self.port):
            pass


class HttpProbe(BaseModel):
    """Well is what answers a GET, sent with the headers and the TLS of the instance's channel, with a good status."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["http"]
    path: str = Field(default="/", description="Below the instance's own URL.")
    status: tuple[int, ...] = Field(default=(200,), min_length=1, description="What it may answer.")
    port: int | None = Field(default=None, ge=1, le=65535, description="Another than the instance's own.")

    @field_validator("path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        if not re.fullmatch("/[!-~]*", path):
            raise ValueError("must begin with '/' and be written as in a URL")
        return path

    async def examine(self, instance: ResourceInstance) -> None:
        """See whether `instance` is well.

        Raises:
            InstanceFailure: It is not.
        """
        channel = _channel(instance)
        async with _connection(channel, self.port) as (reader, writer):
            parts = urlsplit(channel.url)
            host = parts.netloc.rpartition("@")[2]
            headers = {"Host": host, "Accept": "*/*", "Connection": "close", **channel.headers}
            lines = [f"GET {parts.path.rstrip('/')}{self.path} HTTP/1.1", *map(": ".join, headers.items()), "", ""]
            writer.write("\r\n".join(lines).encode("latin-1"))
            words = (await reader.readuntil(b"\n")).split(maxsplit=2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():  # noqa: PLR2004 - version, status
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"{self.path} is not answered as HTTP has it")
        status = int(words[1])
        if status not in self.status:
            kind = FailureKind.UNAUTHORIZED if status in (401, 403) else FailureKind.SERVER_ERROR
            raise InstanceFailure(kind, f"{self.path} answers {status}", status=status)


class CommandProbe(BaseModel):
    """Well is what a command ends with 0 for. It finds the endpoint in ``GLEITZEIT_ENDPOINT``; no shell is involved."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["command"]
    command: tuple[str, ...] = Field(min_length=1, description="The program and its arguments.")

    async def examine(self, instance: ResourceInstance) -> None:
        """See whether `instance` is well. Cancelled, it kills the command with all it has started.

        Raises:
            InstanceFailure: It is not.
        """
        environment = {**os.environ, "GLEITZEIT_ENDPOINT": instance.endpoint}
        null = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command, stdin=null, stdout=null, stderr=null, env=environment, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"cannot run {self.command[0]!r}: {error}") from error
        try:
            status = await process.wait()
        except BaseException:
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        if status:
            raise InstanceFailure(FailureKind.SERVER_ERROR, f"{self.command[0]!r} ended with {status}")


ProbeOptions = Annotated[HttpProbe | TcpProbe | CommandProbe, Field(discriminator="type")]


def _channel(instance: ResourceInstance) -> HttpChannel:
    """How an instance is reached; by its endpoint, when that is not by HTTP."""
    found = next((channel for _, channel in instance.offers if isinstance(channel, HttpChannel)), None)
    return found or HttpChannel(instance.endpoint if "://" in instance.endpoint else f"//{instance.endpoint}")


@contextlib.asynccontextmanager
async def _connection(
    channel: HttpChannel, port: int | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a channel's host, with its TLS."""
    try:
        parts = urlsplit(channel.url)
        host, port = parts.hostname, port or parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        host = None
    if not host or port is None:
        raise InstanceFailure(FailureKind.SERVER_ERROR, "cannot be probed: its endpoint has no host and port")
    tls = (channel.tls or True) if parts.scheme == "https" else None
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    except OSError as error:
        raise InstanceFailure(FailureKind.REFUSED, f"no connection to {host}:{port}: {error}") from error
    try:
        yield reader, writer
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        raise InstanceFailure(FailureKind.LOST, f"{host}:{port} gives no answer: {error}") from error
    finally:
        # Not closed politely: whatever else the other side has to say, nobody reads it.
        writer.transport.abort()
