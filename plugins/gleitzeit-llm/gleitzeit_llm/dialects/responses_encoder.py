"""Canonical parts as the typed, numbered events of OpenAI's Responses API. Their keys are sorted, as recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gleitzeit_llm.dialects.responses_answers import status_of, text_part, thoughts_of
from gleitzeit_llm.dialects.sse import event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gleitzeit_llm.dialects.responses_answers import Answers
    from gleitzeit_llm.protocol import Json

_ENCODER = msgspec.json.Encoder(order="sorted")
# What the events about an item's content are called.
_TEXT, _THOUGHTS = "response.output_text", "response.reasoning_summary_text"


class ResponsesEncoder:
    """One stream of events.

    Args:
        answers: Writes the objects in them.
    """

    __slots__ = ("_answers", "_begun", "_complete", "_kind", "_logprobs", "_number", "_open", "_output", "_said")

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._begun = self._complete = False
        self._number = 0
        self._output: list[Json] = []
        # The item that is being told, what its events are called, and what was told of it so far.
        self._open: Json | None = None
        self._kind = ""
        self._said: list[str] = []
        self._logprobs: list[Json] = []

    def part(self, part: Mapping[str, Any]) -> bytes:
        """See `StreamEncoder.part`."""
        events: list[Json] = []
        if not self._begun:
            self._begun = True
            response = self._answers.begun(part)
            events += [_event(f"response.{name}", response=response) for name in ("created", "in_progress")]
        said = part.get("message") or {}
        if said.get("thinking"):
            events += self._more(_THOUGHTS, said["thinking"], ())
        if said.get("content"):
            events += self._more(_TEXT, said["content"], part.get("logprobs") or ())
        for call in said.get("tool_calls") or ():
            events += self._call(call)
        if part.get("done") is True:
            events += self._end(part)
        return b"".join(map(self._written, events))

    def finish(self) -> bytes:
        """See `StreamEncoder.finish`. The last event says that it is."""
        return b""

    def error(self, message: str, code: str | None = None) -> bytes:
        """See `StreamEncoder.error`."""
        return error_event(message, code, self._number)

    def _more(self, kind: str, text: str, logprobs: Sequence[Json]) -> list[Json]:
        events = [] if self._kind == kind else [*self._close(), *self._into(kind)]
        self._said.append(text)
        self._logprobs += logprobs
        return [*events, self._of_item(f"{kind}.delta", delta=text, **_with_logprobs(kind, logprobs))]

    def _into(self, kind: str) -> list[Json]:
        """Begin another item."""
        item = self._answers.message(None) if kind == _TEXT else self._answers.reasoning("")
        self._open, self._kind = item, kind
        added = _event("response.output_item.added", output_index=len(self._output), item=item)
        return [added, self._of_item("response.content_part.added", part=text_part(""))] if kind == _TEXT else [added]

    def _close(self, status: str = "completed") -> list[Json]:
        """End the item that is open."""
        if self._open is None:
            return []
        kind, text, logprobs = self._kind, "".join(self._said), self._logprobs
        events = [self._of_item(f"{kind}.done", text=text, **_with_logprobs(kind, logprobs))]
        if kind == _TEXT:
            content = text_part(text, logprobs)
            item = {**self._open, "content": [content], "status": status}
            events.append(self._of_item("response.content_part.done", part=content))
        else:
            item = {**self._open, **thoughts_of(text)}
        events.append(_event("response.output_item.done", output_index=len(self._output), item=item))
        self._output.append(item)
        self._open, self._kind, self._said, self._logprobs = None, "", [], []
        return events

    def _call(self, call: Mapping[str, Any]) -> list[Json]:
        """The whole call: its arguments are known when the call is."""
        closed = self._close()
        item, index = self._answers.call(call), len(self._output)
        self._output.append(item)
        at = {"item_id": item["id"], "output_index": index}
        begun = {**item, "arguments": "", "status": "in_progress"}
        name, arguments = "response.function_call_arguments", item["arguments"]
        return [
            *closed,
            _event("response.output_item.added", output_index=index, item=begun),
            _event(f"{name}.delta", delta=arguments, **at),
            _event(f"{name}.done", arguments=arguments, name=item["name"], **at),
            _event("response.output_item.done", output_index=index, item=item),
        ]

    def _end(self, part: Mapping[str, Any]) -> list[Json]:
        self._complete = True
        # An answer without a word is one nevertheless.
        events = [] if self._open or self._output else self._into(_TEXT)
        events += self._close(status_of(part))
        response = self._answers.ended(part, self._output)
        return [*events, _event(f"response.{response['status']}", response=response)]

    def _of_item(self, kind: str, /, **more: Any) -> Json:  # noqa: ANN401 - fields of the event
        item_id = self._open["id"] if self._open else ""
        at = {"content_index" if self._kind == _TEXT else "summary_index": 0}
        return _event(kind, item_id=item_id, output_index=len(self._output), **at, **more)

    def _written(self, data: Json) -> bytes:
        numbered = {**data, "sequence_number": self._number}
        self._number += 1
        return event(_ENCODER.encode(numbered), data["type"].encode())


def error_event(message: str, code: str | None, number: int) -> bytes:
    """An error inside the stream, as the event with this number."""
    found = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": number}
    return event(_ENCODER.encode(found), b"error")


def _event(kind: str, /, **data: Any) -> Json:  # noqa: ANN401 - fields of the event
    return {"type": kind, **data}


def _with_logprobs(kind: str, logprobs: Sequence[Json]) -> Json:
    return {"logprobs": list(logprobs)} if kind == _TEXT else {}
