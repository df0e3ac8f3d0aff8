"""The hub type `openai`: servers that speak OpenAI's API, wherever they run and whoever made them."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

from gleitzeit_core.errors import ConfigurationError, FailureKind, InstanceFailure, Problem
from gleitzeit_core.hub import ResourceHub
from gleitzeit_core.resources import HttpChannel, ResourceInstance, instance_id
from gleitzeit_llm import models
from gleitzeit_llm.protocol import timestamp
from gleitzeit_llm.upstream import Upstream
from gleitzeit_openai.options import OpenAIOptions, ServerOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

API: Final = "openai"
_MODELS_PATH: Final = "/v1/models"
_NO_SUCH_PATH: Final = frozenset((404, 405, 501))
_RATE_LIMITED: Final = 429


class OpenAIHub(ResourceHub[OpenAIOptions]):
    """Pools the servers its options name. See the module's text."""

    kind: ClassVar[str] = "openai"

    def __init__(self, options: OpenAIOptions, *, name: str = "") -> None:
        super().__init__(options, name=name)
        self._servers = {instance_id(self.kind, server.url): server for server in options.instances}
        self._channels: dict[str, HttpChannel] = {}
        self._upstream = Upstream()

    async def open(self) -> None:
        """Read the certificates and open the HTTP client.

        Raises:
            ConfigurationError: A file of certificates cannot be used; names all that cannot.
        """
        trusted, problems = await asyncio.to_thread(self._certificates)
        if problems:
            raise ConfigurationError(problems)
        self._channels = {name: _channel(server, trusted.get(name)) for name, server in self._servers.items()}
        await self._upstream.open()

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._upstream.close()

    async def discover(self) -> Iterable[ResourceInstance]:
        """The servers that were configured; nothing is asked yet."""
        return [self._instance(name, server) for name, server in self._servers.items()]

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Ask a server for its models, all of which count as warm.

        Raises:
            InstanceFailure: It is not well, or wants another key.
        """
        server = self._servers[instance.id]
        try:
            reply = await self._upstream.request(self._channels[instance.id], "GET", _MODELS_PATH)
            listed = None if server.models else _listed(reply.json())
        except InstanceFailure as failure:
            if _is_well(server, instance, failure):
                return instance
            raise _explained(server, failure) from failure
        return instance if listed is None else _having(instance, listed)

    def _instance(self, name: str, server: ServerOptions) -> ResourceInstance:
        instance = ResourceInstance(
            id=name,
            hub=self.name,
            kind=self.kind,
            endpoint=server.url,
            offers=((API, self._channels[name]),),
            tags=frozenset(server.tags),
            weight=server.weight,
            max_concurrent=server.max_concurrent,
            probe=server.probe,
        )
        return _having(instance, {model: models.entry(model) for model in server.models or ()})

    def _certificates(self) -> tuple[dict[str, ssl.SSLContext], list[Problem]]:
        """The context of each server with certificates of its own. Reads files."""
        trusted, problems = {}, []
        for number, (name, server) in enumerate(self._servers.items()):
            if server.ca_file is None:
                continue
            try:
                trusted[name] = ssl.create_default_context(cafile=server.ca_file)
            except OSError as error:
                why = error.strerror or "it holds no certificates"
                path = f"hubs.{self.name}.instances[{number}].ca_file"
                problems.append(Problem(path, f"{server.ca_file} cannot be used: {why}"))
        return trusted, problems


def _channel(server: ServerOptions, trusted: ssl.SSLContext | None) -> HttpChannel:
    headers = {key: value.get_secret_value() for key, value in server.headers.items()}
    if server.key is not None:
        headers["Authorization"] = f"Bearer {server.key}"
    return HttpChannel(server.url, headers, trusted)


def _having(instance: ResourceInstance, entries: Mapping[str, Mapping[str, Any]]) -> ResourceInstance:
    """`instance` with these models, by name."""
    have = frozenset(models.capability(name) for name in entries)
    known = {models.canonical(name): entry for name, entry in entries.items()}
    return instance.changed(capabilities=have, warm=have, details={"models": known})


def _listed(answer: object) -> dict[str, dict[str, Any]]:
    """The entries of ``/v1/models``: ``{"data": [{"id": ...}, ...]}``, or the list alone, as some servers answer.

    Raises:
        InstanceFailure: It is neither.
    """
    items = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(items, list):
        raise InstanceFailure(FailureKind.SERVER_ERROR, f"{_MODELS_PATH} is not a list of models")
    named = [item for item in items if isinstance(item, dict) and isinstance(item.get("id"), str) and item["id"]]
    return {item["id"]: _entry(item) for item in named}


def _entry(item: Mapping[str, Any]) -> dict[str, Any]:
    """All that such a list says of a model is when it was made, if that."""
    try:
        made = timestamp(datetime.fromtimestamp(item["created"], UTC))
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return models.entry(item["id"])
    return models.entry(item["id"], modified_at=made)


def _is_well(server: ServerOptions, instance: ResourceInstance, failure: InstanceFailure) -> bool:
    """Whether a check that failed says nothing against the server."""
    # 1. It has no list, and needs none.
    if server.models and failure.status in _NO_SUCH_PATH:
        return True
    # 2. It counts our requests: users' requests will be told so themselves, and the last list still holds.
    return failure.status == _RATE_LIMITED and bool(instance.capabilities)


def _explained(server: ServerOptions, failure: InstanceFailure) -> InstanceFailure:
    """A failed check, in words that say what to do."""
    message, kind = failure.message, failure.kind
    if kind is FailureKind.UNAUTHORIZED and (server.key is not None or server.headers):
        message = f"{server.url} refuses the key it is sent ({failure.status})"
    elif kind is FailureKind.UNAUTHORIZED:
        message = f"{server.url} wants a key ({failure.status}): set 'api_key_env' or 'api_key'"
    elif failure.status in _NO_SUCH_PATH:
        message = f"{server.url}{_MODELS_PATH} answers {failure.status}: name what it has in 'models'"
    return InstanceFailure(kind, message, started=False, retry_after_s=failure.retry_after_s, status=failure.status)
