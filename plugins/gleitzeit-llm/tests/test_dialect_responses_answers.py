"""The dialect of OpenAI's Responses API: what clients are answered, whole and in parts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_llm.dialects import CLIENTS
from gleitzeit_llm.dialects.responses_client import ResponsesClient

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.fidelity
CLIENT = CLIENTS["openai-responses"]
ENDPOINT = CLIENT.endpoints["/v1/responses"]


def _shape(value: object) -> object:
    """Keys in order and types."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def _in_order(value: object) -> str:
    return json.dumps(_shape(value))


def _client() -> ResponsesClient:
    ids = count(1)
    return ResponsesClient(wall=lambda: datetime(2026, 1, 1, tzinfo=UTC), new_id=lambda: str(next(ids)))


def test_a_plain_answer_is_as_recorded(recorded: Callable[[str], Any]) -> None:
    """The keys of a real Ollama's answer, in their order, with their types; and what the model said."""
    real = recorded("ollama/v1_responses")
    client = _client()
    parsed = client.parse(ENDPOINT, real.sent)
    said = {"role": "assistant", "content": real.answer["output"][0]["content"][0]["text"]}
    answer = {"model": "smollm2", "message": said, "done": True, "done_reason": "stop", "prompt_eval_count": 16}
    found = json.loads(client.answer(parsed, {**answer, "eval_count": 8}))
    assert _in_order(found) == _in_order(real.answer)
    unlike = {"id", "created_at", "completed_at", "output"}
    assert {k: v for k, v in found.items() if k not in unlike} == {
        k: v for k, v in real.answer.items() if k not in unlike
    }


def test_a_stream_is_as_recorded(recorded: Callable[[str], Any]) -> None:
    """Event by event: names, keys in their order, types, numbers and texts."""
    real = recorded("ollama/v1_responses_stream")
    client = _client()
    encoder = client.stream_encoder(client.parse(ENDPOINT, real.sent))
    lines = [line for line in real.lines if line]
    texts = [json.loads(line[6:])["delta"] for line in lines if '"response.output_text.delta"' in line]
    parts: list[dict[str, Any]] = [{"message": {"content": text}, "done": False} for text in texts]
    parts.append({"message": {"content": ""}, "done": True, "done_reason": "stop", "eval_count": 8})
    written = b"".join(encoder.part({"model": "smollm2", **part}) for part in parts) + encoder.finish()
    given = [line for line in written.decode().split("\n") if line]
    assert [line for line in given if line.startswith("event")] == [line for line in lines if line.startswith("event")]
    for ours, theirs in zip(given[1::2], lines[1::2], strict=True):
        mine, real_event = json.loads(ours.removeprefix("data: ")), json.loads(theirs.removeprefix("data: "))
        assert _in_order(mine) == _in_order(real_event)
        assert mine["sequence_number"] == real_event["sequence_number"]
        assert mine.get("delta") == real_event.get("delta")


def test_thoughts_are_told_before_the_words() -> None:
    """As an item of their own, in the events that Ollama's own server has for them."""
    client = _client()
    encoder = client.stream_encoder(client.parse(ENDPOINT, b'{"model":"m","input":"hi"}'))
    said = [{"thinking": "h"}, {"thinking": "m"}, {"content": "x"}, {"tool_calls": [{"function": {"name": "f"}}]}]
    parts = [*({"message": one, "done": False} for one in said), {"done": True, "done_reason": "stop"}]
    lines = b"".join(encoder.part({"model": "m", **part}) for part in parts).decode().split("\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    thoughts = {"summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "hm"}
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added"),
        *("reasoning_summary_text.delta", "reasoning_summary_text.delta", "reasoning_summary_text.done"),
        *("output_item.done", "output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done", "output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in events] == list(range(18))
    assert (events[3]["summary_index"], events[3]["delta"], events[5]["text"]) == (0, "h", "hm")
    assert events[6]["item"] == {"id": "2", "type": "reasoning", **thoughts} | {"id": events[2]["item"]["id"]}
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["reasoning", "message", "function_call"]
    assert [event.get("output_index") for event in events[2:-1]] == [0] * 5 + [1] * 6 + [2] * 4


def test_an_answer_that_was_cut() -> None:
    """It is incomplete, and so is its last item."""
    client = _client()
    parsed = client.parse(ENDPOINT, b'{"model":"m","input":"hi"}')
    for reason, told in (("length", "max_output_tokens"), ("content_filter", "content_filter")):
        answer = {"model": "m", "message": {"content": "x"}, "done": True, "done_reason": reason}
        found = json.loads(client.answer(parsed, answer))
        assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": told})
        assert (found["output"][0]["status"], found["completed_at"]) == ("incomplete", None)


def test_an_answer_without_a_word_has_a_message() -> None:
    """Whole and in parts, so that clients find what they look for."""
    client = _client()
    parsed = client.parse(ENDPOINT, b'{"model":"m","input":"hi"}')
    empty = {"model": "m", "message": {"content": ""}, "done": True, "done_reason": "stop"}
    assert json.loads(client.answer(parsed, empty))["output"][0]["content"][0]["text"] == ""
    last = client.stream_encoder(parsed).part(empty).decode().split("data: ")[-1]
    assert json.loads(last)["response"]["output"][0]["content"][0]["text"] == ""


def test_an_error_in_a_stream_has_the_next_number() -> None:
    """It is an event of its own, and nothing follows it."""
    client = _client()
    encoder = client.stream_encoder(client.parse(ENDPOINT, b'{"model":"m","input":"hi"}'))
    encoder.part({"model": "m", "message": {"content": "x"}, "done": False})
    name, data, *_ = encoder.error("it died", "instance_failure").decode().split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: ")) == {
        "code": "instance_failure",
        "message": "it died",
        "param": None,
        "sequence_number": 5,
        "type": "error",
    }
    assert json.loads(client.error_body(404, "gone"))["error"]["type"] == "not_found_error"
