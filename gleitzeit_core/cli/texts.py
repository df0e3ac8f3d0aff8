"""Texts that a command reads, from files and from standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

MAX_BYTES: Final = 64 << 20


def read_text(name: str, what: str) -> str:
    """The text of a file.

    Args:
        name: The file; ``-`` is standard input.
        what: Who wants it, for messages: ``--param prompt``.

    Raises:
        UsageError: It cannot be read, is too large or is no text.
    """
    where = "standard input" if name == "-" else name
    try:
        content = _content(name)
        if len(content) > MAX_BYTES:
            raise click.UsageError(f"{what}: {where} is larger than {MAX_BYTES} bytes")
        return content.decode()
    except UnicodeDecodeError:
        raise click.UsageError(f"{what}: {where} is not text in UTF-8") from None
    except OSError as error:
        raise click.UsageError(f"{what}: {where}: {error.strerror}") from None


def _content(name: str) -> bytes:
    if name != "-":
        with Path(name).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    return b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_BYTES + 1)
