"""Messages, images, tools and tool results, in both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import images, vectors
from gleitzeit_llm.dialects.errors import MAX_CHARACTERS, error_text
from gleitzeit_llm.dialects.logprobs import from_openai as logprobs_from_openai
from gleitzeit_llm.dialects.logprobs import to_completion
from gleitzeit_llm.dialects.messages_from_openai import from_openai
from gleitzeit_llm.dialects.messages_to_openai import to_openai, user_message
from gleitzeit_llm.protocol import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.fidelity

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CALL = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
OTHER = {"function": {"name": "time"}}


def _result(**fields: str) -> dict[str, str]:
    return {"role": "tool", "content": "11 degrees", **fields}


def test_a_tool_conversation_gets_ids(recorded: Callable[[str], Any]) -> None:
    """Ollama's callers name the tool; OpenAI's servers get an id that ties the result to its call."""
    question, call, result = to_openai(recorded("ollama/chat_tool_result").request["messages"])
    assert question == {"role": "user", "content": "What is the weather in Paris?"}
    assert call == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call_0", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
        ],
    }
    assert result == {"role": "tool", "content": "11 degrees", "tool_call_id": "call_0"}


def test_results_find_their_calls_by_name_in_order() -> None:
    """Two calls of one tool are answered in their order, whatever stands between."""
    calls = {"role": "assistant", "tool_calls": [CALL, OTHER, CALL]}
    results = [_result(tool_name="time"), _result(tool_name="weather"), _result(tool_name="weather")]
    sent = to_openai([calls, *results])
    assert [message["tool_call_id"] for message in sent[1:]] == ["call_1", "call_0", "call_2"]


def test_results_without_a_name_take_the_next_call() -> None:
    """Some callers name nothing; then calls are answered in their order."""
    sent = to_openai([{"role": "assistant", "tool_calls": [CALL, OTHER]}, _result(), _result()])
    assert [message["tool_call_id"] for message in sent[1:]] == ["call_0", "call_1"]


def test_given_ids_are_kept() -> None:
    """An id of the caller's stays, and is not asked for again."""
    calls = {"role": "assistant", "tool_calls": [{**CALL, "id": "a"}, {**CALL, "id": "b"}]}
    sent = to_openai([calls, _result(tool_call_id="b"), _result(tool_name="weather")])
    assert [message["tool_call_id"] for message in sent[1:]] == ["b", "a"]


@pytest.mark.parametrize(
    "messages",
    [
        [_result(tool_name="weather")],
        [{"role": "assistant", "tool_calls": [CALL]}, _result(tool_name="time")],
        [{"role": "assistant", "tool_calls": [CALL]}, _result(), _result()],
    ],
)
def test_a_result_that_nobody_asked_for_is_refused(messages: list[Any]) -> None:
    """A result needs an open call of its tool; the error names the message."""
    with pytest.raises(InvalidRequest, match="names no tool that was called") as caught:
        to_openai(messages)
    assert caught.value.param == f"messages[{len(messages) - 1}].tool_name"


def test_images_become_data_urls() -> None:
    """Text and images are parts of one message; without text there is no empty part."""
    url = f"data:image/png;base64,{PNG}"
    image = {"type": "image_url", "image_url": {"url": url}}
    assert to_openai([{"role": "user", "content": "what?", "images": [PNG]}])[0]["content"] == [
        {"type": "text", "text": "what?"},
        image,
    ]
    assert user_message("", [PNG])["content"] == [image]


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (PNG, "png"),
        ("/9j/4AAQSkZJRgAB", "jpeg"),
        ("R0lGODlhAQABAIAA", "gif"),
        ("UklGRiQAAABXRUJQ", "webp"),
        ("AAAA", "jpeg"),
    ],
)
def test_the_type_of_an_image_is_read_off_its_beginning(head: str, kind: str) -> None:
    """Ollama's images carry no type; what is not recognised is called JPEG."""
    assert images.to_url(head, "x") == f"data:image/{kind};base64,{head}"


