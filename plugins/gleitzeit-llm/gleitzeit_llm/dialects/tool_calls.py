"""Tool calls of OpenAI servers, put together from their pieces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from gleitzeit_llm.protocol import UNREADABLE, Json, UpstreamError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gleitzeit_llm.dialects.openai_wire import ToolCall

MAX_ARGUMENT_CHARACTERS = 16 * 1024 * 1024
"""How long the arguments of one call may grow before the answer is given up."""


@dataclass(slots=True)
class _Call:
    """One call so far."""

    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    characters: int = 0
    arguments: Json | None = None

    def add(self, piece: ToolCall) -> None:
        self.id = self.id or piece.id or ""
        if piece.function is None:
            return
        self.name = self.name or piece.function.name or ""
        if isinstance(piece.function.arguments, dict):
            # Not OpenAI's form, but some servers have the object itself.
            self.arguments = piece.function.arguments
        elif isinstance(piece.function.arguments, str):
            self._lengthen(piece.function.arguments)

    def _lengthen(self, arguments: str) -> None:
        self.characters += len(arguments)
        if self.characters > MAX_ARGUMENT_CHARACTERS:
            raise UpstreamError(f"the instance sent tool call arguments over {MAX_ARGUMENT_CHARACTERS} characters")
        self.pieces.append(arguments)

    def parsed(self) -> Json | None:
        """The arguments; none at all are an empty object, and what is no JSON object is None."""
        if self.arguments is not None:
            return self.arguments
        text = "".join(self.pieces)
        try:
            found = msgspec.json.decode(text) if text.strip() else {}
        except UNREADABLE:
            return None
        return found if isinstance(found, dict) else None


class ToolCalls:
    """Collects the calls of one answer."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}

    def add(self, pieces: Iterable[ToolCall]) -> None:
        """Take the pieces of one message or delta.

        Raises:
            UpstreamError: Arguments grow beyond the limit.
        """
        for position, piece in enumerate(pieces):
            index = position if piece.index is None else piece.index
            self._calls.setdefault(index, _Call()).add(piece)

    def release(self, finish_reason: str | None) -> list[Json]:
        """The canonical calls, in order; the collection is empty afterwards.

        A call that was cut off because the answer grew too long (`finish_reason` is ``length``) is left out:
        Ollama has no form for half a call, and says ``length`` as well.

        Raises:
            UpstreamError: The arguments of a complete call are not a JSON object.
        """
        calls, self._calls = self._calls, {}
        found = []
        for index, call in sorted(calls.items()):
            arguments = call.parsed()
            if arguments is not None:
                found.append(_canonical(index, call, arguments))
            elif finish_reason != "length":
                raise UpstreamError(f"the model called {call.name!r} with arguments that are not a JSON object")
        return found


def _canonical(index: int, call: _Call, arguments: Json) -> Json:
    function = {"index": index, "name": call.name, "arguments": arguments}
    return {"id": call.id, "function": function} if call.id else {"function": function}
