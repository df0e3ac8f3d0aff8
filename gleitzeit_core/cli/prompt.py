"""What a person types in a chat."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Final

_PROMPT: Final = ">>> "
_CONTINUED: Final = "... "
_QUOTES: Final = '"""'


def read_message() -> str | None:
    """One message: a line, or several between triple quotes; None at the end of the input."""
    with suppress(ImportError):  # not everywhere, and only for comfort: history, and keys to edit
        import readline  # noqa: F401, PLC0415 - imported for what it does to `input`
    try:
        line = _ask(_PROMPT)
        if not line.startswith(_QUOTES):
            return line
        lines = [line.removeprefix(_QUOTES)]
        while not lines[-1].endswith(_QUOTES):
            lines.append(_ask(_CONTINUED))
    except EOFError:
        return None
    return "\n".join(lines).removesuffix(_QUOTES)


def _ask(prompt: str) -> str:
    """A line. The prompt does not get among answers that go to a file."""
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input()