@pytest.mark.parametrize(
    "image", ["http://example.com/a.png", "data:image/png;base64,AAAA", "pictures/a.png", "AAA", 7]
)
def test_an_image_that_is_no_base64_is_refused(image: object) -> None:
    """Paths, URLs and broken base64 are refused, with the place in the request."""
    with pytest.raises(InvalidRequest) as caught:
        to_openai([{"role": "user", "content": "x", "images": [PNG, image]}])
    assert caught.value.param == "messages[0].images[1]"


def test_parts_become_one_message() -> None:
    """Texts become lines, images a list; `detail` is a hint, and a URL may stand bare."""
    content = [
        {"type": "text", "text": "what"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
        {"type": "text", "text": "is this?"},
        {"type": "image_url", "image_url": f"data:;base64,{PNG}"},
    ]
    assert from_openai([{"role": "user", "content": content}]) == [
        {"role": "user", "content": "what\nis this?", "images": [PNG, PNG]}
    ]


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, "must be a data URL"),
        ({"type": "image_url", "image_url": "data:text/plain;base64,AAAA"}, "must be a data URL"),
        ({"type": "image_url", "image_url": {"detail": "low"}}, "must be a string"),
        ({"type": "image_url", "image_url": {"url": f"data:;base64,{PNG}", "wings": 2}}, "unknown field"),
        ({"type": "image_url"}, "must be an object"),
        ({"type": "text"}, "must be a string"),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, "text and images"),
        ({"type": "file", "file": {"file_id": "x"}}, "text and images"),
        ({"type": "video"}, "text and images"),
        ({}, "text and images"),
        ("what", "must be an object"),
    ],
)
def test_parts_that_cannot_be_carried_over_are_refused(part: object, text: str) -> None:
    """Remote images, sound, files and malformed parts are refused, with their place."""
    with pytest.raises(InvalidRequest, match=text) as caught:
        from_openai([{"role": "user", "content": [{"type": "text", "text": "x"}, part]}])
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages[0].content[1]")


def test_tool_calls_come_back_as_objects() -> None:
    """Arguments are parsed, ids kept, and a result learns its tool's name from the call."""
    call = {"id": "a", "index": 1, "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
    found = from_openai(
        [
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "11"}]},
            {"role": "tool", "tool_call_id": "unknown", "content": "12"},
            {"role": "tool", "name": "time", "content": "13"},
        ]
    )
    assert found == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "a", "function": {"index": 1, "name": "weather", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "content": "11", "tool_call_id": "a", "tool_name": "weather"},
        {"role": "tool", "content": "12", "tool_call_id": "unknown"},
        {"role": "tool", "content": "13", "tool_name": "time"},
    ]


@pytest.mark.parametrize("arguments", ["", " ", None, "{}", {}])
def test_no_arguments_are_an_empty_object(arguments: object) -> None:
    """Models that call a function without parameters send any of these."""
    calls = [{"function": {"name": "f", "arguments": arguments}}]
    assert from_openai([{"role": "assistant", "tool_calls": calls}])[0]["tool_calls"] == [
        {"function": {"name": "f", "arguments": {}}}
    ]


@pytest.mark.parametrize("arguments", ["[1]", '{"a":', "x", 7, "[" * 100_000])
def test_arguments_that_are_no_object_are_refused(arguments: object) -> None:
    """Broken arguments are refused in Ollama's words."""
    calls = [{"id": "a", "function": {"name": "f", "arguments": arguments}}]
    with pytest.raises(InvalidRequest, match="invalid tool call arguments") as caught:
        from_openai([{"role": "assistant", "tool_calls": calls}])
    assert caught.value.param == "messages[0].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[0]"),
        ({"content": "hi"}, "messages[0].role"),
        ({"role": 1}, "messages[0].role"),
        ({"role": "user", "content": 7}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": ["f"]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "messages[0].tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]},
            "messages[0].tool_calls[0].function.name",
        ),
    ],
)
def test_malformed_messages_are_refused_in_both_directions(message: object, param: str) -> None:
    """The error names the place."""
    for convert in (to_openai, from_openai):
        with pytest.raises(InvalidRequest) as caught:
            convert([message])
        assert caught.value.param == param


