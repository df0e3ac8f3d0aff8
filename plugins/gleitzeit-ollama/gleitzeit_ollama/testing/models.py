"""The models a stand-in holds: what they can do, what they are called, how they are listed."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gleitzeit_ollama.testing.golang import JsonObject, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

REGISTRY = "registry.example"
"""The host that stands for the models' registry; nothing answers there."""

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"(?:{_PART}(?::[0-9]+)?/)?(?:{_PART}/)?{_PART}(?::{_PART})?")
_QUALIFIED_PARTS = 3  # host, namespace, model with tag
_KNOWN_CAPABILITIES = {"thinky": ("thinking",), "toolsy": ("tools",)}
_PARAMETERS = {"format": "gguf", "family": "llama", "families": ["llama"]}
_SIZES = {"parameter_size": "134.52M", "quantization_level": "Q4_1"}


def full_name(name: str) -> str:
    """Return the name with its tag: `smollm2` is `smollm2:latest`."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def is_valid_name(name: str) -> bool:
    """Tell whether `name` has the form `[[host/]namespace/]model[:tag]`."""
    return _NAME.fullmatch(name) is not None


def qualified_name(name: str) -> str:
    """Return the name as the registry knows it, with host, namespace and tag."""
    parts = full_name(name).split("/")
    return "/".join([*(REGISTRY, "library")[: _QUALIFIED_PARTS - len(parts)], *parts])


def digest_of(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the server holds it.

    Args:
        name: with or without a tag; without, the tag is `latest`.
        capabilities: beside `completion`: `tools`, `thinking`, `vision`, `insert`. Every model
            embeds, as the recorded one does.
        size_bytes: on disk.
        context_length: tokens it is loaded with.
        embedding_length: numbers in a vector.
        system: the system prompt it was created with.
        parent: the model it was created from.
        modified_at_s: seconds since the epoch.
    """

    name: str
    capabilities: tuple[str, ...] = ()
    size_bytes: int = 98_363_181
    context_length: int = 2048
    embedding_length: int = 576
    system: str = ""
    parent: str = ""
    modified_at_s: float = field(default_factory=time.time)

    @classmethod
    def parse(cls, text: str) -> Model:
        """Read `name` or `name+tools+thinking`; `thinky` and `toolsy` are as in the recordings.

        Raises:
            ValueError: the name has not the form of a model's name.
        """
        name, *capabilities = text.split("+")
        return cls(name, tuple(capabilities) or _KNOWN_CAPABILITIES.get(name, ()))

    def __post_init__(self) -> None:
        if not is_valid_name(self.name):
            raise ValueError(f"{self.name!r} is not a model's name ([[host/]namespace/]model[:tag])")
        object.__setattr__(self, "name", full_name(self.name))

    @property
    def digest(self) -> str:
        """The digest of its manifest."""
        return digest_of(f"manifest {self.name} {self.system}")

    def can(self, capability: str) -> bool:
        """Tell whether the model has a capability."""
        return capability == "completion" or capability in self.capabilities

    def details(self, parent: str = "") -> JsonObject:
        """Return what the lists say about its make."""
        return {"parent_model": parent, **_PARAMETERS, **_SIZES}

    def listed(self) -> JsonObject:
        """Return its row in `/api/tags`."""
        return {
            "name": self.name,
            "model": self.name,
            "modified_at": timestamp(self.modified_at_s),
            "size": self.size_bytes,
            "digest": self.digest,
            "details": self.details(),
        }


class Catalogue:
    """The models on the server's disk, by name; letters of either case are the same."""

    def __init__(self, models: Iterable[Model | str]) -> None:
        self._models: dict[str, Model] = {}
        for model in models:
            self.add(Model.parse(model) if isinstance(model, str) else model)

    def add(self, model: Model) -> None:
        """Add a model, or replace the one of that name."""
        self._models[model.name.lower()] = model

    def find(self, name: str) -> Model | None:
        """Return the model of that name, with or without its tag, or None."""
        return self._models.get(full_name(name).lower())

    def remove(self, name: str) -> Model | None:
        """Remove the model of that name and return it; None if there was none."""
        return self._models.pop(full_name(name).lower(), None)

    def copy(self, source: str, destination: str) -> bool:
        """Add the source under another name; False if there is no such source."""
        model = self.find(source)
        if model is None:
            return False
        self.add(replace(model, name=destination, modified_at_s=time.time()))
        return True

    def __iter__(self) -> Iterator[Model]:
        """Yield the models, those changed last first."""
        return iter(sorted(self._models.values(), key=lambda model: -int(model.modified_at_s)))

    def __len__(self) -> int:
        return len(self._models)

    def __repr__(self) -> str:
        return f"<Catalogue {', '.join(model.name for model in self)}>"
