"""What a key may use, on a clock of our own: buckets, requests at once, and what a reload keeps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gleitzeit_core.requests import Outcome, Result, Usage
from gleitzeit_gateway.limits import BYTES_PER_TOKEN, Bucket, KeyLimits, LimitReached, Limits, duration
from gleitzeit_gateway.options import KeyOptions

from .alice import Watch


def key(name: str = "alice", **options: Any) -> KeyOptions:  # noqa: ANN401 - any option
    """Options of a key."""
    return KeyOptions.model_validate({"name": name, "key": "at-least-16-characters", **options})


def limited(watch: Watch, **options: Any) -> KeyLimits:  # noqa: ANN401 - any option
    """Limits of one key."""
    limits = KeyLimits("alice", watch)
    limits.change(key(**options))
    return limits


def done(limits: KeyLimits, tokens: int = 0) -> None:
    """One request, from beginning to end."""
    with limits:
        limits.charge(tokens)


# -- buckets -------------------------------------------------------------------------------------------------------


def test_bucket() -> None:
    """It is full at first, refills evenly, never beyond its limit, and may be overdrawn."""
    bucket = Bucket(60, 60.0, 0.0)
    bucket.use(90, 0.0)
    assert bucket.left(0.0) == -30.0
    assert bucket.wait_s(1.0, 0.0) == 31.0
    assert bucket.left(40.0) == 10.0
    assert bucket.left(1e6) == 60.0
    assert bucket.wait_s(60.0, 1e6) == 0.0
    assert repr(bucket) == "<Bucket 60 of 60 per 60 s>"


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """Nor does it take anything."""
    bucket = Bucket(60, 60.0, 100.0)
    bucket.use(10, 100.0)
    assert bucket.left(50.0) == 50.0
    assert bucket.left(101.0) == 51.0


def test_what_is_used_stays_used() -> None:
    """When a limit changes, what was used of the old one is used of the new one."""
    bucket = Bucket(60, 60.0, 0.0)
    bucket.use(50, 0.0)
    bucket.resize(100, 0.0)
    assert bucket.left(0.0) == 50.0
    bucket.resize(20, 0.0)
    assert bucket.left(0.0) == -30.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.0121, "13ms"), (1.5, "1.5s"), (59.9, "59.9s"), (360, "6m0s"), (3723.2, "1h2m4s"), (60.0, "1m0s")],
)
def test_durations(seconds: float, text: str) -> None:
    """As OpenAI's clients read them."""
    assert duration(seconds) == text


# -- requests ------------------------------------------------------------------------------------------------------


def test_requests_per_minute(watch: Watch) -> None:
    """A burst of the whole limit passes, the next one is told when to come, and may then."""
    limits = limited(watch, requests_per_minute=6)
    for _ in range(6):
        done(limits)
    with pytest.raises(
        LimitReached, match=r"^the key 'alice' has used its 6 requests per minute; retry after 10 s$"
    ) as c:
        limits.acquire()
    assert (c.value.status, c.value.code, c.value.retryable) == (429, "rate_limit_exceeded", True)
    assert c.value.retry_after_s == pytest.approx(10.0)
    watch.now += c.value.retry_after_s
    done(limits)
    with pytest.raises(LimitReached):
        limits.acquire()
    assert limits.running == 0


@pytest.mark.parametrize("per_minute", [1, 7, 11, 59, 61, 997])
def test_who_comes_when_told_may(watch: Watch, per_minute: int) -> None:
    """However badly the limit divides a minute."""
    limits = limited(watch, requests_per_minute=per_minute)
    for _ in range(per_minute):
        done(limits)
    for _ in range(100):
        with pytest.raises(LimitReached) as caught:
            limits.acquire()
        watch.now += caught.value.retry_after_s
        done(limits)


