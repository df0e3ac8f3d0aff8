"""Instances by hand: they come, are drained and resumed, and go, for those who may do that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_gateway.access import is_this_machine
from gleitzeit_gateway.endpoints import Endpoint, json_response
from gleitzeit_gateway.errors import plain_error
from gleitzeit_ollama.testing import Gate, HangBeforeHeaders, OllamaServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.call import Call
    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

ROOT_KEY, BOB = "the-key-that-may-do-all", "bobs-key-is-secret-as-well"
KEYS = [{"name": "root", "key": ROOT_KEY, "admin": True}, {"name": "bob", "key": BOB}]
AS_ROOT = {"Authorization": f"Bearer {ROOT_KEY}"}
AS_BOB = {"Authorization": f"Bearer {BOB}"}
CHANGES = [
    ("POST", "/admin/instances"),
    ("POST", "/admin/instances/x/drain"),
    ("POST", "/admin/instances/x/resume"),
    ("DELETE", "/admin/instances/x"),
    ("POST", "/admin/reload"),
]
each_change = pytest.mark.parametrize(("verb", "path"), CHANGES, ids=lambda value: value.replace("/", "_"))


def id_of(gateway: RunningGateway, server: OllamaServer) -> str:
    """The id under which a server is known."""
    reports = gateway.manager.instances()
    return next(report.instance.id for report in reports if report.instance.endpoint == server.url)


async def state_of(gateway: RunningGateway, name: str) -> str:
    """The state of an instance, as told."""
    answered = await gateway.ask(f"/admin/instances/{name}")
    assert answered.status == 200
    state: str = answered.json["state"]
    return state


def error_of(answered: Answered, status: int, code: str) -> dict[str, Any]:
    """An error in the gateway's own envelope."""
    assert answered.status == status, answered.text
    error: dict[str, Any] = answered.json["error"]
    assert error["code"] == answered.headers["X-Gleitzeit-Error"] == code
    return error


# -- instances come ------------------------------------------------------------------------------------------------


