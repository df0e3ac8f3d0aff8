"""What a run came to, put together from what the agent says; and back, what it is asked."""

from __future__ import annotations

import base64
import codecs
import json
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_python.agent import frames

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_STREAMS: Final = {frames.STDOUT: "stdout", frames.STDERR: "stderr"}


def content(value: object) -> bytes:
    """The bytes of a file, as a caller gives it or an answer has it: text, bytes, or ``{"base64": ...}``."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return value if isinstance(value, bytes) else base64.b64decode(value["base64"])  # type: ignore[index]  # checked


class Collector:
    """Takes an agent's frames and gives the parts of an answer in a stream, or all of it at the end."""

    def __init__(self) -> None:
        # What is cut in the middle of a character waits for the rest.
        self._decoders = {kind: codecs.getincrementaldecoder("utf-8")("replace") for kind in _STREAMS}
        self._texts: dict[int, list[str]] = {kind: [] for kind in _STREAMS}
        self._files: dict[str, bytearray] = {}
        self._said: Mapping[str, Any] = {}
        self.done: dict[str, Any] | None = None

    def take(self, kind: int, payload: bytes) -> Iterator[dict[str, str]]:
        """A frame. The parts that it makes."""
        if kind in _STREAMS:
            text = self._decoders[kind].decode(payload)
            self._texts[kind].append(text)
            if text:
                yield {_STREAMS[kind]: text}
        elif kind == frames.FILE:
            name, piece = frames.file_part(payload)
            self._files.setdefault(name, bytearray()).extend(piece)
        elif kind == frames.RESULT:
            self._said = _said(payload)
        elif kind == frames.DONE:
            self.done = json.loads(payload)
            yield from self._last_characters()

    def _last_characters(self) -> Iterator[dict[str, str]]:
        for kind, decoder in self._decoders.items():
            text = decoder.decode(b"", final=True)
            self._texts[kind].append(text)
            if text:
                yield {_STREAMS[kind]: text}

    def answer(self) -> dict[str, Any]:
        """All of it, once it is `done`."""
        done = self.done or {}
        # Only of an interpreter that lives on nothing else tells how a piece of code ended.
        status = self._said.get("status") if done.get("alive") else done.get("exit_status")
        cut = [*done["truncated"], *(["result"] if self._said.get("cut") is True else [])]
        return {
            **{name: "".join(self._texts[kind]) for kind, name in _STREAMS.items()},
            "result": self._result(),
            "files": {_shown(name): _encoded(bytes(data)) for name, data in self._files.items()},
            "exit_status": status if isinstance(status, int) else None,
            "timed_out": done["timed_out"],
            "oom_killed": done["oom_killed"],
            "killed_by": done["killed_by"],
            "truncated": cut,
        }

    def _result(self) -> Any:  # noqa: ANN401 - any JSON
        text = self._said.get("result")
        if isinstance(text, str):
            try:
                value = json.loads(text, parse_constant=_refuse)
                # The code may have meddled with it: what follows must be able to write it again.
                if "\\u" in text:
                    json.dumps(value, ensure_ascii=False).encode()
            except (ValueError, RecursionError):
                return _shown(text)
            return value
        shown = self._said.get("repr")
        return _shown(shown) if isinstance(shown, str) else None


def _said(payload: bytes) -> Mapping[str, Any]:
    """What a payload's process says of its result. The code could have written anything there."""
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _shown(text: str) -> str:
    """What can be written as UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _encoded(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "base64": base64.b64encode(data).decode()}
