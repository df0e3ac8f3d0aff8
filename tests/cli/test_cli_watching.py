"""The commands that watch a running gateway: usage, metrics, queues, top and events."""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.samples import INSTANCE, STATUS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.cli.conftest import Ended, Exchange, Gateway, Terminal

    Cli = Callable[..., Ended]
    Program = Callable[..., subprocess.Popen[str]]

NONE = {"count": 0, "p50": 0.0, "p95": 0.0, "p99": 0.0}
NUMBERS: dict[str, Any] = {
    "count": 120,
    "success_rate": 0.975,
    "results": {"ok": 117, "server_error": 3},
    "wait_s": NONE,
    "first_output_s": {"count": 117, "p50": 0.12, "p95": 0.3, "p99": 0.5},
    "per_token_s": {"count": 117, "p50": 0.02, "p95": 0.03, "p99": 0.04},
    "total_s": {"count": 117, "p50": 1.5, "p95": 3.0, "p99": 4.5},
    "input_tokens": 12_000,
    "output_tokens": 3400,
    "bytes_in": 0,
    "bytes_out": 0,
}
UNUSED = {**NUMBERS, "count": 0, "results": {}}
METRICS = {
    "window_s": 300,
    "sum": NUMBERS,
    "instances": {INSTANCE["id"]: NUMBERS, "other": UNUSED},
    "models": {"tiny": NUMBERS},
    "routes": {"llm/*": NUMBERS},
    "methods": {"llm/chat": NUMBERS},
}
QUEUE = {
    "route": "llm/*",
    "needs": "model:tiny (ollama over http)",
    "model": "tiny",
    "waiting": 7,
    "limit": 256,
    "oldest_s": 3.2,
    "rate_per_s": 1.75,
    "expected_wait_s": 4.6,
    "tenants": {"": 2, "team-a": 5},
    "bands": {"0": 7},
}
EVENTS: list[dict[str, Any]] = [
    {"kind": "instance", "at": 1_795_000_000.0, "data": {"id": "x", "state": "down", "reason": "refused", "tags": []}},
    {"kind": "request", "at": 1_795_000_001.0, "data": {"total_s": 1.23456, "error_code": ""}},
]


@pytest.fixture
def watched(gateway: Gateway) -> Gateway:
    """A gateway that has done something."""
    instance = {
        **INSTANCE,
        "limit": 4,
        "breaker": "closed",
        "degraded": [],
        "output_tokens": 3400,
        "input_tokens": 12_000,
    }
    gateway.on(
        "GET /admin/status", lambda exchange: exchange.json({**STATUS, "instances": [instance], "queues": [QUEUE]})
    )
    gateway.on("GET /admin/queues", lambda exchange: exchange.json({"queues": [QUEUE]}))
    for window in ("recent", "total"):
        gateway.on(f"GET /admin/metrics?window={window}", lambda exchange: exchange.json(METRICS))
    return gateway


# -- usage


def used(**more: object) -> dict[str, Any]:
    """What somebody has used."""
    numbers = {"requests": 12, "failed": 1, "cancelled": 0, "tries": 13, "input_tokens": 12_000, "output_tokens": 3400}
    return {**more, **numbers, "bytes_in": 2000, "bytes_out": 45_000, "time_s": 90.5}


def test_usage(cli: Cli, gateway: Gateway) -> None:
    """A line for each key, and one for all."""
    found = {"window": "total", "by": ["key"], "rows": [used(key="alice"), used(key="-")], "sum": used()}
    gateway.on("GET /admin/usage?by=key&window=total", lambda exchange: exchange.json(found))
    ended = cli("usage", "--gateway", gateway.url)
    assert (ended.status, ended.err) == (0, "since the gateway was started\n")
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in ended.out.splitlines()]
    assert [line[0] for line in lines] == ["KEY", "alice", "-", "(all)"]
    assert lines[1][1:] == ["12", "1", "0", "12,000", "3,400", "2 kB / 45 kB", "90.5 s"]
    assert cli("usage", "--json", "--gateway", gateway.url).json() == found


def test_usage_by_several(cli: Cli, gateway: Gateway) -> None:
    """In the order in which they are asked for, of a window."""
    rows = [used(model="tiny", key="alice")]
    found = {"window": "hour", "by": ["model", "key"], "rows": rows, "sum": used()}
    gateway.on("GET /admin/usage?by=model%2Ckey&window=hour", lambda exchange: exchange.json(found))
    ended = cli("usage", "--by", "model, key,model", "--window", "hour", "--gateway", gateway.url)
    assert (ended.status, ended.err) == (0, "in the last 55 to 60 minutes\n")
    assert [line.split()[:2] for line in ended.out.splitlines()] == [
        ["MODEL", "KEY"],
        ["tiny", "alice"],
        ["(all)", "-"],
    ]


