"""Any container can be pooled: servers on a published port, driven by whoever speaks their api."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_docker.hub import DockerHub
from gleitzeit_docker.options import DockerOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from docker.api.client import APIClient

    Start = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.docker

# Speaks as much of OpenAI's API as one question needs.
SERVER = """
import json, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.answer({"status": "ok"})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = asked["messages"][-1]["content"].upper() + os.environ["MARK"]
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.answer({"id": "1", "object": "chat.completion", "created": 1, "model": asked["model"], "choices": [choice],
                     "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})
    def log_message(self, *args): pass
ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
OPTIONS = {
    "image": "gleitzeit-test-python:latest",
    "api": "openai",
    "port": 8000,
    "health_path": "/health",
    "models": ["shout"],
    "network": "bridge",
    "command": ["python3", "-c", SERVER],
    "environment": {"MARK": "!"},
    "max_concurrent": 4,
}


@pytest.mark.usefixtures("engine")
async def test_servers_in_containers_are_driven_by_llm() -> None:
    """Two of them share the questions, on loopback ports that the engine has chosen."""
    provider_of = pytest.importorskip("gleitzeit_llm.provider").LLMProvider
    hub = DockerHub(DockerOptions.model_validate({**OPTIONS, "min_total": 2}))
    async with provider_of(hub=hub) as provider:
        assert [instance.offers[0][1].url[:17] for instance in hub.instances] == ["http://127.0.0.1:"] * 2
        question = {"model": "shout", "messages": [{"role": "user", "content": "hello"}]}
        answers = await asyncio.gather(*(provider.execute("llm/chat", question) for _ in range(8)))
        assert all("HELLO!" in json.dumps(answer, default=str) for answer in answers)


async def test_one_that_ends_before_it_answers_is_not_waited_for(pool: Start) -> None:
    """The creation fails with its status, long before its time is over."""
    async with asyncio.timeout(20):
        pooled = await pool(**{**OPTIONS, "command": ["python3", "-c", "raise SystemExit(3)"]}, min_total=1)
    assert "ended with status 3" in pooled.hub.problem


async def test_what_a_server_said_last_is_told(pool: Start) -> None:
    """Nobody can ask the engine for it any more: the container is gone."""
    pooled = await pool(
        **{**OPTIONS, "command": ["python3", "-c", "raise SystemExit('no such model: x')"]}, min_total=1
    )
    assert "ended with status 1; it said: no such model: x" in pooled.hub.problem


async def test_one_that_is_killed_is_replaced(pool: Start, engine: APIClient) -> None:
    """At once, by the engine's events."""
    pooled = await pool(**OPTIONS, min_total=1, max_total=1, check_interval_s=3600)
    (first,) = pooled.ready()
    await asyncio.to_thread(engine.kill, first.handle.name)
    await pooled.until(lambda: [each for each in pooled.ready() if each.id != first.id])


async def test_one_that_answers_no_more_is_down(pool: Start, engine: APIClient) -> None:
    """Its health path says so; nobody is sent to it."""
    pooled = await pool(**OPTIONS, min_total=1, max_total=1, check_interval_s=3600, check_timeout_s=0.5)
    (first,) = pooled.ready()
    assert "ready" in await pooled.check(first)
    # It takes connections still, and is silent; nobody tells of it.
    await pooled.hub._fleet.watches[first.details["engine"]].aclose()
    await asyncio.to_thread(engine.pause, first.handle.name)
    assert "down" in [await pooled.check(first), await pooled.check(first)][-1]
