"""What follows from the head of a request alone: who calls, and what answers it.

It is found out once for each head, not for each request: those that a connection carries mostly have the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gleitzeit_gateway.access import cors, is_this_machine, preflight
from gleitzeit_gateway.answers import Whole
from gleitzeit_gateway.callers import ANYBODY
from gleitzeit_gateway.errors import Refused, plain_error
from gleitzeit_gateway.via import Via

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from gleitzeit_gateway.access import Access
    from gleitzeit_gateway.call import Call
    from gleitzeit_gateway.callers import Caller
    from gleitzeit_gateway.endpoints import Endpoint, Match, Router

logger = logging.getLogger(__name__)

AFFINITY: Final = "X-Gleitzeit-Affinity"
_TEXT: Final = "text/plain"


@dataclass(frozen=True, slots=True)
class Passage:
    """One that may pass. Who may not is judged each time.

    Args:
        access: By whose word; where it is not in force any more, nothing of this holds.
        endpoint: What answers.
        rest: What a path ending in ``*`` matched there.
        caller: Whose key was used, and what it may do.
        admin: Whether the caller may change the pool.
        affinity: What the caller names to keep requests together.
        chain: Where the request has been, and is now; see `Via`.
        cors: Headers that let the page that asks read the answer; empty for what is no page.
    """

    access: Access
    endpoint: Endpoint
    rest: str
    caller: Caller
    admin: bool
    affinity: str
    chain: str
    cors: Mapping[str, str]


class Door:
    """Where requests come in.

    Args:
        router: Knows what answers which path.
        access: Knows who may call.

    Attributes:
        access: May be replaced: all heads are judged anew then.
    """

    def __init__(self, router: Router, access: Access) -> None:
        self._router, self._via = router, Via()
        self.access = access

    def __repr__(self) -> str:
        """By whose word."""
        return f"<Door of {self.access!r}>"

    def passage(self, call: Call) -> Passage | Whole | web.Response:
        """What the head of a request leads to, or how it is refused for that."""
        head = call.request.head
        found = head.verdict
        if not isinstance(found, Passage) or found.access is not self.access:
            found = self._judged(call)
            if isinstance(found, Passage):
                head.verdict = found
        return found

    def _judged(self, call: Call) -> Passage | Whole | web.Response:
        headers = call.request.headers
        origin = headers.get("Origin")
        # Whatever was asked for, foreign pages are refused, and a browser's question is answered.
        if not self.access.host_allowed(headers.get("Host", "")):
            call.error = "foreign_host"
            return Whole(b"", status=403)
        if origin is not None and not self.access.origin_allowed(origin):
            call.error = "foreign_origin"
            return Whole(b"", status=403)
        call.headers.update(allowed := {} if origin is None else cors(origin))
        if origin is not None and call.request.method == "OPTIONS":
            return Whole(b"", status=204, headers=preflight())
        match = self._router.find(call.request.method, call.request.path)
        if match.endpoint is None:
            return _no_endpoint(match)
        try:
            chain = self._via.chain(headers)
            caller, admin = self._caller(call, match.endpoint)
        except Refused as error:
            call.note_error(error)
            return rendered(match.endpoint, error)
        affinity = headers.get(AFFINITY, "")
        return Passage(self.access, match.endpoint, match.rest, caller, admin, affinity, chain, allowed)

    def _caller(self, call: Call, endpoint: Endpoint) -> tuple[Caller, bool]:
        """Who calls, and whether it may change the pool.

        Raises:
            Refused: It has no key, and one is needed.
        """
        if endpoint.public:
            return ANYBODY, False
        if not self.access.keys_needed:
            return self.access.anybody, endpoint.admin and is_this_machine(call.request.remote)
        caller = self.access.caller_of(call.request.headers)
        if caller is None:
            raise Refused(401, "a valid API key is needed: send it as 'Authorization: Bearer KEY'", "unauthorized")
        return caller, caller.admin


def rendered(endpoint: Endpoint, error: Exception) -> web.Response:
    """`error` in the endpoint's envelope, or in our own when that fails: it may be a plugin's."""
    try:
        return endpoint.error(error)
    except Exception:
        logger.exception("%s %s: its error renderer failed", endpoint.method, endpoint.path)
        return plain_error(error)


def _no_endpoint(match: Match) -> Whole:
    """Unknown paths and methods, in the words of Ollama."""
    if match.allowed:
        allow = {"Allow": ", ".join(match.allowed)}
        return Whole(b"405 method not allowed", status=405, content_type=_TEXT, headers=allow)
    return Whole(b"404 page not found", status=404, content_type=_TEXT)
