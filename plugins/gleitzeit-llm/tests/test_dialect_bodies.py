"""Reading request bodies, and the texts of what is wrong with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import DIALECTS
from gleitzeit_llm.dialects.base import Peek

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.fidelity

OLLAMA = DIALECTS["ollama"].client
OPENAI = DIALECTS["openai"].client
CHAT = OLLAMA.endpoints["/api/chat"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"m"}', Peek("m", None)),
        (b'{"stream":false,"model":"m:latest"}', Peek("m:latest", False)),  # noqa: FBT003
        (b' {"messages":[{"model":"x","stream":3}],"stream":true,"model":"m"} \n', Peek("m", True)),  # noqa: FBT003
        (b'{"model":"m","stream":null}', Peek("m", None)),
        (b'{"model":"a","model":"b"}', Peek("b", None)),
        (b'{"x":"\xff","model":"m"}', Peek("m", None)),
    ],
)
def test_peek_reads_two_fields(body: bytes, expected: Peek) -> None:
    """Model and stream are read at the top level only; all else is skipped, whatever it is."""
    assert OLLAMA.peek(CHAT, body) == expected


@pytest.mark.parametrize("name", ["chat_bad_json", "chat_empty_body", "chat_missing_model", "chat_wrong_type"])
def test_ollamas_refusals_are_as_recorded(recorded: Callable[[str], Any], name: str) -> None:
    """The same body gets the same sentence, from `peek` and from `parse`, in the same envelope."""
    exchange = recorded(f"ollama/{name}")
    for read in (OLLAMA.peek, OLLAMA.parse):
        with pytest.raises(InvalidRequest) as caught:
            read(CHAT, exchange.sent)
        body = OLLAMA.error_body(400, caught.value.message)
        assert body == b'{"error":"%b"}' % exchange.answer["error"].encode()
        assert len(body) == int(exchange.headers["Content-Length"])


@pytest.mark.parametrize("name", ["v1_chat_bad_json", "v1_chat_no_messages"])
def test_openais_refusals_are_as_recorded(recorded: Callable[[str], Any], name: str) -> None:
    """The same body gets the same sentence in OpenAI's envelope."""
    exchange = recorded(f"ollama/{name}")
    with pytest.raises(InvalidRequest) as caught:
        OPENAI.parse(OPENAI.endpoints["/v1/chat/completions"], exchange.sent)
    assert caught.value.message == exchange.answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"  \n", "missing request body"),
        (b"{", "unexpected EOF"),
        (b'{"model":"', "unexpected EOF"),
        (b"nope", "invalid character 'n' looking for beginning of value"),
        (b'{"model":"m"} x', "invalid character 'x' after top-level value"),
        (b"{model:1}", "invalid character 'm' looking for beginning of object key string"),
        (b'{"model" 1}', "invalid character '1' after object key"),
        (b'{"model":"m" 1}', "invalid character '1' after object key:value pair"),
        (b'{"a":[1 2]}', "invalid character '2' after array element"),
        (b'{"a":"\\q"}', "invalid character 'q' in string escape code"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        (b"\xef\xbb\xbf{}", "invalid character '\\ufeff' looking for beginning of value"),
        (b'{"a":"\x01"}', "invalid character '\\x01' in string literal"),
        (b'{"a":[1,]}', "invalid character ']' looking for beginning of value"),
        (b'{"a":"\\', "unexpected EOF"),
        (b'{"a":"\\ud800"}', "the request body has text that is not Unicode"),
        (b'{"model":"\xff"}', "the request body is not UTF-8"),
        (b'{"x":' + b"[" * 100_000, "exceeded max depth"),
        (b"[]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        (b'"m"', "json: cannot unmarshal string into Go value of type api.ChatRequest"),
        (b"true", "json: cannot unmarshal bool into Go value of type api.ChatRequest"),
        (b"null", "model is required"),
        (b"{}", "model is required"),
        (b'{"model":""}', "model is required"),
        (b'{"model":null}', "model is required"),
        (b'{"model":{}}', "json: cannot unmarshal object into Go struct field ChatRequest.model of type string"),
        (b'{"stream":"x"}', "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool"),
        (b'{"stream":1.5}', "json: cannot unmarshal number into Go struct field ChatRequest.stream of type bool"),
    ],
)
def test_refusals_use_ollamas_words(body: bytes, text: str) -> None:
    """Every kind of broken body has its sentence, and none raises anything else."""
    for read in (OLLAMA.peek, OLLAMA.parse):
        with pytest.raises(InvalidRequest) as caught:
            read(CHAT, body)
        assert caught.value.message == text


def test_no_depth_escapes() -> None:
    """However deep a broken body is nested, two decoders with different limits look at it, and there is a sentence."""
    for depth in range(1, 1200):
        with pytest.raises(InvalidRequest, match=r"exceeded max depth|looking for beginning of value"):
            OLLAMA.peek(CHAT, b'{"x":' + b"[" * depth + b"?")


def test_text_that_is_not_utf8_is_refused_where_it_is_read() -> None:
    """A field that `peek` skips is still read by `parse`."""
    body = b'{"model":"m","x":"\xff"}'
    assert OLLAMA.peek(CHAT, body).model == "m"
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        OLLAMA.parse(CHAT, body)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/api/generate", "GenerateRequest"),
        ("/api/embed", "EmbedRequest"),
        ("/api/embeddings", "EmbeddingRequest"),
        ("/v1/chat/completions", "ChatCompletionRequest"),
        ("/v1/completions", "CompletionRequest"),
        ("/v1/embeddings", "EmbedRequest"),
    ],
)
def test_each_endpoint_names_its_request(path: str, name: str) -> None:
    """The type in the sentence is that of the endpoint, and the error names the field."""
    client = OPENAI if path.startswith("/v1") else OLLAMA
    with pytest.raises(InvalidRequest, match=rf"field {name}\.model of type string") as caught:
        client.peek(client.endpoints[path], b'{"model":[]}')
    assert caught.value.param == "model"


def test_an_absent_stream_means_what_each_api_says() -> None:
    """Ollama streams unless told otherwise, OpenAI does not, and embeddings never do."""
    assert {path for path, end in OLLAMA.endpoints.items() if end.streams(None)} == {"/api/chat", "/api/generate"}
    assert not any(end.streams(None) for end in OPENAI.endpoints.values())
    for endpoint in (CHAT, OPENAI.endpoints["/v1/completions"]):
        assert endpoint.streams(True)  # noqa: FBT003
        assert not endpoint.streams(False)  # noqa: FBT003
