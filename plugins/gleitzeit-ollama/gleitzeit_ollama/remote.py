"""Models in the pool of a running gateway, for commands."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from gleitzeit_core.cli.client import GatewayDown, GatewayError
from gleitzeit_llm.dialects.errors import error_text, message_of
from gleitzeit_llm.dialects.lines import LineBuffer
from gleitzeit_llm.protocol import UpstreamError
from gleitzeit_ollama.downloads import SUCCESS
from gleitzeit_ollama.where import HEADER

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from gleitzeit_ollama.where import Where

_CONNECT_TIMEOUT_S: Final = 5.0
_MAX_LINE_BYTES: Final = 64 * 1024 * 1024
_UNAUTHORIZED: Final = 401


class RemoteModels:
    """What `Fleet` does, done by a gateway.

    Args:
        url: Of the gateway.
        key: An API key; empty for none.
    """

    def __init__(self, url: str, key: str = "") -> None:
        self.url, self._key = url, key

    def __repr__(self) -> str:
        """The address, never the key."""
        return f"<RemoteModels at {self.url}>"

    async def pull(self, model: str, where: Where) -> AsyncGenerator[dict[str, Any], None]:
        """Have it pull, and yield the steps; leaving early ends the pull that nobody else waits for.

        Raises:
            GatewayError: It failed.
            GatewayDown: Nothing listens.
        """
        last = ""
        answer = self._answer("POST", "/api/pull", {"model": model}, where)
        async with answer as response, contextlib.aclosing(_lines(response)) as lines:
            async for text in lines:
                line = self._parsed(text)
                last = str(line.get("status", ""))
                yield line
        if last != SUCCESS:
            raise GatewayError(f"the answer from {self.url} broke off", "incomplete")

    async def ask(
        self, verb: str, path: str, body: Mapping[str, Any], where: Where
    ) -> tuple[list[str], dict[str, Any]]:
        """One call.

        Returns:
            The ids of the instances it was carried out on, as far as the gateway says so, and the answer.

        Raises:
            GatewayError: It failed.
            GatewayDown: Nothing listens.
        """
        async with self._answer(verb, path, body, where) as response:
            text = await _whole(response)
            did = response.headers.get("X-Gleitzeit-Instance", "")
            return [name for name in did.split(",") if name], self._parsed(text) if text.strip() else {}

    @contextlib.asynccontextmanager
    async def _answer(
        self, verb: str, path: str, body: Mapping[str, Any], where: Where
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(verb, self.url + path, json=body, headers=self._headers(where)) as response,
            ):
                if response.status >= 300:  # noqa: PLR2004 - redirects and errors
                    raise self._refusal(response.status, await _whole(response))
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            said = getattr(error.certificate_error, "verify_message", error.certificate_error)
            why = f"its certificate is not trusted: {said}; SSL_CERT_FILE may name who signed it"
            raise GatewayError(f"{self.url}: {why}", "tls") from None
        except aiohttp.ClientConnectorError as error:
            why = error.os_error.strerror or str(error.os_error)
            raise GatewayDown(f"no gateway at {self.url}: {why}; 'gleitzeit serve' starts one") from None
        except UpstreamError as error:
            raise GatewayError(error.message) from None
        except (aiohttp.ClientError, OSError):
            raise GatewayError(f"the answer from {self.url} broke off", "incomplete") from None

    def _headers(self, where: Where) -> dict[str, str]:
        headers = {HEADER: where.text} if where.text else {}
        return {**headers, "Authorization": f"Bearer {self._key}"} if self._key else headers

    def _refusal(self, status: int, body: bytes) -> GatewayError:
        if status == _UNAUTHORIZED:
            what = "does not accept this key" if self._key else "wants a key: use --key or GLEITZEIT_KEY"
            return GatewayError(f"the gateway at {self.url} {what}", "unauthorized")
        return GatewayError(error_text(status, body))

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            raise GatewayError(f"{self.url} answered no JSON object: is it a Gleitzeit gateway?", "strange_answer")
        if "error" in line:
            raise GatewayError(message_of(line) or "the gateway does not say why")
        return line


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > _MAX_LINE_BYTES:
            raise GatewayError(f"{response.url.origin()} answered more than {_MAX_LINE_BYTES} bytes", "strange_answer")
    return bytes(body)


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """The lines of an answer that are not empty."""
    buffer = LineBuffer(max_bytes=_MAX_LINE_BYTES)
    async for data in response.content.iter_any():
        for line in buffer.feed(data):
            if line.strip():
                yield line
    if last := buffer.close().strip():
        yield last
