"""The protocol's own helpers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.protocol import (
    CHAT,
    EMBED,
    GENERATE,
    UpstreamError,
    final,
    is_absent,
    load_answer,
    model_of,
    part,
    timestamp,
    unix_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.fidelity

NOW = datetime(2026, 11, 21, 3, 45, 32, 466330, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "method"),
    [("chat_load", CHAT), ("generate_load", GENERATE), ("generate_unload", GENERATE)],
)
def test_a_load_is_answered_as_recorded(recorded: Callable[[str], Any], name: str, method: str) -> None:
    """A request without anything to do gets Ollama's answer, key by key."""
    exchange = recorded(f"ollama/{name}")
    answer = load_answer(method, exchange.request, NOW)
    assert answer is not None
    assert list(answer) == list(exchange.answer)
    assert {**answer, "created_at": 0} == {**exchange.answer, "created_at": 0}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (CHAT, {"messages": [{"role": "user", "content": ""}]}),
        (GENERATE, {"prompt": "x", "keep_alive": 0}),
        (EMBED, {"input": ["x"]}),
        (EMBED, {"input": [""]}),
        ("llm/models", {}),
    ],
)
def test_work_is_not_taken_for_a_load(method: str, params: dict[str, Any]) -> None:
    """A request with input, whatever its keep_alive, is work, and so is every other method."""
    assert load_answer(method, {"model": "m", **params}, NOW) is None


@pytest.mark.parametrize("messages", [None, [], ""])
def test_an_empty_input_loads(messages: object) -> None:
    """Null, an empty list and an empty string are all no input."""
    for method, name in ((CHAT, "messages"), (GENERATE, "prompt")):
        answer = load_answer(method, {"model": "m", name: messages}, NOW)
        assert answer is not None
        assert answer["done_reason"] == "load"


@pytest.mark.parametrize("given", [None, "", []])
def test_an_empty_embedding_loads(given: object) -> None:
    """Without input, llm/embed answers no embeddings."""
    assert load_answer(EMBED, {"model": "m", "input": given}, NOW) == {"model": "m", "embeddings": []}


@pytest.mark.parametrize(
    ("keep_alive", "reason"),
    [
        (0, "unload"),
        (0.0, "unload"),
        ("0", "unload"),
        ("0s", "unload"),
        ("-0s", "unload"),
        ("0h0.0m", "unload"),
        (".0s", "unload"),
        (None, "load"),
        (-1, "load"),
        (300, "load"),
        ("5m", "load"),
        ("0h1s", "load"),
        ("", "load"),
        ("zero", "load"),
        (False, "load"),
        ([0], "load"),
    ],
)
def test_keep_alive_zero_unloads(keep_alive: object, reason: str) -> None:
    """Zero seconds unload, as a number and as a duration of Go; nothing else does."""
    answer = load_answer(CHAT, {"model": "m", "keep_alive": keep_alive}, NOW)
    assert answer is not None
    assert answer["done_reason"] == reason


def test_a_load_needs_a_model() -> None:
    """A load without a model is refused, as in all requests."""
    with pytest.raises(InvalidRequest, match="model is required"):
        load_answer(CHAT, {"messages": []}, NOW)


@pytest.mark.parametrize(("model", "text"), [(None, "model is required"), ("", "model is required"), (3, "a string")])
def test_a_model_is_a_name(model: object, text: str) -> None:
    """A missing, empty or other model is refused, and the error names the field."""
    with pytest.raises(InvalidRequest, match=text) as caught:
        model_of({"model": model})
    assert caught.value.param == "model"


def test_an_upstream_error_says_who_spoke() -> None:
    """The instance's own report is told apart from what makes no sense."""
    assert UpstreamError("x", reported=True).reported
    assert not UpstreamError("x").reported
    assert UpstreamError("x").parts == ()


def test_timestamps_are_utc_with_a_z() -> None:
    """Any time zone becomes UTC."""
    assert timestamp(NOW) == "2026-11-21T03:45:32.466330Z"
    assert timestamp(NOW.astimezone(timezone(timedelta(hours=5)))) == "2026-11-21T03:45:32.466330Z"


@pytest.mark.parametrize(
    "text", ["2026-11-21T03:45:32.466330Z", "2026-11-21T03:45:32.46633009Z", "2026-11-21T04:45:32+01:00"]
)
def test_unix_time_reads_what_ollama_writes(text: str) -> None:
    """Nine digits of a second and any offset are read."""
    assert unix_time(text, NOW + timedelta(days=1)) == int(NOW.timestamp())


@pytest.mark.parametrize("text", [None, "", "yesterday", 3])
def test_an_unreadable_time_is_now(text: object) -> None:
    """What cannot be read is replaced."""
    assert unix_time(text, NOW) == int(NOW.timestamp())


def test_absent_values() -> None:
    """Null and empty lists and objects say nothing; zero, false and an empty string do."""
    assert all(is_absent(value) for value in (None, [], {}))
    assert not any(is_absent(value) for value in (0, False, "", [0], {"a": None}))


def test_parts_keep_ollamas_order(recorded: Callable[[str], Any]) -> None:
    """Built parts have the recorded keys in the recorded order."""
    parts = recorded("ollama/chat_thinking_stream").parts
    built = part(CHAT, "thinky", parts[0]["created_at"], thinking="The")
    assert (list(built), built) == (list(parts[0]), parts[0])
    counts = {key: parts[-1][key] for key in list(parts[-1]) if key.endswith(("_count", "_duration"))}
    last = final(CHAT, "thinky", parts[-1]["created_at"], reason="length", counts=counts)
    assert (list(last), last) == (list(parts[-1]), parts[-1])


def test_logprobs_stand_where_ollama_has_them(recorded: Callable[[str], Any]) -> None:
    """In a plain answer they come between the reason and the counts."""
    answer = recorded("ollama/chat_logprobs").answer
    built = final(CHAT, "m", "t", reason="length", text="x", logprobs=answer["logprobs"], counts={"total_duration": 1})
    assert list(built)[4:7] == list(answer)[4:7] == ["done_reason", "logprobs", "total_duration"]


def test_generate_has_its_own_place_for_words() -> None:
    """`response` and `thinking` stand beside `model`; tool calls have no place there."""
    assert part(GENERATE, "m", "t", text="a", thinking="b") == {
        "model": "m",
        "created_at": "t",
        "response": "a",
        "thinking": "b",
        "done": False,
    }
