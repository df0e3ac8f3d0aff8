"""The official clients of both APIs, against a small server made of the dialects alone."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import ollama
import openai
import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import DIALECTS, Dialect
from gleitzeit_llm.protocol import EMBED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.fidelity

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Stand(ThreadingHTTPServer):
    """Parses what comes, encodes it for the other api, and answers what a test laid ready."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plain: Any = None
        self.parts: list[Any] = []
        self.fail = False
        self.upstreams: list[Any] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Stand

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def do_POST(self) -> None:
        """Translate and answer."""
        name = "openai" if self.path.startswith("/v1") else "ollama"
        other = "ollama" if name == "openai" else "openai"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        client = DIALECTS[name].client
        try:
            parsed = client.parse(client.endpoints[self.path], body)
            upstream = DIALECTS[other].instance.encode(parsed.method, parsed.params, stream=parsed.stream)
        except InvalidRequest as error:
            self._send(400, client.plain_type, client.error_body(400, error.message, error.code, error.param))
            return
        self.server.upstreams.append(upstream)
        if parsed.stream:
            self._send(200, client.stream_type, self._stream(DIALECTS[name], parsed))
        else:
            self._send(200, client.plain_type, client.answer(parsed, self.server.plain))

    def _stream(self, dialect: Dialect, parsed: Any) -> bytes:  # noqa: ANN401 - a Parsed
        encoder = dialect.client.stream_encoder(parsed)
        written = b"".join(map(encoder.part, self.server.parts))
        return written + (
            encoder.error("the instance died", "instance_failure") if self.server.fail else encoder.finish()
        )

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def stand() -> Iterator[Stand]:
    """A server on a free port."""
    with Stand() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ollama_client(stand: Stand) -> Iterator[ollama.Client]:
    """Ollama's client."""
    client = ollama.Client(host=stand.url)
    yield client
    client._client.close()


@pytest.fixture
def openai_client(stand: Stand) -> Iterator[openai.OpenAI]:
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"{stand.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_ollama_chats(recorded: Callable[[str], Any], stand: Stand, ollama_client: ollama.Client) -> None:
    """What Ollama's client sends by itself is carried over to an OpenAI server, and it reads the answer."""
    stand.plain = recorded("ollama/chat").answer
    answer = ollama_client.chat("m", QUESTION, options={"seed": 7, "num_ctx": 512}, keep_alive="5m")
    assert answer.message.content == "The capital of France is Paris."
    assert answer.eval_count == 8
    assert stand.upstreams[0].payload == {
        "model": "m",
        "messages": QUESTION,
        "seed": 7,
    }


def test_ollama_streams(recorded: Callable[[str], Any], stand: Stand, ollama_client: ollama.Client) -> None:
    """A stream arrives part by part, final counts included."""
    stand.parts = recorded("ollama/chat_stream").parts
    parts = list(ollama_client.chat("m", QUESTION, stream=True))
    assert "".join(part.message.content or "" for part in parts) == "The capital of France is Paris."
    assert (parts[-1].done, parts[-1].done_reason, parts[-1].eval_count) == (True, "stop", 8)


def test_ollama_calls_tools(recorded: Callable[[str], Any], stand: Stand, ollama_client: ollama.Client) -> None:
    """A call, its message put back into the conversation as the client has it, and the tool's result."""
    stand.plain = recorded("ollama/chat_tool_call").answer
    answer = ollama_client.chat("m", QUESTION, tools=[TOOL], format="json")
    assert answer.message.tool_calls is not None
    assert answer.message.tool_calls[0].function.arguments == {"city": "Paris"}
    result = {"role": "tool", "tool_name": "get_weather", "content": "11 degrees"}
    ollama_client.chat("m", [*QUESTION, answer.message, result], tools=[TOOL])
    first, second = stand.upstreams
    assert first.payload["tools"] == [TOOL]
    assert second.payload["messages"][2]["tool_call_id"] == second.payload["messages"][1]["tool_calls"][0]["id"]


def test_ollama_generates_and_embeds(
    recorded: Callable[[str], Any], stand: Stand, ollama_client: ollama.Client
) -> None:
    """generate, raw and not, embed and the old embeddings."""
    stand.plain = recorded("ollama/generate").answer
    assert ollama_client.generate("m", "Once", images=[b"\x89PNG\r\n\x1a\n"]).response.startswith("The story")
    assert ollama_client.generate("m", "Once", raw=True).done_reason == "length"
    assert [upstream.path for upstream in stand.upstreams] == ["/v1/chat/completions", "/v1/completions"]
    stand.plain = recorded("ollama/embed_many").answer
    assert len(ollama_client.embed("m", ["hello", "world"], truncate=True).embeddings) == 2
    assert len(ollama_client.embeddings("m", "hello").embedding) == 8