@pytest.mark.parametrize("by", ["keys", "key,", "", "key;model"])
def test_usage_by_something_unknown(cli: Cli, gateway: Gateway, by: str) -> None:
    """Is told before anything is asked."""
    ended = cli("usage", "--by", by, "--gateway", gateway.url)
    assert ended.status == 2
    assert "is not one of key, model, instance" in ended.err
    assert not gateway.seen


def test_usage_of_another_shape(cli: Cli, gateway: Gateway) -> None:
    """What is no usage is told in one sentence."""
    gateway.on("GET /admin/usage?by=key&window=total", lambda exchange: exchange.json({"rows": [{"key": "a"}]}))
    ended = cli("usage", "--gateway", gateway.url)
    assert (ended.status, ended.out) == (1, "")
    assert "has another idea of its answer" in ended.err


# -- metrics


def test_metrics(cli: Cli, watched: Gateway) -> None:
    """A line for each instance that was used, and one for all; what is not known is a dash."""
    ended = cli("metrics", "--gateway", watched.url)
    assert (ended.status, ended.err) == (0, "in the last 5 min\n")
    lines = [line.split("  ") for line in ended.out.splitlines()]
    assert [line[0].strip() for line in lines] == ["INSTANCE", INSTANCE["id"], "(all)"]
    cells = [cell.strip() for cell in lines[1] if cell.strip()]
    assert cells[1:] == [
        *("120", "97.5%", "-", "120 ms / 300 ms / 500 ms", "20 ms / 30 ms / 40 ms", "1.5 s / 3 s / 4.5 s"),
        *("12,000 / 3,400", "-"),
    ]


def test_metrics_of_those_who_never_waited(cli: Cli, gateway: Gateway) -> None:
    """That is a figure, too: only what was never measured is a dash."""
    numbers = {**NUMBERS, "wait_s": {**NONE, "count": 120}, "per_token_s": NONE}
    found = {**METRICS, "instances": {INSTANCE["id"]: numbers}, "sum": numbers}
    gateway.on("GET /admin/metrics?window=recent", lambda exchange: exchange.json(found))
    line = cli("metrics", "--gateway", gateway.url).out.splitlines()[1]
    cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
    assert cells[3:6] == ["0 ms / 0 ms / 0 ms", "120 ms / 300 ms / 500 ms", "-"]


@pytest.mark.parametrize(("by", "name"), [("model", "tiny"), ("route", "llm/*"), ("method", "llm/chat")])
def test_metrics_by_something_else(cli: Cli, watched: Gateway, by: str, name: str) -> None:
    """The same numbers in other groups, and since the start."""
    ended = cli("metrics", "--by", by, "--total", "--gateway", watched.url)
    assert ended.out.splitlines()[1].split()[0] == name
    assert ended.err == "since it was started\n"


def test_metrics_for_programs(cli: Cli, watched: Gateway) -> None:
    """All that the gateway says, as it says it."""
    assert cli("metrics", "--json", "--gateway", watched.url).json() == METRICS


# -- queues


def test_queues(cli: Cli, watched: Gateway) -> None:
    """A line for each queue; who has no name is a dash."""
    ended = cli("queues", "--gateway", watched.url)
    cells = [cell.strip() for cell in ended.out.splitlines()[1].split("  ") if cell.strip()]
    assert cells == ["llm/*", "tiny", "7", "256", "3.2 s", "1.75", "4.6 s", "-: 2, team-a: 5", "0: 7"]
    assert cli("queues", "--json", "--gateway", watched.url).json() == {"queues": [QUEUE]}


def test_nobody_waits(cli: Cli, gateway: Gateway) -> None:
    """That is said, rather than shown as an empty table."""
    gateway.on("GET /admin/queues", lambda exchange: exchange.json({"queues": []}))
    assert cli("queues", "--gateway", gateway.url).out == "nobody waits\n"


# -- top


