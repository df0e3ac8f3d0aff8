from __future__ import annotations

import copy
import pickle

import pytest

from gleitzeit_core.resources import ChannelKind, HttpChannel, Requirements, Speaks, instance_id
from gleitzeit_core.testing.machine import ECHO, make_instance

HTTP, STREAM = Speaks("echo", ChannelKind.HTTP), Speaks("echo", ChannelKind.STREAM)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://gpu1:11434", "HTTP://GPU1:11434/", True),
        ("http://gpu1:11434", " http://gpu1:11434 ", True),
        ("http://gpu1:11434", "http://gpu1:11435", False),
        ("http://gpu1:11434/a", "http://gpu1:11434/A", False),
        ("my-function", "My-Function", False),
        ("http://gpu1:11434", "https://gpu1:11434", False),
    ],
)
def test_an_id_is_the_same_for_the_same_endpoint(one: str, other: str, same: bool) -> None:  # noqa: FBT001 - a table
    """On every replica, however it was written; names that differ by case are different things."""
    assert (instance_id("ollama", one) == instance_id("ollama", other)) is same


def test_an_id_can_be_read_and_tells_no_secret() -> None:
    """Kind and endpoint are in it, a password is not; kinds do not collide."""
    name = instance_id("ollama", "http://user:secret@gpu1:11434/x?y")
    assert name.startswith("ollama-gpu1-11434-x-y-")
    assert "secret" not in name
    assert instance_id("a", "x") != instance_id("b", "x")
    assert instance_id("kind", "///").startswith("kind-")
    assert len(instance_id("kind", "x" * 1000)) < 60


def test_no_secret_is_in_a_repr() -> None:
    """Neither headers nor what an instance is made of."""
    channel = HttpChannel("http://gpu1", headers={"Authorization": "Bearer secret"})
    instance = make_instance("a", offers=(("echo", channel),), details={"key": "secret"}, handle="secret")
    assert "secret" not in repr(channel) + repr(instance)


def test_the_first_pair_that_both_have_is_used() -> None:
    """In the provider's order."""
    channel = HttpChannel("http://gpu1")
    instance = make_instance("a", offers=(("echo", channel), *make_instance("a").offers))
    assert instance.channel_for((STREAM, HTTP, ECHO)) == ("echo", channel)
    assert instance.channel_for((ECHO, HTTP)) == instance.offers[1]
    assert instance.channel_for((STREAM,)) is None


@pytest.mark.parametrize(
    ("needs", "allowed"),
    [
        ({}, True),
        ({"capabilities": frozenset({"x"})}, True),
        ({"capabilities": frozenset({"x", "y"})}, False),
        ({"tags": frozenset({"gpu"})}, True),
        ({"tags": frozenset({"cpu"})}, False),
        ({"instances": frozenset({"other"})}, False),
        ({"tenant": "me"}, True),
        ({"tenant": "you"}, False),
        ({"accepts": (HTTP,)}, False),
    ],
)
def test_requirements_are_all_met_or_not(needs: dict[str, object], allowed: bool) -> None:  # noqa: FBT001 - a table
    """Each by itself can rule an instance out."""
    instance = make_instance("a", capabilities=frozenset({"x"}), tags=frozenset({"gpu"}), details={"tenant": "me"})
    assert Requirements(**{"accepts": (ECHO,), **needs}).allow(instance) is allowed  # type: ignore[arg-type]


def test_equal_requirements_find_the_same_thing_and_copies_keep_no_hash() -> None:
    """What is worked out once is kept for that object alone: another process has other hashes of the same texts."""
    one, other = (Requirements(accepts=(HTTP,), capabilities=frozenset({"model:a", "gpu"})) for _ in range(2))
    found = {one: "it"}
    assert (found[other], one.model, hash(one)) == ("it", "a", hash(other))
    for made in (copy.copy(one), pickle.loads(pickle.dumps(one)), one.narrowed(tags=frozenset({"near"}))):  # noqa: S301 - our own
        assert not vars(made)
        assert (made == one) is not bool(made.tags)
        assert made.model == "a"


def test_requirements_can_be_narrowed_and_described() -> None:
    """What a caller demands is added to what a provider needs."""
    needs = Requirements(accepts=(ECHO, HTTP), capabilities=frozenset({"model:x"}))
    narrow = needs.narrowed(tags=frozenset({"gpu"}), instances=frozenset({"one"}))
    assert narrow.describe() == "model:x, tag:gpu, instance:one (echo over call or echo over http)"
    assert needs.narrowed() == needs
    assert Requirements(accepts=(ECHO,)).describe() == "anything (echo over call)"
    assert len({needs, needs.narrowed(), narrow}) == 2
