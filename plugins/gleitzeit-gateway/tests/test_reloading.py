"""The configuration, read again: what can change does, nothing is dropped, and what is wrong changes nothing."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.manager import ResourceManager
from gleitzeit_gateway.testing import RunningGateway
from gleitzeit_ollama.testing import HangBeforeHeaders, OllamaServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Start = Callable[..., Awaitable[RunningGateway]]
    Write = Callable[..., None]

OLD, NEW, ROOT_KEY = "the-old-key-is-very-secret", "the-new-key-is-secret-too", "the-key-that-may-do-all"
ROOT = {"name": "root", "key": ROOT_KEY, "admin": True}
AS_ROOT = {"Authorization": f"Bearer {ROOT_KEY}"}


def using(key: str) -> dict[str, str]:
    """Headers with a key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def write(tmp_path: Path, ollama: OllamaServer) -> Write:
    """Writes the configuration: `gateway` and `routes` as given, and a hub with the stand-in and `more` instances."""

    def write(*more: str, routes: object = None, **gateway: object) -> None:
        instances = [{"url": url} for url in (ollama.url, *more)]
        data: dict[str, Any] = {
            "hubs": {"lan": {"type": "ollama", "instances": instances}},
            "gateway": {"port": 0, "access_log": False, **gateway},
            **({} if routes is None else {"routes": routes}),
        }
        (tmp_path / "gleitzeit.yaml").write_text(json.dumps(data))

    return write


@pytest.fixture
async def start(tmp_path: Path, write: Write) -> AsyncIterator[Start]:
    """Starts a gateway from the file, written with what it is given."""
    async with AsyncExitStack() as stack:

        async def start(*more: str, **options: object) -> RunningGateway:
            await asyncio.to_thread(write, *more, **options)
            manager = await asyncio.to_thread(ResourceManager.from_config, tmp_path / "gleitzeit.yaml")
            return await stack.enter_async_context(RunningGateway(manager))

        yield start


async def reload(gateway: RunningGateway, query: str = "", **headers: str) -> dict[str, dict[str, Any]]:
    """Reload; the changes by their path."""
    answered = await gateway.ask(f"/admin/reload{query}", verb="POST", headers=headers)
    assert answered.status == 200, answered.text
    assert answered.json["dry_run"] is (query != "")
    changes: list[dict[str, Any]] = answered.json["changes"]
    for change in changes:
        assert change.keys() == {"path", "what", "before", "after", "applied", "note"}
    return {change["path"]: change for change in changes}


# -- what changes --------------------------------------------------------------------------------------------------


