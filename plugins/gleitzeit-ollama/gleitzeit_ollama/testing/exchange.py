"""One request on its way through the server, and the sending of its answer, faults included."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from aiohttp import HttpVersion11, web

from gleitzeit_ollama.testing.answers import (
    Answer,
    ApiError,
    Part,
    Plain,
    Stream,
    envelope,
    error_answer,
    event,
    line,
)
from gleitzeit_ollama.testing.faults import Cut, End, Fault
from gleitzeit_ollama.testing.fields import read
from gleitzeit_ollama.testing.gates import pass_gate
from gleitzeit_ollama.testing.golang import BadBody, EmptyBody, JsonObject
from gleitzeit_ollama.testing.guard import cors_headers, refusal
from gleitzeit_ollama.testing.routes import endpoint, split
from gleitzeit_ollama.testing.runners import QueueFull

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_ollama.testing.models import Model
    from gleitzeit_ollama.testing.records import RequestRecord
    from gleitzeit_ollama.testing.server import OllamaServer

_BAD_REQUEST, _BUSY = 400, 503
_MAX_UNCHUNKED_BYTES = 2048  # Go tells the length of a body only where it fits its buffer
_NO_FAULT = Fault()
_CUT = "the connection is cut"


class Exchange:
    """What an endpoint and a fault work with.

    Attributes:
        server: whose request it is.
        record: what tests see of it.
        path: of the request.
        body: its JSON object, once an endpoint has read it.
    """

    def __init__(self, server: OllamaServer, request: web.Request, record: RequestRecord) -> None:
        self.server = server
        self.record = record
        self.path = record.path
        self.body: JsonObject = {}
        self._request = request
        self._slots = AsyncExitStack()
        self._fault = _NO_FAULT

    @property
    def rest_of_path(self) -> str:
        """What the path has beyond its route: the name of a model, a digest."""
        return split(self.path)[1]

    @property
    def is_openai(self) -> bool:
        """The request came through the OpenAI API."""
        return self.path.startswith("/v1/")

    def read(self, struct_name: str) -> JsonObject:
        """Return the request's body as an object of that kind.

        Raises:
            ApiError: it is not; 400 with the words of Go's JSON decoder.
        """
        try:
            self.body = read(self.record.body, struct_name)
        except EmptyBody as error:
            message = str(error) if self.is_openai else "missing request body"
            raise ApiError(_BAD_REQUEST, message, is_outer=True) from None
        except BadBody as error:
            raise ApiError(_BAD_REQUEST, str(error), is_outer=True) from None
        return self.body

    def refusal(self, status: int, message: str, headers: Mapping[str, str]) -> Plain:
        """Return an error in the shape of this request's client API."""
        return replace(error_answer(ApiError(status, message), self.path), headers=headers)

    async def take_slot(self, model: Model, keep_alive_s: float | None) -> None:
        """Hold a slot of `model` until the answer is sent.

        Raises:
            ApiError: too many wait already; 503.
        """
        try:
            slot = self.server.runners.slot(model, keep_alive_s)
            await self._slots.enter_async_context(slot)
        except QueueFull as error:
            raise ApiError(_BUSY, str(error)) from None
        await self._fault.on_slot(self)

    async def run(self) -> web.StreamResponse:
        """Answer the request; the slot is free again when this ends, whichever way."""
        async with self._slots:
            answer = refusal(self.record.method, self._request.headers, on_loopback=self.server.on_loopback)
            return await self._send(answer or await self._answer())

    async def _answer(self) -> Answer | Cut:
        self.record.fault = self.server.script.take(self.record)
        self._fault = self.record.fault or _NO_FAULT
        return await self._fault.on_request(self) or await self._from_endpoint()

    async def _from_endpoint(self) -> Answer:
        found = endpoint(self.record.method, self.path)
        if isinstance(found, Plain):
            return found
        try:
            return await found(self)
        except ApiError as error:
            return error_answer(error, self.path)

    async def _send(self, answer: Answer | Cut) -> web.StreamResponse:
        if isinstance(answer, Cut):
            await self._cut(reset=answer.reset)
        if isinstance(answer, Stream):
            return await self._send_stream(answer)
        return await self._send_plain(answer)

    async def _send_plain(self, answer: Plain) -> web.StreamResponse:
        for _ in range(answer.tokens):
            await self._pass_gate()
            self.record.tokens += 1
            self.server.changed()
        answer = self._fault.on_plain(self, answer)
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        if len(answer.body) <= _MAX_UNCHUNKED_BYTES:
            response.content_length = len(answer.body)
        await self._start(response, answer.content_type)
        for half in () if self.record.method == "HEAD" else answer.halves():
            await self._judge()
            await self._send_part(response, Part(half))
        # A verdict that ends the body does not count here: its length is told already.
        await self._judge()
        return await self._end(response, End())

    async def _start(self, response: web.StreamResponse, content_type: str | None) -> web.StreamResponse:
        if content_type is not None:
            response.headers.setdefault("Content-Type", content_type)
        response.headers.update(cors_headers(self._request.headers))
        if response.content_length is None and self._request.version >= HttpVersion11:
            response.enable_chunked_encoding()
        self.record.status = response.status
        await response.prepare(self._request)
        self.server.changed()
        return response

    async def _send_stream(self, answer: Stream) -> web.StreamResponse:
        response = await self._start(web.StreamResponse(headers=answer.headers), answer.content_type)
        for part in answer.parts:
            if end := await self._judge():
                return await self._end(response, end)
            await self._send_part(response, part)
        return await self._end(response, await self._judge() or End())

    async def _judge(self) -> End | None:
        verdict = await self._fault.on_part(self, self.record.parts)
        if isinstance(verdict, Cut):
            await self._cut(reset=verdict.reset)
        return verdict

    async def _send_part(self, response: web.StreamResponse, part: Part) -> None:
        if part.is_token:
            await self._pass_gate()
        await response.write(part.data)
        self.record.parts += 1
        self.record.tokens += part.is_token
        self.server.changed()

    async def _pass_gate(self) -> None:
        if (gate := self.server.gate) is not None:
            # A test may wait for tokens to stand before the gate: it is asked once this one does.
            asyncio.get_running_loop().call_soon(self.server.changed)
            await pass_gate(gate)

    async def _end(self, response: web.StreamResponse, end: End) -> web.StreamResponse:
        if end.error is not None:
            await response.write(self._error_part(end.error).data)
        await response.write_eof()
        return response

    def _error_part(self, message: str) -> Part:
        return event(envelope(500, message)) if self.is_openai else line({"error": message})

    async def _cut(self, *, reset: bool) -> NoReturn:
        self.record.cut = True
        if (transport := self._request.transport) is None:
            raise ConnectionResetError(_CUT)
        if reset:
            # With this, closing sends RST and what is unsent is dropped.
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        else:
            transport.close()
        # The loss of the connection cancels this task.
        await asyncio.get_running_loop().create_future()
        raise ConnectionResetError(_CUT)
