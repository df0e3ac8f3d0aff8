"""A payload's files: put there, found again, and removed, however it has changed the folders meanwhile.

The agent may be another user than the payload, with more rights. So no path is followed through a symbolic link, and
nothing but a plain file is opened.
"""

# pathlib is one more thing to import, and then to fork
# ruff: noqa: PTH106, PTH108, PTH118, PTH208

from __future__ import annotations

import contextlib
import fnmatch
import os
import stat

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_ENTRIES = 20_000


class BadName(Exception):
    """A name that is none of a file below the payload's folder."""


def put(folder: str, name: str, content: bytes, user: tuple[int, int] | None, *, more: bool) -> None:
    """Write a file for the payload.

    Args:
        folder: The payload's.
        name: Below it, with slashes.
        content: All of it, or the next piece.
        user: Who gets it: user and group.
        more: Add to what is there of it.

    Raises:
        BadName: It would not be below `folder`, or a payload has put something else in its way.
    """
    parts = name.split("/")
    if not name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise BadName(f"{name!r} is no file's name")
    at = os.open(folder, _FOLDER)
    try:
        for part in parts[:-1]:
            at = _enter(at, part, user)
        _write(at, parts[-1], content, user, more=more)
    except OSError as error:
        raise BadName(f"{name!r}: {error.strerror}") from error
    finally:
        os.close(at)


def _enter(at: int, part: str, user: tuple[int, int] | None) -> int:
    try:
        os.mkdir(part, 0o755, dir_fd=at)
        made = True
    except FileExistsError:
        made = False
    inner = os.open(part, _FOLDER, dir_fd=at)
    if made and user is not None:
        os.fchown(inner, *user)
    # Its caller closes the last one.
    os.dup2(inner, at, inheritable=False)
    os.close(inner)
    return at


def _write(at: int, part: str, content: bytes, user: tuple[int, int] | None, *, more: bool) -> None:
    if not more:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=at)
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_APPEND if more else os.O_CREAT | os.O_EXCL)
    number = os.open(part, flags, 0o644, dir_fd=at)
    with os.fdopen(number, "wb") as file:
        if user is not None:
            os.fchown(number, *user)
        file.write(content)


def collect(folder: str, patterns: list[str], limit_bytes: int) -> tuple[list[tuple[str, bytes]], bool]:
    """The plain files below `folder` that match one of `patterns`, in order of their names.

    Args:
        folder: The payload's.
        patterns: As in a shell; ``*`` matches slashes too.
        limit_bytes: For all of them together.

    Returns:
        Names and contents, and whether any that match were left out.
    """
    found: list[tuple[str, bytes]] = []
    try:
        left_out = _collect(folder, patterns, limit_bytes, found)
    except (OSError, RecursionError):
        left_out = True  # it is gone, or too deep
    return found, left_out


def _collect(folder: str, patterns: list[str], limit_bytes: int, found: list[tuple[str, bytes]]) -> bool:
    left_out, seen = False, 0
    for where, folders, names, at in os.fwalk(folder, onerror=None, follow_symlinks=False):
        folders.sort()
        seen += len(names) + len(folders)
        if seen > _MOST_ENTRIES:
            return True
        for base in sorted(names):
            name = os.path.relpath(os.path.join(where, base), folder)
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                content = _read(at, base, limit_bytes)
                if content is None:
                    left_out = True
                else:
                    limit_bytes -= len(content)
                    found.append((name, content))
    return left_out


def _read(at: int, base: str, limit_bytes: int) -> bytes | None:
    try:
        # A pipe must not be waited for.
        number = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    except OSError:
        return None
    with os.fdopen(number, "rb") as file:
        state = os.fstat(number)
        if not stat.S_ISREG(state.st_mode) or state.st_size > limit_bytes or state.st_nlink > 1:
            return None
        return file.read(limit_bytes)


def remove(path: str) -> None:
    """Remove a file or a folder with all that is in it, as far as that is allowed."""
    try:
        os.rmdir(path)  # as a rule nothing is in it
    except OSError:
        _remove(path)


def _remove(path: str) -> None:
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
        _unlock(path, None)
        top = os.open(path, _FOLDER)
        try:
            _clear(top)
        finally:
            os.close(top)
        os.rmdir(path)
    except OSError:
        return  # whoever asked looks what is left


def _clear(top: int) -> None:
    """Empty an open folder, however deep it goes: what is below its folders is moved up before it is removed."""
    folders, moved = ["."], 0
    while folders:
        name = folders.pop()
        here = os.open(name, _FOLDER, dir_fd=top)
        try:
            for entry in os.listdir(here):
                if not _unlink(entry, here):
                    _unlock(entry, here)
                    moved += 1
                    above = f".{moved}-{os.urandom(8).hex()}"
                    os.rename(entry, above, src_dir_fd=here, dst_dir_fd=top)
                    folders.append(above)
        finally:
            os.close(here)
        if name != ".":
            os.rmdir(name, dir_fd=top)


def _unlink(entry: str, here: int) -> bool:
    """Whether it was no folder, and so is removed."""
    try:
        os.unlink(entry, dir_fd=here)
    except IsADirectoryError:
        return False
    return True


def _unlock(folder: str, at: int | None) -> None:
    """Take back the rights that a payload has taken away; of use where it was the same user."""
    try:
        os.chmod(folder, 0o700, dir_fd=at)
    except OSError:
        return