def test_tokens_per_minute(watch: Watch) -> None:
    """Where any token is left a request passes; what it took beyond that has to be paid back first."""
    limits = limited(watch, tokens_per_minute=60)
    done(limits, 59)
    done(limits, 31)
    with pytest.raises(LimitReached, match=r"has used its 60 tokens per minute; retry after 31 s"):
        limits.acquire()
    watch.now += 30.5
    with pytest.raises(LimitReached, match="retry after 1 s"):
        limits.acquire()
    watch.now += 0.5
    done(limits)


def test_tokens_per_day(watch: Watch) -> None:
    """The day's limit holds where the minute's has recovered."""
    limits = limited(watch, tokens_per_minute=1000, tokens_per_day=86_400)
    for _ in range(100):
        done(limits, 864)
        watch.now += 60
    while limits.headers()["X-RateLimit-Remaining-Tokens"] != "0":
        done(limits, 864)
        watch.now += 60
    with pytest.raises(LimitReached, match=r"has used its 86400 tokens per day"):
        limits.acquire()


def test_what_a_try_is_charged(watch: Watch) -> None:
    """What it says; in parts that say nothing, for what has come; for an answer that says nothing, nothing."""
    limits = limited(watch, tokens_per_minute=1000)
    told = Outcome(Result.OK, usage=Usage(input_tokens=100, output_tokens=10), bytes_out=10 * BYTES_PER_TOKEN)
    limits.charge_for(told, in_parts=True)
    limits.charge_for(told, in_parts=False)
    limits.charge_for(Outcome(Result.CANCELLED, bytes_out=10 * BYTES_PER_TOKEN - 1), in_parts=True)
    limits.charge_for(Outcome(Result.OK, bytes_out=5000), in_parts=False)
    assert limits.headers()["X-RateLimit-Remaining-Tokens"] == "770"


def test_max_concurrent(watch: Watch) -> None:
    """So many run, and one more when one has ended, be it with an error. Who is refused has used no request."""
    limits = limited(watch, max_concurrent=2, requests_per_minute=5)
    limits.acquire()
    limits.acquire()
    with pytest.raises(LimitReached, match=r"has 2 requests running, of at most 2; retry after 1 s"):
        limits.acquire()
    limits.release()
    with pytest.raises(ZeroDivisionError), limits:
        _ = 1 / (limits.running - 2)
    limits.acquire()
    assert limits.running == 2
    assert limits.headers()["X-RateLimit-Remaining-Requests"] == "1"


def test_no_limit(watch: Watch) -> None:
    """A key without limits says nothing of them, and is counted all the same."""
    limits = limited(watch)
    for _ in range(1000):
        limits.acquire()
        limits.charge(10**9)
    assert limits.running == 1000
    assert limits.headers() == {}
    assert repr(limits) == "<KeyLimits of 'alice': 1000 running, None, ()>"


def test_headers(watch: Watch) -> None:
    """They say limit, rest and when all of it is back; of two limits on tokens, that of which less is left."""
    limits = limited(watch, requests_per_minute=60, tokens_per_minute=6000, tokens_per_day=7000)
    done(limits, 3000)
    assert limits.headers() == {
        "X-RateLimit-Limit-Requests": "60",
        "X-RateLimit-Remaining-Requests": "59",
        "X-RateLimit-Reset-Requests": "1s",
        "X-RateLimit-Limit-Tokens": "6000",
        "X-RateLimit-Remaining-Tokens": "3000",
        "X-RateLimit-Reset-Tokens": "30s",
    }
    watch.now += 30
    done(limits, 3500)
    assert limits.headers()["X-RateLimit-Limit-Tokens"] == "7000"
    done(limits, 9000)
    assert limits.headers()["X-RateLimit-Remaining-Tokens"] == "0"


# -- reload --------------------------------------------------------------------------------------------------------


def test_a_key_that_stays_keeps_what_it_has_used(watch: Watch) -> None:
    """Under other limits and another key as well; one that is new, or comes again, begins anew."""
    every = Limits(watch)
    every.change([key("alice", requests_per_minute=10), key("bob", requests_per_minute=10)])
    alice = every.of("alice")
    alice.acquire()
    done(every.of("bob"))
    every.change([key("alice", requests_per_minute=5, max_concurrent=1)])
    assert every.of("alice") is alice
    assert alice.headers()["X-RateLimit-Remaining-Requests"] == "4"
    with pytest.raises(LimitReached):
        alice.acquire()
    alice.release()
    every.change([key("alice"), key("bob", requests_per_minute=10)])
    assert alice.headers() == {}
    assert every.of("bob").headers()["X-RateLimit-Remaining-Requests"] == "10"
    assert repr(every) == "<Limits of 2 keys, 0 running>"


