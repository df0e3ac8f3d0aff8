from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import Field, ValidationError

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.server_options import ServerOptions, by_hand, written_out

KEY = "sk-open-sesame"


class Options(ServerOptions):
    """With models, as every kind has them."""

    models: list[str] = Field(default=[])


def test_the_headers_and_the_key_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key as a bearer token, from the options or from the environment, without the line break of a file."""
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    assert Options(url="u").sent_headers() == {}
    given = Options.model_validate({"url": "u", "api_key": KEY, "headers": {"X-Team": "blue"}})
    assert given.sent_headers() == {"X-Team": "blue", "Authorization": f"Bearer {KEY}"}
    assert Options(url="u", api_key_env="MY_KEY").sent_headers() == {"Authorization": f"Bearer {KEY}"}


def test_a_key_that_is_gone_from_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when the options were checked."""
    monkeypatch.setenv("MY_KEY", KEY)
    options = Options(url="u", api_key_env="MY_KEY")
    monkeypatch.delenv("MY_KEY")
    assert options.sent_headers() == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"headers": {"X Y": KEY}}, "'X Y' is no header's name"),
        ({"headers": {"": KEY}}, "'' is no header's name"),
        ({"headers": {"Content-Length": KEY}}, "'Content-Length' is set for each request"),
        ({"headers": {"X-Key": f"{KEY}\r\nX-Evil: 1"}}, "the value of 'X-Key' has a line break"),
        (
            {"headers": {"authorization": KEY}, "api_key": KEY},
            "a key and the header 'Authorization' exclude each other",
        ),
        ({"api_key": KEY, "api_key_env": "HOME"}, "'api_key' and 'api_key_env' exclude each other"),
        ({"api_key": f"{KEY} x"}, "the key has characters in it that no key has"),
        ({"api_key": f"{KEY}ü"}, "the key has characters in it that no key has"),
        ({"api_key": " "}, "the key is empty or not set"),
        ({"api_key_env": "GLEITZEIT_NO_SUCH_KEY"}, "'GLEITZEIT_NO_SUCH_KEY' is empty or not set"),
        ({"probe": False}, "'probe: false' needs 'models'"),
        ({"weight": float("nan")}, "finite"),
        ({"weight": 0}, "greater than 0"),
        ({"max_concurrent": 0}, "greater than or equal to 1"),
        ({"tags": [""]}, "at least 1 character"),
        ({"colour": "blue"}, "not permitted"),
    ],
)
def test_what_cannot_be_sent_is_refused_without_showing_it(wrong: dict[str, Any], message: str) -> None:
    """Each mistake has its sentence, and no secret is in it."""
    with pytest.raises(ValidationError) as caught:
        Options.model_validate({"url": "u", **wrong})
    assert message in str(caught.value)
    assert KEY not in str(caught.value)


def test_no_secret_is_in_a_text() -> None:
    """Neither a key nor a header's value."""
    options = Options.model_validate({"url": "u", "api_key": KEY, "headers": {"X": KEY}})
    assert KEY not in f"{options!r} {options} {options.model_dump()} {options.model_dump_json()}"


def test_a_url_alone_is_the_short_form() -> None:
    """Anything else is left for the model to judge."""
    assert written_out("http://a") == {"url": "http://a"}
    assert written_out(7) == 7


def test_settings_by_hand_are_those_of_a_configuration() -> None:
    """What only says whose they are does not count, nor does an empty list of models."""
    options = by_hand(Options, {"url": "u", "type": "ollama", "hub": "lan", "models": [], "weight": 2})
    assert options == Options(url="u", weight=2)
    assert by_hand(Options, {"url": "u", "models": ["a"]}).models == ["a"]


def test_wrong_settings_by_hand_are_the_callers_fault() -> None:
    """All mistakes at once, with the nearest key, the name of the first and no secret."""
    with pytest.raises(InvalidRequest) as caught:
        by_hand(Options, {"url": "u", "wieght": 2, "api_key": f"{KEY} x"})
    assert "wieght: unknown key (did you mean 'weight'?)" in caught.value.message
    assert "api_key: the key has characters in it that no key has" in caught.value.message
    assert KEY not in caught.value.message
    assert caught.value.param in ("wieght", "api_key")


def test_no_variable_of_ours_is_sent_to_a_server_that_is_named_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may add a server must not be able to read the gateway's environment that way."""
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", KEY)
    with pytest.raises(InvalidRequest, match="'api_key_env' is for configurations") as caught:
        by_hand(Options, {"url": "u", "api_key_env": "SECRET_OF_THE_GATEWAY"})
    assert caught.value.param == "api_key_env"
    assert by_hand(Options, {"url": "u", "api_key_env": None}) == Options(url="u")


def test_the_options_load_nothing_heavy() -> None:
    """A configuration is checked before anything starts."""
    code = (
        "import sys, gleitzeit_llm.server_options\n"
        "print([name for name in ('aiohttp', 'msgspec', 'gleitzeit_llm.server_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
