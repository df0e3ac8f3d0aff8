"""Other names for models, and models that stand in for others: nothing of it happens unless it is configured.

An alias renames before anything else is decided. A fallback is taken when a request comes in and no instance that is up
has its model, nor can one be created for it: an instance that is merely busy is waited for. It stands in for chat and
generate only: vectors of another model mean something else, and what is told about a model is told about that one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from gleitzeit_core.errors import InstanceFailure, Unavailable
from gleitzeit_core.pool import State
from gleitzeit_core.provider import Provider
from gleitzeit_core.records import DRAINED
from gleitzeit_core.resources import Requirements
from gleitzeit_core.routing import OfferKind
from gleitzeit_llm import models
from gleitzeit_llm.options import LLMOptions
from gleitzeit_llm.protocol import CHAT, GENERATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Unpack

    from gleitzeit_core.dispatch import Dispatcher
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.provider import RequestOptions
    from gleitzeit_core.requests import Request

# What is in one of these states takes nothing, however long one waits.
_GONE: Final = frozenset((State.DOWN, State.MISCONFIGURED, State.DRAINING, DRAINED))
_REPLACEABLE: Final = frozenset((CHAT, GENERATE))


class Names:
    """What is configured.

    Args:
        aliases: Models by their other names.
        fallbacks: What stands in for a model, best first.
    """

    __slots__ = ("_aliases", "_fallbacks", "_shown")

    def __init__(self, aliases: Mapping[str, str], fallbacks: Mapping[str, Iterable[str]]) -> None:
        self._shown = dict(aliases)
        self._aliases = {models.canonical(name): target for name, target in aliases.items()}
        self._fallbacks = {models.canonical(name): tuple(instead) for name, instead in fallbacks.items()}

    def __repr__(self) -> str:
        """How many of each."""
        return f"<Names {len(self._aliases)} aliases, {len(self._fallbacks)} fallbacks>"

    @classmethod
    def of(cls, options: LLMOptions) -> Self | None:
        """What `options` say; None when they say nothing."""
        return cls(options.aliases, options.fallbacks) if options.aliases or options.fallbacks else None

    def served(self, method: str, asked: str, is_there: Callable[[str], bool]) -> str:
        """The model that serves a request.

        Args:
            method: Of `llm`.
            asked: What its caller calls the model.
            is_there: Whether a model can be had.
        """
        model = self._aliases.get(models.canonical(asked), asked)
        instead = self._fallbacks.get(models.canonical(model)) if method in _REPLACEABLE else None
        if not instead or is_there(model):
            return model
        return next(filter(is_there, instead), model)

    def listed(self, entries: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """`entries` with those aliases whose models are among them, each of which names its model."""
        known = {models.canonical(entry["name"]): entry for entry in entries}
        found = {name: models.alias_entry(known[key], alias) for alias, key, name in self._targets() if key in known}
        return [entry for _, entry in sorted({**known, **found}.items())]

    def _targets(self) -> Iterable[tuple[str, str, str]]:
        """Each alias as it is written, its model, and itself as it is compared."""
        for alias, target in self._shown.items():
            yield alias, models.canonical(target), models.canonical(alias)


def has_model(dispatcher: Dispatcher, method: str, needs: Requirements, model: str) -> bool:
    """Whether an instance that is up, or could be created, meets `needs` and has a model."""
    needs = replace(needs, capabilities=frozenset((models.capability(model),)))
    if any(report.state not in _GONE for report in dispatcher.reports(needs, method)):
        return True
    wanted, hubs = dispatcher.route(method).hubs, dispatcher.shell.hubs
    offers = (hub.offer(needs) for name, hub in hubs.items() if wanted is None or name in wanted)
    return any(offer.kind is OfferKind.CREATABLE for offer in offers)


class Renaming(Provider[LLMOptions]):
    """Base of the provider of `llm`: the part of it that knows of aliases and fallbacks."""

    def __init__(self, options: LLMOptions | None = None, *, hub: ResourceHub[Any] | None = None) -> None:
        super().__init__(options, hub=hub)
        self._names = Names.of(self.options)
        self.renames = self._names is not None
        """Whether another model may serve than the one that was named."""

    def request(
        self, method: str, params: Mapping[str, Any] | None = None, **options: Unpack[RequestOptions]
    ) -> Request:
        """See `Provider.request`. Where aliases or fallbacks are configured, its model is the one that serves."""
        if self.renames and params and isinstance(params.get("model"), str):
            model = self.served(method, params["model"], options)
            params = params if model == params["model"] else {**params, "model": model}
        return self.request_for(method, params, **options)

    def request_for(
        self, method: str, params: Mapping[str, Any] | None = None, **options: Unpack[RequestOptions]
    ) -> Request:
        """A request for the very model that `params` name. As `Provider.request`."""
        return super().request(method, params, **options)

    async def execute(
        self, method: str, params: Mapping[str, Any] | None = None, **options: Unpack[RequestOptions]
    ) -> Any:  # noqa: ANN401 - a method's own
        """See `Provider.execute`. Where its model is lost before it answers, what stands in for that is asked."""
        request = self.request(method, params, **options)
        try:
            return (await self.dispatcher.one(self, request)).value
        except (InstanceFailure, Unavailable):
            if not self.has_stand_in(request):
                raise
        return (await self.dispatcher.one(self, self.request(method, params, **options))).value

    def has_stand_in(self, request: Request) -> bool:
        """Whether another model would serve now: no instance that is up has the one of `request` any more."""
        model: str = request.params.get("model", "")
        return self.renames and self.served(request.method, model, {}) != model

    def served(self, method: str, asked: str, options: RequestOptions) -> str:
        """The model that serves, for what a caller calls it."""
        if self._names is None or self._dispatcher is None:
            return asked
        instances, tags = frozenset(options.get("instances", ())), frozenset(options.get("tags", ()))
        needs = Requirements(accepts=self.accepts, instances=instances, tags=tags)
        return self._names.served(method, asked, partial(has_model, self._dispatcher, method, needs))

    def listed(self, entries: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """`entries` of a list of models, with the aliases of these."""
        return entries if self._names is None else self._names.listed(entries)
