"""What does work, and how it is reached.

An **instance** is one thing that does work; an **api** is what it speaks; a **channel** is how it is reached. An
instance offers (api, channel) pairs, and a provider that speaks one of them can drive it, whatever hub it came from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

_EMPTY: Mapping[str, Any] = MappingProxyType({})
MODEL = "model:"
"""What the capability to serve a model begins with."""


ANONYMOUS = "anonymous"
"""The tenant of those who name none, where instances belong to tenants."""


def empty() -> Mapping[str, Any]:
    """One empty mapping for all, as a default that nobody can change."""
    return _EMPTY


class Ownership(StrEnum):
    """Who started an instance, and so who may stop it."""

    EXTERNAL = "external"
    """Somebody else's: never stopped by us."""
    ADOPTED = "adopted"
    """Started by an earlier process of ours and taken over."""
    MANAGED = "managed"
    """Started by us: stopped by us."""


class ChannelKind(StrEnum):
    """How a hub reaches an instance."""

    HTTP = "http"
    STREAM = "stream"
    CALL = "call"

    # An enumeration's own goes by its name, and is no function in C; requirements are looked up for every request.
    __hash__ = str.__hash__


@dataclass(frozen=True, slots=True)
class HttpChannel:
    """Requests to a URL.

    Args:
        url: Base URL without a trailing slash, such as ``http://gpu1:11434``.
        headers: Sent with every request; may hold a key, so it is kept out of ``repr``.
        tls: A context for ``https``; None for the system's defaults.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=empty, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    kind: ClassVar[ChannelKind] = ChannelKind.HTTP


@runtime_checkable
class StreamChannel(Protocol):
    """Duplex bytes: a pipe, a socket, an attached exec. One user at a time."""

    @property
    def kind(self) -> ChannelKind:
        """Always ``stream``."""

    async def send(self, data: bytes) -> None:
        """Write all of `data`; waits while the other side reads too slowly.

        Raises:
            InstanceFailure: ``LOST`` when the other side is gone.
        """

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Read what is there, at most `max_bytes`; ``b""`` at the end of the stream."""

    async def aclose(self) -> None:
        """Close both directions; more than once is fine."""


@runtime_checkable
class CallChannel(Protocol):
    """One message each way: a function, a queue with replies."""

    @property
    def kind(self) -> ChannelKind:
        """Always ``call``."""

    async def call(self, message: bytes) -> bytes:
        """Send `message` and wait for its answer.

        Raises:
            InstanceFailure: When there is none.
        """


Channel = HttpChannel | StreamChannel | CallChannel


