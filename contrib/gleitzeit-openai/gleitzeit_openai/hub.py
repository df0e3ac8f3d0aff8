"""The hub type `openai`: servers that speak OpenAI's API, wherever they run and whoever made them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.resources import HttpChannel, ResourceInstance, instance_id
from gleitzeit_llm import models
from gleitzeit_llm.protocol import timestamp
from gleitzeit_llm.server_hub import ServerHub, channel_of
from gleitzeit_llm.upstream import Upstream
from gleitzeit_openai.options import InstanceOptions, OpenAIOptions

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

API: Final = "openai"
_MODELS_PATH: Final = "/v1/models"
_NO_SUCH_PATH: Final = frozenset((404, 405, 501))
_RATE_LIMITED: Final = 429


class OpenAIHub(ServerHub[OpenAIOptions]):
    """Pools the servers its options name. See the module's text."""

    kind: ClassVar[str] = "openai"
    server_options = InstanceOptions

    def __init__(self, options: OpenAIOptions, *, name: str = "") -> None:
        super().__init__(options, name=name)
        self._upstream = Upstream()

    async def open(self) -> None:
        """Read the certificates and open the HTTP client.

        Raises:
            ConfigurationError: A file of certificates cannot be used; names all that cannot.
        """
        await self.open_servers()
        await self._upstream.open()

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._upstream.close()

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Ask a server for its models, all of which count as warm.

        Raises:
            InstanceFailure: It is not well, or wants another key.
        """
        server: InstanceOptions = instance.handle
        try:
            reply = await self._upstream.request(channel_of(instance), "GET", _MODELS_PATH)
            listed = None if server.models else _listed(reply.json())
        except InstanceFailure as failure:
            if _is_well(server, instance, failure):
                return instance
            raise _explained(server, failure) from failure
        return instance if listed is None else _having(instance, listed)

    def described(self, server: InstanceOptions, tls: ssl.SSLContext | None) -> ResourceInstance:
        """The instance that a server's options describe."""
        instance = ResourceInstance(
            id=instance_id(self.kind, server.url),
            hub=self.name,
            kind=self.kind,
            endpoint=server.url,
            offers=((API, HttpChannel(server.url, server.sent_headers(), tls)),),
            tags=frozenset(server.tags),
            weight=server.weight,
            max_concurrent=server.max_concurrent,
            cancellable=server.cancellable,
            probe=server.probe,
            handle=server,
        )
        return _having(instance, {model: models.entry(model) for model in server.models or ()})


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


def _is_well(server: InstanceOptions, instance: ResourceInstance, failure: InstanceFailure) -> bool:
    """Whether a check that failed says nothing against the server."""
    # 1. It has no list, and needs none.
    if server.models and failure.status in _NO_SUCH_PATH:
        return True
    # 2. It counts our requests: users' requests will be told so themselves, and the last list still holds.
    return failure.status == _RATE_LIMITED and bool(instance.capabilities)


def _explained(server: InstanceOptions, failure: InstanceFailure) -> InstanceFailure:
    """A failed check, in words that say what to do."""
    message, kind = failure.message, failure.kind
    if kind is FailureKind.UNAUTHORIZED and (server.key is not None or server.headers):
        message = f"{server.url} refuses the key it is sent ({failure.status})"
    elif kind is FailureKind.UNAUTHORIZED:
        message = f"{server.url} wants a key ({failure.status}): set 'api_key_env' or 'api_key'"
    elif failure.status in _NO_SUCH_PATH:
        message = f"{server.url}{_MODELS_PATH} answers {failure.status}: name what it has in 'models'"
    return InstanceFailure(kind, message, started=False, retry_after_s=failure.retry_after_s, status=failure.status)
