"""What a test sees of a server: a record per request, counters, and waiting for a state."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from gleitzeit_ollama.testing.golang import BadBody, JsonObject, loads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gleitzeit_ollama.testing.faults import Fault

Subject = TypeVar("Subject")


@dataclass(slots=True)
class RequestRecord:
    """One request, from its arrival on; the server updates it as it goes.

    Args:
        index: 1 for the first request.
        method: HTTP method.
        path: without the query.
        query: the query, without the question mark.
        headers: as they came; they may hold keys, so they are not in the `repr`.
        body: as it came; not in the `repr` either.
        fault: what the script did to it.
        status: of the answer; 0 until its headers were sent.
        parts: lines or events sent so far; halves of a plain answer.
        tokens: tokens sent so far; for a plain answer, computed so far.
        started: its body has arrived and it is being answered.
        finished: the server is through with it, whichever way.
        disconnected: the client left before its answer was complete.
        cut: the server closed the connection on purpose.
    """

    index: int
    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    fault: Fault | None = None
    status: int = 0
    parts: int = 0
    tokens: int = 0
    started: bool = False
    finished: bool = False
    disconnected: bool = False
    cut: bool = False

    @property
    def json(self) -> JsonObject:
        """The body as a JSON object; empty where it is none."""
        try:
            value = loads(self.body)
        except BadBody:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def model(self) -> str:
        """The model the request names, or the empty text."""
        name = self.json.get("model")
        return name if isinstance(name, str) else ""

    @property
    def body_digest(self) -> str:
        """The digest of the body, as blobs are named."""
        return f"sha256:{hashlib.sha256(self.body).hexdigest()}"


class Watch(Generic[Subject]):
    """Wakes those who wait for a state, at the change that brings it about.

    Every predicate is asked at every change, at once, so that no state is too short to be seen.
    """

    def __init__(self) -> None:
        self._waiters: list[tuple[Callable[[Subject], object], asyncio.Future[None]]] = []

    def __len__(self) -> int:
        return len(self._waiters)

    def changed(self, subject: Subject) -> None:
        """Ask all predicates; one that raises gives its error to the one who waits."""
        for predicate, waiter in list(self._waiters):
            if not waiter.done():
                _settle(waiter, predicate, subject)

    async def wait_for(self, subject: Subject, predicate: Callable[[Subject], object]) -> None:
        """Return as soon as `predicate(subject)` is true, at once if it is."""
        if predicate(subject):
            return
        waiter = asyncio.get_running_loop().create_future()
        entry = (predicate, waiter)
        self._waiters.append(entry)
        try:
            await waiter
        finally:
            self._waiters.remove(entry)


def _settle(waiter: asyncio.Future[None], predicate: Callable[[Subject], object], subject: Subject) -> None:
    try:
        if predicate(subject):
            waiter.set_result(None)
    except Exception as error:  # noqa: BLE001 - it belongs to the one who waits
        waiter.set_exception(error)
