"""Keys in files of their own, as systemd's credentials and the secrets of a compose file are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MAX_BYTES: Final = 4096


def read_key(path: str | Path, base_dir: Path | None = None) -> str:
    """The key in a file, without the white space around it.

    Args:
        path: ``~`` is the user's home.
        base_dir: What a relative path is relative to; None for the working directory.

    Raises:
        ValueError: There is none; says why, and never what is in the file.
    """
    found = (base_dir or Path()) / os.path.expanduser(path)  # noqa: PTH111 - `Path.expanduser` raises without a home
    try:
        if found.exists() and not found.is_file():  # of a pipe or a device nobody knows where it ends
            raise ValueError(f"'key_file' {found} is no file")
        with found.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"'key_file' {found} cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise ValueError(f"'key_file' {found} is larger than {_MAX_BYTES} bytes, which is no key")
    key = content.decode("utf-8", "replace").strip()
    if not key:
        raise ValueError(f"'key_file' {found} is empty")
    return key