async def test_add(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """An instance that is added is checked when the answer comes, described in it, and serves."""
    gateway = await serve(ollama)
    settings = {"url": other.url, "weight": 2, "max_concurrent": 3, "tags": ["gpu"]}
    answered = await gateway.ask("/admin/instances", settings)
    assert answered.status == 201, answered.text
    added = answered.json
    assert (added["endpoint"], added["hub"], added["state"]) == (other.url, "lan", "ready")
    assert (added["weight"], added["max_concurrent"], added["tags"]) == (2, 3, ["gpu"])
    assert added["id"] == id_of(gateway, other)
    again = await gateway.ask(answered.headers["Location"])
    assert (again.status, again.json["id"]) == (200, added["id"])
    listed = (await gateway.ask("/admin/instances")).json["instances"]
    assert {one["endpoint"] for one in listed} == {ollama.url, other.url}
    await gateway.ask(f"/admin/instances/{id_of(gateway, ollama)}/drain", verb="POST")
    assert (await gateway.chat()).headers["X-Gleitzeit-Instance"] == added["id"]


async def test_add_to_a_hub(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """The hub may be named; with no hub there yet, the type makes one."""
    gateway = await serve(ollama)
    answered = await gateway.ask("/admin/instances", {"url": other.url, "hub": "lan"})
    assert (answered.status, answered.json["hub"]) == (201, "lan")
    empty = await serve()
    answered = await empty.ask("/admin/instances", {"url": other.url, "type": "ollama"})
    assert (answered.status, answered.json["state"]) == (201, "ready")
    assert (await empty.chat()).status == 200


WRONG = {
    "nothing": (b"", "must be a JSON object"),
    "no JSON": (b"{", "must be a JSON object"),
    "a list": (b"[]", "must be a JSON object"),
    "no settings": (b"{}", "url"),
    "no URL": (b'{"url": "http://"}', "url"),
    "a number for a hub": (b'{"url": "http://127.0.0.1:1", "hub": 1}', "'hub' must be a name"),
    "an unknown hub": (b'{"url": "http://127.0.0.1:1", "hub": "lna"}', "lna"),
    "an unknown type": (b'{"url": "http://127.0.0.1:1", "type": "olama"}', "olama"),
    "a wrong weight": (b'{"url": "http://127.0.0.1:1", "weight": -1}', "weight"),
    "an unknown setting": (b'{"url": "http://127.0.0.1:1", "wieght": 1}', "wieght"),
}


@pytest.mark.parametrize(("body", "words"), WRONG.values(), ids=WRONG)
async def test_add_what_is_wrong(serve: Serve, ollama: OllamaServer, body: bytes, words: str) -> None:
    """Settings that are wrong say which, and nothing is added."""
    gateway = await serve(ollama)
    headers = {"Content-Type": "application/json"}
    answered = await gateway.ask("/admin/instances", body, verb="POST", headers=headers)
    assert answered.status in (400, 422), answered.text
    assert words in answered.json["error"]["message"]
    assert len(gateway.manager.instances()) == 1


# -- they are drained and resumed ----------------------------------------------------------------------------------


async def test_drain_and_resume(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Drained, an instance finishes what it has and gets nothing new; resumed, it serves again."""
    gateway = await serve(ollama, other)
    name = id_of(gateway, ollama)
    ollama.script.next(hang := HangBeforeHeaders())
    other.script.next(HangBeforeHeaders())
    asked = [asyncio.create_task(gateway.chat()) for _ in range(2)]
    async with asyncio.timeout(20):
        await hang.reached.wait()
        answered = await gateway.ask(f"/admin/instances/{name}/drain", verb="POST")
        assert (answered.status, answered.json["id"]) == (200, name)
        assert (answered.json["state"], answered.json["in_flight"]) == ("draining", 1)
        ollama.release()
        other.release()
        assert [(await task).status for task in asked] == [200, 200]
        await gateway.until(lambda: gateway.in_flight == 0)
    assert await state_of(gateway, name) == "drained"
    for _ in range(4):
        assert (await gateway.chat()).headers["X-Gleitzeit-Instance"] != name
    answered = await gateway.ask(f"/admin/instances/{name}/resume", verb="POST")
    assert (answered.status, answered.json["state"]) == (200, "ready")
    assert name in {(await gateway.chat()).headers["X-Gleitzeit-Instance"] for _ in range(8)}


async def test_drain_counts_for_readiness(serve: Serve, ollama: OllamaServer) -> None:
    """With its only instance drained the gateway is not ready."""
    gateway = await serve(ollama)
    name = id_of(gateway, ollama)
    await gateway.ask(f"/admin/instances/{name}/drain", verb="POST")
    ready = await gateway.ask("/health/ready")
    assert (ready.status, ready.json["ready"], ready.json["instances"]) == (503, 0, 1)


# -- they go -------------------------------------------------------------------------------------------------------


async def test_remove(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Removed, an instance finishes what it has and is known no longer."""
    gateway = await serve(ollama, other)
    name = id_of(gateway, ollama)
    ollama.script.next(hang := HangBeforeHeaders())
    other.script.next(HangBeforeHeaders())
    asked = [asyncio.create_task(gateway.chat()) for _ in range(2)]
    async with asyncio.timeout(20):
        await hang.reached.wait()
        removing = asyncio.create_task(gateway.ask(f"/admin/instances/{name}", verb="DELETE"))
        await gateway.until(lambda: not removing.done() and "drain" in str(_state(gateway, name)))
        ollama.release()
        other.release()
        assert [(await task).status for task in asked] == [200, 200]
        answered = await removing
    assert (answered.status, answered.json) == (200, {"removed": name})
    error_of(await gateway.ask(f"/admin/instances/{name}"), 404, "unknown_name")
    assert [report.instance.endpoint for report in gateway.manager.instances()] == [other.url]


def _state(gateway: RunningGateway, name: str) -> str:
    return next((report.state for report in gateway.manager.instances() if report.instance.id == name), "gone")


async def test_remove_without_grace(serve: Serve, ollama: OllamaServer) -> None:
    """Without grace it goes at once, whatever it works on; who waits for that gets it all the same."""
    gateway = await serve(ollama)
    name = id_of(gateway, ollama)
    ollama.script.next(hang := HangBeforeHeaders())
    asked = asyncio.create_task(gateway.chat())
    async with asyncio.timeout(20):
        await hang.reached.wait()
        answered = await gateway.ask(f"/admin/instances/{name}?grace_s=0", verb="DELETE")
        assert (answered.status, answered.json) == (200, {"removed": name})
        ollama.release()
        assert (await asked).status == 200
        await gateway.until(lambda: gateway.in_flight == 0)


async def test_remove_in_the_middle_of_an_answer(serve: Serve) -> None:
    """It is forgotten, and the answer that it has begun goes on to its end."""
    question = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
    async with OllamaServer(gate=(gate := Gate(1))) as ollama:
        gateway = await serve(ollama)
        asked = asyncio.create_task(gateway.ask("/api/chat", question))
        async with asyncio.timeout(20):
            await gateway.until(lambda: gate.waiting == 1)
            answered = await gateway.ask(f"/admin/instances/{id_of(gateway, ollama)}?grace_s=0", verb="DELETE")
            assert answered.status == 200
            assert gateway.manager.instances() == ()
            gate.open()
            streamed = await asked
        assert streamed.status == 200
        assert b'"done":true' in streamed.body
        assert gateway.in_flight == 0


@pytest.mark.parametrize(
    "query", ["grace_s=-1", "grace_s=x", "grace_s=nan", "grace_s=inf", "grace_s=1&grace_s=2", "g=1"]
)
async def test_remove_with_a_mistake(serve: Serve, ollama: OllamaServer, query: str) -> None:
    """A parameter that is wrong, unknown or given twice is refused, and nothing is removed."""
    gateway = await serve(ollama)
    answered = await gateway.ask(f"/admin/instances/{id_of(gateway, ollama)}?{query}", verb="DELETE")
    error_of(answered, 400, "invalid_request")
    assert await state_of(gateway, id_of(gateway, ollama)) == "ready"


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "path"),
    [("GET", "/nope"), ("GET", "/a/b"), ("POST", "/nope/drain"), ("POST", "/nope/resume"), ("DELETE", "/nope")],
)
async def test_unknown_instance(serve: Serve, ollama: OllamaServer, verb: str, path: str) -> None:
    """Of an instance that is not there it says so: 404."""
    gateway = await serve(ollama)
    error = error_of(await gateway.ask(f"/admin/instances{path}", verb=verb), 404, "unknown_name")
    assert "instance" in error["message"]


@pytest.mark.parametrize("action", ["", "stop", "drain/now"])
async def test_unknown_action(serve: Serve, ollama: OllamaServer, action: str) -> None:
    """What can be asked of an instance is said: 404."""
    gateway = await serve(ollama)
    path = f"/admin/instances/{id_of(gateway, ollama)}/{action}"
    error = error_of(await gateway.ask(path, verb="POST"), 404, "not_found")
    assert "'drain'" in error["message"]


# -- who may -------------------------------------------------------------------------------------------------------


@each_change
async def test_only_some_keys_may(serve: Serve, ollama: OllamaServer, verb: str, path: str) -> None:
    """Where keys are configured, a change needs one with ``admin``; others may look."""
    gateway = await serve(ollama, keys=KEYS)
    error_of(await gateway.ask(path, verb=verb), 401, "unauthorized")
    error = error_of(await gateway.ask(path, verb=verb, headers=AS_BOB), 403, "forbidden")
    assert "'admin: true'" in error["message"]
    assert (await gateway.ask(path, verb=verb, headers=AS_ROOT)).status not in (401, 403)
    assert (await gateway.ask("/admin/instances", headers=AS_BOB)).status == 200


@each_change
async def test_no_form_of_a_page_may(serve: Serve, ollama: OllamaServer, verb: str, path: str) -> None:
    """A body that is not JSON is refused, whatever is in it: a page of another site could send one."""
    gateway = await serve(ollama)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"):
        answered = await gateway.ask(path, b"{}", verb=verb, headers={"Content-Type": kind})
        error_of(answered, 415, "not_json")


@each_change
async def test_no_page_of_another_site_may(serve: Serve, ollama: OllamaServer, verb: str, path: str) -> None:
    """A page of another site is refused as everywhere else."""
    gateway = await serve(ollama)
    assert (await gateway.ask(path, verb=verb, headers={"Origin": "https://example.com"})).status == 403
    assert (await gateway.ask(path, verb=verb, headers={"Host": "example.com"})).status == 403


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("2001:db8::1", False),
        ("", False),
        (None, False),
    ],
)
def test_this_machine(address: str | None, *, ours: bool) -> None:
    """Loopback is this machine, also where IPv6 carries it; an address that is not known is not."""
    assert is_this_machine(address) is ours


