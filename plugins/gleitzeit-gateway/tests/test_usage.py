"""What was used: counted once on every way a request can end, shown to those whom it concerns."""

from __future__ import annotations

import asyncio
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gleitzeit_core.errors import NoCapableInstance, QueueFull
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.requests import Usage as Tokens
from gleitzeit_core.resources import Requirements
from gleitzeit_gateway import usage as usage_module
from gleitzeit_gateway.usage import OTHERS, Usage
from gleitzeit_ollama.testing import DropAfter, DropBeforeHeaders, HangBeforeHeaders, OllamaServer, Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

ALICE, BOB, ROOT = "alices-key-is-very-secret", "bobs-key-is-secret-as-well", "the-key-that-may-do-all"
KEYS = [{"name": "alice", "key": ALICE}, {"name": "bob", "key": BOB}, {"name": "root", "key": ROOT, "admin": True}]
CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}], "stream": False}
MINUTE_S, HOUR_S = 60.0, 3600.0


class Watch:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """What it shows."""
        return self.now


class Part(SimpleNamespace):
    """Of a run. Unlike its base it can be seen to go."""


def using(key: str) -> dict[str, str]:
    """Headers with a key."""
    return {"X-Api-Key": key}


def run(key: str = "alice", model: str = "m", instance: str = "i", tokens: int = 3, **more: object) -> Any:  # noqa: ANN401 - a run
    """As much of a run as is looked at."""
    outcome = Outcome(Result.OK, usage=Tokens(input_tokens=tokens), bytes_in=1, bytes_out=2, total_s=0.5)
    needs = Requirements(accepts=(), capabilities=frozenset((f"model:{model}",)))
    request = Part(tenant=key, requirements=needs)
    said = {"instance_id": instance, "tries": 1, "outcome": outcome, "ending": None, **more}
    return Part(request=request, method=SimpleNamespace(local=False), **said)


# -- what is kept --------------------------------------------------------------------------------------------------


def test_rows_are_for_what_is_asked() -> None:
    """For each value of what is asked for, those with most tokens first; the sum is of all."""
    usage = Usage(Watch())
    for key, model, instance, tokens in (("a", "m", "1", 5), ("a", "n", "2", 1), ("b", "m", "1", 9), ("", "m", "1", 0)):
        usage.finished(run(key, model, instance, tokens), None)
    found = usage.report(("key",), window="total")
    assert [(row["key"], row["requests"], row["input_tokens"]) for row in found["rows"]] == [
        ("b", 1, 9),
        ("a", 2, 6),
        ("-", 1, 0),
    ]
    assert found["sum"] == {
        **dict.fromkeys(("failed", "cancelled", "output_tokens"), 0),
        "requests": 4,
        "tries": 4,
        "input_tokens": 15,
        "bytes_in": 4,
        "bytes_out": 8,
        "time_s": 2.0,
    }
    both = usage.table(("model", "instance"))
    assert [(row["model"], row["instance"], row["requests"]) for row in both] == [("m", "1", 3), ("n", "2", 1)]
    assert [row["model"] for row in usage.table(("model",), key="a")] == ["m", "n"]
    assert repr(usage) == "<Usage 4 requests in 4 rows>"


def test_how_it_ended() -> None:
    """With an error, because its caller left, or because it was ended: that is an error of its own."""
    usage = Usage(Watch())
    ended = QueueFull(size=1, limit=1, retry_after_s=1.0)
    for error, ending in (
        (None, None),
        (ended, None),
        (asyncio.CancelledError(), None),
        (GeneratorExit(), None),
        (GeneratorExit(), ended),
    ):
        usage.finished(run(ending=ending), error)
    used = usage.sum()
    assert (used.requests, used.failed, used.cancelled) == (5, 2, 2)


def test_what_nobody_knows_has_no_row() -> None:
    """A model that there is not may be any text; a request that was never tried has no instance."""
    usage = Usage(Watch())
    for n in range(5):
        usage.finished(run(model=f"nonsense-{n}", instance="", tries=0, outcome=None), NoCapableInstance("no"))
    assert [(row["model"], row["instance"], row["failed"]) for row in usage.table(("model", "instance"))] == [
        ("-", "-", 5)
    ]


