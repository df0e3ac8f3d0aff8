"""Which instances are getting something ready, such as loading a model: who needs the same joins them.

What is not known to be ready on an instance is being got ready there once a request for it has had no output for a
second: before that nobody can tell, and a crowd that comes at once is spread as the strategy likes. A load ends with
the first output, and with the last request that waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from gleitzeit_core.strategies.base import View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gleitzeit_core.records import Record, Slot

_LOAD_S: Final = 1.0
# Who finds no room where a model is being loaded waits for it while the load is younger than this, as most loads are.
_PATIENCE_S: Final = 30.0
# What is remembered of an instance, the oldest going first: that is only taken for a load once more.
_PROVED_MAX: Final = 1024


class Loads:
    """See the module's text."""

    def __init__(self) -> None:
        # Where since when, and for how many requests.
        self.began: dict[frozenset[str], dict[Record, tuple[float, int]]] = {}

    def __repr__(self) -> str:
        """Counts."""
        return f"<Loads of {len(self.began)}>"

    def begin(self, slot: Slot, needs: frozenset[str]) -> None:
        """A request that needs this has a slot."""
        if not _ready(slot.record, needs):
            slot.loads = needs
            began = self.began.setdefault(needs, {})
            since, count = began.get(slot.record, (slot.taken_at, 0))
            began[slot.record] = since, count + 1

    def end(self, slot: Slot, *, ready: bool) -> None:
        """It has its first output (`ready`), or has ended without any."""
        needs, slot.loads = slot.loads, frozenset()
        began, record = self.began.get(needs, {}), slot.record
        if ready:
            # Until its hub says again what is ready there. What takes any name for a model must not fill the memory.
            if len(record.proved) >= _PROVED_MAX:
                del record.proved[next(iter(record.proved))]
            record.proved[needs] = record.instance.warm
            began.pop(record, None)
        elif record in began:
            since, count = began.pop(record)
            if count > 1:
                began[record] = since, count - 1
        if not began:
            self.began.pop(needs, None)

    def joined(self, needs: frozenset[str], view: View, now: float) -> tuple[View, float | None]:
        """What one that needs this chooses from, and until when it waits where that has no room.

        Nothing is left out when it is ready anywhere: a warm instance and a cold one are the strategy's to weigh.
        """
        began, records = self.began.get(needs), cast("Sequence[Record]", view.candidates)
        # Ollama lists a model among those in memory from the beginning of its load.
        if not began or any(_ready(record, needs) for record in records if record not in began):
            return view, None
        loading = [record for record in records if now - began.get(record, (now,))[0] >= _LOAD_S]
        until = max((began[record][0] + _PATIENCE_S for record in loading), default=0.0)
        if any(record.room > 0 for record in loading):
            return View(loading), None
        return (View(loading), until) if now < until else (view, None)


def _ready(record: Record, needs: frozenset[str]) -> bool:
    return needs <= record.instance.warm or record.proved.get(needs) is record.instance.warm
