"""What the gateway tells Prometheus."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from gleitzeit_core.resources import Requirements
from gleitzeit_core.testing.workshop import Workshop, WorkshopOptions
from gleitzeit_ollama.testing import DropBeforeHeaders, HangBeforeHeaders, OllamaServer, Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prometheus_client.samples import Sample

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
OPENAI_STREAM = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "stream_options": {"include_usage": True},
}


async def samples_of(gateway: RunningGateway) -> list[Sample]:
    """What it exports now."""
    answered = await gateway.ask("/metrics")
    assert answered.status == 200
    assert answered.headers["Content-Type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(answered.text))
    assert all(family.documentation for family in families)
    assert len({family.name for family in families}) == len(families)
    return [sample for family in families for sample in family.samples]


async def samples_while_two_wait(gateway: RunningGateway, ollama: OllamaServer) -> list[Sample]:
    """What it exports while one is served by the only slot and two wait for it; all of them have ended then."""
    ollama.script.next(hang := HangBeforeHeaders())
    asked = [asyncio.create_task(gateway.chat()) for _ in range(3)]
    async with asyncio.timeout(20):
        await hang.reached.wait()
        await gateway.until(lambda: gateway.waiting == 2)
        samples = await samples_of(gateway)
        hang.released.set()
        await asyncio.gather(*asked)
    return samples


def value(samples: list[Sample], name: str, **labels: str) -> float:
    """The sum over those with these labels."""
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def states(samples: list[Sample], name: str) -> list[str]:
    """The states whose gauge is 1."""
    return [s.labels["state"] for s in samples if s.name == name and s.value == 1.0]


async def test_metrics_count_tries(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Tries are counted by how they ended, durations in histograms whose buckets grow up to the count."""
    gateway = await serve(ollama, other, route={"strategy": "round_robin"})
    ollama.script.next(DropBeforeHeaders())
    for number in range(4):
        await gateway.chat(stream=number % 2 == 0)
    samples = await samples_of(gateway)
    assert value(samples, "gleitzeit_tries_total", method="llm/chat", result="ok") == 4
    assert value(samples, "gleitzeit_tries_total", method="llm/chat", result="lost") == 1
    for name, count in (("wait", 5), ("first_output", 4), ("total", 5)):
        assert value(samples, f"gleitzeit_{name}_seconds_count") == count
        assert value(samples, f"gleitzeit_{name}_seconds_bucket", le="+Inf") == count
        assert value(samples, f"gleitzeit_{name}_seconds_sum") >= 0
    histograms: dict[tuple[str, str], list[float]] = {}
    for sample in samples:
        if sample.name == "gleitzeit_total_seconds_bucket":
            histograms.setdefault((sample.labels["instance"], sample.labels["result"]), []).append(sample.value)
    assert sorted(result for _, result in histograms) == ["lost", "ok", "ok"]
    assert all(len(values) > 10 and values == sorted(values) for values in histograms.values())


async def test_tries_have_all_their_labels(serve: Serve, ollama: OllamaServer) -> None:
    """Method, route, model and instance, on every series of tries."""
    gateway = await serve(ollama)
    await gateway.chat()
    (report,) = gateway.manager.instances()
    expected = {"method": "llm/chat", "model": "smollm2", "instance": report.instance.id}
    samples = await samples_of(gateway)
    tried = [s for s in samples if {"method", "route"} & s.labels.keys()]
    names = {re.sub("_(total|count|sum|bucket|created)$", "", s.name) for s in tried if "instance" in s.labels}
    assert names == {
        "gleitzeit_tries",
        *(f"gleitzeit_{name}_seconds" for name in ("wait", "first_output", "per_token", "total")),
        *(f"gleitzeit_{name}" for name in ("input_tokens", "output_tokens", "request_bytes", "response_bytes")),
    }
    for sample in tried:
        if "instance" in sample.labels:
            assert expected.items() <= sample.labels.items()
            assert sample.labels["route"]


