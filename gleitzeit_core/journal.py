"""A file of what a batch has done, a JSON object per line, so that another run can go on from there."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from typing import IO, TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from pydantic_core import to_json

from gleitzeit_core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

P = ParamSpec("P")
T = TypeVar("T")


class Journal:
    """What is done, by key. Results stay in the file until they are asked for.

    Args:
        path: Of the file, which need not be there; its folder must.
        method: Lines of another method are left alone.
    """

    def __init__(self, path: Path, method: str) -> None:
        self._path, self._method = path, method
        self._done: dict[str, int] = {}
        self._file: IO[bytes] | None = None

    def __repr__(self) -> str:
        """Where, and how much is done."""
        return f"<Journal {self._path}, {len(self._done)} done>"

    async def __aenter__(self) -> Self:
        """Read the file, and cut off a line that was not written to its end.

        Raises:
            InvalidRequest: It is no journal.
            OSError: It cannot be read or written.
        """
        try:
            await _to_the_end(self._open)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: str) -> bool:
        """Whether it is done."""
        return key in self._done

    async def value(self, key: str) -> Any:  # noqa: ANN401 - what a method answers is its own
        """The result of what is done."""
        return (await _to_the_end(self._read, self._done[key]))["value"]

    async def write(self, key: str, outcome: Mapping[str, Any]) -> None:
        """Add a line; it is on disk when this returns."""
        line = to_json({"key": key, "method": self._method, **outcome}, bytes_mode="base64", fallback=str) + b"\n"
        await _to_the_end(self._append, line)

    # -- in threads --------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._file = file = self._path.open("a+b", buffering=0)
        place = 0
        file.seek(0)
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    file.truncate(place)
                    break
                self._know(line, place, number)
                place += len(line)

    def _know(self, line: bytes, place: int, number: int) -> None:
        try:
            entry = json.loads(line)
            if entry["method"] == self._method and entry["error"] is None:
                self._done[entry["key"]] = place
        except (ValueError, TypeError, KeyError):
            raise InvalidRequest(f"{self._path}:{number}: not a line of a journal", param="journal") from None

    def _read(self, place: int) -> dict[str, Any]:
        with self._path.open("rb") as file:
            file.seek(place)
            entry: dict[str, Any] = json.loads(file.readline())
            return entry

    def _append(self, line: bytes) -> None:
        if self._file is not None:
            if self._file.write(line) < len(line):
                # Nothing may follow what is not whole: the next run cuts it off.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            os.fsync(self._file.fileno())


async def _to_the_end(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do `work` in a thread. Who is cancelled meanwhile waits for its end: a file must not be closed under it."""
    doing = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait({doing})
        raise