class Speaks(NamedTuple):
    """An (api, channel) pair: what an instance offers, and what a provider can drive.

    Args:
        api: ``ollama``, ``openai``, ``python-runner``, ...
        channel: How it is reached.
    """

    api: str
    channel: ChannelKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceInstance:
    """One thing that does work. A record: hubs publish a new one when anything changes.

    Args:
        id: From `instance_id`; the same on every replica.
        hub: The name of the hub that owns it.
        kind: The hub's type, such as ``ollama``.
        endpoint: Where it is, for people and for `id`: a URL, a container id, a function name.
        offers: The channel for each (api, channel kind) pair it offers; at least one, best first.
        generation: Grows when it is created anew under the same id. From 0.
        ownership: Who may stop it.
        capabilities: What it can do, such as ``model:llama3``.
        warm: The part of `capabilities` that is ready now, such as models in memory.
        tags: Labels for requirements and tiers.
        weight: Relative capacity, above 0.
        max_concurrent: Requests it works on at once, from 1; 1 makes it exclusive.
        cancellable: Whether work can be stopped. If not, its slot stays taken until the work ends.
        probe: Whether health checks and listings may be sent to it. If not, only users' requests are.
        details: What its hub and its providers know besides; never interpreted by the core.
        handle: Its hub's own object behind it, such as a process; never interpreted by the core.
    """

    id: str
    hub: str
    kind: str
    endpoint: str
    offers: tuple[tuple[str, Channel], ...] = field(repr=False)
    generation: int = 0
    ownership: Ownership = Ownership.EXTERNAL
    capabilities: frozenset[str] = frozenset()
    warm: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    weight: float = 1.0
    max_concurrent: int = 4
    cancellable: bool = True
    probe: bool = True
    details: Mapping[str, Any] = field(default_factory=empty, repr=False)
    handle: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what would break scheduling later.

        Raises:
            ValueError: `weight` not above 0, `max_concurrent` below 1, or nothing offered.
        """
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight of {self.id} must be a finite number above 0, not {self.weight!r}")
        if self.max_concurrent < 1:
            raise ValueError(f"max_concurrent of {self.id} must be at least 1, not {self.max_concurrent!r}")
        if not self.offers:
            raise ValueError(f"instance {self.id} offers no (api, channel) pair")

    def channel_for(self, accepted: tuple[Speaks, ...]) -> tuple[str, Channel] | None:
        """The first of the `accepted` pairs this instance offers, as (api, channel); None when it offers none."""
        for api, kind in accepted:
            for offer in self.offers:
                if offer[0] == api and offer[1].kind is kind:
                    return offer
        return None

    def changed(self, **changes: Any) -> ResourceInstance:  # noqa: ANN401 - the fields' own types, checked by replace
        """A copy with `changes`."""
        return replace(self, **changes)


def instance_id(kind: str, endpoint: str) -> str:
    """The id of the instance of `kind` at `endpoint`: readable, and the same on every replica.

    Args:
        kind: The hub's type.
        endpoint: A URL or another unique name; a trailing slash and the case of a URL's scheme and host do not count.
    """
    scheme, mark, rest = endpoint.strip().rstrip("/").rpartition("://")
    host, slash, path = rest.partition("/") if mark else ("", "", rest)
    canonical = f"{scheme.lower()}{mark}{host.lower()}{slash}{path}"
    digest = hashlib.sha256(f"{kind}\0{canonical}".encode()).hexdigest()[:8]
    readable = f"{host.lower()}{slash}{path}".split("@")[-1]
    label = "".join(c if c.isalnum() or c in ".-" else "-" for c in readable)[:40].strip("-") or kind
    return f"{kind}-{label}-{digest}"


class _WorkedOut:
    """Keeps what is worked out once, which is in no copy: hashes are others in another process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements(_WorkedOut):
    """What a request needs of an instance. Hashable: instances are looked up by it.

    Args:
        accepts: The (api, channel) pairs the provider can drive, best first; empty for any, as a lease has it.
        capabilities: All of these, such as ``model:llama3``.
        tags: All of these.
        instances: Only these ids; empty for any.
        tenant: Whose instance it must be, or nobody's yet; empty for anybody's.
        kind: Only instances of this kind, or of the hub of this name; empty for any.
    """

    accepts: tuple[Speaks, ...]
    capabilities: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()
    tenant: str = ""
    kind: str = ""

    def __hash__(self) -> int:
        """Asked for every request, of the same few."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.accepts, self.capabilities, self.tags, self.instances, self.tenant, self.kind))

    @cached_property
    def model(self) -> str:
        """The model among `capabilities`, without its prefix; empty when none is asked for."""
        return next((name.removeprefix(MODEL) for name in self.capabilities if name.startswith(MODEL)), "")

    def allow(self, instance: ResourceInstance) -> bool:
        """Whether `instance` could do it, busy or not."""
        return (
            self.capabilities <= instance.capabilities
            and self.tags <= instance.tags
            and (not self.instances or instance.id in self.instances)
            and (not self.tenant or instance.details.get("tenant", self.tenant) == self.tenant)
            and (not self.kind or self.kind in (instance.kind, instance.hub))
            and (not self.accepts or instance.channel_for(self.accepts) is not None)
        )

    def narrowed(self, *, tags: frozenset[str] = frozenset(), instances: frozenset[str] = frozenset()) -> Requirements:
        """These and `tags`, on one of `instances` only (when there are any)."""
        return replace(self, tags=self.tags | tags, instances=instances or self.instances)

    def describe(self) -> str:
        """What is needed, for a person."""
        parts = sorted(self.capabilities) + [f"tag:{tag}" for tag in sorted(self.tags)]
        parts += [f"instance:{name}" for name in sorted(self.instances)]
        speaks = " or ".join(f"{pair.api} over {pair.channel.value}" for pair in self.accepts)
        parts += [f"kind:{self.kind}"] if self.kind else []
        needs = ", ".join(parts) or "anything"
        return f"{needs} ({speaks})" if speaks else needs
