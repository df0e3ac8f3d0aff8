"""The streams of OpenAI servers as canonical parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_llm.dialects import logprobs
from gleitzeit_llm.dialects.counts import counts
from gleitzeit_llm.dialects.openai_encoder import DONE
from gleitzeit_llm.dialects.openai_wire import read_answer
from gleitzeit_llm.dialects.sse import EventBuffer
from gleitzeit_llm.dialects.tool_calls import ToolCalls
from gleitzeit_llm.protocol import Json, UpstreamError, final, part, stopped_at, timestamp

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from gleitzeit_llm.dialects.openai_wire import Choice, Timings, Usage

# What Ollama says where OpenAI tells why in more detail. Other reasons, such as content_filter, keep their word.
_DONE_REASONS = {"tool_calls": "stop", "function_call": "stop"}


def done_reason(finish_reason: str | None) -> str:
    """`finish_reason` in Ollama's words."""
    return _DONE_REASONS.get(finish_reason or "stop", finish_reason or "stop")


class OpenAIStream:
    """Server-sent events with chunks of one answer.

    The final part waits for the token counts, which come after the chunk that says why the answer ended: until
    ``[DONE]``, or the end of the stream for servers that leave that out.

    Args:
        method: `llm/chat` or `llm/generate`.
        model: The model as the caller wrote it.
        wall: The time now, with its time zone.
        monotonic: Seconds on a clock that never goes back; measures from the making of this object.
    """

    def __init__(self, method: str, model: str, wall: Callable[[], datetime], monotonic: Callable[[], float]) -> None:
        self._method, self._model, self._wall, self._monotonic = method, model, wall, monotonic
        self._events = EventBuffer()
        self._calls = ToolCalls()
        self._began_s = monotonic()
        self._first_output_s: float | None = None
        self._reason: str | None = None
        self._stop_sequence = ""
        self._usage: Usage | None = None
        self._timings: Timings | None = None
        self._ended = False
        self.finished = False

    def feed(self, data: bytes) -> list[Json]:
        """See `StreamDecoder.feed`."""
        parts: list[Json] = []
        try:
            for event in self._events.feed(data):
                parts += self._take(event)
        except UpstreamError as error:
            error.parts = tuple(parts)
            raise
        return parts

    def close(self) -> list[Json]:
        """See `StreamDecoder.close`. A last event that was cut off leaves the answer incomplete, and is no error."""
        parts = self._rest()
        if self.finished and not self._ended:
            parts += self._end()
        return parts

    def _rest(self) -> list[Json]:
        try:
            event = self._events.close()
            return self._take(event) if event else []
        except UpstreamError as error:
            if error.reported:
                raise
            return []

    def _take(self, event: bytes) -> list[Json]:
        if self._ended:
            return []
        if event.strip() == DONE:
            self.finished = True
            return [*self._release_calls(), *self._end()]
        answer = read_answer(event)
        self._usage = answer.usage or self._usage
        self._timings = answer.timings or self._timings
        choice = answer.choice()
        return [] if choice is None else self._take_choice(choice)

    def _take_choice(self, choice: Choice) -> list[Json]:
        said = choice.said()
        found = logprobs.from_openai(choice.logprobs)
        text, thinking = said.text(), said.thinking()
        self._calls.add(said.tool_calls or ())
        if self._first_output_s is None and (text or thinking or said.tool_calls):
            self._first_output_s = self._monotonic() - self._began_s
        parts = []
        if text or thinking or found:
            parts.append(part(*self._head(), text=text, thinking=thinking, logprobs=found))
        if choice.finish_reason:  # some servers write an empty one where there is none
            self._reason = choice.finish_reason
            self._stop_sequence = choice.stop_sequence()
            self.finished = True
            parts += self._release_calls()
        return parts

    def _release_calls(self) -> list[Json]:
        calls = self._calls.release(self._reason)
        return [part(*self._head(), tool_calls=calls)] if calls else []

    def _head(self) -> tuple[str, str, str]:
        return self._method, self._model, timestamp(self._wall())

    def _end(self) -> list[Json]:
        self._ended = True
        elapsed_s = self._monotonic() - self._began_s
        found = counts(self._usage, self._timings, elapsed_s=elapsed_s, first_output_s=self._first_output_s)
        last = final(*self._head(), reason=done_reason(self._reason), counts=found)
        return [stopped_at(last, self._stop_sequence)]