@pytest.mark.parametrize("messages", ["hi", {"role": "user"}, 7])
def test_messages_are_a_list(messages: object) -> None:
    """Anything else is refused."""
    for convert in (to_openai, from_openai):
        with pytest.raises(InvalidRequest, match="'messages' must be a list"):
            convert(messages)


def test_other_kinds_of_tools_and_speakers_are_refused() -> None:
    """Ollama has functions only, and no names for speakers."""
    with pytest.raises(InvalidRequest, match="only calls of functions"):
        from_openai([{"role": "assistant", "tool_calls": [{"type": "custom", "function": {"name": "f"}}]}])
    with pytest.raises(InvalidRequest, match="speakers have no names") as caught:
        from_openai([{"role": "user", "content": "x", "name": "Ann"}])
    assert caught.value.param == "messages[0].name"


def test_roles_go_along() -> None:
    """`developer` is the new name of `system`; unknown roles are the server's to judge, as recorded of Ollama."""
    assert [message["role"] for message in from_openai([{"role": "developer"}, {"role": "robot"}])] == [
        "system",
        "robot",
    ]
    assert to_openai([{"role": "robot", "content": "x"}]) == [{"role": "robot", "content": "x"}]


def test_thoughts_are_kept() -> None:
    """The thoughts of earlier turns survive the way there and back."""
    message = {"role": "assistant", "content": "a", "thinking": "b"}
    sent = to_openai([message])
    assert sent == [{"role": "assistant", "content": "a", "reasoning_content": "b"}]
    assert from_openai(sent) == [message]


TEXT = st.text(max_size=20)
ARGUMENTS = st.dictionaries(TEXT, st.one_of(st.none(), st.booleans(), st.integers(-(2**31), 2**31), TEXT), max_size=3)
CALLS = st.lists(
    st.builds(
        lambda index, name, arguments: {"id": f"id-{index}-{name}", "function": {"name": name, "arguments": arguments}},
        st.integers(0, 99),
        st.text(min_size=1, max_size=8),
        ARGUMENTS,
    ),
    max_size=3,
    unique_by=lambda call: call["id"],
)
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": TEXT}),
        st.fixed_dictionaries(
            {"role": st.just("user"), "content": TEXT.map(lambda text: text + "x"), "images": st.just([PNG])}
        ),
        st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXT, "tool_calls": CALLS.filter(bool)}),
    ),
    max_size=5,
)


@given(messages=MESSAGES)
def test_messages_survive_the_round_trip(messages: list[Any]) -> None:
    """What goes to an OpenAI server and comes back is the same."""
    assert from_openai(to_openai(messages)) == messages


@given(vector=st.lists(st.floats(width=32, allow_nan=False)))
def test_vectors_survive_base64(vector: list[float]) -> None:
    """32-bit floats are packed without loss."""
    assert vectors.from_base64(vectors.to_base64(vector)) == vector


@pytest.mark.parametrize("packed", ["x", "AAAA", "é"])
def test_broken_base64_is_the_instances_fault(packed: str) -> None:
    """What is no base64, or no whole number of floats, raises."""
    with pytest.raises(UpstreamError, match="not base64 of floats"):
        vectors.from_base64(packed)


def test_vectors_are_shortened_as_ollama_does(recorded: Callable[[str], Any]) -> None:
    """The first numbers of a longer vector, brought back to length one, are the recorded short one."""
    longer = recorded("llamacpp/embeddings").answer["data"][0]["embedding"]
    shorter = recorded("ollama/embed_many").answer["embeddings"][0]
    assert vectors.shorten([*longer, 0.5], 8) == pytest.approx(shorter, rel=1e-5)
    assert vectors.shorten([0.0, 0.0], 1) == [0.0]
    for dimensions in (0, -1, 2, 3):
        assert vectors.shorten([3.0, 4.0], dimensions) == [3.0, 4.0]


