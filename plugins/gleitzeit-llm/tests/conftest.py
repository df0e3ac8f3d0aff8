"""What the tests of gleitzeit-llm share: recordings of real servers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

RECORDINGS = Path(__file__).parent / "recordings"


@dataclass(frozen=True)
class Exchange:
    """One recorded request and its answer.

    Args:
        request: The request's body: decoded JSON, or the string that was sent.
        status: The answer's status.
        headers: The answer's headers.
        lines: The lines of a stream; empty for a plain answer.
        answer: The decoded body of a plain answer.
    """

    request: Any
    status: int
    headers: dict[str, str]
    lines: list[str]
    answer: Any

    @property
    def sent(self) -> bytes:
        """The bytes of the request's body."""
        return self.request.encode() if isinstance(self.request, str) else json.dumps(self.request).encode()

    @property
    def body(self) -> bytes:
        """The bytes of the answer's body; of a plain one up to white space."""
        return "\n".join(self.lines).encode() if self.lines else json.dumps(self.answer).encode()

    @property
    def events(self) -> list[Any]:
        """The decoded data of each server-sent event, `[DONE]` as it is."""
        data = [line.removeprefix("data: ") for line in self.lines if line]
        return [item if item == "[DONE]" else json.loads(item) for item in data]

    @property
    def parts(self) -> list[Any]:
        """The decoded lines of an NDJSON stream."""
        return [json.loads(line) for line in self.lines if line]


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Exchange]:
    """Load a recording by its path below `recordings`, without `.json`."""

    def load(name: str) -> Exchange:
        found = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
        response = found["response"]
        return Exchange(
            request=found["request"]["body"],
            status=response["status"],
            headers=response.get("headers", {}),
            lines=response.get("lines", []),
            answer=response.get("json", response.get("text")),
        )

    return load
