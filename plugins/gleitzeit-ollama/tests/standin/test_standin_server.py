"""The stand-in as a server: slots and queues, loads, what is recorded, how it starts and stops."""

from __future__ import annotations

import asyncio
import json
import socket

import aiohttp
import pytest

from gleitzeit_ollama.testing import Gate, Hang, OllamaServer, Pace, Reply, ToolCall

from .calls import CHAT, PLAIN, get, loaded, post

# Slots and the queue before them


async def test_slots_bound_what_runs(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """At most `num_parallel` requests run per model; the others queue, without limit once loaded."""
    server.gate = gate = Gate()
    asking = [asyncio.create_task(post(client, server, PLAIN)) for _ in range(9)]
    await server.wait_for(lambda server: gate.waiting == 4 and server.runners.queued == 5)
    assert (server.runners.running, server.in_flight, server.max_in_flight) == (4, 9, 9)
    gate.open()
    assert {status for status, _ in await asyncio.gather(*asking)} == {200}
    assert (server.runners.running, server.runners.queued, server.in_flight) == (0, 0, 0)


async def test_slots_are_per_model(client: aiohttp.ClientSession) -> None:
    """A model whose slots are taken does not hold up another."""
    gate = Gate()
    async with OllamaServer(models=["smollm2", "other"], num_parallel=1, gate=gate) as server:
        first = asyncio.create_task(post(client, server, PLAIN))
        await server.wait_for(lambda _: gate.waiting == 1)
        second = asyncio.create_task(post(client, server, {**PLAIN, "model": "other"}))
        await server.wait_for(lambda _: gate.waiting == 2)
        assert server.runners.running == 2
        gate.open()
        await asyncio.gather(first, second)


async def test_one_who_leaves_frees_the_slot(client: aiohttp.ClientSession) -> None:
    """When a client leaves in mid-stream, the next that queues starts, and the leaving is recorded."""
    gate = Gate(1)
    async with OllamaServer(num_parallel=1, gate=gate) as server:
        response = await client.post(f"{server.url}/api/chat", json=CHAT)
        await response.content.readline()
        queued = asyncio.create_task(post(client, server, PLAIN))
        await server.wait_for(lambda server: server.runners.queued == 1)
        response.close()
        await server.wait_for(lambda server: server.requests[0].finished)
        assert (server.requests[0].disconnected, server.requests[0].parts, server.disconnects) == (True, 1, 1)
        gate.open()
        assert (await queued)[0] == 200
        assert not server.requests[1].disconnected


async def test_one_who_leaves_a_plain_answer_frees_the_slot(client: aiohttp.ClientSession) -> None:
    """The same holds for a client that waits for a whole answer, and for one that only queues."""
    gate = Gate()
    async with OllamaServer(num_parallel=1, gate=gate) as server:
        asking = [asyncio.create_task(post(client, server, PLAIN)) for _ in range(3)]
        await server.wait_for(lambda server: gate.waiting == 1 and server.runners.queued == 2)
        asking[1].cancel()
        await server.wait_for(lambda server: server.disconnects == 1 and server.runners.queued == 1)
        asking[0].cancel()
        await server.wait_for(lambda server: server.disconnects == 2 and server.runners.running == 1)
        gate.open()
        assert (await asking[2])[0] == 200
        assert server.runners.running == 0


async def test_full_queue_refuses_at_once(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """With no place to wait, whoever comes during a load is refused, and the load goes on."""
    server.runners.max_queue = 0
    done = asyncio.Event()
    server.hold_load("smollm2", done)
    asking = asyncio.create_task(post(client, server, PLAIN))
    await server.wait_for(lambda server: server.runners.queued == 1)
    status, text = await post(client, server, PLAIN, "/v1/chat/completions")
    assert status == 503
    assert json.loads(text)["error"]["message"].startswith("server busy, please try again.")
    done.set()
    assert (await asking)[0] == 200


# Gates


async def test_gate_lets_tokens_out_one_by_one(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A semaphore decides when each token goes out; the end of the stream needs none."""
    server.gate = gate = asyncio.Semaphore(0)
    async with client.post(f"{server.url}/api/chat", json=CHAT) as response:
        for number in (1, 2, 3):
            gate.release()
            await response.content.readline()
            assert server.requests[0].tokens == number
        assert b'"done":true' in await response.read()


async def test_event_is_a_gate(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """An event holds all tokens until it is set."""
    server.gate = gate = asyncio.Event()
    asking = asyncio.create_task(post(client, server, PLAIN))
    await server.wait_for(lambda server: server.runners.running == 1)
    assert server.requests[0].tokens == 0
    gate.set()
    assert (await asking)[0] == 200


async def test_pace_still_answers(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A pace delays tokens and loses none."""
    server.gate = Pace(0.0)
    assert "one two three" in (await post(client, server, PLAIN))[1]
    assert repr(server.gate) == "<Pace 0.0 s>"
    with pytest.raises(ValueError, match=r"interval_s must not be negative, got -1"):
        Pace(-1)


# Loading and unloading


async def test_models_stay_for_their_keep_alive(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A model leaves memory when its time is over, counted from the end of its last request."""
    now_s = 1000.0
    server.runners.clock = lambda: now_s
    await post(client, server, {"model": "smollm2", "keep_alive": "1m"}, "/api/generate")
    await post(client, server, {"model": "other", "keep_alive": -1}, "/api/generate")
    assert await loaded(client, server) == ["other:latest", "smollm2:latest"]
    now_s += 59
    await post(client, server, {**PLAIN, "keep_alive": 60})
    now_s += 59
    assert await loaded(client, server) == ["other:latest", "smollm2:latest"]
    now_s += 1
    assert await loaded(client, server) == ["other:latest"]
    now_s += 1e9
    assert await loaded(client, server) == ["other:latest"]


async def test_default_keep_alive_is_five_minutes(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """`expires_at` lies five minutes ahead where the request says nothing."""
    server.runners.clock = lambda: 0.0
    await post(client, server, PLAIN)
    row = (await get(client, server, "/api/ps"))["models"][0]
    assert row["expires_at"] == "1970-01-01T00:05:00Z"


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/api/chat", {"messages": []}, "load"),
        ("/api/chat", {}, "load"),
        ("/api/chat", {"messages": [], "keep_alive": 0}, "unload"),
        ("/api/generate", {"prompt": ""}, "load"),
        ("/api/generate", {"keep_alive": "0s"}, "unload"),
    ],
)
async def test_empty_request_loads_or_unloads(
    server: OllamaServer, client: aiohttp.ClientSession, path: str, body: dict[str, object], reason: str
) -> None:
    """Nothing to answer loads the model; with a keep-alive of 0 it unloads it."""
    await post(client, server, PLAIN)
    status, text = await post(client, server, {"model": "smollm2", **body}, path)
    answer = json.loads(text)
    assert (status, answer["done_reason"], answer["done"]) == (200, reason, True)
    assert await loaded(client, server) == (["smollm2:latest"] if reason == "load" else [])


async def test_keep_alive_zero_unloads_after_the_answer(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """An answer with a keep-alive of 0 is given whole, and the model is gone afterwards."""
    status, text = await post(client, server, {**PLAIN, "keep_alive": 0})
    assert (status, json.loads(text)["message"]["content"]) == (200, "one two three")
    assert await loaded(client, server) == []


async def test_one_model_by_all_its_names(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """`name`, `name:latest` and other letters' case are one model; the answer names it as asked."""
    for name in ("smollm2", "smollm2:latest", "SmolLM2"):
        _, text = await post(client, server, {**PLAIN, "model": name})
        assert json.loads(text)["model"] == name
    assert server.runners.loads == {"smollm2:latest": 1}
    assert (await post(client, server, {**PLAIN, "model": "smollm2:1b"}))[0] == 404


async def test_deleted_model_leaves_memory(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A model that is deleted is neither listed nor loaded."""
    await post(client, server, PLAIN)
    async with client.delete(f"{server.url}/api/delete", json={"name": "smollm2"}) as response:
        assert response.status == 200
    assert await loaded(client, server) == []
    assert (await post(client, server, PLAIN))[0] == 404


# What tests see


async def test_records(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A record has all of the request and what became of it."""
    headers = {"Authorization": "Bearer secret-key"}
    async with client.post(f"{server.url}/api/chat?x=1", json=CHAT, headers=headers) as response:
        await response.read()
    (record,) = server.requests
    assert (record.index, record.method, record.path, record.query) == (1, "POST", "/api/chat", "x=1")
    assert (record.json, record.model, record.headers["authorization"]) == (CHAT, "smollm2", "Bearer secret-key")
    assert (record.status, record.parts, record.tokens) == (200, 4, 3)
    assert (record.started, record.finished, record.disconnected) == (True, True, False)
    assert "secret" not in repr(record)
    assert "hi" not in repr(record)


async def test_record_of_a_body_that_is_no_json(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """`json` and `model` of a record never fail."""
    await post(client, server, "]")
    await post(client, server, '{"model": 3}')
    assert [(record.json, record.model) for record in server.requests] == [({}, ""), ({"model": 3}, "")]


async def test_repr_has_the_counts(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """The counts stand in the `repr`."""
    hang = Hang()
    server.script.next(hang)
    asking = asyncio.create_task(post(client, server, PLAIN))
    await hang.reached.wait()
    counts = "1 requests, 1 in flight (at most 1), 0 running, 0 queued, 1 held, 0 disconnects"
    assert repr(server) == f"<OllamaServer listening on {server.url}: {counts}>"
    server.release()
    await asking


async def test_wait_for_sees_states_that_pass_at_once(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A state that lasts for no time is seen by those who wait for it."""
    waiting = asyncio.create_task(server.wait_for(lambda server: server.runners.running == 1))
    await post(client, server, PLAIN)
    assert server.runners.running == 0
    await waiting


async def test_wait_for_gives_the_error_of_its_predicate(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A predicate that fails later fails the wait, and nobody else."""
    waiting = asyncio.create_task(server.wait_for(lambda server: server.requests and 1 / 0))
    other = asyncio.create_task(server.wait_for(lambda server: server.requests))
    await asyncio.sleep(0)
    status, _ = await post(client, server, PLAIN)
    await other
    with pytest.raises(ZeroDivisionError):
        await waiting
    assert status == 200


# Start and stop


async def test_stop_refuses_and_start_returns_to_the_port(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """While stopped, connections are refused; afterwards the same URL answers, with no model loaded."""
    await post(client, server, PLAIN)
    url = server.url
    await server.stop()
    assert not server.is_listening
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(server.host, server.port)
    await server.start()
    assert server.url == url
    assert await loaded(client, server) == []
    assert (await post(client, server, PLAIN))[0] == 200


async def test_stop_cuts_what_is_in_flight(server: OllamaServer, client: aiohttp.ClientSession) -> None:
    """A stop ends streams in mid-body and requests that hang; nobody is said to have left."""
    server.gate = Gate(1)
    response = await client.post(f"{server.url}/api/chat", json=CHAT)
    await response.content.readline()
    server.script.next(Hang())
    hanging = asyncio.create_task(post(client, server, PLAIN))
    await server.wait_for(lambda server: server.held == 1)
    await server.stop()
    with pytest.raises(aiohttp.ClientPayloadError):
        await response.read()
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await hanging
    assert (server.in_flight, server.runners.running, server.held, server.disconnects) == (0, 0, 0, 0)
    assert all(record.finished for record in server.requests)


async def test_start_twice_is_an_error_and_stop_twice_is_none(server: OllamaServer) -> None:
    """A server that listens cannot start again; one that does not can be stopped and closed again."""
    with pytest.raises(RuntimeError, match="listens already"):
        await server.start()
    await server.close()
    await server.stop()
    await server.close()
    assert not server.is_listening


async def test_port_is_kept_while_stopped_and_given_back_at_the_end(server: OllamaServer) -> None:
    """Nobody else can take the port of a stopped server; of a closed one anybody can."""
    await server.stop()
    with pytest.raises(OSError, match="ddress already in use"):
        _bind_and_close(server.port)
    await server.close()
    _bind_and_close(server.port)


def _bind_and_close(port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


async def test_taken_port_is_an_error() -> None:
    """A port that another server has cannot be had, and nothing stays open."""
    async with OllamaServer() as server:
        with pytest.raises(OSError, match="ddress already in use"):
            await OllamaServer(port=server.port).start()


async def test_ipv6(client: aiohttp.ClientSession) -> None:
    """The server listens on IPv6 too, and its URL has the brackets."""
    async with OllamaServer(host="::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert (await post(client, server, PLAIN))[0] == 200


async def test_reply_with_everything(client: aiohttp.ClientSession) -> None:
    """A reply may think, speak and call several tools; what was thought does not count as content."""
    reply = Reply(["Hello"], ["Hm"], [ToolCall("a", {"x": 1}), ToolCall("b")])
    async with OllamaServer(models=["both+tools+thinking"], reply=lambda _: reply) as server:
        tools = [{"type": "function", "function": {"name": "a"}}]
        _, text = await post(client, server, {**PLAIN, "model": "both", "tools": tools})
        message = json.loads(text)["message"]
    assert (message["content"], message["thinking"]) == ("Hello", "Hm")
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["a", "b"]
    assert [call["function"]["index"] for call in message["tool_calls"]] == [0, 1]
