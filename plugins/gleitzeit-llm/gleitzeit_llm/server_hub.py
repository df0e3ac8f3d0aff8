"""Hubs whose options name the servers: from a configuration, added by hand, changed while all is running."""

from __future__ import annotations

import asyncio
import ssl
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from gleitzeit_core.errors import ConfigurationError, InvalidRequest, Problem
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.pool import State
from gleitzeit_core.resources import HttpChannel
from gleitzeit_llm.server_options import by_hand

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_llm.server_options import ServerOptions

HubOptionsT = TypeVar("HubOptionsT", bound=HubOptions)

# What checks have found, and options do not say.
_FOUND = ("models", "version")


class ServerHub(ResourceHub[HubOptionsT], Generic[HubOptionsT]):
    """Base of such hubs. The options have a list ``instances``; each instance has its own options as its handle."""

    server_options: ClassVar[type[ServerOptions]]
    """Of one server."""
    adaptable: ClassVar[frozenset[str]] = frozenset({"instances", *HubOptions.model_fields})
    """The options that can change while all is running."""

    def __init__(self, options: HubOptionsT, *, name: str = "") -> None:
        super().__init__(options, name=name)
        self._configured: dict[str, ResourceInstance] = {}

    @abstractmethod
    def described(self, server: Any, tls: ssl.SSLContext | None) -> ResourceInstance:  # noqa: ANN401 - the kind's own
        """The instance that a server's options describe."""

    async def open_servers(self) -> None:
        """Read what is configured. To be called in `open`.

        Raises:
            ConfigurationError: Files of certificates cannot be used; names all of them.
        """
        self._configured = await self._read(self._servers(self.options))

    async def discover(self) -> Iterable[ResourceInstance]:
        """The servers that were configured; nothing is asked yet."""
        return tuple(self._configured.values())

    async def add_instance(self, settings: Mapping[str, Any]) -> ResourceInstance:
        """Take one more server, or other settings for one that is there.

        Args:
            settings: As one of ``instances`` in a configuration.

        Raises:
            InvalidRequest: They are wrong, or the server is one of our own.
        """
        server = by_hand(self.server_options, settings)
        try:
            (instance,) = (await self._read([server])).values()
        except ConfigurationError as error:
            raise InvalidRequest(error.problems[0].message, param=server.certificates) from None
        self.refuse_alias(instance)
        self._bring(instance)
        # One that is in another hub already stays there, and whoever asked for it is told so.
        return self._known.get(instance.id, instance)

    def refuse_alias(self, instance: ResourceInstance) -> None:
        """Refuse a server that is there already under another URL. By default each URL is a server of its own.

        Raises:
            InvalidRequest: It is.
        """

    async def reconfigure(self, options: HubOptionsT) -> bool:
        """Take other options, where that needs no restart; what changes in the list of servers is carried out.

        Raises:
            ConfigurationError: A file of certificates cannot be used; nothing has changed then.
        """
        if not self.differing(options) <= self.adaptable:
            return False
        before, after = self._configured, await self._read(self._servers(options))
        self.options, self._configured = options, after
        for gone in before.keys() - after.keys():
            # What runs there goes on to its end.
            self.withdraw(gone, "no longer configured")
        changed = [instance for name, instance in after.items() if _differ(before.get(name), instance)]
        for instance in changed:
            self._bring(instance)
        await asyncio.gather(*(self._checked(instance.id) for instance in changed))
        return True

    @staticmethod
    def _servers(options: Any) -> Sequence[ServerOptions]:  # noqa: ANN401 - all have a list of instances
        servers: Sequence[ServerOptions] = options.instances
        return servers

    async def _read(self, servers: Sequence[ServerOptions]) -> dict[str, ResourceInstance]:
        contexts, problems = await asyncio.to_thread(self._contexts, servers)
        if problems:
            raise ConfigurationError(problems)
        described = map(self.described, servers, contexts)
        return {instance.id: instance for instance in described}

    def _contexts(self, servers: Sequence[ServerOptions]) -> tuple[list[ssl.SSLContext | None], list[Problem]]:
        """One for each server, None for the system's defaults. Reads files."""
        contexts: list[ssl.SSLContext | None] = []
        problems = []
        for number, server in enumerate(servers):
            try:
                contexts.append(server.tls_context())
            except OSError as error:  # an SSLError is one
                path = f"hubs.{self.name}.instances[{number}].{server.certificates}"
                why = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
                problems.append(Problem(path, f"cannot be used: {why}"))
        return contexts, problems

    def _bring(self, instance: ResourceInstance) -> None:
        """Publish a server that is new, or has new options. What is known of it besides stays known."""
        known = self._known.get(instance.id)
        if known is not None and _asked(known) != _asked(instance):
            # Its health is another question now, so it begins anew.
            self.withdraw(instance.id, "its options have changed")
        elif known is not None and not instance.handle.has_models:
            found = {name: known.details[name] for name in _FOUND if name in known.details}
            details = {**instance.details, **found}
            instance = instance.changed(capabilities=known.capabilities, warm=known.warm, details=details)
        self.admit(instance.id)
        self.publish(instance, State.DOWN if instance.probe else State.READY)

    async def _checked(self, instance_id: str) -> None:
        if self._sink is not None:
            await self._sink.check_now(instance_id)


def channel_of(instance: ResourceInstance) -> HttpChannel:
    """How an instance is reached."""
    return next(channel for _, channel in instance.offers if isinstance(channel, HttpChannel))


def _asked(instance: ResourceInstance) -> tuple[bool, bool]:
    """Whether it is checked, and asked what it has."""
    return instance.probe, not instance.handle.has_models


def _differ(before: ResourceInstance | None, after: ResourceInstance) -> bool:
    return before is None or before != after or before.handle != after.handle