def test_whose_tokens_are_limited_is_charged(watch: Watch) -> None:
    """From the reload on that limits them, and until one that does not; nobody else is."""
    every = Limits(watch)
    took = Outcome(Result.OK, usage=Usage(input_tokens=100, output_tokens=10))
    ended: Any = SimpleNamespace(request=SimpleNamespace(tenant="alice", stream=False), outcome=took)
    nobodys: Any = SimpleNamespace(request=SimpleNamespace(tenant="", stream=False), outcome=took)

    def left_of(**options: int) -> str | None:
        every.change([key("alice", **options), key("bob", tokens_per_minute=1000)])
        every.finished(ended, None)
        every.finished(nobodys, None)
        assert every.of("bob").headers()["X-RateLimit-Remaining-Tokens"] == "1000"
        return every.of("alice").headers().get("X-RateLimit-Remaining-Tokens")

    assert left_of(requests_per_minute=5) is None
    assert left_of(tokens_per_day=1000) == "890"
    assert left_of(tokens_per_day=1000) == "780"
    assert left_of() is None
    assert left_of(tokens_per_minute=1000) == "890"


# -- whatever happens ----------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.just(0.0)),
        st.tuples(st.sampled_from(["end", "fail"]), st.integers(0, 200)),
        st.tuples(st.just("wait"), st.floats(0, 100)),
        st.tuples(st.just("reload"), st.integers(1, 50)),
    ),
    max_size=80,
)


@settings(deadline=None)
@given(steps=STEPS, per_minute=st.integers(1, 20), tokens=st.integers(1, 300), at_once=st.integers(1, 5))
def test_counters_hold(steps: list[tuple[str, float]], per_minute: int, tokens: int, at_once: int) -> None:
    """In any order of beginnings, ends, failures, waits and reloads no more begins than may, and nothing is lost.

    In any time, what has begun is at most the limit and what came back in that time; what may begin does; and when all
    has ended nothing is counted as running.
    """
    watch, begun = Watch(), 0
    limits = limited(watch, requests_per_minute=per_minute, tokens_per_minute=tokens, max_concurrent=at_once)
    running, changed, back, at = 0, False, 0.0, watch.now
    for what, amount in steps:
        if what == "wait":
            watch.now += amount
        elif what == "reload":
            limits.change(key(requests_per_minute=per_minute, tokens_per_minute=int(amount), max_concurrent=at_once))
            changed = True
        elif what == "begin":
            left = {name: float(value) for name, value in limits.headers().items() if "Remaining" in name}
            may = running < at_once and all(value >= 1 for value in left.values())
            try:
                limits.acquire()
            except LimitReached as refused:
                assert not may
                assert refused.retry_after_s > 0
            else:
                assert may
                running, begun = running + 1, begun + 1
        elif running:
            running -= 1
            if what == "end":
                limits.charge(int(amount))
            limits.release()
        back = (watch.now - at) * per_minute / 60
        assert limits.running == running <= at_once
        assert begun <= per_minute + back + 1e-3
    for _ in range(running):
        limits.release()
    assert limits.running == 0
    # What was overdrawn is paid back in a time that is known.
    watch.now += 1e9 if changed else 60 + 60 * 80 * 200 / tokens
    done(limits)


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["max_concurrent", "requests_per_minute", "tokens_per_minute", "tokens_per_day"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "many"])
def test_limits_that_cannot_be(option: str, value: Any) -> None:  # noqa: ANN401 - a parameter
    """A limit is a whole number above 0: a key that may do nothing is none."""
    with pytest.raises(ValidationError):
        key(**{option: value})