def test_ollama_sees_refusals_and_errors(
    recorded: Callable[[str], Any], stand: Stand, ollama_client: ollama.Client
) -> None:
    """A field that cannot be carried over, and an instance that dies inside a stream."""
    with pytest.raises(ollama.ResponseError, match="'template' cannot be carried over") as caught:
        ollama_client.generate("m", "x", template="{{ .Prompt }}")
    assert caught.value.status_code == 400
    stand.parts, stand.fail = recorded("ollama/chat_stream").parts[:2], True
    seen: list[Any] = []
    with pytest.raises(ollama.ResponseError, match="the instance died"):
        seen.extend(ollama_client.chat("m", QUESTION, stream=True))
    assert stand.upstreams[-1].payload["stream"] is True


def test_openai_chats(recorded: Callable[[str], Any], stand: Stand, openai_client: openai.OpenAI) -> None:
    """What OpenAI's client sends by itself is carried over to an Ollama server, and it reads the answer."""
    stand.plain = recorded("ollama/chat_logprobs").answer
    answer = openai_client.chat.completions.create(model="m", messages=QUESTION, max_completion_tokens=3, logprobs=True)
    assert answer.choices[0].message.content == "The capital of"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].token == "The"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 19
    assert stand.upstreams[0].path == "/api/chat"
    assert stand.upstreams[0].payload == {
        "model": "m",
        "messages": QUESTION,
        "logprobs": True,
        "options": {"num_predict": 3, "temperature": 1.0, "top_p": 1.0},
        "stream": False,
    }


def test_openai_streams(recorded: Callable[[str], Any], stand: Stand, openai_client: openai.OpenAI) -> None:
    """A stream arrives chunk by chunk and ends with its usage."""
    stand.parts = recorded("ollama/chat_stream").parts
    stream = openai_client.chat.completions.create(
        model="m", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The capital of France is Paris."
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_openai_calls_tools(recorded: Callable[[str], Any], stand: Stand, openai_client: openai.OpenAI) -> None:
    """A call, its message put back into the conversation as the client dumps it, and the tool's result."""
    stand.plain = recorded("ollama/chat_tool_call").answer
    answer = openai_client.chat.completions.create(model="m", messages=QUESTION, tools=[TOOL])
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    assert message.tool_calls is not None
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "11 degrees"}
    openai_client.chat.completions.create(model="m", messages=[*QUESTION, message.model_dump(), result], tools=[TOOL])
    sent = stand.upstreams[1].payload["messages"]
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert sent[2]["tool_name"] == "get_weather"


def test_openai_completes_and_embeds(
    recorded: Callable[[str], Any], stand: Stand, openai_client: openai.OpenAI
) -> None:
    """Completions, streamed too, and embeddings, for which the client asks in base64 by itself."""
    stand.plain = recorded("ollama/generate").answer
    assert openai_client.completions.create(model="m", prompt="Once").choices[0].text.startswith("The story")
    stand.parts = recorded("ollama/generate_stream").parts
    chunks = list(openai_client.completions.create(model="m", prompt="Once", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks).startswith("The story")
    stand.plain = recorded("ollama/embed_many").answer
    vectors = openai_client.embeddings.create(model="m", input=["hello", "world"]).data
    assert vectors[1].embedding == pytest.approx(stand.plain["embeddings"][1])


def test_openai_sees_refusals_and_errors(
    recorded: Callable[[str], Any], stand: Stand, openai_client: openai.OpenAI
) -> None:
    """A field that cannot be carried over, and an instance that dies inside a stream."""
    with pytest.raises(openai.BadRequestError, match="'n' cannot be carried over") as caught:
        openai_client.chat.completions.create(model="m", messages=QUESTION, n=2)
    assert caught.value.param == "n"
    assert caught.value.code == "invalid_request"
    stand.parts, stand.fail = recorded("ollama/chat_stream").parts[:2], True
    with pytest.raises(openai.APIError, match="the instance died"):
        list(openai_client.chat.completions.create(model="m", messages=QUESTION, stream=True))


def test_both_dialects_are_there() -> None:
    """By name, with both sides under the same name, and no path twice."""
    assert set(DIALECTS) == {"ollama", "openai"}
    for name, dialect in DIALECTS.items():
        assert dialect.name == dialect.client.name == dialect.instance.name == name
        assert all(path == endpoint.path for path, endpoint in dialect.client.endpoints.items())
    assert sorted(end.method for end in DIALECTS["ollama"].client.endpoints.values()).count(EMBED) == 2
