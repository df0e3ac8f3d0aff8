"""What may be told about a secret that is wrong: why, and never a piece of it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, SecretStr, field_validator

from gleitzeit_core.config_messages import is_secret, secrets_in, validated
from gleitzeit_core.config_show import masked


class Key(BaseModel):
    """One of a list of keys."""

    name: str = ""
    key: SecretStr
    limit: int = 1

    @field_validator("key")
    @classmethod
    def _long(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if text.startswith("told"):
            raise ValueError(f"it must not be {text}")
        if text.startswith("part"):
            raise ValueError(f"it must not end like ...{text[-4:]}")
        if len(text) < 16:
            raise ValueError("a key has at least 16 characters")
        return key


class Section(BaseModel):
    """A section with keys."""

    keys: list[Key]


def told(**key: object) -> list[str]:
    """What is said of one key."""
    found, problems = validated(Section, {"keys": [key]}, ("gateway",))
    assert found is None
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("hunter2", "gateway.keys[0].key: a key has at least 16 characters"),
        ("", "gateway.keys[0].key: a key has at least 16 characters"),
        ("told-a-secret", "gateway.keys[0].key: is not valid"),
        ("part-of-the-end", "gateway.keys[0].key: is not valid"),
        # What stands in the sentence by chance could be a piece of it.
        ("characters", "gateway.keys[0].key: is not valid"),
        ("key", "gateway.keys[0].key: is not valid"),
        (7, "gateway.keys[0].key: must be text, not a number (put it in quotes)"),
    ],
)
def test_why_a_key_is_wrong(key: object, text: str) -> None:
    """It is told as long as no piece of the key is in the sentence."""
    assert told(key=key) == [text]


def test_what_is_told_about_a_key_is_not_secret() -> None:
    """A number that is wrong is shown, as elsewhere; so is the name of a key in a configuration, and never the key."""
    assert told(key="a-key-of-16-characters", limit=1.5) == ["gateway.keys[0].limit: must be a whole number, not 1.5"]
    data = {"keys": [{"name": "alice", "key": "hunter2", "limit": 3, "models": ["llama3*"]}, "hunter3"]}
    assert masked(data) == {"keys": [{"name": "alice", "key": "***", "limit": 3, "models": ["llama3*"]}, "***"]}
    assert list(secrets_in(data)) == ["hunter2", "hunter3"]


@pytest.mark.parametrize(
    ("path", "secret"),
    [
        (("gateway", "keys"), True),
        (("gateway", "keys", 0), True),
        (("gateway", "keys", 0, "key"), True),
        (("gateway", "keys", 0, "name"), False),
        (("gateway", "keys", 0, "models", 0), False),
        (("gateway", "keys", 0, "headers", "X-Api-Key"), True),
        (("keys", 0, 0), True),
        (("keys", "alice"), True),
        (("keys", "alice", 0), True),
        (("authorization", "keys", 0, "name"), True),
    ],
)
def test_what_is_secret(path: tuple[str | int, ...], secret: bool) -> None:  # noqa: FBT001 - a parameter
    """A list of keys is, and each key in it; what is told about one of them is not."""
    assert is_secret(path) is secret
