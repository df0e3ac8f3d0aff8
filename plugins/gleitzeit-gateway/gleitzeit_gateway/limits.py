"""What a key may use: so many requests, so many tokens, so many at once. Synchronous, and time is injected.

Requests and tokens come out of buckets: full at first, so that a burst of the whole limit is fine, and refilled evenly,
so that what was used is back after the limit's period. In the worst case one period holds the limit twice. That is
what the headers ``X-RateLimit-*`` of OpenAI mean. A bucket takes no more memory or time than two numbers do.

How many tokens a request takes is known when it has ended. Until then it passes where any token is left; what it then
took is charged, also below zero, and who is below zero waits until that is paid back.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final, Self

from gleitzeit_gateway.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.runs import Run
    from gleitzeit_gateway.options import KeyOptions

BYTES_PER_TOKEN: Final = 150
"""Of a stream that does not say its tokens, as one that is left early: about what a chunk takes in each client API."""
_MINUTE_S: Final = 60.0
_DAY_S: Final = 86_400.0
_PERIODS: Final = {_MINUTE_S: "minute", _DAY_S: "day"}
# When one of many requests ends is not known; clients should not try all the time, nor wait for long.
_SOON_S: Final = 1.0
# What was put together from parts of a second is one request all the same.
_ONE: Final = 1.0 - 1e-6


class LimitReached(Refused):
    """A key has used what it may; come back after `retry_after_s` seconds."""

    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(429, f"{message}; retry after {math.ceil(retry_after_s)} s", "rate_limit_exceeded")
        self.retry_after_s = retry_after_s


class Bucket:
    """An amount that is used up and comes back evenly.

    Args:
        limit: So much there is when it is full, and so much comes back in `period_s` seconds; above 0.
        period_s: Above 0.
        now: On the clock that all calls go by.
    """

    __slots__ = ("_at", "_left", "limit", "period_s")

    def __init__(self, limit: int, period_s: float, now: float) -> None:
        self.limit, self.period_s = limit, period_s
        self._left, self._at = float(limit), now

    def __repr__(self) -> str:
        """What was left when it was last looked at."""
        return f"<Bucket {self._left:g} of {self.limit} per {self.period_s:g} s>"

    def left(self, now: float) -> float:
        """What is left; below 0 where more was used than there was."""
        if now > self._at:
            self._left = min(self._left + (now - self._at) * self.limit / self.period_s, float(self.limit))
            self._at = now
        return self._left

    def use(self, amount: float, now: float) -> None:
        """Take `amount` out, whether it is there or not."""
        self._left = self.left(now) - amount

    def wait_s(self, amount: float, now: float) -> float:
        """How long until `amount` is left; 0.0 when it is."""
        return max(0.0, (amount - self.left(now)) * self.period_s / self.limit)

    def resize(self, limit: int, now: float) -> None:
        """Another limit; what is used stays used."""
        used = self.limit - self.left(now)
        self.limit, self._left = limit, limit - used


class KeyLimits:
    """What one key has used, of what it may. In a ``with`` block it is one request more.

    Args:
        name: Of the key, for messages.
        monotonic: Tells the time.
    """

    __slots__ = ("_max_concurrent", "_monotonic", "_name", "_requests", "_tokens", "bounded", "running")

    def __init__(self, name: str = "", monotonic: Callable[[], float] = time.monotonic) -> None:
        self._name, self._monotonic = name, monotonic
        self._max_concurrent: int | None = None
        self._requests: Bucket | None = None
        self._tokens: tuple[Bucket, ...] = ()
        self.bounded = False
        """Whether there is a limit whose rest is told: not that of concurrent requests."""
        self.running = 0
        """Requests that have begun and not ended."""

    def __repr__(self) -> str:
        """Counts."""
        return f"<KeyLimits of {self._name!r}: {self.running} running, {self._requests}, {self._tokens}>"

    @property
    def max_concurrent(self) -> int | None:
        """So many requests may run; None for any number."""
        return self._max_concurrent

    def change(self, options: KeyOptions) -> None:
        """Go by other options from now on. What is used stays used, what runs stays counted."""
        now, tokens = self._monotonic(), {bucket.period_s: bucket for bucket in self._tokens}
        self._max_concurrent = options.max_concurrent
        self._requests = _resized(self._requests, options.requests_per_minute, _MINUTE_S, now)
        wanted = {_MINUTE_S: options.tokens_per_minute, _DAY_S: options.tokens_per_day}
        made = (_resized(tokens.get(period_s), limit, period_s, now) for period_s, limit in wanted.items())
        self._tokens = tuple(bucket for bucket in made if bucket is not None)
        self.bounded = self._requests is not None or self.on_tokens

    @property
    def on_tokens(self) -> bool:
        """Whether tokens are limited."""
        return bool(self._tokens)

    def acquire(self) -> None:
        """One more request begins. It needs a `release`, exactly one.

        Raises:
            LimitReached: It may not; nothing is taken then.
        """
        if self._max_concurrent is not None and self.running >= self._max_concurrent:
            text = f"{self._who} has {self.running} requests running, of at most {self._max_concurrent}"
            raise LimitReached(text, retry_after_s=_SOON_S)
        if self.bounded:
            self._take(self._monotonic())
        self.running += 1

    def _take(self, now: float) -> None:
        for bucket in self._tokens:
            if bucket.left(now) < _ONE:
                text = f"{self._who} has used its {bucket.limit} tokens per {_PERIODS[bucket.period_s]}"
                raise LimitReached(text, retry_after_s=bucket.wait_s(1.0, now))
        if self._requests is not None:
            if self._requests.left(now) < _ONE:
                text = f"{self._who} has used its {self._requests.limit} requests per minute"
                raise LimitReached(text, retry_after_s=self._requests.wait_s(1.0, now))
            self._requests.use(1.0, now)

    def release(self) -> None:
        """A request has ended, however it did."""
        self.running -= 1

    def __enter__(self) -> Self:
        """Acquire."""
        self.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Release."""
        self.release()

    def charge(self, tokens: int) -> None:
        """A request took so many tokens."""
        if tokens and self._tokens:
            now = self._monotonic()
            for bucket in self._tokens:
                bucket.use(tokens, now)

    def charge_for(self, outcome: Outcome, *, in_parts: bool) -> None:
        """A try took what it says; or, in parts that do not say, one token for each `BYTES_PER_TOKEN` that came.

        Args:
            outcome: Of the try.
            in_parts: Whether its answer came so.
        """
        if self._tokens:
            took = outcome.usage
            if took is not None:
                self.charge(took.input_tokens + took.output_tokens)
            elif in_parts:
                self.charge(math.ceil(outcome.bytes_out / BYTES_PER_TOKEN))

    def headers(self) -> Mapping[str, str]:
        """What is left, as OpenAI's clients know it; of two limits on tokens, the one of which less is left."""
        now = self._monotonic()
        found: dict[str, str] = {}
        if self._requests is not None:
            _describe(found, _REQUESTS, self._requests, now)
        if self._tokens:
            first, *others = self._tokens
            scarce = min(self._tokens, key=lambda bucket: bucket.left(now)) if others else first
            _describe(found, _TOKENS, scarce, now)
        return found

    @property
    def _who(self) -> str:
        return f"the key {self._name!r}"


