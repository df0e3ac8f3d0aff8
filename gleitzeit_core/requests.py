"""Methods, requests, and what became of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, make_dataclass, replace
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gleitzeit_core.resources import Requirements, empty

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from gleitzeit_core.errors import FailureKind

_ids = Random()
os.register_at_fork(after_in_child=_ids.seed)


def new_request_id() -> str:
    """16 random hexadecimal digits: unique enough for logs and headers, cheap enough for every request."""
    return _ids.getrandbits(64).to_bytes(8).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of a protocol.

    Args:
        name: The whole name, ``llm/chat``.
        summary: One line for listings.
        replayable: Whether it may be tried again on another instance after it may have begun. For a method that
            streams, this holds until its first output.
        streams: Whether it can answer in parts.
        local: Answered by `Provider.answer` from what is known of the instances, without a slot on one.
        restricted: Through a gateway only where its configuration names it, in ``gateway.methods`` or in the
            ``methods`` of a key: for what should not be open to everybody who may ask a model something.
        params: Checks the parameters; None when the provider checks them itself.
        schema: JSON schema of the parameters, for listings; None: that of `params`, or any object.
    """

    name: str
    summary: str
    replayable: bool
    streams: bool = False
    local: bool = False
    restricted: bool = False
    params: type[BaseModel] | None = None
    schema: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. Frozen and serialisable: admission and a durable queue hold the same record.

    Args:
        method: ``protocol/method``, such as ``llm/chat``.
        params: What the method takes; empty when `body` is given.
        body: The caller's own bytes, passed on unparsed where caller and instance speak the same api.
        dialect: The client API `body` is written in, such as ``ollama``; empty for `params`.
        endpoint: The HTTP path `body` was sent to; empty for `params`.
        stream: Whether the answer is wanted in parts.
        requirements: What it needs of an instance; filled in by the provider.
        id: Unique; made up when not given.
        idempotency_key: The caller's own name for it; empty for none.
        cost: Work it is expected to be, relative to others; fairness counts it. Above 0.
        priority: Higher goes first. 0 is normal.
        tenant: On whose behalf; fairness is between tenants.
        affinity: Requests with the same value prefer the same instance; empty for none.
        deadline: Wall-clock seconds (Unix time) after which nobody wants the answer; None for no limit.
        attempt: How many times it was tried before, from 0.
    """

    method: str
    params: Mapping[str, Any] = field(default_factory=empty, repr=False)
    body: bytes | None = field(default=None, repr=False)
    dialect: str = ""
    endpoint: str = ""
    stream: bool = False
    requirements: Requirements = field(default=Requirements(accepts=()))
    id: str = field(default_factory=new_request_id)
    idempotency_key: str = ""
    cost: float = 1.0
    priority: int = 0
    tenant: str = ""
    affinity: str = ""
    deadline: float | None = None
    attempt: int = 0

    def changed(self, **changes: Any) -> Request:  # noqa: ANN401 - the fields' own types, checked by replace
        """A copy with `changes`."""
        return replace(self, **changes)


# A frozen dataclass fills each field by a call, which takes longer than all else that is done to make a request. Its
# twin, the same but not frozen, is filled at once; then it becomes a request.
_Twin = make_dataclass(
    "Request",
    [(f.name, Any, field(default=f.default, default_factory=f.default_factory)) for f in fields(Request)],
    slots=True,
    kw_only=True,
)


def new_request(**values: Any) -> Request:  # noqa: ANN401 - the fields' own types
    """``Request(**values)``, in half the time."""
    made: Any = _Twin(**values)
    made.__class__ = Request
    return cast("Request", made)


class Result(StrEnum):
    """How a try on an instance ended."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """Its caller left, or its deadline came: no mark against the instance."""


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class Usage:
    """The work one answer took, in the protocol's own units: tokens, for language models.

    Args:
        input_tokens: Read, from 0.
        output_tokens: Written, from 0.
    """

    input_tokens: int = 0
    output_tokens: int = 0

    def __init__(self, *, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """Refuse what could not be added up.

        Raises:
            ValueError: One of them is not a whole number from 0.
        """
        if type(input_tokens) is not int or type(output_tokens) is not int or input_tokens < 0 or output_tokens < 0:
            raise ValueError(f"tokens are whole numbers from 0, not {input_tokens!r} and {output_tokens!r}")
        object.__setattr__(self, "input_tokens", input_tokens)
        object.__setattr__(self, "output_tokens", output_tokens)


# Looked up once: to look a member up in its enumeration takes as long as a call.
_OK = Result.OK


class Outcome(NamedTuple):
    """What became of one try on one instance. Times in seconds, on the monotonic clock. A tuple: made for every try.

    Args:
        result: How it ended.
        kind: How it failed, when it did.
        wait_s: In the queue, before this try had a slot.
        first_output_s: From the slot to the first output; None when there was none.
        total_s: From the slot to the end.
        retry_after_s: When a busy instance asked us to come back.
        usage: What the answer says of the work it took; None when it says nothing.
        bytes_in: Sent to the instance, where that is bytes.
        bytes_out: Received from it, where that is bytes.
        tenant: Whose instance it had to be, as its request's requirements say; empty for anybody's.
    """

    result: Result
    kind: FailureKind | None = None
    wait_s: float = 0.0
    first_output_s: float | None = None
    total_s: float = 0.0
    retry_after_s: float | None = None
    usage: Usage | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    tenant: str = ""

    @property
    def per_token_s(self) -> float | None:
        """Time for each output token after the first; over all of them for an answer that came whole.

        None when it failed or nothing is known of its tokens.
        """
        if self.usage is None or self.result is not _OK:
            return None
        tokens, first_s, total_s = self.usage.output_tokens, self.first_output_s, self.total_s
        if tokens <= 1 or first_s is None or first_s >= total_s:
            return total_s / tokens if tokens else None
        return (total_s - first_s) / (tokens - 1)


class Served(NamedTuple):
    """Who served a request, for callers, headers and logs. A tuple: made for every answer.

    Args:
        instance_id: The instance that answered.
        queued_s: Waiting in the queue, over all tries.
        tries: Instances tried, from 1; a second one beside a slow first counts.
        position: Its place in the queue, from 1, when it last began to wait; 0 when it never did.
        expected_wait_s: How long that was expected to take.
    """

    instance_id: str
    queued_s: float
    tries: int
    position: int = 0
    expected_wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRequest:
    """What observers of ``gleitzeit_request_finished`` get, once per request.

    Args:
        request: The request as it was sent.
        served: Who served it last; None when it never had an instance.
        outcome: The outcome of the last try; None when there was none.
        error_code: The code of the error the caller got; empty when it succeeded.
        total_s: From its arrival to its end.
    """

    request: Request
    served: Served | None
    outcome: Outcome | None
    error_code: str
    total_s: float
