"""Ollama's counts and durations, from what an OpenAI server says and what was measured here.

Durations are whole nanoseconds. What is neither said nor measured is left out, as Ollama does with zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gleitzeit_llm.dialects.openai_wire import Timings, Usage

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000


def counts(
    usage: Usage | None,
    timings: Timings | None,
    *,
    elapsed_s: float | None = None,
    first_output_s: float | None = None,
) -> dict[str, int]:
    """The fields at the end of a final part, in Ollama's order.

    Args:
        usage: Token counts of the server.
        timings: llama.cpp's measurements; they beat ours.
        elapsed_s: Seconds from the request to the end.
        first_output_s: Seconds from the request to the first output; for streams.
    """
    reading, writing = _measured(elapsed_s, first_output_s)
    if timings is not None:
        reading = _ns(timings.prompt_ms, _NS_PER_MS) or reading
        writing = _ns(timings.predicted_ms, _NS_PER_MS) or writing
    found = {
        "total_duration": _ns(elapsed_s, _NS_PER_S),
        "prompt_eval_count": usage.prompt_tokens if usage else None,
        "prompt_eval_duration": reading,
        "eval_count": usage.completion_tokens if usage else None,
        "eval_duration": writing,
    }
    return {name: value for name, value in found.items() if value}


def _measured(elapsed_s: float | None, first_output_s: float | None) -> tuple[int | None, int | None]:
    """Reading the prompt lasts until the first output, writing from there to the end."""
    if elapsed_s is None or first_output_s is None:
        return None, None
    return _ns(first_output_s, _NS_PER_S), _ns(elapsed_s - first_output_s, _NS_PER_S)


def _ns(value: float | None, factor: int) -> int | None:
    return None if value is None else max(0, round(value * factor))