async def test_tokens_and_bytes(serve: Serve, ollama: OllamaServer) -> None:
    """In every way the same model is asked, as the answers themselves say; bytes as callers sent and got them."""
    gateway = await serve(ollama)
    plain, v1 = await gateway.chat(), await gateway.chat(v1=True)
    parts, events = await gateway.chat(stream=True), await gateway.ask("/v1/chat/completions", OPENAI_STREAM)
    said = [
        (plain.json["prompt_eval_count"], plain.json["eval_count"]),
        (v1.json["usage"]["prompt_tokens"], v1.json["usage"]["completion_tokens"]),
        (parts.lines[-1]["prompt_eval_count"], parts.lines[-1]["eval_count"]),
        (events.events[-2]["usage"]["prompt_tokens"], events.events[-2]["usage"]["completion_tokens"]),
    ]
    samples = await samples_of(gateway)
    assert value(samples, "gleitzeit_input_tokens_total", model="smollm2") == sum(read for read, _ in said)
    assert value(samples, "gleitzeit_output_tokens_total", model="smollm2") == sum(written for _, written in said)
    assert value(samples, "gleitzeit_per_token_seconds_count") == 4
    got = sum(len(answered.body) for answered in (plain, v1, parts, events))
    assert value(samples, "gleitzeit_response_bytes_total") == got
    sent = sum(len(record.body) for record in ollama.requests if record.path in ("/api/chat", "/v1/chat/completions"))
    assert value(samples, "gleitzeit_request_bytes_total") == sent


async def test_what_is_not_known_is_not_exported(serve: Serve, ollama: OllamaServer) -> None:
    """A try that failed has no first output and no time for each token."""
    gateway = await serve(ollama)
    ollama.script.always(Status(500, "no"))
    await gateway.chat()
    samples = await samples_of(gateway)
    assert value(samples, "gleitzeit_tries_total", result="server_error") == 1
    assert value(samples, "gleitzeit_total_seconds_count") == 1
    names = {sample.name for sample in samples}
    assert not {"gleitzeit_per_token_seconds_count", "gleitzeit_first_output_seconds_count"} & names


async def test_a_hub_that_cannot_create_is_degraded(serve: Serve, ollama: OllamaServer) -> None:
    """Until it can; the others are not."""
    gateway = await serve(ollama)
    hub = Workshop(WorkshopOptions(), quick=False)
    await gateway.manager.add_hub(hub)
    await hub.scale(Requirements(accepts=()), 1)
    (await hub.creations.next()).fail(LookupError("no wood"))
    await gateway.until(lambda: hub.problem)
    samples = await samples_of(gateway)
    assert value(samples, "gleitzeit_hub_degraded", hub="workshop", kind="workshop") == 1
    assert value(samples, "gleitzeit_hub_degraded") == 1
    assert len([sample for sample in samples if sample.name == "gleitzeit_hub_degraded"]) == 2
    hub.quick = True
    hub.retry_now()
    await hub.scale(Requirements(accepts=()), 1)
    await gateway.until(lambda: not hub.problem)
    assert value(await samples_of(gateway), "gleitzeit_hub_degraded") == 0


async def test_metrics_show_the_present(serve: Serve, ollama: OllamaServer) -> None:
    """Gauges tell what runs, what waits and how each instance is, now."""
    gateway = await serve(ollama, hub={"max_concurrent": 1})
    samples = await samples_while_two_wait(gateway, ollama)
    assert value(samples, "gleitzeit_queue_waiting") == 2
    assert value(samples, "gleitzeit_instance_in_flight", endpoint=ollama.url) == 1
    assert value(samples, "gleitzeit_instance_max_concurrent", endpoint=ollama.url) == 1
    assert value(samples, "gleitzeit_instance_state", state="ready") == 1
    assert value(samples, "gleitzeit_instance_state") == 1


async def test_queues(serve: Serve, ollama: OllamaServer) -> None:
    """Who waits, by route and model, and nobody when it is over."""
    gateway = await serve(ollama, hub={"max_concurrent": 1})
    samples = await samples_while_two_wait(gateway, ollama)
    assert value(samples, "gleitzeit_queue_waiting", model="smollm2") == 2
    assert value(samples, "gleitzeit_queue_waiting") == 2
    assert value(samples, "gleitzeit_queue_oldest_seconds", model="smollm2") > 0
    assert value(samples, "gleitzeit_queue_expected_wait_seconds", model="smollm2") > 0
    samples = await samples_of(gateway)
    waiting = [sample for sample in samples if sample.name == "gleitzeit_queue_waiting"]
    assert [(sample.labels["model"], sample.value) for sample in waiting] == [("", 0)]
    assert waiting[0].labels["route"]


