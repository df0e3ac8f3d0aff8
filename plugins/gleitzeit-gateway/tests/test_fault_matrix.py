"""Every client API, plain and in parts, against every way an instance can fail: alone, and beside one that is well.

What a caller sees is always its own API's: an answer, an error in its envelope, or an error inside an answer that has
begun, which then has no clean end. What becomes of the instance is what DESIGN says of that failure. And no slot stays
taken.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest

from gleitzeit_ollama.testing import (
    Busy,
    DropAfter,
    DropBeforeHeaders,
    ErrorLineAfter,
    Garbage,
    Hang,
    OllamaServer,
    StallAfter,
    Status,
    TruncateAfter,
    Unauthorized,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from gleitzeit_gateway.testing import Answered, RunningGateway
    from gleitzeit_ollama.testing import Fault, OllamaProcess

    Serve = Callable[..., Awaitable[RunningGateway]]
    Start = Callable[..., Awaitable[OllamaProcess]]

pytestmark = pytest.mark.faults
SAID: Final = "You said: hi"
LIMIT_S: Final = 60


# -- the client APIs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Api:
    """A client API, as far as these tests speak it.

    Args:
        name: Of the API.
        path: Of its chat.
        statuses: Where they differ from Ollama's.
    """

    name: str
    path: str
    statuses: dict[str, int] = field(default_factory=dict)

    def body(self, *, stream: bool, model: str = "smollm2") -> dict[str, Any]:
        """A question."""
        more = {"max_tokens": 99} if self.name == "anthropic" else {}
        return {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}], **more}

    def events(self, answered: Answered) -> list[Any]:
        """The parts of an answer in parts; those of OpenAI end with ``[DONE]``."""
        if self.name == "ollama":
            return answered.lines
        data = [line.removeprefix("data: ") for line in answered.text.splitlines() if line.startswith("data: ")]
        return [part if part == "[DONE]" else json.loads(part) for part in data]

    def is_end(self, part: Any) -> bool:  # noqa: ANN401 - JSON
        """Whether a part says that the answer is complete."""
        return part == "[DONE]" or part.get("done") is True or part.get("type") == "message_stop"

    def said(self, answered: Answered, *, stream: bool) -> str:
        """The words of an answer that is complete."""
        assert (answered.status, answered.complete) == (200, True), answered
        if stream:
            *parts, end = self.events(answered)
            assert self.is_end(end)
            return "".join(self._words(part) for part in (*parts, *([end] if self.name == "ollama" else [])))
        if self.name == "ollama":
            return str(answered.json["message"]["content"])
        choice = answered.json["choices"][0]["message"] if self.name == "openai" else {}
        return str(choice["content"] if choice else answered.json["content"][0]["text"])

    def _words(self, part: Any) -> str:  # noqa: ANN401 - JSON
        if self.name == "ollama":
            return str(part["message"]["content"])
        if self.name == "openai":
            return "".join(choice["delta"].get("content") or "" for choice in part["choices"])
        return str(part.get("delta", {}).get("text", ""))

    def error(self, envelope: Any) -> str:  # noqa: ANN401 - JSON
        """The words of an error, which is in this API's envelope and in no other's."""
        error = envelope["error"]
        if self.name == "ollama":
            assert isinstance(error, str)
            return error
        if self.name == "openai":
            assert error.keys() == {"message", "type", "param", "code"}
        else:
            assert envelope["type"] == "error"
            assert error.keys() >= {"type", "message"}
        return str(error["message"])

    def refused(self, answered: Answered, status: int) -> str:
        """The words of an error in place of an answer, which is whole and of the right type."""
        assert (answered.status, answered.complete) == (status, True), answered
        assert answered.headers["Content-Type"].startswith("application/json")
        assert answered.headers["X-Gleitzeit-Error"]
        return self.error(answered.json)

    def broken_off(self, answered: Answered) -> str:
        """The words of the error inside an answer that had begun, and after which nothing comes."""
        assert (answered.status, answered.complete) == (200, False), answered
        *parts, last = self.events(answered)
        assert parts
        assert not any(map(self.is_end, parts))
        return self.error(last)


APIS: Final = (
    Api("ollama", "/api/chat"),
    Api("openai", "/v1/chat/completions", {"full": 429}),
    Api("anthropic", "/v1/messages", {"full": 529, "busy": 529}),
)
in_each_api = pytest.mark.parametrize("api", APIS, ids=lambda api: api.name)
plain_or_in_parts = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


async def ask(gateway: RunningGateway, api: Api, *, stream: bool, begun: Callable[[], None] | None = None) -> Answered:
    """Put the question."""
    return await gateway.ask(api.path, api.body(stream=stream), begun=begun)


# -- the faults ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """One way to fail.

    Args:
        fault: Makes it; None: nobody listens.
        status: What a caller gets when there is no other instance.
        words: Are in the error.
        in_parts: Whether an answer in parts has begun by then.
        waits: Whether only the deadline ends it: then nothing is tried elsewhere.
        after_one: The instance's condition after one such failure.
        after_many: And after five or more.
        asked: How many requests it gets, of many, before it gets none.
        overrides: The status, where an API has its own.
    """

    fault: Callable[[], Fault] | None
    status: int
    words: str = ""
    in_parts: bool = False
    waits: bool = False
    after_one: str = "ready"
    after_many: str = "ejected"
    asked: int = 5
    overrides: str = ""


CASES: Final = {
    "refusing": Case(None, 503, "cannot be reached", after_one="down", after_many="down", asked=0),
    "500 at once": Case(Status, 500, "something went wrong"),
    "busy": Case(lambda: Busy(retry_after_s=7), 503, "maximum pending", after_many="ready", asked=1, overrides="busy"),
    "never answering": Case(Hang, 504, "deadline", waits=True, after_many=""),
    "stalling in the middle": Case(lambda: StallAfter(1), 504, "deadline", in_parts=True, waits=True, after_many=""),
    "closing before it answers": Case(DropBeforeHeaders, 502, "closed the connection"),
    "dropping in the middle": Case(lambda: DropAfter(1), 502, in_parts=True),
    "resetting in the middle": Case(lambda: DropAfter(1, reset=True), 502, in_parts=True),
    "ending too early": Case(lambda: TruncateAfter(1), 502, in_parts=True),
    "a page": Case(Garbage, 502, "html"),
    "a page of an error": Case(lambda: Garbage(code=502), 502, "502"),
    "bytes": Case(lambda: Garbage(b"\x00\xff\xfe{]" * 99, "application/octet-stream"), 502),
    "bytes in place of JSON": Case(lambda: Garbage(b"\x00\xff\xfe{]", "application/json"), 502),
    "an error line inside": Case(lambda: ErrorLineAfter(1, "out of memory"), 500, "out of memory", in_parts=True),
    "401": Case(
        Unauthorized, 502, "refused the gateway's own", after_one="misconfigured", after_many="misconfigured", asked=1
    ),
}
in_each_way = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever an instance does is no mistake of ours."""
    caplog.set_level(logging.INFO)
    yield
    assert [record for record in caplog.records if record.exc_info and record.name.startswith("gleitzeit")] == []


