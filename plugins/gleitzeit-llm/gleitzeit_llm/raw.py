"""Requests and whole answers in the bytes of a client API."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, TypedDict

import msgspec

from gleitzeit_core.errors import FailureKind, InstanceFailure, UnknownName
from gleitzeit_core.resources import ChannelKind, Requirements, Speaks
from gleitzeit_llm import models, usage
from gleitzeit_llm.dialects import CLIENTS, RESPONSES
from gleitzeit_llm.listings import SHOW_POINT, peek_show
from gleitzeit_llm.passthrough import check_object, check_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from gleitzeit_core.requests import Request, Usage
    from gleitzeit_llm.dialects.base import Endpoint, Parsed, Peek
    from gleitzeit_llm.upstream import Reply

JSON_TYPE: Final = "application/json"
OLLAMA, OPENAI, _RESPONSES = (Speaks(name, ChannelKind.HTTP) for name in ("ollama", "openai", RESPONSES))
# Whose API a caller speaks comes first: there its bytes pass.
_ORDER: Final = {
    "ollama": (OLLAMA, OPENAI),
    "openai": (OPENAI, OLLAMA),
    RESPONSES: (_RESPONSES, OLLAMA, OPENAI),
    "anthropic": (OLLAMA, OPENAI),
}


class RareOptions(TypedDict, total=False):
    """What hardly anybody says about a request in bytes; the rest of `RequestOptions` are arguments of their own."""

    timeout_s: float | None
    cost: float
    idempotency_key: str
    tags: Iterable[str]
    instances: Iterable[str]


class RawAnswer(msgspec.Struct, frozen=True, gc=False):
    """A whole answer in the caller's API. A struct: made for every answer.

    Args:
        status: HTTP status, from 200 to 299.
        content_type: As that API has it.
        body: JSON.
        usage: The tokens it says it took; None when it says nothing.
    """

    status: int
    content_type: str
    body: bytes
    usage: Usage | None = None


@lru_cache(64)
def point(dialect: str, path: str) -> tuple[Endpoint, Callable[[bytes], Peek]]:
    """An endpoint, and what tells what a request to it says on its face.

    That raises `InvalidRequest` where no model can be read from it.

    Raises:
        UnknownName: There is no such dialect, or no such endpoint in it.
    """
    client = CLIENTS.get(dialect)
    if client is None:
        raise UnknownName("dialect", dialect, CLIENTS)
    found = client.endpoints.get(path)
    if found is not None:
        return found, partial(client.peek, found)
    if dialect == "ollama" and path == SHOW_POINT.path:
        return SHOW_POINT, peek_show
    raise UnknownName("endpoint", path, client.endpoints)


@lru_cache(1024)
def needs_of(dialect: str, model: str) -> Requirements:
    """What a request in the bytes of a client API needs, in the order that suits that API.

    Raises:
        InvalidRequest: No model has such a long name.
    """
    return Requirements(accepts=_ORDER[dialect], capabilities=models.wanted(model))


def parsed(request: Request) -> Parsed:
    """The whole request, in canonical form.

    Raises:
        InvalidRequest: It cannot be read, or asks for what the protocol cannot express.
    """
    client = CLIENTS[request.dialect]
    return client.parse(client.endpoints[request.endpoint], request.body or b"")


def answer(dialect: str, body: bytes, status: int = 200, took: Usage | None = None) -> RawAnswer:
    """A body with the content type of its API."""
    return RawAnswer(status, CLIENTS[dialect].plain_type, body, took)


def rendered(request: Request, parsed: Parsed, canonical: Mapping[str, Any]) -> RawAnswer:
    """A canonical answer in the caller's API."""
    body = CLIENTS[request.dialect].answer(parsed, canonical)
    return answer(request.dialect, body, took=usage.of_canonical(canonical))


def passed(api: str, url: str, reply: Reply) -> RawAnswer:
    """An answer that passes as it is.

    Raises:
        InstanceFailure: It is an error in spite of its status, or no JSON.
    """
    if reply.content_type != JSON_TYPE:
        raise InstanceFailure(FailureKind.SERVER_ERROR, f"{url} answered {reply.content_type}, not JSON")
    body = reply.body
    found = usage.said(body)
    if found is None or found.error is not None:
        check_whole(body)
        check_object(body)
    return RawAnswer(reply.status, CLIENTS[api].plain_type, body, usage.of_said(found))


def streams(api: str, url: str, content_type: str) -> bool:
    """Whether an answer comes in parts: an API may answer as a whole although a stream was asked for.

    Raises:
        InstanceFailure: It is neither, but a page, say.
    """
    wanted = CLIENTS[api].stream_type
    if content_type not in (wanted, JSON_TYPE):
        raise InstanceFailure(FailureKind.SERVER_ERROR, f"{url} answered {content_type}, not {wanted}")
    return content_type == wanted