async def test_states(serve: Serve, ollama: OllamaServer) -> None:
    """One of them is 1: ready, degraded, drained."""
    gateway = await serve(ollama)
    admission = gateway.manager.dispatcher.shell.admission
    (name,) = admission.pool.records
    assert states(await samples_of(gateway), "gleitzeit_instance_state") == ["ready"]
    admission.set_degraded(name, "latency", "slow checks")
    assert states(await samples_of(gateway), "gleitzeit_instance_state") == ["degraded"]
    admission.set_degraded(name, "latency", "")
    admission.drain(name)
    assert states(await samples_of(gateway), "gleitzeit_instance_state") == ["drained"]


async def test_the_breaker(serve: Serve, ollama: OllamaServer) -> None:
    """Open after five failures; the state of the instance says so too."""
    gateway = await serve(ollama)
    assert states(await samples_of(gateway), "gleitzeit_instance_breaker") == ["closed"]
    ollama.script.always(Status(500, "no"))
    for _ in range(5):
        await gateway.chat()
    samples = await samples_of(gateway)
    assert states(samples, "gleitzeit_instance_breaker") == ["open"]
    assert states(samples, "gleitzeit_instance_state") == ["ejected"]


async def test_the_limit_is_what_was_learned(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """An instance that says it is busy gets less than it is set up for; others get what they are."""
    gateway = await serve(ollama, other, hub={"max_concurrent": 3}, route={"strategy": "round_robin"})
    ollama.script.next(Status(503, "busy"))
    await asyncio.gather(gateway.chat(), gateway.chat())
    samples = await samples_of(gateway)
    assert value(samples, "gleitzeit_instance_limit", endpoint=ollama.url) == 1
    assert value(samples, "gleitzeit_instance_limit", endpoint=other.url) == 3
    assert value(samples, "gleitzeit_instance_max_concurrent") == 6


async def test_hedges(serve: Serve, ollama: OllamaServer) -> None:
    """They are there before any was begun."""
    samples = await samples_of(await serve(ollama))
    names = {sample.name for sample in samples}
    assert {"gleitzeit_hedges_started_total", "gleitzeit_hedges_won_total"} <= names
    assert value(samples, "gleitzeit_hedges_started_total") == 0


async def test_every_name_is_documented(serve: Serve, ollama: OllamaServer) -> None:
    """Dashboards are built on them: what is exported stands in the page about operations, and nothing else does."""
    gateway = await serve(ollama)
    await gateway.chat()
    answered = await gateway.ask("/metrics")
    exported = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(answered.text)
    }
    assert set(re.findall(r"`((?:gleitzeit|gen_ai)_\w+)` \|", PAGE.read_text())) == exported


async def test_the_names_of_opentelemetry(serve: Serve, ollama: OllamaServer) -> None:
    """Durations, first tokens, times per token and token counts, by operation, model, server, client API and error."""
    gateway = await serve(ollama)
    plain, _ = await gateway.chat(), await gateway.chat(v1=True)
    ollama.script.always(Status(500, "no"))
    await gateway.chat()
    samples = await samples_of(gateway)
    server = {"gen_ai_provider_name": "ollama", "server_address": "127.0.0.1", "server_port": str(ollama.port)}
    chat = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "smollm2", **server}
    for name in ("request_duration", "time_to_first_token", "time_per_output_token"):
        count = f"gen_ai_server_{name}_seconds_count"
        for api in ("ollama", "openai"):
            assert value(samples, count, client_api=api, error_type="", **chat) == 1, name
    assert value(samples, "gen_ai_server_request_duration_seconds_count", error_type="server_error", **chat) == 1
    assert value(samples, "gen_ai_server_time_to_first_token_seconds_count", error_type="server_error") == 0
    native = {"client_api": "ollama", "error_type": "", **chat}
    read = value(samples, "gen_ai_client_token_usage_sum", gen_ai_token_type="input", **native)
    written = value(samples, "gen_ai_client_token_usage_sum", gen_ai_token_type="output", **native)
    assert (read, written) == (plain.json["prompt_eval_count"], plain.json["eval_count"])
    assert value(samples, "gen_ai_client_token_usage_bucket", le="+Inf", gen_ai_token_type="input", **native) == 1


async def test_each_client_api_and_result_has_a_series(serve: Serve, ollama: OllamaServer) -> None:
    """Of tries and their histograms; callers of the library have no API."""
    gateway = await serve(ollama)
    await gateway.chat()
    await gateway.chat(v1=True)
    await gateway.manager.execute("llm/chat", {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]})
    samples = await samples_of(gateway)
    for api in ("ollama", "openai", ""):
        assert value(samples, "gleitzeit_tries_total", api=api, result="ok") == 1
        assert value(samples, "gleitzeit_total_seconds_count", api=api, result="ok") == 1