class Limits:
    """The limits of all keys, by their names. A key that stays keeps what it has used when the gateway reloads.

    Args:
        monotonic: Tells the time.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._keys: dict[str, KeyLimits] = {}
        # Those of them that are charged for tokens.
        self._charged: dict[str, KeyLimits] = {}

    def __repr__(self) -> str:
        """Counts."""
        return f"<Limits of {len(self._keys)} keys, {sum(key.running for key in self._keys.values())} running>"

    def change(self, keys: Iterable[KeyOptions]) -> None:
        """Go by these from now on; what is known of others is forgotten."""
        found = {}
        for options in keys:
            found[options.name] = self._keys.get(options.name) or KeyLimits(options.name, self._monotonic)
            found[options.name].change(options)
        self._keys = found
        self._charged = {name: limits for name, limits in found.items() if limits.on_tokens}

    def of(self, name: str) -> KeyLimits:
        """Those of a key."""
        return self._keys[name]

    def finished(self, run: Run, error: BaseException | None) -> None:
        """A request has ended: its key is charged for the tokens it took. For `Running.watchers`."""
        del error
        limits = self._charged.get(run.request.tenant)
        if limits is not None and run.outcome is not None:
            limits.charge_for(run.outcome, in_parts=run.request.stream)


_REQUESTS, _TOKENS = (
    tuple(f"X-RateLimit-{part}-{what}" for part in ("Limit", "Remaining", "Reset")) for what in ("Requests", "Tokens")
)


def _resized(bucket: Bucket | None, limit: int | None, period_s: float, now: float) -> Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit, period_s, now)
    bucket.resize(limit, now)
    return bucket


def _describe(headers: dict[str, str], names: tuple[str, ...], bucket: Bucket, now: float) -> None:
    limit, remaining, reset = names
    headers[limit] = str(bucket.limit)
    headers[remaining] = str(max(0, math.floor(bucket.left(now) + 1e-6)))
    headers[reset] = duration(bucket.wait_s(bucket.limit, now))


def duration(seconds: float) -> str:
    """As OpenAI writes a time: ``12ms``, ``1.5s``, ``6m0s``, ``1h2m3s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < _MINUTE_S:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
