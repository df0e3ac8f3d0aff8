"""The parts of the stand-in that need no socket: Go's JSON, gates, names, replies, faults as JSON."""

from __future__ import annotations

import asyncio
import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_ollama.testing import (
    Ask,
    Busy,
    Catalogue,
    DropAfter,
    DropBeforeHeaders,
    ErrorLineAfter,
    Fault,
    Garbage,
    Gate,
    Hang,
    HangBeforeHeaders,
    Model,
    Reply,
    SlowLoad,
    StallAfter,
    Status,
    TruncateAfter,
    Unauthorized,
    echo,
    fixed,
    golang,
)
from gleitzeit_ollama.testing.models import full_name, qualified_name
from gleitzeit_ollama.testing.records import Watch
from gleitzeit_ollama.testing.replies import as_reply, example_of, tokens_of
from gleitzeit_ollama.testing.script import fault_from_json, fault_to_json
from gleitzeit_ollama.testing.vectors import raw_vector, unit_vector

# Go's JSON, times and durations


def test_dumps_escapes_as_go_does() -> None:
    """HTML's characters are escaped, others are not, and half a surrogate does no harm."""
    assert golang.dumps({"a": "<b> & ü\ud800"}) == '{"a":"\\u003cb\\u003e \\u0026 ü?"}'.encode()


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_dumps_and_loads_agree(value: dict[str, object]) -> None:
    """What is written can be read, whatever the texts."""
    assert golang.loads(golang.dumps(value)) == json.loads(json.dumps(value).encode())


@given(st.binary())
def test_loads_never_fails_otherwise(body: bytes) -> None:
    """Any bytes are JSON or a complaint with a text."""
    try:
        golang.loads(body)
    except golang.BadBody as error:
        assert str(error)


@pytest.mark.parametrize(
    ("value", "wanted_s"),
    [
        (0, 0.0),
        (90, 90.0),
        (1.5, 1.5),
        (-1, math.inf),
        ("0", 0.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("+2ms", 0.002),
        ("-1s", math.inf),
    ],
)
def test_duration(value: object, wanted_s: float) -> None:
    """Numbers are seconds, texts are Go's durations, and what is negative is for ever."""
    assert golang.duration_s(value) == pytest.approx(wanted_s)


@pytest.mark.parametrize("value", ["", "5", "m", "5 m", "5m!", "1h30", [], {}, True])
def test_bad_duration(value: object) -> None:
    """Anything else is a complaint."""
    with pytest.raises(golang.BadBody, match=r"invalid duration|Unsupported type"):
        golang.duration_s(value)


@pytest.mark.parametrize(
    ("epoch_s", "wanted"),
    [(0, "1970-01-01T00:00:00Z"), (1.5, "1970-01-01T00:00:01.5Z"), (1795232734.25, "2026-11-21T03:45:34.25Z")],
)
def test_timestamp(epoch_s: float, wanted: str) -> None:
    """Trailing zeros of the fraction are cut, as Go cuts them."""
    assert golang.timestamp(epoch_s) == wanted


# Gates


async def test_gate_keeps_the_order() -> None:
    """Tokens pass in the order in which they came, as many as are allowed."""
    gate, passed = Gate(1), list[int]()

    async def token(number: int) -> None:
        await gate.acquire()
        passed.append(number)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(token(number)) for number in range(4)]
        await tasks[0]
        assert (passed, gate.waiting, repr(gate)) == ([0], 3, "<Gate 0 allowed, 3 waiting>")
        gate.allow(2)
        await tasks[2]
        assert passed == [0, 1, 2]
        gate.open()
    assert passed == [0, 1, 2, 3]
    assert repr(gate) == "<Gate open, 0 waiting>"


async def test_closed_gate_holds_again() -> None:
    """After `close` only what was allowed passes."""
    gate = Gate(is_open=True)
    await gate.acquire()
    gate.close()
    waiting = asyncio.create_task(gate.acquire())
    await asyncio.sleep(0)
    assert gate.waiting == 1
    gate.allow()
    await waiting


