"""The work that requests are expected to be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_llm import costs
from gleitzeit_llm.protocol import CHAT, EMBED, GENERATE
from gleitzeit_llm.provider import LLMProvider

PATHS = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def chat(content: object = "hi", **more: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    """A conversation of one message."""
    return {"model": "m", "messages": [{"role": "user", "content": content}], **more}


def cost_of(method: str, params: dict[str, Any]) -> float:
    """As the provider sees it."""
    return LLMProvider().request(method, params).cost


def raw_cost(dialect: str, **body: object) -> float:
    """The same in the bytes of a client API."""
    return LLMProvider().raw_request(dialect, PATHS[dialect], json.dumps({"model": "m", **body}).encode()).cost


def test_an_average_chat_is_one() -> None:
    """1,000 tokens read, and nothing said of the output."""
    assert cost_of(CHAT, chat("x" * 4000)) == pytest.approx(1.0)
    assert costs.of_size(CHAT, 4000) == pytest.approx(1.0)
    assert raw_cost("ollama", messages=[{"role": "user", "content": "x" * 3900}]) == pytest.approx(1.0, abs=0.01)


def test_more_to_read_is_more_work() -> None:
    """Wherever it stands, up to what a context holds."""
    short = cost_of(CHAT, chat())
    for params in (
        chat("x" * 9000),
        chat(["x" * 9000]),
        chat(messages=[*chat()["messages"], *chat("x" * 9000)["messages"]]),
    ):
        assert cost_of(CHAT, params) == pytest.approx(short + 9000 / 4 / 20 / 300, rel=0.01)
    assert cost_of(GENERATE, {"model": "m", "prompt": "x" * 9000, "system": "y" * 9000}) > cost_of(
        GENERATE, {"model": "m", "prompt": "x" * 9000}
    )
    assert cost_of(CHAT, chat("x" * 10**6)) == cost_of(CHAT, chat("x" * 10**7))


def test_more_to_write_is_more_work() -> None:
    """A limit counts, up to what is likely; without one, or with one that is none, it is the average."""
    limits = {limit: cost_of(CHAT, chat(options={"num_predict": limit})) for limit in (1, 100, 250, 1000, 4096, 10**9)}
    assert sorted(limits.values()) == list(limits.values())
    assert limits[4096] == limits[10**9]
    assert cost_of(CHAT, chat()) == limits[250]
    for nothing in (None, -1, -2, 0, "7", 1.5, True, [5]):
        assert cost_of(CHAT, chat(options={"num_predict": nothing})) == limits[250]


def test_an_image_is_about_a_thousand_tokens() -> None:
    """However many bytes it has."""
    one = chat()
    one["messages"][0]["images"] = ["x" * 10**6]
    assert cost_of(CHAT, one) == pytest.approx(cost_of(CHAT, chat("x" * 4002)))
    prompt = {"model": "m", "prompt": "", "images": ["x", "y"]}
    assert cost_of(GENERATE, prompt) == pytest.approx(cost_of(GENERATE, {"model": "m", "prompt": "x" * 8000}))


@pytest.mark.parametrize("texts", ["x" * 6000, ["x" * 4000, "y" * 2000], [7] * 1500, [[7] * 3000, [8] * 3000]])
def test_embeddings_are_only_read(texts: object) -> None:
    """A text, several of them, or their tokens."""
    assert cost_of(EMBED, {"model": "m", "input": texts}) == pytest.approx(0.25)


@pytest.mark.parametrize("method", ["llm/show", "llm/models", "llm/loaded", "llm/count_tokens"])
def test_looking_something_up_is_next_to_no_work(method: str) -> None:
    """But above 0."""
    assert cost_of(method, {"model": "m"}) == 0.01


@given(params=st.dictionaries(st.sampled_from(["prompt", "system", "input", "messages", "options", "images"]), JSON))
def test_any_parameters_have_a_cost(params: dict[str, Any]) -> None:
    """Those that make no sense are refused later, by others."""
    for method in (CHAT, GENERATE, EMBED):
        assert 0 < costs.of_params(method, params) < 1000


@pytest.mark.parametrize(
    ("dialect", "limit"),
    [
        ("openai", {"max_tokens": 1000}),
        ("openai", {"max_completion_tokens": 1000}),
        ("openai", {"max_completion_tokens": 1000, "max_tokens": 5}),
        ("ollama", {"options": {"temperature": 0.5, "num_predict": 1000}}),
    ],
)
def test_the_limit_in_a_body_counts(dialect: str, limit: dict[str, Any]) -> None:
    """In the words of each API."""
    assert raw_cost(dialect, **limit) == pytest.approx(1000 / 300, rel=0.01)


@pytest.mark.parametrize("value", [None, "7", 1.5, [5], {"x": 5}, -1, 0, True])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "options", "num_predict"])
@pytest.mark.parametrize("dialect", PATHS)
def test_a_limit_that_is_none_refuses_nothing(dialect: str, name: str, value: object) -> None:
    """The instance will say what it thinks of it; here it counts as none."""
    body = {"options": {"num_predict": value}} if name == "num_predict" else {name: value}
    assert raw_cost(dialect, **body) == pytest.approx(250 / 300, rel=0.01)


def test_the_callers_cost_wins() -> None:
    """Also for bytes."""
    provider, body = LLMProvider(), b'{"model":"m","options":{"num_predict":4000}}'
    assert provider.raw_request("ollama", "/api/chat", body, cost=2.5).cost == 2.5
    assert provider.raw_request("ollama", "/api/chat", body).cost > 10
    assert provider.request(CHAT, chat("x" * 10**5), cost=0.5).cost == 0.5


@pytest.mark.parametrize(("path", "cost"), [("/api/embed", 0.01), ("/api/show", 0.01), ("/api/chat", 250 / 300)])
def test_each_endpoint_has_its_cost(path: str, cost: float) -> None:
    """By its method."""
    assert LLMProvider().raw_request("ollama", path, b'{"model":"m"}').cost == pytest.approx(cost, rel=0.01)
