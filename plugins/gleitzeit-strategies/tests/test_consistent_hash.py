from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from math import ceil
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.requests import Outcome, Request, Result
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_strategies.consistent_hash import ConsistentHash
from gleitzeit_strategies.keys import key_of
from gleitzeit_strategies.options import ConsistentHashOptions
from gleitzeit_strategies.ring import Ring
from gleitzeit_strategies.testing import Bench, LookedAt, PoolView, records

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYS = [f"user-{number}" for number in range(2000)]
SOURCES = ("affinity", "session", "user", "prompt")


def ring(**weights: float) -> Ring:
    """With these members."""
    made = Ring()
    made.update(weights)
    return made


def owners(made: Ring, keys: Sequence[str] = KEYS) -> dict[str, str]:
    """Who has which key."""
    return {key: next(made.preference(key)) for key in keys}


def bench(count: int = 8, **options: Any) -> Bench:  # noqa: ANN401 - any of them
    """With so many instances."""
    machine = Bench(ConsistentHash, ConsistentHashOptions(**options), seed=1)
    for number in range(count):
        machine.add(f"i{number}", max_concurrent=1000)
    return machine


# -- the ring


@given(st.integers(2, 40), st.integers(0, 39))
def test_only_the_keys_of_one_that_leaves_move(size: int, which: int) -> None:
    """All others stay where they are; and when it comes back all is as before."""
    weights = {f"i{number}": 1.0 for number in range(size)}
    made = ring(**weights)
    before, gone = owners(made, KEYS[:200]), f"i{which % size}"
    made.update({name: weight for name, weight in weights.items() if name != gone})
    after = owners(made, KEYS[:200])
    assert all(after[key] == owner for key, owner in before.items() if owner != gone)
    assert gone not in after.values()
    made.update(weights)
    assert owners(made, KEYS[:200]) == before


@given(st.lists(st.sets(st.integers(0, 200), min_size=1), min_size=1, max_size=5))
def test_the_way_to_a_membership_does_not_matter(steps: list[set[int]]) -> None:
    """A replica that saw every change agrees with one that has just started."""
    walked = Ring()
    for step in steps:
        walked.update({f"i{number}": 1.0 + number % 3 for number in step})
    fresh = ring(**{f"i{number}": 1.0 + number % 3 for number in steps[-1]})
    assert [next(walked.preference(key)) for key in KEYS[:50]] == [next(fresh.preference(key)) for key in KEYS[:50]]


def test_keys_are_spread_evenly() -> None:
    """No member has half as much again as its share, none less than half of it."""
    counts = Counter(owners(ring(**{f"i{number}": 1.0 for number in range(10)})).values())
    assert all(100 < counts[f"i{number}"] < 300 for number in range(10))


def test_weights_count() -> None:
    """Three times the weight, about three times the keys."""
    counts = Counter(owners(ring(a=1, b=3, c=1, d=3)).values())
    assert 2 < (counts["b"] + counts["d"]) / (counts["a"] + counts["c"]) < 4


def test_a_weight_that_changes_moves_keys_one_way_only() -> None:
    """To the one that grew, and nowhere else."""
    before, after = owners(ring(a=1, b=1, c=1)), owners(ring(a=1, b=2, c=1))
    moved = {after[key] for key in KEYS if before[key] != after[key]}
    assert moved == {"b"}


def test_the_second_choice_differs_from_key_to_key() -> None:
    """With one gone its keys are spread over all others, not over its neighbour alone."""
    made = ring(**{f"i{number}": 1.0 for number in range(10)})
    seconds = {key: tuple(islice(made.preference(key), 2)) for key in KEYS}
    assert len({second for first, second in seconds.values() if first == "i0"}) >= 8


def test_everybody_is_preferred_in_the_end() -> None:
    """Each once; and an empty ring has nobody."""
    weights = {f"i{number}": 1.0 for number in range(50)}
    assert Counter(ring(**weights).preference("k")) == Counter(weights)
    assert list(ring().preference("k")) == []
    assert len(ring(a=1)) == 1


# -- the strategy


def test_the_same_key_goes_to_the_same_instance() -> None:
    """As long as that has no more than its share."""
    machine = bench()
    for key in KEYS[:50]:
        assert len({machine.one(affinity=key) for _ in range(3)}) == 1


def test_two_gateways_agree() -> None:
    """Without talking, and with other randomness."""
    first, second = bench(), bench()
    second.random.seed(99)
    assert [first.one(affinity=key) for key in KEYS[:100]] == [second.one(affinity=key) for key in KEYS[:100]]


@given(st.lists(st.one_of(st.sampled_from(KEYS[:6]), st.none()), max_size=120), st.sampled_from([1.1, 1.25, 2.0]))
def test_no_instance_has_more_than_its_bound(events: list[str | None], bound: float) -> None:
    """Whatever the keys: at most `bound` times its share of all that is in flight, rounded up."""
    machine = bench(5, bound=bound)
    running: list[Any] = []
    for event in events:
        if event is None and running:
            machine.end(running.pop(0))
        elif event is not None:
            running.append(machine.submit(affinity=event))
            record = machine.granted[running[-1]].record
            assert record.in_flight <= ceil(bound * len(running) / 5)


def test_a_hot_key_overflows_always_to_the_same() -> None:
    """The next in the key's own order, not a random one."""
    runs = []
    for _ in range(2):
        machine = bench()
        runs.append([machine.where(machine.submit(affinity="hot")) for _ in range(20)])
        machine.random.seed(77)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) >= 5