def test_logprobs_of_the_old_form_are_understood() -> None:
    """VLLM and OpenAI answer completions with one list per column; rows that lack alternatives are kept."""
    found = logprobs_from_openai(
        {"tokens": ["a", "é"], "token_logprobs": [None, -1.5], "top_logprobs": [None, {"é": -1.5, "b": -2.0}]}
    )
    assert found == [
        {"token": "a", "logprob": None, "bytes": [97]},
        {
            "token": "é",
            "logprob": -1.5,
            "bytes": [195, 169],
            "top_logprobs": [
                {"token": "é", "logprob": -1.5, "bytes": [195, 169]},
                {"token": "b", "logprob": -2.0, "bytes": [98]},
            ],
        },
    ]
    assert logprobs_from_openai({"tokens": ["a"], "token_logprobs": [-1]}) == [
        {"token": "a", "logprob": -1, "bytes": [97]}
    ]


@pytest.mark.parametrize("found", [None, [], "x", {}, {"content": None}, {"tokens": ["a"]}, {"content": ["x"]}])
def test_unusable_logprobs_are_left_out(found: object) -> None:
    """Whatever a server puts there, it never raises."""
    assert logprobs_from_openai(found) == []


def test_logprobs_of_a_completion_have_columns(recorded: Callable[[str], Any]) -> None:
    """Callers get OpenAI's columns, and beside them the list that Ollama's server gives."""
    canonical = logprobs_from_openai(recorded("llamacpp/completions_logprobs").answer["choices"][0]["logprobs"])
    written = to_completion(canonical, 5)
    assert written["tokens"] == ["1", "1"]
    assert written["text_offset"] == [5, 6]
    assert written["token_logprobs"] == [item["logprob"] for item in canonical]
    assert written["top_logprobs"][0] == {"1": canonical[0]["logprob"], "3": pytest.approx(-1.8215032)}
    assert written["content"] == canonical
    assert logprobs_from_openai({**written, "content": None}) == canonical


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (404, b'{"error":"model not found"}', "model not found"),
        (400, b'{"error":{"code":400,"message":"bad","type":"x"}}', "bad"),
        (400, b'{"object":"error","message":"bad","code":400}', "bad"),
        (422, b'{"detail":[{"loc":["body"],"msg":"field required"}]}', "field required"),
        (422, b'{"detail":"no"}', "no"),
        (502, b"<html><body>Bad Gateway</body></html>", "HTTP 502 Bad Gateway"),
        (500, b"out of memory\n", "out of memory"),
        (404, b"404 page not found", "404 page not found"),
        (503, b"", "HTTP 503 Service Unavailable"),
        (503, b"\xff\xfe", "\ufffd\ufffd"),
        (599, b"{}", "HTTP 599"),
        (500, b"null", "HTTP 500 Internal Server Error"),
        (500, b"7", "HTTP 500 Internal Server Error"),
        (500, b'{"error":{"message":', "HTTP 500 Internal Server Error"),
        (500, b"[" * 100_000, "HTTP 500 Internal Server Error"),
        (500, b'{"error":' * 5_000, "HTTP 500 Internal Server Error"),
        (500, b'"just text"', "just text"),
    ],
)
def test_error_texts(status: int, body: bytes, text: str) -> None:
    """The message is found in every known envelope, and a broken one never raises."""
    assert error_text(status, body) == text


@pytest.mark.parametrize("name", ["bad_json", "bad_type", "no_messages", "bad_image", "too_long", "not_found"])
def test_error_texts_of_llama_cpp(recorded: Callable[[str], Any], name: str) -> None:
    """Recorded errors give their message."""
    exchange = recorded(f"llamacpp/{name}")
    assert error_text(exchange.status, exchange.body) == exchange.answer["error"]["message"]


def test_error_texts_are_bounded() -> None:
    """A page of text is cut."""
    assert len(error_text(500, b"x" * 10_000)) == MAX_CHARACTERS


@given(body=st.binary(max_size=200))
def test_error_texts_never_raise(body: bytes) -> None:
    """Any bytes give a text."""
    assert error_text(500, body)