async def test_without_keys_only_this_machine(
    serve: Serve, ollama: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without keys, a change from another machine is refused; looking is not."""
    gateway = await serve(ollama, host="0.0.0.0", allow_anonymous=True)  # noqa: S104 - no more than for this test
    name = id_of(gateway, ollama)
    url = gateway.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - to connect
    monkeypatch.setattr("gleitzeit_gateway.http_request.Request.remote", "192.0.2.1")
    async with gateway.session.post(f"{url}/admin/instances/{name}/drain") as answered:
        assert answered.status == 403
        assert "only this machine" in (await answered.json())["error"]["message"]
    async with gateway.session.get(f"{url}/admin/instances/{name}") as answered:
        assert (answered.status, (await answered.json())["state"]) == (200, "ready")
    monkeypatch.undo()
    async with gateway.session.post(f"{url}/admin/instances/{name}/drain") as answered:
        assert answered.status == 200


async def _nothing(call: Call) -> Any:  # noqa: ANN401 - a response
    return json_response({"for": call.tenant})


def test_public_changes_are_a_mistake() -> None:
    """An endpoint cannot be for anybody and for few."""
    with pytest.raises(ValueError, match="cannot need no key"):
        Endpoint(method="POST", path="/x", handler=_nothing, error=plain_error, public=True, admin=True)
