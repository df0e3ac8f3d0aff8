"""Who may call: keys in each way that clients send them, and what a web page on another site may not do."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from gleitzeit_gateway.access import Access
from gleitzeit_gateway.options import GatewayOptions, is_loopback
from gleitzeit_ollama.testing import HangBeforeHeaders, OllamaServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.fidelity

ALICE, BOB = "alices-key-is-very-secret", "bobs-key-is-secret-as-well"
KEYS = [{"name": "alice", "key": ALICE}, {"name": "bob", "key": BOB, "priority": -1}]
WRONG = {
    "none": {},
    "wrong": {"Authorization": "Bearer wrong"},
    "empty": {"Authorization": "Bearer "},
    "no scheme": {"Authorization": ALICE},
    "another scheme": {"Authorization": f"Basic {ALICE}"},
    "a beginning": {"Authorization": f"Bearer {ALICE[:-1]}"},
    "more": {"Authorization": f"Bearer {ALICE}x"},
    "two": {"Authorization": f"Bearer {ALICE} {BOB}"},
    "wrong x": {"X-Api-Key": "wrong"},
    "not text": {"X-Api-Key": "\udcff\udcfe"},
    "in the forwarded": {"X-Forwarded-Authorization": f"Bearer {ALICE}"},
}
RIGHT = [
    {"Authorization": f"Bearer {ALICE}"},
    {"Authorization": f"bearer {ALICE}"},
    {"Authorization": f"BEARER  {ALICE}"},
    {"X-Api-Key": ALICE},
    {"x-api-key": BOB},
]
GUARDED = [
    "/api/tags",
    "/api/version",
    "/v1/models",
    "/metrics",
    "/admin/status",
    "/admin/instances",
    "/admin/queues",
    "/admin/metrics",
    "/rpc/methods",
]


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
async def test_without_the_right_key(serve: Serve, ollama: OllamaServer, headers: dict[str, str]) -> None:
    """Nothing is answered and no instance is asked: 401, in the envelope of the API that was called."""
    gateway = await serve(ollama, keys=KEYS)
    answers = [await gateway.ask(path, headers=headers) for path in GUARDED]
    answers += [
        await gateway.ask(path, {"model": "smollm2"}, headers=headers)
        for path in ("/api/chat", "/v1/chat/completions", "/rpc")
    ]
    assert [answered.status for answered in answers] == [401] * (len(GUARDED) + 3)
    assert {answered.headers["WWW-Authenticate"] for answered in answers} == {"Bearer"}
    words = "a valid API key is needed: send it as 'Authorization: Bearer KEY'"
    *_, native, openai, rpc = [answered.json["error"] for answered in answers]
    assert native == words
    assert openai == {"message": words, "type": "authentication_error", "param": None, "code": "unauthorized"}
    assert rpc == {"code": "unauthorized", "message": words, "retryable": False}
    assert not [record for record in ollama.requests if record.method == "POST"]


@pytest.mark.parametrize("headers", RIGHT)
async def test_with_the_right_key(serve: Serve, ollama: OllamaServer, headers: dict[str, str]) -> None:
    """A key is taken as a bearer token or in X-Api-Key."""
    gateway = await serve(ollama, keys=KEYS)
    assert [(await gateway.ask(path, headers=headers)).status for path in GUARDED] == [200] * len(GUARDED)


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready"])
async def test_public_paths(serve: Serve, ollama: OllamaServer, path: str) -> None:
    """What watches over the gateway needs no key."""
    gateway = await serve(ollama, keys=KEYS)
    assert (await gateway.ask(path)).status == 200


async def test_keys_are_never_told(serve: Serve, ollama: OllamaServer, caplog: pytest.LogCaptureFixture) -> None:
    """No key is in any log, sent to an instance, or shown of the objects that hold it; the line names its owner."""
    caplog.set_level(logging.DEBUG)
    gateway = await serve(ollama, keys=KEYS, access_log=True)
    question = {"model": "smollm2", "messages": []}
    for key in (ALICE, "a-wrong-key-that-is-secret-too"):
        for headers in ({"Authorization": f"Bearer {key}"}, {"X-Api-Key": key}):
            await gateway.ask(f"/api/chat?key={key}", question, headers=headers)
    lines = [record.getMessage() for record in caplog.records if record.name == "gleitzeit.access"]
    assert ["key=alice" in line for line in lines] == [True, True, False, False]
    shown = "\n".join([caplog.text, repr(gateway.options), repr(gateway.gateway), repr(Access(gateway.options))])
    passed = "".join(str(dict(record.headers)) for record in ollama.requests)
    assert "secret" not in shown + passed
    status = await gateway.ask("/admin/status", headers=RIGHT[0])
    metrics = await gateway.ask("/metrics", headers=RIGHT[0])
    assert "secret" not in status.text + metrics.text


async def test_priority_of_a_key(serve: Serve, ollama: OllamaServer) -> None:
    """When a slot frees, the key with the higher priority goes first, however late it came."""
    gateway = await serve(ollama, keys=KEYS, hub={"max_concurrent": 1})
    ollama.script.next(hang := HangBeforeHeaders())

    def ask(name: str, key: str) -> asyncio.Task[Answered]:
        question = {"model": "smollm2", "messages": [{"role": "user", "content": name}]}
        return asyncio.create_task(gateway.ask("/api/chat", question, headers={"X-Api-Key": key}))

    async with asyncio.timeout(20):
        asked = [ask("first", BOB)]
        await hang.reached.wait()
        for waiting, (name, key) in enumerate([("bob", BOB), ("alice", ALICE)], start=1):
            asked.append(ask(name, key))
            await gateway.until(lambda waiting=waiting: gateway.waiting == waiting)
        hang.released.set()
        assert [(await task).status for task in asked] == [200] * 3
    work = [record for record in ollama.requests if record.path == "/api/chat"]
    texts = [json.loads(record.body)["messages"][0]["content"] for record in work]
    assert texts == ["first", "alice", "bob"]


# -- where it listens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gpu1", "example.com", "[::]"])  # noqa: S104 - refused
def test_beyond_loopback_only_with_keys(host: str) -> None:
    """Without keys it refuses to listen where others can reach it, and says both ways out."""
    with pytest.raises(ValidationError, match=r"configure 'keys'.*'allow_anonymous: true' \(--allow-anonymous\)"):
        GatewayOptions(host=host)
    assert GatewayOptions(host=host, allow_anonymous=True).host == host
    assert GatewayOptions.model_validate({"host": host, "keys": KEYS}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback(host: str) -> None:
    """What only this machine reaches needs no keys."""
    assert is_loopback(host)
    assert GatewayOptions(host=host).keys == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([{"name": "a", "key": "short"}], "at least 16 characters"),
        ([{"name": "", "key": ALICE}], "at least 1 character"),
        ([{"name": "a", "key": "with spaces in the middle"}], "printable ASCII"),
        ([{"name": "a", "key": "with-an-umläut-inside"}], "printable ASCII"),
        ([{"name": "a", "key": "with-a-line-break\ninside"}], "printable ASCII"),
        ([{"name": "a", "key": ALICE}, {"name": "a", "key": BOB}], "two keys have the same name"),
        ([{"name": "a", "key": ALICE}, {"name": "b", "key": ALICE}], "two names have the same key"),
    ],
)
def test_keys_that_cannot_be(keys: list[dict[str, str]], words: str) -> None:
    """A key that nobody could send, or that says nothing about its owner, is refused, and not repeated."""
    with pytest.raises(ValidationError, match=words) as caught:
        GatewayOptions.model_validate({"keys": keys})
    assert "secret" not in str(caught.value)


# -- pages of other sites ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8484", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8484", 200),
        ("192.168.1.5", 200),
        ("gateway.local", 200),
        ("my.internal", 200),
        (socket.gethostname(), 200),
        ("gpu1", 200),
        ("GPU1:8484", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("gpu1.evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
    ],
)
async def test_host(serve: Serve, ollama: OllamaServer, host: str, status: int) -> None:
    """A page cannot rebind its own name to the gateway: only addresses, local and configured names are answered."""
    gateway = await serve(ollama, allowed_hosts=["gpu1"])
    for path in ("/api/tags", "/rpc", "/admin/status", "/nope", "/health/live"):
        answered = await gateway.ask(path, headers={"Host": host, "X-Forwarded-Host": "localhost"})
        assert (answered.status == 403) == (status == 403)
        if status == 403:
            assert answered.body == b""
            assert "Content-Type" not in answered.headers


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"host": "0.0.0.0", "keys": KEYS}, True),  # noqa: S104 - checked, not listened on
        ({"host": "0.0.0.0", "keys": KEYS, "allowed_hosts": ["gpu1"]}, False),  # noqa: S104 - the same
        ({"host": "0.0.0.0", "allow_anonymous": True}, False),  # noqa: S104 - the same
        ({"host": "127.0.0.1", "keys": KEYS}, False),
        ({"allowed_hosts": ["*"]}, True),
        ({"host": "some.name.example", "allow_anonymous": True}, True),
    ],
)
def test_other_names(options: dict[str, object], *, allowed: bool) -> None:
    """Any name will do only where keys guard the gateway and no names were given, or where that was asked for."""
    assert Access(GatewayOptions.model_validate(options)).host_allowed("some.name.example:8484") == allowed


ORIGINS = {
    "http://localhost:3000": True,
    "https://localhost": True,
    "http://127.0.0.1:5173": True,
    "http://[::1]:80": True,
    "app://obsidian.md": True,
    "vscode-webview://abc": True,
    "https://chat.example": True,
    "https://CHAT.example/": True,
    "https://evil.example": False,
    "http://chat.example": False,
    "http://localhost.evil.example": False,
    "https://evil.example/http://localhost": False,
    "http://[::1": False,
    "null": False,
    "": False,
    "http://localhost@evil.example": False,
    "javascript:alert(1)": False,
}


@pytest.mark.parametrize(("origin", "allowed"), ORIGINS.items())
async def test_origin(serve: Serve, ollama: OllamaServer, origin: str, *, allowed: bool) -> None:
    """A page of a foreign site gets 403 and nothing to read; others may read the answer, errors included."""
    gateway = await serve(ollama, allowed_origins=["https://chat.example"])
    for path, body in (("/api/tags", None), ("/api/chat", {"model": "nope"}), ("/rpc", {}), ("/nope", None)):
        answered = await gateway.ask(path, body, headers={"Origin": origin})
        if allowed:
            assert answered.status != 403
            assert answered.headers["Access-Control-Allow-Origin"] == origin
            assert answered.headers["Vary"] == "Origin"
        else:
            assert (answered.status, answered.body) == (403, b"")
            assert "Access-Control-Allow-Origin" not in answered.headers
    assert not [record for record in ollama.requests if record.method == "POST"]


async def test_preflight(serve: Serve, ollama: OllamaServer) -> None:
    """A browser's question is answered without a key, which it never sends along, and names the headers clients use."""
    gateway = await serve(ollama, keys=KEYS)
    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    answered = await gateway.ask("/api/chat", verb="OPTIONS", headers=headers)
    assert (answered.status, answered.body) == (204, b"")
    assert "POST" in answered.headers["Access-Control-Allow-Methods"]
    ours = {"X-Gleitzeit-Affinity", "X-Gleitzeit-Instances"}
    assert {"Authorization", "Content-Type", "X-Api-Key", *ours} <= set(
        answered.headers["Access-Control-Allow-Headers"].split(",")
    )
    foreign = await gateway.ask("/api/chat", verb="OPTIONS", headers={**headers, "Origin": "https://evil.example"})
    assert foreign.status == 403


async def test_streams_can_be_read_by_pages(serve: Serve, ollama: OllamaServer) -> None:
    """An answer in parts has the same headers as any other."""
    gateway = await serve(ollama)
    question = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
    answered = await gateway.ask("/api/chat", question, headers={"Origin": "http://localhost:3000"})
    assert answered.headers["Content-Type"] == "application/x-ndjson"
    assert answered.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}])
async def test_what_was_refused_is_in_the_log(
    serve: Serve, ollama: OllamaServer, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    """The answer is empty, so the log says why."""
    caplog.set_level(logging.INFO, "gleitzeit.access")
    gateway = await serve(ollama, access_log=True)
    await gateway.ask("/api/tags", headers=headers)
    (line,) = caplog.messages
    assert " 403 " in line
    assert line.endswith(f"error=foreign_{next(iter(headers)).lower()}")