async def fail(server: OllamaServer, case: Case) -> None:
    """Make a server fail from now on."""
    if case.fault is None:
        await server.stop()
    else:
        server.script.always(case.fault(), on="any" if case.after_one == "misconfigured" else "work")


def condition(gateway: RunningGateway, server: OllamaServer) -> str:
    """What the pool thinks of a server."""
    return next(r.state for r in gateway.manager.instances() if r.instance.endpoint == server.url)


def route_of(case: Case, **more: object) -> dict[str, object]:
    """A route with a deadline, where nothing else ends the wait."""
    return {"strategy": "round_robin", **({"timeout_s": 0.25} if case.waits else {}), **more}


@in_each_api
@plain_or_in_parts
@in_each_way
async def test_the_only_one_fails(serve: Serve, ollama: OllamaServer, api: Api, case: Case, *, stream: bool) -> None:
    """The caller gets an error in its API's shape, and what becomes of the instance fits the failure."""
    gateway = await serve(ollama, route=route_of(case))
    await fail(ollama, case)
    async with asyncio.timeout(LIMIT_S):
        answered = await ask(gateway, api, stream=stream)
        if case.in_parts and stream:
            assert case.words in api.broken_off(answered)
        else:
            assert case.words in api.refused(answered, api.statuses.get(case.overrides, case.status))
        await gateway.until(lambda: gateway.in_flight == 0)
    assert answered.headers.get("Retry-After") == ("7" if case.overrides == "busy" else None)
    assert condition(gateway, ollama) == case.after_one
    if case.after_one == "down":
        # Nobody tries what is known to be down; the sentence names it.
        assert ollama.url in api.refused(await ask(gateway, api, stream=stream), 503)


