"""Who calls, and what it may call: methods and models. Made for each key when options change, not for each request."""

from __future__ import annotations

import re
from contextlib import suppress
from fnmatch import translate
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_gateway.errors import Refused
from gleitzeit_gateway.limits import KeyLimits
from gleitzeit_llm import models
from gleitzeit_llm.protocol import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gleitzeit_core.requests import Method
    from gleitzeit_gateway.options import KeyOptions

_FORBIDDEN: Final = 403
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MODEL_FIELDS: Final = frozenset(("model", "name", "from", "source", "destination"))


class Caller:
    """One who calls.

    Args:
        key: Its key; None for those without, where none is needed.
        restricted: Patterns of the restricted methods that anybody may call, as the gateway's options say.
        limits: What it has used, of what it may.
    """

    __slots__ = ("_methods", "_models", "_restricted", "admin", "limits", "name", "priority")

    def __init__(
        self, key: KeyOptions | None = None, *, restricted: Iterable[str] = (), limits: KeyLimits | None = None
    ) -> None:
        self.name = "" if key is None else key.name
        self.priority = 0 if key is None else key.priority
        self.admin = key is not None and key.admin
        self.limits = limits or KeyLimits(self.name)
        self._restricted = _any_of(restricted)
        self._methods = None if key is None or key.methods is None else _any_of(key.methods)
        self._models = _any_of(key.models) if key is not None and key.models else None

    def __repr__(self) -> str:
        """Its name."""
        return f"<Caller {self.name or '-'}>"

    def may_call(self, method: Method) -> bool:
        """Whether it may call `method`."""
        if self._methods is not None:
            return self._methods.fullmatch(method.name) is not None
        return not method.restricted or self._restricted.fullmatch(method.name) is not None

    def check(self, method: Method, model: str = "") -> None:
        """Refuse what it may not do.

        Args:
            method: To be called.
            model: For it; empty where it takes none.

        Raises:
            Refused: It may not call the method, or not use the model.
        """
        if (method.restricted or self._methods is not None) and not self.may_call(method):
            raise Refused(_FORBIDDEN, self._why_not(method), "method_not_allowed")
        if model and self._models is not None:
            self.check_model(model)

    def check_model(self, model: str) -> None:
        """Refuse a model that it may not use.

        Raises:
            Refused: It may not.
        """
        if not self.may_use(model):
            raise Refused(_FORBIDDEN, f"this key may not use model '{model}'", "model_not_allowed")

    def check_body(self, body: bytes) -> None:
        """`check_fields` of a body that is JSON.

        Raises:
            InvalidRequest: It has such a field.
        """
        if self._models is not None:
            with suppress(*UNREADABLE):
                self.check_fields(_FIELDS.decode(body))

    def check_fields(self, names: Iterable[str]) -> None:
        """Refuse what a server might read as another model than the gateway does.

        To Ollama, which is written in Go, ``MODEL`` is ``model`` as well.

        Raises:
            InvalidRequest: It has such a field. Only looked for where not every model may be used.
        """
        if self._models is None:
            return
        for name in names:
            if name.lower() in _MODEL_FIELDS and not name.islower():
                raise InvalidRequest(f"{name!r} must be written {name.lower()!r}", param=name)

    def may_use(self, model: str) -> bool:
        """Whether it may use `model`, whether there is one or not."""
        return self._models is None or any(map(self._models.fullmatch, _forms(model)))

    def shown(self, listed: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The entries of a list of models without those that it may not use."""
        if self._models is None:
            return listed
        names = ("alias_of", "name", "model")
        return [entry for entry in listed if self.may_use(next((str(entry[n]) for n in names if entry.get(n)), ""))]

    def _why_not(self, method: Method) -> str:
        if self._methods is not None:
            return f"this key may not call {method.name}: the option 'methods' of the key does not name it"
        where = "'gateway.methods', or 'methods' of a key" if self.name else "'gateway.methods'"
        return f"{method.name} is restricted: to have it called through this gateway, name it in the option {where}"


def _forms(model: str) -> tuple[str, ...]:
    """Its name as a pattern may have it: to the protocol, one with ``:latest`` and without a tag are one."""
    name = models.canonical(model)
    return (name,) if ":" in name.rpartition("/")[2] else (name, f"{name}:latest")


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """What matches any of them, as in a shell; nothing for none."""
    return re.compile("|".join(map(translate, patterns)) or r"(?!)")


ANYBODY: Final = Caller()
"""One without a key, who may call what is not restricted."""