def test_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit counts for its key, whose sums stay right; also where old rows come together."""
    monkeypatch.setattr(usage_module, "ROWS_MAX", 10)
    watch = Watch()
    usage = Usage(watch)
    for n in range(300):
        usage.finished(run("alice" if n % 3 else "bob", instance=f"pod-{n}"), None)
        watch.now += 10 * MINUTE_S
    assert len(usage.table(("key", "model", "instance"))) <= 10 * (12 + 25 + 1) + 2
    watch.now += 48 * HOUR_S
    rows = usage.table(("key", "model", "instance"))
    assert len(rows) <= 12
    assert {(row["key"], row["model"]) for row in rows if row["instance"] == OTHERS} == {
        ("alice", OTHERS),
        ("bob", OTHERS),
    }
    assert [(row["key"], row["requests"]) for row in usage.table()] == [("alice", 200), ("bob", 100)]


def test_many_together() -> None:
    """However many come before somebody looks, each is counted for its own row, with all that it has used."""
    usage = Usage(Watch())
    for n in range(1000):
        error = QueueFull(size=1, limit=1, retry_after_s=1.0) if n % 10 == 0 else None
        usage.finished(run("alice" if n % 2 else "bob", instance=f"pod-{n % 3}", tokens=n, tries=1 + n % 4), error)
    used = usage.sum()
    assert (used.requests, used.failed, used.tries) == (1000, 100, 2500)
    assert (used.input_tokens, used.bytes_in, used.bytes_out, used.time_s) == (499_500, 1000, 2000, 500.0)
    assert [(row["key"], row["requests"], row["failed"]) for row in usage.table()] == [
        ("alice", 500, 0),
        ("bob", 500, 100),
    ]
    assert sorted(row["requests"] for row in usage.table(("instance",))) == [333, 333, 334]


def test_nothing_of_a_request_is_kept() -> None:
    """What waits to be counted holds neither the request nor its error: there is a body in each of them."""
    usage, ended = Usage(Watch()), run()
    error = QueueFull(size=1, limit=1, retry_after_s=1.0)
    left = [weakref.ref(one) for one in (ended, ended.request, error)]
    usage.finished(ended, error)
    del ended, error
    assert [one() for one in left] == [None, None, None]
    assert usage.sum().failed == 1


def test_windows() -> None:
    """The last hour and the last day, each to its own measure; in all, everything."""
    watch = Watch()
    usage = Usage(watch)
    for _ in range(50):  # One every half an hour.
        usage.finished(run(), None)
        watch.now += 30 * MINUTE_S
    sums = [usage.sum(window=window).requests for window in ("hour", "day", "total")]
    assert sums[0] in (1, 2)
    assert 46 <= sums[1] <= 48
    assert sums[2] == 50
    watch.now += 23 * HOUR_S
    assert [usage.sum(window=window).requests for window in ("hour", "day", "total")][0::2] == [0, 50]
    watch.now += 2 * HOUR_S
    assert [usage.sum(window=window).requests for window in ("hour", "day", "total")] == [0, 0, 50]


@settings(deadline=None)
@given(waits=st.lists(st.floats(0, 2 * HOUR_S), max_size=60))
def test_nothing_is_lost(waits: list[float]) -> None:
    """However requests are spread, each is counted once in all, and where it is recent in the windows it belongs to."""
    watch, at = Watch(), []
    usage = Usage(watch)
    for wait in waits:
        usage.finished(run(), None)
        at.append(watch.now)
        watch.now += wait
    assert usage.sum().requests == len(waits)
    for window, least_s, most_s in (("hour", HOUR_S - 300, HOUR_S), ("day", 23 * HOUR_S, 24 * HOUR_S)):
        count = usage.sum(window=window).requests
        assert sum(watch.now - one < least_s for one in at) <= count <= sum(watch.now - one <= most_s for one in at)


# -- what is counted -----------------------------------------------------------------------------------------------


async def usage_of(gateway: RunningGateway, query: str = "", key: str = ROOT) -> dict[str, Any]:
    """What the gateway says of it."""
    answered = await gateway.ask(f"/admin/usage{query}", headers=using(key))
    assert answered.status == 200, answered.text
    found: dict[str, Any] = answered.json
    return found


async def test_each_key_model_and_instance(serve: Serve, other: OllamaServer) -> None:
    """By what is asked for; in tokens, what the answers said."""
    async with OllamaServer(models=["smollm2", "qwen3"]) as ollama:
        gateway = await serve(ollama, other, keys=KEYS, route={"strategy": "round_robin"})
        tokens = 0
        for key, model in ((ALICE, "smollm2"), (ALICE, "smollm2"), (ALICE, "qwen3"), (BOB, "smollm2")):
            answered = await gateway.ask("/api/chat", {**CHAT, "model": model}, headers=using(key))
            tokens += answered.json["prompt_eval_count"] + answered.json["eval_count"]
        rows = (await usage_of(gateway))["rows"]
        assert {row["key"]: row["requests"] for row in rows} == {"alice": 3, "bob": 1}
        assert sum(row["input_tokens"] + row["output_tokens"] for row in rows) == tokens
        assert all(row["bytes_in"] and row["bytes_out"] and row["time_s"] > 0 for row in rows)
        by_model = (await usage_of(gateway, "?by=key,model&window=hour"))["rows"]
        assert {(row["key"], row["model"]): row["requests"] for row in by_model} == {
            ("alice", "smollm2"): 2,
            ("alice", "qwen3"): 1,
            ("bob", "smollm2"): 1,
        }
        by_instance = (await usage_of(gateway, "?by=instance"))["rows"]
        assert {row["instance"] for row in by_instance} == {one.instance.id for one in gateway.manager.instances()}


async def test_retries_and_streams_that_break_off(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """A request that was tried again is one, for who served it; one that broke off has failed, with what had come."""
    gateway = await serve(ollama, other, route={"strategy": "round_robin"})
    for server in (ollama, other):
        server.script.next(DropBeforeHeaders())
        break
    answered = [await gateway.chat() for _ in range(2)]
    assert [one.status for one in answered] == [200, 200]
    used = gateway.gateway.usage.sum()
    assert (used.requests, used.failed, used.tries) == (2, 0, 3)
    ollama.script.always(DropAfter(2))
    other.script.always(DropAfter(2))
    assert not (await gateway.chat(stream=True)).complete
    after = gateway.gateway.usage.sum()
    assert (after.requests, after.failed) == (3, 1)
    assert after.bytes_out > used.bytes_out
    assert {row["key"] for row in gateway.gateway.usage.table()} == {"-"}


async def test_failures_and_callers_who_leave(serve: Serve, ollama: OllamaServer) -> None:
    """Each is counted as what it is; a list is no request."""
    gateway = await serve(ollama, keys=KEYS, route={"max_tries": 1})
    ollama.script.next(Status(500))
    await gateway.ask("/api/chat", CHAT, headers=using(ALICE))
    await gateway.ask("/api/chat", {**CHAT, "model": "nope"}, headers=using(ALICE))
    await gateway.ask("/api/tags", headers=using(ALICE))
    ollama.script.next(hang := HangBeforeHeaders())
    asking = asyncio.create_task(gateway.ask("/api/chat", CHAT, headers=using(ALICE)))
    async with asyncio.timeout(20):
        await hang.reached.wait()
        asking.cancel()
        await gateway.until(lambda: gateway.gateway.usage.sum().requests == 3)
    (row,) = (await usage_of(gateway))["rows"]
    assert (row["key"], row["requests"], row["failed"], row["cancelled"]) == ("alice", 3, 2, 1)
    models = {row["model"]: row["requests"] for row in (await usage_of(gateway, "?by=model"))["rows"]}
    assert models == {"smollm2": 2, "-": 1}


async def test_what_is_answered_whole_although_a_stream_was_asked_for(serve: Serve, ollama: OllamaServer) -> None:
    """It has ended well: nobody has left."""
    gateway = await serve(ollama)
    assert (await gateway.ask("/api/chat", {"model": "smollm2", "messages": []})).json["done_reason"] == "load"
    used = gateway.gateway.usage.sum()
    assert (used.requests, used.failed, used.cancelled) == (1, 0, 0)
    assert gateway.manager.dispatcher.metrics.sum().results == {"ok": 1}


async def test_calls_of_a_batch(serve: Serve, ollama: OllamaServer) -> None:
    """Each is a request of its own."""
    gateway = await serve(ollama, keys=KEYS)
    calls = [{"jsonrpc": "2.0", "id": n, "method": "llm/chat", "params": CHAT} for n in range(3)]
    await gateway.ask("/rpc", calls, headers=using(BOB))
    assert [(row["key"], row["requests"]) for row in (await usage_of(gateway))["rows"]] == [("bob", 3)]


# -- who sees it ---------------------------------------------------------------------------------------------------


async def test_own_usage(serve: Serve, ollama: OllamaServer) -> None:
    """A key sees its own, an admin's all; without keys, this machine all."""
    gateway = await serve(ollama, keys=KEYS)
    for key in (ALICE, BOB):
        await gateway.ask("/api/chat", CHAT, headers=using(key))
    assert [row["key"] for row in (await usage_of(gateway, key=ALICE))["rows"]] == ["alice"]
    assert (await usage_of(gateway, key=ALICE))["sum"]["requests"] == 1
    assert [row["key"] for row in (await usage_of(gateway, key=ROOT))["rows"]] == ["alice", "bob"]
    assert (await gateway.ask("/admin/usage")).status == 401
    anybody = await serve(ollama)
    await anybody.chat()
    found = (await anybody.ask("/admin/usage")).json
    assert (found["window"], found["by"], [row["key"] for row in found["rows"]]) == ("total", ["key"], ["-"])


@pytest.mark.parametrize("query", ["?by=keys", "?by=", "?by=key,,model", "?window=week", "?what=1", "?by=key&by=key"])
async def test_wrong_parameters(serve: Serve, ollama: OllamaServer, query: str) -> None:
    """A parameter that is wrong is refused, and not ignored."""
    gateway = await serve(ollama)
    answered = await gateway.ask(f"/admin/usage{query}")
    assert (answered.status, answered.json["error"]["code"]) == (400, "invalid_request")


async def test_a_gateway_that_is_closed_counts_no_more(serve: Serve, ollama: OllamaServer) -> None:
    """Its manager may go on without it."""
    gateway = await serve(ollama)
    await gateway.chat()
    await gateway.gateway.aclose()
    await gateway.manager.execute("llm/chat", {k: v for k, v in CHAT.items() if k != "stream"})
    assert gateway.gateway.usage.sum().requests == 1
    assert gateway.manager.dispatcher.running.watchers == ()
