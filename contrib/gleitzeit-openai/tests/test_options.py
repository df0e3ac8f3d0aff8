from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from gleitzeit_core.config import check_configuration, read_configuration
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_core.plugins import PluginHost
from gleitzeit_openai.options import OpenAIOptions, base_url

if TYPE_CHECKING:
    from pathlib import Path


def options(*instances: object) -> OpenAIOptions:
    """A hub's options."""
    return OpenAIOptions.model_validate({"instances": list(instances)})


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://gpu2:8000", "http://gpu2:8000"),
        ("http://gpu2:8000/", "http://gpu2:8000"),
        ("http://gpu2:8000/v1", "http://gpu2:8000"),
        ("http://gpu2:8000/v1/", "http://gpu2:8000"),
        (" HTTPS://API.Example.com/v1 ", "https://api.example.com"),
        ("https://example.com/Team-A/v1", "https://example.com/Team-A"),
        ("https://example.com/openai", "https://example.com/openai"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_a_url_is_taken_with_and_without_v1(given: str, base: str) -> None:
    """Channels add /v1 themselves, so the base has none, however it was written."""
    assert base_url(given) == base


@pytest.mark.parametrize(
    "url", ["", "gpu2:8000", "ftp://gpu2/v1", "http://", "http://gpu2:notaport", "http://gpu2:0", "http://gpu 2/v1"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    """A mistyped URL is told of before anything starts."""
    with pytest.raises(ValidationError, match="is not a URL such as"):
        options(url)


@pytest.mark.parametrize("url", ["http://gpu2/v1?key=abc", "http://gpu2/v1#top"])
def test_nothing_may_follow_the_path(url: str) -> None:
    """What a query would do to every path is anybody's guess."""
    with pytest.raises(ValidationError, match="must end with its path"):
        options(url)


def test_a_password_in_the_url_is_refused_without_showing_it() -> None:
    """URLs are shown in listings and logs."""
    with pytest.raises(ValidationError) as caught:
        options("http://me:hunter22@gpu2/v1")
    (problem,) = caught.value.errors()
    assert "api_key" in problem["msg"]
    assert "hunter22" not in problem["msg"]


def test_a_url_alone_is_a_server_with_defaults() -> None:
    """The short form and the long form mean the same."""
    short, long = options("http://a/v1"), options({"url": "http://a"})
    assert short == long
    (server,) = short.instances
    assert (server.max_concurrent, server.weight, server.probe, server.models) == (8, 1.0, True, None)


def test_the_schema_knows_the_short_form() -> None:
    """An editor that checks against the schema accepts a URL alone."""
    items = OpenAIOptions.model_json_schema()["properties"]["instances"]["items"]
    assert {"type": "string"} in items["anyOf"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"url": "http://a", "max_concurrent": 0}, "greater than or equal to 1"),
        ({"url": "http://a", "weight": 0}, "greater than 0"),
        ({"url": "http://a", "weight": float("inf")}, "finite"),
        ({"url": "http://a", "models": []}, "at least 1 item"),
        ({"url": "http://a", "models": [""]}, "at least 1 character"),
        ({"url": "http://a", "probe": False}, "'probe: false' needs 'models'"),
        ({"url": "http://a", "api_key": "k", "api_key_env": "HOME"}, "exclude each other"),
        ({"url": "http://a", "api_key": "k", "headers": {"authorization": "Bearer x"}}, "exclude each other"),
        ({"url": "http://a", "api_key": ""}, "the key is empty"),
        ({"url": "http://a", "api_key": " "}, "the key is empty"),
        ({"url": "http://a", "api_key": "a\nb"}, "characters in it that no key has"),
        ({"url": "http://a", "api_key_env": "GLEITZEIT_NO_SUCH_KEY"}, "'GLEITZEIT_NO_SUCH_KEY' is empty or not set"),
        ({"url": "http://a", "headers": {"a b": "x"}}, "is no header's name"),
        ({"url": "http://a", "headers": {"x-team": "x\r\nHost: y"}}, "line break"),
        ({"url": "http://a", "ca_file": __file__}, "for https:// URLs only"),
        ({"url": "https://a", "ca_file": "no-such.pem"}, "there is no file no-such.pem"),
        ({"url": "http://a", "weigth": 2}, "not permitted"),
        ({}, "required"),
        (7, "dictionary"),
    ],
)
def test_a_wrong_option_is_refused(wrong: object, says: str) -> None:
    """Each option has limits, and says so."""
    with pytest.raises(ValidationError, match=says):
        options(wrong)


def test_at_least_one_server_is_needed_and_none_twice() -> None:
    """A hub without servers, or one that would send twice as much to the same one, is a mistake."""
    with pytest.raises(ValidationError, match="at least 1 item"):
        options()
    with pytest.raises(ValidationError, match="named more than once: http://a"):
        options("http://a", "http://A/v1/")


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration can be shared when the key is not in it; the line break a file ends with does not count."""
    monkeypatch.setenv("MY_KEY", "sk-abcdef\n")
    (server,) = options({"url": "http://a", "api_key_env": "MY_KEY"}).instances
    assert server.key == "sk-abcdef"


def test_no_secret_shows() -> None:
    """Neither a repr nor a dump gives a key or a header away."""
    made = options({"url": "http://a", "api_key": "sk-abcdef"}, {"url": "http://b", "headers": {"x-pin": "sk-ghijkl"}})
    for shown in (repr(made), str(made), json.dumps(made.model_dump(mode="json"))):
        assert "sk-" not in shown
    assert made.instances[0].key == "sk-abcdef"


def test_pydantics_own_errors_are_without_values() -> None:
    """Who builds options in a program and makes a mistake does not find a header's value in the traceback."""
    with pytest.raises(ValidationError) as caught:
        options({"url": "http://a", "headers": {"a b": "sk-ghijkl"}})
    assert "sk-" not in str(caught.value)


def test_mistakes_are_all_reported_with_their_place(tmp_path: Path) -> None:
    """A configuration's mistakes come at once, each with its path, a suggestion where there is one, and no secret."""
    file = tmp_path / "gleitzeit.yaml"
    file.write_text(
        "hubs:\n"
        "  far:\n"
        "    type: openai\n"
        "    instances:\n"
        "      - {url: http://a, max_concurent: 4}\n"
        "      - {url: b, ca_file: ca.pem}\n"
        '      - {url: http://c, api_key: "sk-very\\nsecret"}\n'
        "      - {url: http://d, api_key_env: GLEITZEIT_NO_SUCH_KEY}\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        check_configuration(read_configuration(file, overrides={}), PluginHost.load())
    told = {problem.path: problem for problem in caught.value.problems}
    assert sorted(told) == [
        "hubs.far.instances[0].max_concurent",
        "hubs.far.instances[1].ca_file",
        "hubs.far.instances[1].url",
        "hubs.far.instances[2].api_key",
        "hubs.far.instances[3].api_key_env",
    ]
    assert told["hubs.far.instances[0].max_concurent"].suggestion == "did you mean 'max_concurrent'?"
    assert str(tmp_path / "ca.pem") in told["hubs.far.instances[1].ca_file"].message
    assert "sk-very" not in str(caught.value)
