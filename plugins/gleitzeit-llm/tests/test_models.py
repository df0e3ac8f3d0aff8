"""What hubs and the provider agree on about models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.resources import HttpChannel, ResourceInstance
from gleitzeit_llm import models

if TYPE_CHECKING:
    from collections.abc import Mapping


def having(entries: Mapping[str, Any] | None, *apis: str) -> ResourceInstance:
    """An instance with these entries."""
    return ResourceInstance(
        id="i",
        hub="h",
        kind="k",
        endpoint="e",
        offers=tuple((api, HttpChannel("http://127.0.0.1:1")) for api in apis),
        capabilities=frozenset(models.capability(name) for name in entries or ()) | {"gpu"},
        details={} if entries is None else {"models": entries},
    )


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("llama3", "llama3"),
        ("llama3:latest", "llama3"),
        ("llama3:8b", "llama3:8b"),
        ("hf.co/a/b:latest", "hf.co/a/b"),
        ("latest", "latest"),
        ("llama3:latest:latest", "llama3:latest"),
    ],
)
def test_latest_is_left_out(name: str, canonical: str) -> None:
    """A name and the same with `:latest` are one model, and one capability."""
    assert models.canonical(name) == canonical
    assert models.capability(name) == f"model:{canonical}"


def test_an_instance_that_says_nothing_about_its_models() -> None:
    """It has no entries, and is asked by the caller's name."""
    silent = having(None, "openai")
    assert models.entries(silent) == {}
    assert models.own_name(silent, "llama3:latest") == "llama3:latest"


@pytest.mark.parametrize(
    ("entry", "own"),
    [
        ({"model": "Llama-3-8B.gguf", "name": "llama3"}, "Llama-3-8B.gguf"),
        ({"name": "Llama-3-8B.gguf"}, "Llama-3-8B.gguf"),
        ({"model": "", "name": ""}, "llama3:latest"),
        ({"model": "llama3"}, "llama3"),
    ],
)
def test_the_instance_own_name(entry: dict[str, str], own: str) -> None:
    """It is what the entry says; to an OpenAI server a name with and without its tag are two."""
    assert models.own_name(having({"llama3": entry}, "openai"), "llama3:latest") == own


@pytest.mark.parametrize("apis", [("ollama",), ("openai", "ollama")])
def test_ollama_knows_both_names(apis: tuple[str, ...]) -> None:
    """So the caller's is kept, and its bytes with it."""
    ollama = having({"llama3": {"name": "llama3:latest", "model": "llama3:latest"}}, *apis)
    body = b'{ "model": "llama3" }'
    assert models.own_name(ollama, "llama3") == "llama3"
    assert models.own_body(ollama, body, "llama3") is body


def test_ollama_does_not_know_another_name() -> None:
    """An alias is translated for Ollama too."""
    assert models.own_name(having({"fast": {"model": "llama3:1b"}}, "ollama"), "fast") == "llama3:1b"


def test_parameters_get_the_own_name() -> None:
    """The caller's mapping is left as it is."""
    params = {"model": "fast", "messages": []}
    instance = having({"fast": {"model": "llama3:1b"}}, "openai")
    assert models.own_params(instance, params) == {"model": "llama3:1b", "messages": []}
    assert params["model"] == "fast"


def test_a_body_gets_the_own_name_and_nothing_else_changes() -> None:
    """Numbers, texts and unknown fields stay as they were written."""
    body = (
        b'{"model":"fast","n":1.10,"big":123456789012345678901234567890,"text":"\\u00e4 \xc3\xa4","x":{"model":"fast"}}'
    )
    instance = having({"fast": {"model": "llama3:1b"}}, "openai")
    assert models.own_body(instance, body, "fast") == body.replace(b'"fast"', b'"llama3:1b"', 1)


def test_names_are_listed_in_order() -> None:
    """Over all instances, each once; other capabilities are none."""
    instances = (having({"b": {}, "a": {}}, "openai"), having({"c": {}, "a:latest": {}}, "ollama"))
    assert models.names(instances) == ("a", "b", "c")


def test_an_entry_for_a_server_that_does_not_describe_its_models() -> None:
    """It has every field that Ollama's clients expect, and what is known."""
    entry = models.entry("m", size=5)
    assert (entry["name"], entry["model"], entry["size"], len(entry["digest"])) == ("m", "m", 5, 64)
    assert set(entry["details"]) == {
        *("parent_model", "format", "family", "families", "parameter_size", "quantization_level"),
    }
