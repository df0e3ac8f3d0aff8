"""OpenAI's Responses API over HTTP: what it has beside plain answers and streams, which `llm_api` gives."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gleitzeit_core.errors import NoCapableInstance
from gleitzeit_gateway.errors import Refused, code_of, message_of
from gleitzeit_llm.dialects.fields_from_responses import NO_STATE
from gleitzeit_llm.dialects.responses_encoder import error_event
from gleitzeit_llm.dialects.sse import event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable

    from aiohttp import web

    from gleitzeit_gateway.call import Call

API: Final = "openai-responses"
_NUMBER: Final = re.compile(rb'"sequence_number"\s*:\s*(\d{1,12})')


class Numbered:
    """The parts of a stream whose events are numbered; an error that ends it has the next number.

    Args:
        first: The part that was sent already; empty when none was.
    """

    def __init__(self, first: bytes = b"") -> None:
        self._last = first

    async def watch(self, parts: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
        """`parts`, as they are."""
        async for part in parts:
            self._last = part
            yield part

    def error(self, error: Exception) -> bytes:
        """An error inside the stream."""
        numbers = _NUMBER.findall(self._last)
        return error_event(message_of(error), code_of(error), int(numbers[-1]) + 1 if numbers else 0)


def whole(body: bytes) -> bytes:
    """A whole response as the only event of a stream."""
    data = b'{"type":"response.completed","sequence_number":0,"response":%b}' % body.strip()
    return event(data, b"response.completed")


async def stored(call: Call) -> web.Response:
    """What reads or changes a response that was stored.

    Raises:
        NoCapableInstance: There is none.
    """
    raise NoCapableInstance(f"response {call.rest.partition('/')[0]!r} not found: {NO_STATE}")


async def unserved(call: Call) -> web.Response:
    """Calls on responses that nobody here carries out.

    Raises:
        Refused: Always.
    """
    raise Refused(501, f"{call.request.path} is not served here", "not_implemented")