@in_each_api
@plain_or_in_parts
@in_each_way
async def test_another_is_well(
    serve: Serve, ollama: OllamaServer, other: OllamaServer, api: Api, case: Case, *, stream: bool
) -> None:
    """What had not begun is answered by the other one; after some failures the first gets nothing, and nobody waits."""
    gateway = await serve(ollama, other, route=route_of(case))
    await fail(ollama, case)
    begun = case.in_parts and stream
    # An output counts as a success, so that it is the rate of failures that tells of what breaks off later.
    rounds = 4 if case.waits else 50 if begun else 14
    async with asyncio.timeout(LIMIT_S):
        answers = [await ask(gateway, api, stream=stream) for _ in range(rounds)]
        await gateway.until(lambda: gateway.in_flight == 0)
    bad = [answered for answered in answers if not (answered.status == 200 and answered.complete)]
    for answered in answers:
        if answered not in bad:
            assert api.said(answered, stream=stream) == SAID
    for answered in bad:
        assert case.words in (api.broken_off(answered) if begun else api.refused(answered, case.status))
    asked = sum(record.path.startswith(("/api/chat", "/v1/")) for record in ollama.requests)
    if begun or case.waits:
        # Every second request went there, until it was put out of service.
        assert len(bad) == asked > 0
    else:
        assert bad == []
        assert asked == case.asked
    if case.after_many:
        assert condition(gateway, ollama) == case.after_many
    assert condition(gateway, other) == "ready"
    assert "Retry-After" not in answers[-1].headers


@in_each_api
async def test_flapping(serve: Serve, ollama: OllamaServer, other: OllamaServer, api: Api) -> None:
    """A server that is there one moment and gone the next costs nobody an answer."""
    gateway = await serve(ollama, other, route={"strategy": "round_robin"})

    async def answers() -> list[str]:
        got = [(stream, await ask(gateway, api, stream=stream)) for stream in (False, False, True, True)]
        assert [api.said(answered, stream=stream) for stream, answered in got] == [SAID] * 4
        return [answered.headers["X-Gleitzeit-Tries"] for _, answered in got]

    async with asyncio.timeout(LIMIT_S):
        for _ in range(2):
            await ollama.stop()
            await answers()
            assert condition(gateway, ollama) == "down"
            await ollama.start()
            await gateway.until(lambda: condition(gateway, ollama) == "ready")
            assert await answers() == ["1"] * 4
    assert gateway.in_flight == 0


# -- refused by the gateway itself ----------------------------------------------------------------------------------


async def is_refused(gateway: RunningGateway, api: Api, body: object, status: int, words: str, code: str) -> None:
    """An error of the API, with its own status, the gateway's code, and these words."""
    answered = await gateway.ask(api.path, body)
    assert words in api.refused(answered, status)
    assert answered.headers["X-Gleitzeit-Error"] == code
    assert answered.headers["Content-Type"].startswith("application/json")


