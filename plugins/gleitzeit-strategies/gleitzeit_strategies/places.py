"""What `model_affinity` knows of one instance: what is in its memory, and what it works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.resources import MODEL

if TYPE_CHECKING:
    from collections.abc import Collection

    from gleitzeit_core.resources import ResourceInstance

# What was loaded here is taken to be there for so long, though the instance does not say so.
_TRUST_S: Final = 60.0


def size_bytes(instance: ResourceInstance, model: str) -> float:
    """How large a model is, as the instance lists it (see `gleitzeit_llm.models`); 0 when it does not say."""
    models: Any = instance.details.get("models")
    entry: Any = models.get(model) if hasattr(models, "get") else None
    size: Any = entry.get("size") if hasattr(entry, "get") else None
    return float(size) if isinstance(size, int | float) and size > 0 else 0.0


@dataclass(slots=True)
class Running:
    """A request on an instance.

    Args:
        model: Which.
        began_at: On the monotonic clock.
        expected_s: How long it was expected to take, a load included.
        load_s: How long the load it caused was expected to take; 0 when the model was there.
        warm: Whether the model was loaded when it began: only then does it show what a request alone takes.
        loaded: Whether the load it caused is known to have ended.
    """

    model: str
    began_at: float
    expected_s: float
    load_s: float
    warm: bool
    loaded: bool = False

    def left_s(self, now: float) -> float:
        """How much longer it will take. What has taken longer than expected is taken to need half as long again."""
        age_s = now - self.began_at
        return max(self.expected_s - age_s, age_s / 2)

    def load_left_s(self, now: float) -> float:
        """How much longer the load it caused will take. After twice the expected time it is taken to have ended."""
        age_s = now - self.began_at
        if self.loaded or age_s >= 2 * self.load_s:
            return 0.0
        return max(self.load_s - age_s, self.load_s / 4)


class Place:
    """An instance: what is in its memory, and what it works on."""

    __slots__ = ("fits", "loads", "resident", "running", "seen")

    def __init__(self) -> None:
        # As it was when it was looked at last.
        self.seen: ResourceInstance | None = None
        # Models in memory, and when each was used last, in that order: what it said, and what was sent there since.
        self.resident: dict[str, float] = {}
        # The most that was ever seen in its memory at once: (bytes, models).
        self.fits: tuple[float, int] = (0.0, 1)
        self.running: dict[str, Running] = {}
        # Until when a model that was loaded from here has its turn, on the monotonic clock.
        self.loads: dict[str, float] = {}

    def see(self, instance: ResourceInstance, now: float) -> None:
        """Take over what it says of itself, when it says something new."""
        # An instance that says the same as before may not be able to tell, so that what is known for itself counts; but
        # it may also have loaded and unloaded the model while nobody looked.
        trusted = now - _TRUST_S if self.seen is not None and self.seen.warm == instance.warm else now
        self.seen = instance
        said = {name.removeprefix(MODEL) for name in instance.warm if name.startswith(MODEL)}
        self.loads_ended(said)
        in_use = {running.model for running in self.running.values()}
        kept = {m: used for m, used in self.resident.items() if m in said or m in in_use or used > trusted}
        self.resident = {**kept, **dict.fromkeys(sorted(said.difference(kept)), now)}
        bytes_now = sum(size_bytes(instance, model) for model in said)
        self.fits = (max(self.fits[0], bytes_now), max(self.fits[1], len(said)))

    def loads_ended(self, models: Collection[str]) -> None:
        """These are in memory: whoever caused their loads waits for them no more."""
        for running in self.running.values():
            if running.model in models:
                running.loaded = True

    def evicted_by(self, instance: ResourceInstance, model: str) -> list[str]:
        """What must leave its memory for `model`, the longest unused first.

        What fits is not known: as much as was seen there at once, in bytes where all sizes are known, else in number.
        """
        sizes = {name: size_bytes(instance, name) for name in (*self.resident, model)}
        used, limit = sum(sizes.values()), max(self.fits[0], sizes[model])
        by_number = not all(sizes.values())
        if by_number:
            sizes, used, limit = dict.fromkeys(sizes, 1.0), float(len(sizes)), float(self.fits[1])
        out: list[str] = []
        for name in self.resident:
            if used <= limit:
                break
            out.append(name)
            used -= sizes[name]
        return out
