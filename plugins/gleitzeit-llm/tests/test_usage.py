"""The tokens that answers say they took, in every way an answer can come."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.requests import Request, Usage
from gleitzeit_llm.passthrough import PassThrough
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_llm.raw import RawAnswer
from gleitzeit_llm.raw import passed as passed_whole
from gleitzeit_llm.upstream import Reply
from gleitzeit_llm.usage import Counted, counted, of_canonical, of_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    Recorded = Callable[[str], Any]
    StartPool = Callable[..., Awaitable[Any]]
    MakeInstance = Callable[..., Any]
    Server = Any

pytestmark = pytest.mark.fidelity

USAGE = Usage(input_tokens=11, output_tokens=5)
OLLAMA_PART = b'{"model":"m","message":{"role":"assistant","content":"\\"eval_count\\":7"},"done":false}\n'
OLLAMA_END = b'{"model":"m","done":true,"done_reason":"stop","prompt_eval_count":11,"eval_count":5}\n'
OPENAI_PART = b'data: {"choices":[{"index":0,"delta":{"content":"\\"prompt_tokens\\":7"}}],"usage":null}\n\n'
OPENAI_STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
OPENAI_USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":5,"total_tokens":16}}\n\n'
OPENAI_END = b"data: [DONE]\n\n"
STREAMS = {
    "ollama": OLLAMA_PART + OLLAMA_PART + OLLAMA_END,
    "openai": OPENAI_PART + OPENAI_STOP + OPENAI_USAGE + OPENAI_END,
    "openai, in the last chunk": OPENAI_PART
    + OPENAI_STOP.replace(b"null", b'{ "prompt_tokens":11,"completion_tokens":5}'),
    "openai, with Windows lines": (OPENAI_STOP + OPENAI_USAGE + OPENAI_END).replace(b"\n", b"\r\n"),
}
NONSENSE = [None, True, -1, 0, 1.5, "7", [7], {"n": 7}, 2**60, math.inf]


# -- what JSON says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"prompt_eval_count": 11, "eval_count": 5, "done": True}, USAGE),
        ({"usage": {"prompt_tokens": 11, "completion_tokens": 5}}, USAGE),
        ({"embeddings": [[0.5]], "prompt_eval_count": 3}, Usage(input_tokens=3)),
        ({"usage": {"prompt_tokens": 3, "total_tokens": 3}}, Usage(input_tokens=3)),
        ({"eval_count": 5}, Usage(output_tokens=5)),
        ({"timings": {"prompt_n": 1, "cache_n": 10, "predicted_n": 5, "prompt_ms": 6.5}}, USAGE),
        ({"timings": {"prompt_n": 11, "cache_n": None, "predicted_n": 5}, "usage": None}, USAGE),
        ({"timings": {"prompt_n": 1, "predicted_n": 1}, "usage": {"prompt_tokens": 11, "completion_tokens": 5}}, USAGE),
        ({"timings": 5}, None),
        ({"usage": {}}, None),
        ({"usage": "much"}, None),
        ({"message": {"eval_count": 5}}, None),
        ({}, None),
        ([], None),
        ("eval_count", None),
    ],
)
def test_what_a_whole_answer_says(value: object, expected: Usage | None) -> None:
    """Both APIs' counts, where each API has them; there may be one of the two, or none."""
    assert of_json(json.dumps(value).encode()) == expected


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"eval_count":5', b"\xff", b"[" * 100_000, b'{"usage":' + b"[" * 100_000]
)
def test_what_is_no_json_says_nothing(data: bytes) -> None:
    """It is somebody else's business to complain."""
    assert of_json(data) is None


@pytest.mark.parametrize("value", NONSENSE)
def test_counts_that_make_no_sense_count_nothing(value: object) -> None:
    """Sums stay whole numbers of a sensible size, whatever a server claims."""
    assert of_canonical({"prompt_eval_count": value, "eval_count": value}) is None
    assert of_canonical({"prompt_eval_count": value, "eval_count": 5}) == Usage(output_tokens=5)
    if value != math.inf:
        written = json.dumps({"usage": {"prompt_tokens": 11, "completion_tokens": value}})
        assert of_json(written.encode()) == Usage(input_tokens=11)


def test_counted_bytes_are_the_same_bytes() -> None:
    """With something to say; without it they are not copied."""
    data = b"abc"
    assert counted(data, None) is data
    made = counted(data, USAGE)
    assert made == data
    assert isinstance(made, Counted)
    assert made.usage == USAGE


# -- what passes ---------------------------------------------------------------------------------------------------


def passed(dialect: str, chunks: Sequence[bytes]) -> tuple[bytes, list[Usage]]:
    """What comes out, and what it says."""
    watched, provider, request = PassThrough(dialect), LLMProvider(), Request(method="llm/chat")
    pieces = [piece for chunk in chunks for piece in watched.feed(chunk)]
    pieces += watched.close()
    return b"".join(pieces), [found for piece in pieces if (found := provider.usage(request, piece))]


@pytest.mark.parametrize("name", STREAMS)
@given(places=st.lists(st.integers(0, 400), max_size=20))
def test_a_stream_that_passes_says_it_once(name: str, places: list[int]) -> None:
    """However it was cut on its way; texts that look like counts are none, and nothing is changed."""
    data = STREAMS[name]
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    whole, said = passed(name.partition(",")[0], [data[begin:end] for begin, end in pairwise(ends)])
    assert whole == data
    assert said == [USAGE]


