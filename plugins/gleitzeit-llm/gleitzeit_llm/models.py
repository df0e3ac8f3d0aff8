"""What hubs and the provider of `llm` agree on about models.

A model is known by its name; ``name`` and ``name:latest`` are one. An instance that has a model has the capability
``model:NAME``, is ``warm`` for it while it is in memory, and describes it in ``details["models"][NAME]``, all three
without ``:latest``: the entry that Ollama's ``/api/tags`` would list for it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gleitzeit_core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.resources import ResourceInstance

_LATEST = ":latest"
PREFIX = "model:"
MAX_NAME_CHARACTERS: Final = 1024
"""Of a model that is asked for. What is asked for is remembered for a while: it must not be as long as a body."""


def canonical(name: str) -> str:
    """`name` without ``:latest``."""
    return name.removesuffix(_LATEST)


def capability(name: str) -> str:
    """The capability of having the model `name`."""
    return PREFIX + canonical(name)


def wanted(name: str) -> frozenset[str]:
    """What a request for the model `name` needs.

    Raises:
        InvalidRequest: No model has such a long name.
    """
    if len(name) > MAX_NAME_CHARACTERS:
        raise InvalidRequest(f"the model's name has more than {MAX_NAME_CHARACTERS} characters", param="model")
    return frozenset((capability(name),))


def entries(instance: ResourceInstance) -> Mapping[str, Mapping[str, Any]]:
    """The models of an instance: their entries by canonical name."""
    found: Mapping[str, Mapping[str, Any]] = instance.details.get("models", {})
    return found


def own_name(instance: ResourceInstance, asked: str) -> str:
    """What the instance itself calls the model that was asked for; `asked` when it does not say.

    To Ollama a name with and without ``:latest`` are one, to others they are not.
    """
    entry: Mapping[str, Any] | None = instance.details.get("models", {}).get(asked.removesuffix(_LATEST))
    if entry is None or entry.get("model") == asked:
        return asked
    own = str(entry.get("model") or entry.get("name") or asked)
    same = canonical(own) == canonical(asked) and any(api == "ollama" for api, _ in instance.offers)
    return asked if same else own


def own_params(instance: ResourceInstance, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """`params` with the instance's own name for the model."""
    own = own_name(instance, params["model"])
    return params if own == params["model"] else {**params, "model": own}


def own_body(instance: ResourceInstance, body: bytes, asked: str) -> bytes:
    """A caller's JSON object with the instance's own name for the model; as it is where that is the caller's too."""
    own = own_name(instance, asked)
    return body if own == asked else renamed(body, own)


def renamed(body: bytes, name: str) -> bytes:
    """A JSON object with `name` for its model; all else in it is as it was."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**fields, "model": name})


def entry(name: str, **known: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of an Ollama entry
    """An entry for a model of a server that does not describe its models as Ollama does."""
    details = {
        "parent_model": "",
        "format": "",
        "family": "",
        "families": None,
        "parameter_size": "",
        "quantization_level": "",
    }
    return {
        "name": name,
        "model": name,
        "modified_at": "0001-01-01T00:00:00Z",
        "size": 0,
        # Ollama's own program cuts the first twelve characters off without looking; nothing is identified by it here.
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": details,
        **known,
    }


def alias_entry(entry: Mapping[str, Any], alias: str) -> dict[str, Any]:
    """An entry for another name of the model in `entry`: ``alias_of`` names it, and so does the place for a parent."""
    details = {**entry.get("details", {}), "parent_model": entry["name"]}
    return {**entry, "name": alias, "model": alias, "details": details, "alias_of": entry["name"]}


def names(instances: tuple[ResourceInstance, ...]) -> tuple[str, ...]:
    """The models of some instances, in order."""
    found = {c.removeprefix(PREFIX) for i in instances for c in i.capabilities if c.startswith(PREFIX)}
    return tuple(sorted(found))
