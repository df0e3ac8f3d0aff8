"""What the user sees when something goes wrong: one clear sentence and an exit status."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from gleitzeit_core.cli.output import say_error
from gleitzeit_core.errors import ConfigurationError, GleitzeitError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_core.cli.context import Invocation

FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130


def guarded(run: Callable[[], None], invocation: Invocation) -> int:
    """Run the program and turn whatever it raises into an exit status; nothing but `SystemExit` gets out."""
    _prepare(invocation)
    try:
        run()
        status = 0
    except click.exceptions.Exit as ended:
        status = ended.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(err=True)
        status = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: a person gets a sentence, not a traceback
        status = _tell(error, invocation)
    return _delivered(status)


def _tell(error: Exception, invocation: Invocation) -> int:
    """Say what went wrong; but a reader who has left, as `head` does, wants to hear nothing."""
    if isinstance(error, BrokenPipeError):
        return FAILED
    if invocation.debug:
        traceback.print_exception(error)
    say_error(_sentence(error))
    return MISUSED if isinstance(error, click.UsageError | ConfigurationError | UnknownName) else FAILED


def _sentence(error: Exception) -> str:
    if isinstance(error, click.UsageError):
        help_line = f"\nTry '{error.ctx.command_path} --help'." if error.ctx else ""
        return error.format_message() + help_line
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, GleitzeitError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"unexpected {text} (--debug shows where)"


class _Warnings(logging.Formatter):
    """Log records as a person reads them, without tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """``Warning: ...``."""
        return f"{record.levelname.capitalize()}: {record.getMessage()}"


def _prepare(invocation: Invocation) -> None:
    """Text that the terminal's encoding lacks must not end us, nor logged errors show tracebacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    if not invocation.debug:
        handler.setFormatter(_Warnings())
    logging.lastResort = handler  # only heard while a command has not set up logging of its own


def _delivered(status: int) -> int:
    """`status`, unless something that was written cannot be delivered.

    Then the interpreter must not try it again when it ends, which it would tell in its own words.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, sys.stdout.fileno())
            os.close(nothing)
        return status or FAILED
    return status