@pytest.mark.parametrize(
    ("dialect", "data"),
    [
        ("ollama", OLLAMA_PART + b'{"done":true}\n'),
        ("openai", OPENAI_PART + OPENAI_STOP + OPENAI_END),
        ("openai", OPENAI_STOP + b'data: {"choices":[],"usage":{"prompt_tokens":"x"}}\n\n' + OPENAI_END),
        ("openai", OPENAI_STOP + b'nonsense "prompt_tokens":{\n\n' + OPENAI_END),
        ("ollama", b'nonsense "eval_count":5\n' + b'{"done":true}\n'),
    ],
)
def test_a_stream_that_says_nothing(dialect: str, data: bytes) -> None:
    """Servers need not, and what they say need not make sense: it passes all the same."""
    assert passed(dialect, [data]) == (data, [])


def test_the_last_counts_in_a_stream_count() -> None:
    """Some servers say in every chunk what was written so far."""
    chunks = [b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}}\n\n' % n for n in (1, 2, 3)]
    data = b"".join([*chunks, OPENAI_END])
    assert passed("openai", [data]) == (data, [Usage(input_tokens=1, output_tokens=3)])
    assert passed("openai", [*chunks, OPENAI_END]) == (
        data,
        [Usage(input_tokens=1, output_tokens=n) for n in (1, 2, 3)],
    )


def test_counts_of_a_tool_call_are_not_the_models() -> None:
    """A key in what a tool is called with is no count."""
    line = b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"eval_count":9}}}]},"done":false}\n'
    assert passed("ollama", [line, OLLAMA_END]) == (line + OLLAMA_END, [USAGE])


@pytest.mark.parametrize("name", ["chat_stream", "chat_stream_no_usage", "chat_tool_call_stream", "completions_stream"])
def test_llama_cpp_says_it_unasked(recorded: Recorded, name: str) -> None:
    """Its timings are counts too, and the same as those it gives when it is asked."""
    exchange = recorded(f"llamacpp/{name}")
    whole, said = passed("openai", [exchange.body])
    assert whole == exchange.body
    (last,) = said
    assert last.input_tokens > 0
    assert last.output_tokens > 0


@pytest.mark.parametrize("part", [b"x", "x", None, RawAnswer(200, "application/json", b"{}"), {"done": False}, {}])
def test_parts_that_say_nothing(part: object) -> None:
    """Most of them."""
    assert LLMProvider().usage(Request(method="llm/chat"), part) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"usage":{"prompt_tokens":11,"completion_tokens":5}}', USAGE),
        (b'{"id":1,"error":"late","usage":{"prompt_tokens":11,"completion_tokens":5}}', USAGE),
        (b'{"usage":{"prompt_tokens":1e999}}', None),
        (b'{"usage":{"text":"\xff"}}', None),
    ],
)
def test_a_whole_answer_that_passes(body: bytes, expected: Usage | None) -> None:
    """It is as it was, also where what it says of its tokens cannot be read."""
    found = passed_whole("openai", "http://x", Reply(200, "application/json", body))
    assert (found.body, found.usage) == (body, expected)


# -- through the dispatcher, against the stand-in ------------------------------------------------------------------

testing = pytest.importorskip("gleitzeit_ollama.testing")

apis = pytest.mark.parametrize("api", ["ollama", "openai"])
clients = pytest.mark.parametrize("client", ["library", "ollama", "openai"])
MESSAGES = [{"role": "user", "content": "hi there"}]
PATHS = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}
EMBED_PATHS = {"ollama": "/api/embed", "openai": "/v1/embeddings"}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """The stand-in."""
    async with testing.OllamaServer(models=["smollm2"]) as started:
        yield started


@clients
@apis
@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_is_counted(
    pool: StartPool, server: Server, instance_at: MakeInstance, client: str, api: str, *, stream: bool
) -> None:
    """From the library and from each client API, over each api of an instance, whole and in parts."""
    started = await pool(instance_at(server.url, api))
    params = {"model": "smollm2", "messages": MESSAGES}
    if client == "library":
        request = started.provider.request("llm/chat", params).changed(stream=stream)
        if stream:
            assert [part async for part in started.dispatcher.stream(started.provider, request)]
        else:
            await started.dispatcher.one(started.provider, request)
    else:
        more = {"stream_options": {"include_usage": True}} if client == "openai" and stream else {}
        await started.raw(client, PATHS[client], {**params, "stream": stream, **more})
    found = started.dispatcher.metrics.sum(model="smollm2", method="llm/chat")
    assert found.results == {"ok": 1}
    assert (found.input_tokens, found.output_tokens) == (11, 5)
    assert found.per_token_s.count == 1
    assert (found.bytes_in > 0, found.bytes_out > 0) == ((client != "library",) * 2)


@apis
async def test_a_translated_stream_is_counted_although_its_caller_does_not_ask(
    pool: StartPool, server: Server, instance_at: MakeInstance, api: str
) -> None:
    """What passes says what the instance says of itself; what is translated is known anyway."""
    started = await pool(instance_at(server.url, api))
    await started.raw("openai", PATHS["openai"], {"model": "smollm2", "messages": MESSAGES, "stream": True})
    assert (started.dispatcher.metrics.sum().output_tokens > 0) is (api == "ollama")


@clients
@apis
async def test_embeddings_are_counted(
    pool: StartPool, server: Server, instance_at: MakeInstance, client: str, api: str
) -> None:
    """They read and do not write."""
    started = await pool(instance_at(server.url, api))
    params = {"model": "smollm2", "input": ["one", "two"]}
    if client == "library":
        await started.dispatcher.one(started.provider, started.provider.request("llm/embed", params))
    else:
        await started.raw(client, EMBED_PATHS[client], params)
    found = started.dispatcher.metrics.sum()
    assert found.input_tokens > 0
    assert (found.output_tokens, found.per_token_s.count) == (0, 0)