@pytest.mark.parametrize("allowed_first", [True, False])
async def test_cancelled_token_takes_nothing(*, allowed_first: bool) -> None:
    """A token that is cancelled, even after it was let through, leaves its leave to the next."""
    gate = Gate()
    first, second = (asyncio.create_task(gate.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    if allowed_first:
        gate.allow()
        first.cancel()
    else:
        first.cancel()
        gate.allow()
    await second
    assert first.cancelled() or first.cancelling()
    assert gate.waiting == 0


# Waiting for a state


async def test_watch_forgets_those_who_no_longer_wait() -> None:
    """Neither a wait that came true nor one that was cancelled is kept."""
    watch, seen = Watch[list[int]](), list[int]()
    first, second = (asyncio.create_task(watch.wait_for(seen, len)) for _ in range(2))
    await asyncio.sleep(0)
    assert len(watch) == 2
    first.cancel()
    seen.append(1)
    watch.changed(seen)
    await second
    await watch.wait_for(seen, len)
    assert (first.cancelled(), len(watch)) == (True, 0)


# Names of models


@pytest.mark.parametrize(
    ("name", "full", "qualified"),
    [
        ("smollm2", "smollm2:latest", "registry.example/library/smollm2:latest"),
        ("qwen3:1b", "qwen3:1b", "registry.example/library/qwen3:1b"),
        ("me/mine", "me/mine:latest", "registry.example/me/mine:latest"),
        ("host.example:5000/me/mine", "host.example:5000/me/mine:latest", "host.example:5000/me/mine:latest"),
    ],
)
def test_names(name: str, full: str, qualified: str) -> None:
    """A name without a tag has the tag `latest`, and without a host and namespace the usual ones."""
    assert (full_name(name), qualified_name(name)) == (full, qualified)


@pytest.mark.parametrize("name", ["", " ", "a b", ":x", "a:", "a//b", "a/b/c/d", "-a", "a:b:c"])
def test_bad_name(name: str) -> None:
    """What has not the form of a name is refused, with the form."""
    with pytest.raises(ValueError, match=r"is not a model's name \(\[\[host/\]namespace/\]model\[:tag\]\)"):
        Model(name)


def test_parse_reads_capabilities() -> None:
    """`+` adds capabilities; the recorded models have theirs without."""
    assert Model.parse("a:1b+tools+thinking").capabilities == ("tools", "thinking")
    assert [Model.parse(name).capabilities for name in ("thinky", "toolsy", "a")] == [("thinking",), ("tools",), ()]


def test_catalogue_lists_the_latest_first() -> None:
    """Models are listed by the time of their last change, and found without regard to case."""
    catalogue = Catalogue([Model("old", modified_at_s=1), Model("new", modified_at_s=2)])
    assert [model.name for model in catalogue] == ["new:latest", "old:latest"]
    assert catalogue.find("OLD") is catalogue.find("old:latest")
    assert not catalogue.copy("none", "x")
    assert catalogue.remove("none") is None
    assert (len(catalogue), repr(catalogue)) == (2, "<Catalogue new:latest, old:latest>")


# Replies


@given(st.text())
def test_tokens_join_to_the_text(text: str) -> None:
    """Split and joined, a text is the same."""
    assert "".join(tokens_of(text)) == text


def test_echo_and_fixed() -> None:
    """The default repeats the prompt; `fixed` says its text always."""
    ask = Ask("/api/chat", "m", "hello there")
    assert "".join(echo(ask).tokens) == "You said: hello there"
    assert as_reply(fixed("a b")(ask)) == Reply(["a", " b"])


def test_echo_of_odd_tools() -> None:
    """A tool without a function or parameters is called as well as it can be."""
    calls = [echo(Ask("/", "m", "p", tools=[tool])).tool_calls[0] for tool in ({}, {"function": {"name": "f"}})]
    assert [(call.name, dict(call.arguments)) for call in calls] == [("unnamed", {}), ("f", {})]


def test_as_reply() -> None:
    """A text, a list of texts and a reply are replies; anything else is a mistake of the test."""
    assert as_reply("a b") == as_reply(Reply(["a", " b"]))
    with pytest.raises(TypeError, match="a reply function returns a Reply or a sequence of texts"):
        as_reply([1])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("schema", "example"),
    [
        ({"const": 3}, 3),
        ({"enum": ["x", "y"]}, "x"),
        ({"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "array"}}}, {"a": True, "b": []}),
        ({"type": "object"}, {}),
        ({"type": "null"}, None),
        ("odd", {}),
    ],
)
def test_example_of(schema: object, example: object) -> None:
    """A small value fits the schema."""
    assert example_of(schema) == example


# Vectors


@given(st.text(), st.integers(1, 600))
def test_vectors(text: str, length: int) -> None:
    """Each number is a fraction, never a whole number; a unit vector has length one, cut or not."""
    assert not any(number == int(number) for number in raw_vector(text, length))
    for dimensions in (0, 5, length + 1):
        vector = unit_vector(text, length, dimensions)
        assert len(vector) == min(length, dimensions or length)
        assert math.hypot(*vector) == pytest.approx(1)


# Faults as JSON

FAULTS: list[Fault] = [
    Status(418, "teapot", {"X-A": "b"}),
    Status(500, {"error": "x"}),
    Busy(3),
    Busy(),
    Unauthorized(),
    Garbage("<p>", "text/plain", 502),
    Hang(),
    HangBeforeHeaders(),
    SlowLoad(),
    StallAfter(n_parts=2),
    DropBeforeHeaders(reset=True),
    DropAfter(1, reset=True),
    TruncateAfter(3),
    ErrorLineAfter(1, "x"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault_to_json(fault)["kind"])
def test_faults_travel_as_json(fault: Fault) -> None:
    """A fault is the same after a trip to another process; its events are new ones."""
    made = fault_from_json(json.loads(json.dumps(fault_to_json(fault))))
    assert made == fault
    assert made is not fault


def test_every_fault_travels() -> None:
    """No fault of the module was forgotten."""
    bases = {"Fault", "Holding"}
    kinds = {kind.__name__ for kind in _subclasses(Fault) if kind.__module__.endswith("testing.faults")}
    assert {type(fault).__name__ for fault in FAULTS} == kinds - bases


def _subclasses(kind: type) -> set[type]:
    direct: set[type] = set(kind.__subclasses__())
    return direct.union(*(_subclasses(sub) for sub in direct))


@pytest.mark.parametrize(
    "sent",
    [{}, {"kind": 3}, {"kind": "busy", "retry_after_s": "3"}, {"kind": "hang", "reached": 1}, {"kind": "hang", "x": 1}],
)
def test_bad_fault(sent: dict[str, object]) -> None:
    """Unknown kinds, options and types are a complaint that names what there is."""
    with pytest.raises(ValueError, match=r"unknown fault|takes no"):
        fault_from_json(sent)


def test_timestamps_grow() -> None:
    """Later times sort later, whatever their fraction."""
    stamps = [golang.timestamp(1000 + step / 8) for step in range(8)]
    assert all(first.rstrip("Z") < second.rstrip("Z") for first, second in pairwise(stamps))