def test_top_into_a_pipe_is_one_frame(cli: Cli, watched: Gateway) -> None:
    """The head, the instances, the models and the queues, once."""
    ended = cli("top", "--gateway", watched.url)
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == f"{watched.url}  version 0.1.0  up 2.03 h"
    assert lines[1].startswith("1 active, 2 waiting")
    assert "120 tries, 97.5% well" in lines[2]
    heads = [line.split()[0] for line in lines if line.isupper() or line.startswith(("ID", "MODEL", "ROUTE"))]
    assert heads == ["ID", "MODEL", "ROUTE"]


def test_top_tells_of_hubs_with_a_problem(cli: Cli, watched: Gateway) -> None:
    """A line for each, in the head; none when all are well."""
    assert "degraded hub" not in cli("top", "--gateway", watched.url).out
    hub = {**STATUS["hubs"][0], "name": "own", "problem": "LookupError: no wood"}
    found = {**STATUS, "instances": [], "queues": [], "hubs": [*STATUS["hubs"], hub]}
    watched.on("GET /admin/status", lambda exchange: exchange.json(found))
    assert cli("top", "--gateway", watched.url).out.splitlines()[3] == "degraded hub own: LookupError: no wood"


@pytest.mark.parametrize("leave", ["q", "interrupt"])
def test_top_on_a_terminal_is_redrawn_until_one_leaves(
    terminal: Callable[..., Terminal], watched: Gateway, leave: str
) -> None:
    """The second frame shows rates; q leaves with status 0, Ctrl-C with 130, and the screen is given back."""
    shown = terminal(
        "top", "--interval", "0.1", "--gateway", watched.url, env={"TERM": "xterm", "PATH": "/usr/bin:/bin"}
    )
    shown.read_until(r"requests/s")
    shown.type("\x1b[A")  # an arrow is no Esc
    shown.read_until(r"requests/s")
    if leave == "q":
        shown.type("xq")
    else:
        shown.process.send_signal(signal.SIGINT)
    assert "\x1b[?1049l" in shown.rest()
    assert shown.process.wait() == (0 if leave == "q" else 130)


def test_top_ends_with_the_gateway(cli: Cli, watched: Gateway) -> None:
    """What is no gateway any more is told in one sentence."""
    watched.on("GET /admin/metrics?window=recent", lambda exchange: exchange.json({"sum": {}}))
    ended = cli("top", "--gateway", watched.url)
    assert (ended.status, ended.out) == (1, "")
    assert "has another idea of its answer" in ended.err


# -- events


def send_events(exchange: Exchange) -> None:
    """Two events and a comment between them, as server-sent events."""
    exchange.begin("text/event-stream")
    for event in EVENTS:
        exchange.line(f"event: {event['kind']}\ndata: {json.dumps(event)}\n\n".encode())
        exchange.line(b": still here\n\n")


def test_events(cli: Cli, gateway: Gateway) -> None:
    """A line for each; empty facts are left out, numbers are short."""

    def answer(exchange: Exchange) -> None:
        send_events(exchange)
        exchange.end()

    gateway.on("GET /admin/events?requests=1", answer)
    ended = cli("events", "--once", "--requests", "--gateway", gateway.url)
    assert (ended.status, ended.err) == (0, "")
    assert [line.split(maxsplit=1)[1] for line in ended.out.splitlines()] == [
        "instance  id=x state=down reason=refused",
        "request   total_s=1.235",
    ]
    ended = cli("events", "--once", "--requests", "--json", "--gateway", gateway.url)
    assert [json.loads(line) for line in ended.out.splitlines()] == EVENTS


def test_events_go_on_after_the_connection_ended(program: Program, gateway: Gateway) -> None:
    """A gateway that is started anew is followed again; Ctrl-C ends it."""
    again = threading.Event()

    def first(exchange: Exchange) -> None:
        gateway.on("GET /admin/events", second)
        send_events(exchange)  # and then the connection just breaks off

    def second(exchange: Exchange) -> None:
        again.set()
        exchange.begin("text/event-stream")
        exchange.line(b"data: " + json.dumps(EVENTS[0]).encode() + b"\n\n")
        exchange.wait_until_closed()

    gateway.on("GET /admin/events", first)
    process = program("events", "--json", "--gateway", gateway.url)
    assert process.stdout is not None
    assert [json.loads(process.stdout.readline()) for _ in range(3)] == [*EVENTS, EVENTS[0]]
    assert again.is_set()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130


def test_events_that_are_refused_end_it(cli: Cli, gateway: Gateway) -> None:
    """A wrong key does not get better by trying again."""
    gateway.key = "right-key-of-the-gateway"
    ended = cli("events", "--gateway", gateway.url)
    assert ended.status == 1
    assert "wants a key" in ended.err