async def test_nothing_has_changed(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A configuration that is the same changes nothing, and the log says so."""
    caplog.set_level("INFO", "gleitzeit.reload")
    gateway = await start()
    assert await reload(gateway) == {}
    assert caplog.messages == ["reload: nothing has changed"]


async def test_what_changed_is_answered_and_logged(
    start: Start, write: Write, other: OllamaServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Each change is in the answer and a line of the log, and is in force."""
    caplog.set_level("INFO", "gleitzeit.reload")
    routes = [{"methods": ["*"], "max_queue": 3}]
    gateway = await start(routes=routes)
    routes[0]["max_queue"] = 5
    write(other.url, routes=routes, allowed_origins=["https://app.example"])
    changes = await reload(gateway)
    assert len(changes) >= 3
    assert all(change["applied"] for change in changes.values())
    assert any(path.startswith("routes") for path in changes)
    assert any(path.startswith("hubs.lan") for path in changes)
    assert any(path.startswith("gateway.allowed_origins") for path in changes)
    assert len(caplog.messages) == len(changes)
    for path in changes:
        assert any(path in message for message in caplog.messages)
    status = (await gateway.ask("/admin/status")).json
    assert {one["endpoint"] for one in status["instances"]} >= {other.url}
    assert len(status["instances"]) == 2
    assert status["routes"][0]["max_queue"] == 5
    assert (await gateway.ask("/health/live", headers={"Origin": "https://app.example"})).status == 200


async def test_lines_of_the_log(start: Start, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """A line says what a value was and what it is, be it nothing at all, and what is long is cut."""
    caplog.set_level("INFO", "gleitzeit.reload")
    gateway = await start(routes=[{"methods": ["*"], "timeout_s": None}], allowed_hosts=["old.example"])
    write(routes=[{"methods": ["*"], "timeout_s": 5}], allowed_origins=["https://" + "x" * 1000])
    await reload(gateway)
    lines = sorted(caplog.messages)
    assert lines[1:] == [
        "reload: changed routes[0].timeout_s: None -> 5.0",
        "reload: removed gateway.allowed_hosts[0]: 'old.example'",
    ]
    assert lines[0].startswith("reload: added gateway.allowed_origins[0]: 'https://xxx")
    assert lines[0].endswith("xxx...")
    assert len(lines[0]) < 300


async def test_dry_run(start: Start, write: Write, other: OllamaServer, caplog: pytest.LogCaptureFixture) -> None:
    """With ``dry_run`` everything stays as it is, and the log says nothing."""
    caplog.set_level("INFO", "gleitzeit.reload")
    gateway = await start()
    write(other.url, allowed_origins=["https://app.example"])
    changes = await reload(gateway, "?dry_run=1")
    assert any(path.startswith("hubs.lan") for path in changes)
    assert not any(change["applied"] for change in changes.values())
    assert len((await gateway.ask("/admin/instances")).json["instances"]) == 1
    assert (await gateway.ask("/health/live", headers={"Origin": "https://app.example"})).status == 403
    assert caplog.messages == []


async def test_keys(start: Start, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """Keys come and go at once; none is in the answer, and none in the log."""
    caplog.set_level("DEBUG")
    gateway = await start(keys=[ROOT, {"name": "alice", "key": OLD}])
    assert (await gateway.ask("/api/tags", headers=using(OLD))).status == 200
    write(keys=[ROOT, {"name": "alice", "key": NEW}])
    answered = await gateway.ask("/admin/reload", verb="POST", headers=AS_ROOT)
    assert answered.json["changes"]
    assert (await gateway.ask("/api/tags", headers=using(OLD))).status == 401
    assert (await gateway.ask("/api/tags", headers=using(NEW))).status == 200
    for key in (OLD, NEW, ROOT_KEY):
        assert key not in answered.text + caplog.text


async def test_limits_of_keys(start: Start, write: Write) -> None:
    """A key that stays keeps what it has used, under other limits and with another secret as well."""
    alice = {"name": "alice", "requests_per_minute": 3, "max_concurrent": 5}
    gateway = await start(keys=[ROOT, {**alice, "key": OLD}])

    async def left(key: str) -> tuple[int, str]:
        body = {"model": "smollm2", "messages": [], "stream": False}
        answered = await gateway.ask("/api/chat", body, headers=using(key))
        return answered.status, answered.headers["X-RateLimit-Remaining-Requests"]

    assert await left(OLD) == (200, "2")
    write(keys=[ROOT, {**alice, "key": NEW}])
    await reload(gateway, **AS_ROOT)
    assert await left(NEW) == (200, "1")
    write(keys=[ROOT, {**alice, "key": NEW, "requests_per_minute": 2}])
    changes = await reload(gateway, **AS_ROOT)
    assert changes["gateway.keys[1].requests_per_minute"]["after"] == 2
    assert await left(NEW) == (429, "0")
    write(keys=[ROOT, {**alice, "key": NEW, "requests_per_minute": 20}])
    await reload(gateway, **AS_ROOT)
    assert await left(NEW) == (200, "17")
    write(keys=[ROOT, {"name": "alice", "key": NEW, "models": ["qwen3"]}])
    await reload(gateway, **AS_ROOT)
    refused = await gateway.ask("/api/chat", {"model": "smollm2"}, headers=using(NEW))
    assert refused.status == 403


async def test_limits(start: Start, write: Write) -> None:
    """Limits hold for requests that come after the change."""
    gateway = await start()
    assert (await gateway.ask("/rpc", b"[1,1,1]")).json[0]["error"]["code"] == -32600
    write(max_batch=2, max_body_bytes=100)
    await reload(gateway)
    assert "at most 2" in (await gateway.ask("/rpc", b"[1,1,1]")).json["error"]["message"]
    assert (await gateway.ask("/rpc", b"1" * 101)).status == 413
    assert gateway.gateway.options.max_body_bytes == 100


async def test_what_runs_goes_on(start: Start, write: Write, ollama: OllamaServer, other: OllamaServer) -> None:
    """What runs and what waits goes on, also on an instance that the new configuration does not have any more."""
    routes = [{"methods": ["*"], "max_queue": 3, "strategy": "round_robin"}]
    gateway = await start(other.url, routes=routes)
    hangs = HangBeforeHeaders(), HangBeforeHeaders()
    for server, hang in zip((ollama, other), hangs, strict=True):
        server.script.next(hang)
    asked = [asyncio.create_task(gateway.chat()) for _ in range(2)]
    async with asyncio.timeout(20):
        for hang in hangs:
            await hang.reached.wait()
        write(routes=[{"methods": ["*"], "strategy": "least_loaded"}])
        await reload(gateway)
        for hang in hangs:
            hang.released.set()
        assert [(await task).status for task in asked] == [200, 200]
        await gateway.until(lambda: len(gateway.manager.instances()) == 1)
    assert (await gateway.chat()).status == 200
    assert gateway.in_flight == 0


# -- what does not -------------------------------------------------------------------------------------------------


async def test_broken_configuration(start: Start, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """A configuration that is wrong changes nothing: 422, with all that is wrong, one by one."""
    gateway = await start(keys=[ROOT])
    write(routes=[{"methods": ["*"], "strategy": "round_robbin"}], keys=[{"name": "x", "key": "short"}], prot=1)
    answered = await gateway.ask("/admin/reload", verb="POST", headers=AS_ROOT)
    assert answered.status == 422
    error = answered.json["error"]
    assert error["code"] == "configuration"
    problems = {problem["path"]: problem for problem in error["problems"]}
    assert problems.keys() >= {"routes[0].strategy", "gateway.keys[0].key", "gateway.prot"}
    for problem in problems.values():
        assert problem.keys() == {"path", "message", "suggestion", "place"}
        assert problem["message"]
    assert "round_robin" in json.dumps(problems["routes[0].strategy"])
    assert "nothing was reloaded: configuration: 3 problems" in caplog.text
    assert (await gateway.ask("/api/tags", headers=AS_ROOT)).status == 200


async def test_file_that_is_gone(start: Start, tmp_path: Path) -> None:
    """So does one that is not there any more, or no YAML."""
    gateway = await start()
    for text in ("{", None):
        if text is None:
            (tmp_path / "gleitzeit.yaml").unlink()
        else:
            (tmp_path / "gleitzeit.yaml").write_text(text)
        answered = await gateway.ask("/admin/reload", verb="POST")
        assert (answered.status, answered.json["error"]["code"]) == (422, "configuration")
    assert (await gateway.chat()).status == 200


async def test_address(start: Start, write: Write) -> None:
    """The address stays until the gateway is started again, and it says so; the rest is in force all the same."""
    gateway = await start()
    write(host="127.0.0.2", max_batch=7)
    changes = await reload(gateway)
    assert "restart" in changes["gateway.host"]["note"]
    assert changes["gateway.host"]["applied"] is False
    assert gateway.gateway.options.max_batch == 7
    assert gateway.gateway.options.host == "127.0.0.1"
    assert (await gateway.chat()).status == 200


@pytest.mark.parametrize("query", ["dryrun=1", "dry_run=maybe", "dry_run=1&dry_run=0"])
async def test_misspelt_dry_run(start: Start, write: Write, query: str) -> None:
    """A parameter that is misspelt does not really reload."""
    gateway = await start()
    write(max_batch=7)
    answered = await gateway.ask(f"/admin/reload?{query}", verb="POST")
    assert (answered.status, answered.json["error"]["code"]) == (400, "invalid_request")
    assert gateway.gateway.options.max_batch == 100


async def test_keys_that_the_old_address_needs(start: Start, write: Write) -> None:
    """Keys that the new address does not need stay as long as the gateway listens on the old one."""
    gateway = await start(host="0.0.0.0", keys=[ROOT])  # noqa: S104 - for this test
    url = gateway.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - to connect
    write(max_batch=7)
    async with gateway.session.post(f"{url}/admin/reload", headers=AS_ROOT) as answered:
        changes = {change["path"]: change for change in (await answered.json())["changes"]}
    assert not any(change["applied"] for change in changes.values())
    assert any("cannot go on listening on 0.0.0.0" in change["note"] for change in changes.values())
    async with gateway.session.get(f"{url}/api/tags") as answered:
        assert answered.status == 401
    assert gateway.gateway.options.max_batch == 100