def test_a_busy_instance_lends_its_keys_for_the_time_being() -> None:
    """They come back when it has room."""
    machine = bench()
    home = machine.one(affinity="k")
    machine.record(home).room = 0
    other = machine.one(affinity="k")
    assert other != home
    machine.record(home).recount()
    assert machine.one(affinity="k") == home


def test_with_all_over_their_share_the_first_free_one_serves() -> None:
    """Others keep the rest busy: what is free is used all the same."""
    machine = bench(4)
    for name in ("i0", "i1", "i2"):
        machine.record(name).room = 0
    assert {machine.where(machine.submit(affinity=key)) for key in KEYS[:10]} == {"i3"}


def test_without_a_key_the_least_loaded_serves() -> None:
    """Nothing ties such a request to anything."""
    machine = bench(4)
    assert {machine.where(machine.submit()) for _ in range(4)} == {"i0", "i1", "i2", "i3"}


def test_an_end_without_a_beginning_does_no_harm() -> None:
    """Its counts stay right."""
    machine = bench(2)
    strategy = ConsistentHash(ConsistentHashOptions(), random=Random(0), clock=ManualClock())
    strategy.finished(Request(method="m"), machine.record("i0"), Outcome(result=Result.OK))
    strategy.started(Request(method="m"), machine.record("i0"))
    assert strategy._total == 1
    strategy.finished(Request(method="m"), machine.record("i0"), Outcome(result=Result.OK))
    assert (strategy._total, strategy._in_flight) == (0, {})


def test_new_options_change_the_key_and_keep_the_ring() -> None:
    """Even for requests that were asked about before."""
    machine = bench()
    ticket = machine.ticket(affinity="a", tenant="t")
    machine.end(machine.submit(ticket))
    strategy = machine.strategies[0]
    assert isinstance(strategy, ConsistentHash)
    before = strategy.ring
    strategy.reconfigure(ConsistentHashOptions(key=["tenant"]))
    assert strategy.ring is before
    assert len({machine.one(affinity=key, tenant="t") for key in KEYS[:20]}) == 1


def test_thousands_are_not_all_looked_at() -> None:
    """A pick looks along the ring, and asks the pool when all that it sees are busy."""
    them = records(4096)
    looked = LookedAt(them)
    strategy = ConsistentHash(ConsistentHashOptions(), random=Random(0), clock=ManualClock())
    view = PoolView(looked, them[7])
    for record in (*them[:7], *them[8:]):
        record.room = 0
    for key in KEYS[:200]:
        assert strategy.pick(Request(method="m", affinity=key), view) is them[7]
    assert (looked.whole, looked.single) == (1, 0)


# -- keys


def body(**fields: Any) -> Request:  # noqa: ANN401 - any JSON
    """A request in a caller's own bytes."""
    return Request(method="llm/chat", body=json.dumps(fields).encode(), dialect="openai")


CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
MORE = [*CHAT, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "and now?"}]


@pytest.mark.parametrize("make", [lambda **fields: Request(method="m", params=fields), body], ids=["params", "body"])
@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"session_id": "s", "user": "u"}, "session:s"),
        ({"prompt_cache_key": "c"}, "session:c"),
        ({"user": "u", "prompt": "p"}, "user:u"),
        ({"metadata": {"user_id": "m"}, "prompt": "p"}, "user:m"),
        ({"metadata": "text", "user": 5, "prompt": "p"}, "prompt:p"),
        ({"prompt": "p" * 50, "system": "s"}, "prompt:s\npppppp"),
        ({"input": ["a", "b"]}, 'prompt:["a", "b'),
        ({"messages": []}, ""),
        ({"messages": "no list"}, ""),
        ({"messages": [None, {"role": "user"}, {"role": "user", "content": [1]}]}, "prompt:user: [1"),
        ({}, ""),
    ],
)
def test_a_key_comes_from_the_first_source_that_has_one(make: Any, fields: dict[str, Any], key: str) -> None:  # noqa: ANN401 - either
    """The same for parameters and for a caller's own bytes; odd values are no keys."""
    expected = key[:15] if key.startswith("prompt:") else key
    assert key_of(make(**fields), SOURCES, 8) == expected


def test_what_the_caller_names_goes_first() -> None:
    """`affinity`, and `tenant` where it is asked for."""
    request = Request(method="m", affinity="a", tenant="t", params={"user": "u"})
    assert key_of(request, SOURCES, 10) == "affinity:a"
    assert key_of(request, ("tenant", "user"), 10) == "tenant:t"


def test_a_conversation_keeps_its_key() -> None:
    """Later turns have the same; another conversation with the same system prompt has another."""
    first, later = (key_of(body(messages=messages), ("prompt",), 1000) for messages in (CHAT, MORE))
    other = key_of(body(messages=[CHAT[0], {"role": "user", "content": "bye"}]), ("prompt",), 1000)
    assert first == later == "prompt:system: be brief\nuser: hello\n"
    assert other != first


@pytest.mark.parametrize("raw", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000], ids=range(5))
def test_bytes_that_are_no_object_have_no_key(raw: bytes) -> None:
    """Nothing is raised: that is for whoever has to carry it out."""
    assert key_of(Request(method="m", body=raw), SOURCES, 10) == ""


def test_a_huge_body_is_not_read_as_a_whole() -> None:
    """The beginning of its prompt still makes a key, the same for the same beginning."""
    one, two = (body(model="m", messages=[{"role": "user", "content": "x" * 300_000 + end}]) for end in "ab")
    key = key_of(one, SOURCES, 100)
    assert key.startswith('prompt:"messages"')
    assert key == key_of(two, SOURCES, 100)
    assert len(key) == len("prompt:") + 100
