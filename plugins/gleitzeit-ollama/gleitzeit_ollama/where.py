"""Which instances a call that manages models is for, as callers say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gleitzeit_core.errors import InvalidRequest

HEADER: Final = "X-Gleitzeit-Instances"
"""The header that says it."""
_ALL: Final = "all"
_MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class Where:
    """What a caller said. Nothing at all: what each call does by itself.

    Args:
        every: All of them.
        replicas: So many of them; 0 when that was not said.
        named: These, by id, name or URL.
    """

    every: bool = False
    replicas: int = 0
    named: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As `parse` reads it."""
        if self.every:
            return _ALL
        return str(self.replicas) if self.replicas else ",".join(self.named)

    @classmethod
    def parse(cls, text: str) -> Where:
        """Read ``all``, a number, or names with commas between them; an empty text says nothing.

        Raises:
            InvalidRequest: It is none of these.
        """
        names = tuple(name for part in text.split(",") if (name := part.strip()))
        if text.strip().lower() == _ALL:
            return cls(every=True)
        if len(names) == 1 and names[0].isdecimal():
            return cls(replicas=_count(names[0]))
        if text.strip() and (not names or _ALL in names):
            raise InvalidRequest(f"{HEADER} is 'all', a number, or ids with commas between them", param=HEADER)
        return cls(named=names)


def _count(text: str) -> int:
    count = int(text[:9])
    if not 0 < count <= _MOST:
        raise InvalidRequest(f"{HEADER} as a number is from 1 to {_MOST}", param=HEADER)
    return count