@in_each_api
@plain_or_in_parts
async def test_queue_that_is_full_and_deadline_in_it(
    serve: Serve, ollama: OllamaServer, api: Api, *, stream: bool
) -> None:
    """Each has its API's own status, and a full queue says when to come back; neither reaches an instance."""
    gateway = await serve(ollama, hub={"max_concurrent": 1}, route={"max_queue": 1, "timeout_s": 0.4})
    ollama.script.next(hang := Hang())
    longer = {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": APIS[0].body(stream=False), "timeout_s": 60}
    async with asyncio.timeout(LIMIT_S):
        running = asyncio.create_task(gateway.ask("/rpc", longer))
        await hang.reached.wait()
        waiting = asyncio.create_task(ask(gateway, api, stream=stream))
        await gateway.until(lambda: gateway.waiting == 1)
        refused = await ask(gateway, api, stream=stream)
        assert "queue is full" in api.refused(refused, api.statuses.get("full", 503))
        assert int(refused.headers["Retry-After"]) >= 1
        assert "deadline" in api.refused(await waiting, 504)
        hang.released.set()
        assert "result" in (await running).json
    assert sum(bool(record.body) for record in ollama.requests) == 1


@in_each_api
@plain_or_in_parts
async def test_what_is_no_request(serve: Serve, ollama: OllamaServer, api: Api, *, stream: bool) -> None:
    """An unknown model, a body that is none and one that is too large are refused, and no instance hears of them."""
    gateway = await serve(ollama, max_body_bytes=1000)
    unknown = api.body(stream=stream, model="nope")
    await is_refused(gateway, api, unknown, 404, "nope", "no_capable_instance")
    for body in (b"", b"{", b"[]", b"\xff\xfe", b'{"model": 3}', b"{}"):
        await is_refused(gateway, api, body, 400, "", "invalid_request")
    large = {**api.body(stream=stream), "user": "x" * 1000}
    await is_refused(gateway, api, large, 413, "larger than 1000 bytes", "too_large")
    assert not [record for record in ollama.requests if record.body]


# -- killed under load ---------------------------------------------------------------------------------------------


async def test_killed_with_many_running_over_four(serve: Serve, process: Start, *, full_size: bool) -> None:
    """Of all that run on an instance that is killed, those that had begun get an error inside, the others an answer.

    Then it comes back on the same port, and slowly: one request at first, and twice as many with each success.
    """
    size = 200 if full_size else 40
    per_one, early = size // 4, size // 10
    servers = [await process(gate=True, num_parallel=size) for _ in range(4)]
    victim, *survivors = servers
    gateway = await serve(*servers, hub={"max_concurrent": size})
    begun: list[int] = []

    def start(number: int, *, stream: bool) -> asyncio.Task[tuple[Api, bool, Answered]]:
        async def put() -> tuple[Api, bool, Answered]:
            api = APIS[number % 3]
            return api, stream, await ask(gateway, api, stream=stream, begun=lambda: begun.append(number))

        return asyncio.create_task(put())

    async with asyncio.timeout(LIMIT_S):
        # 1. Some streams on each; those on the victim begin, and then stand still.
        asked = [start(number, stream=True) for number in range(4 * early)]
        for server in servers:
            await server.wait_for(waiting_tokens=early)
        await victim.allow(early)
        await gateway.until(lambda: len(begun) == early)
        # 2. The rest, of every kind, of which nothing begins.
        asked += [start(number, stream=number % 2 == 0) for number in range(4 * early, size)]
        for server in servers:
            await server.wait_for(waiting_tokens=per_one)
        assert gateway.in_flight == size
        # 3. Those that had begun hear of it while all others still stand still.
        victim.kill()
        await gateway.until(lambda: sum(task.done() for task in asked) == early)
        broken = [await task for task in asked if task.done()]
        await gateway.until(lambda: gateway.in_flight == size - early)
        for server in survivors:
            await server.open_gate()
        answers = [await task for task in asked]
    cut = [(api, answered) for api, _, answered in answers if not answered.complete]
    assert len(broken) == len(cut) == early
    for api, answered in cut:
        assert api.broken_off(answered)
    for api, stream, answered in answers:
        if answered.complete:
            assert api.said(answered, stream=stream) == SAID
    tries = sorted(answered.headers["X-Gleitzeit-Tries"] for _, _, answered in answers)
    assert tries.count("2") == per_one - early
    assert set(tries) == {"1", "2"}
    await gateway.until(lambda: gateway.in_flight == 0)
    await comes_back_slowly(gateway, victim, process)


async def comes_back_slowly(gateway: RunningGateway, victim: OllamaProcess, process: Start) -> None:
    """What was killed is started again, and gets one request, then two, while the others take the rest."""

    def of_victim() -> tuple[str, int]:
        return next((r.state, r.in_flight) for r in gateway.manager.instances() if r.instance.endpoint == victim.url)

    async with asyncio.timeout(LIMIT_S):
        assert of_victim() == ("down", 0)
        again = await process(gate=True, reply="ok", num_parallel=64, port=victim.port)
        await gateway.until(lambda: of_victim()[0] == "ready")
        for most in (1, 2, 4):
            burst = [asyncio.create_task(gateway.chat()) for _ in range(4 * 4)]
            await again.wait_for(waiting_tokens=most)
            await gateway.until(lambda most=most: gateway.in_flight == most)  # type: ignore[misc]
            assert of_victim() == ("ready", most)
            await again.allow(most)
            assert [(await task).status for task in burst] == [200] * len(burst)
