"""Runs code as a program, and says what it came to."""

# pathlib is one more thing to import, and then to fork
# ruff: noqa: PTH100, PTH123

from __future__ import annotations
import __future__

import _ast  # what `ast` is made of, without what that imports
import atexit
import gc
import os
import sys

TYPE_CHECKING = False  # as in `typing`, which is not worth its import
if TYPE_CHECKING:
    import types
    from typing import Any


_RESULT_CHARS = 256 * 1024
_FEATURES = 0
for _name in __future__.all_feature_names:
    _FEATURES |= getattr(__future__, _name).compiler_flag
_WORD = 1 << 63
_INTERRUPTED = 130


class Ended:
    """What a piece of code came to."""

    def __init__(self) -> None:
        self.status = 0
        self.leaves = False
        self.result = self.shown = ""
        self.cut = False
        self.plots: list[str] = []

    def told(self, *, session: bool = False) -> bytes:
        """As JSON; nothing when there is nothing to tell. A session goes on, so nothing else tells its status."""
        told: dict[str, Any] = {}
        if self.result:
            told["result"] = self.result
        if self.shown:
            told["repr"], told["cut"] = self.shown, self.cut
        if self.plots:
            told["plots"] = self.plots
        if session:
            told["status"] = self.status
        if not told:
            return b""
        import json  # noqa: PLC0415 - a fresh interpreter would have to import it each time

        return json.dumps(told).encode()


def run(job: dict[str, Any], main: types.ModuleType) -> Ended:
    """Run one piece of code in `main`.

    Args:
        job: ``code`` or ``file``, and ``args``.
        main: Where its names live.
    """
    ended = Ended()
    sys.argv = [job["file"] or "-c", *job["args"]]
    try:
        _describe(_value(_source(job, main), job["file"] or "<code>", main.__dict__), ended)
    except SystemExit as leaving:
        ended.leaves, ended.status = True, _status(leaving)
    except BaseException as error:  # noqa: BLE001 - a payload may raise anything
        ended.status = _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        _report(error, job["code"])
    ended.plots = _plots()
    _flush()
    return ended


def _source(job: dict[str, Any], main: types.ModuleType) -> str | bytes:
    if job["file"]:
        main.__dict__["__file__"] = os.path.abspath(job["file"])
        with open(job["file"], "rb") as file:
            return file.read()  # `compile` knows a file's encoding
    source: str = job["code"]
    return source


def _value(source: str | bytes, name: str, names: dict[str, Any]) -> object:
    """Run it. The value of its last expression; else that of ``result``."""
    tree: Any = compile(source, name, "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
    body = compile(tree, name, "exec", dont_inherit=True)
    exec(body, names)  # noqa: S102 - what all this is for
    value = None
    if last is not None:
        expression = compile(_ast.Expression(last.value), name, "eval", body.co_flags & _FEATURES, dont_inherit=True)
        value = eval(expression, names)  # noqa: S307 - the same
    # In a session, an earlier piece may have left one.
    return names.get("result") if value is None and "result" in body.co_names else value


def _describe(value: object, ended: Ended) -> None:
    """Keep it as JSON where it is that, else as Python writes it; of what is long, the beginning."""
    if value is None:
        return
    import json  # noqa: PLC0415 - as above

    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except Exception:  # noqa: BLE001 - it is no JSON, however it says so
        text = ""
    if 0 < len(text) <= _RESULT_CHARS:
        ended.result = text
        return
    try:
        text = repr(value).encode("utf-8", "backslashreplace").decode()
    except Exception as error:  # noqa: BLE001 - the code's own
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    ended.shown, ended.cut = text[:_RESULT_CHARS], len(text) > _RESULT_CHARS


def _status(leaving: SystemExit) -> int:
    """What the process exits with, as Python has it."""
    wanted = leaving.code
    if wanted is None:
        return 0
    if isinstance(wanted, int):
        return wanted & 0xFF if -_WORD <= wanted < _WORD else 0xFF
    try:
        sys.stderr.write(f"{wanted}\n")
    except Exception:  # noqa: BLE001 - the code's own
        return 1
    return 1


def _report(error: BaseException, source: str = "") -> None:
    """Show an exception as Python does, without what stands here."""
    # Few payloads need these, and all would have to carry them.
    import linecache  # noqa: PLC0415
    import traceback  # noqa: PLC0415

    linecache.cache["<code>"] = (len(source), None, source.splitlines(keepends=True), "<code>")
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == _value.__code__.co_filename:
        trace = trace.tb_next
    try:
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exception(type(error), error, trace)
        else:
            sys.excepthook(type(error), error, trace)
    except BaseException:  # noqa: BLE001 - the code's own, or standard error is closed
        try:
            os.write(2, f"{type(error).__name__}, which cannot be shown\n".encode())
        except OSError:
            return


def _plots() -> list[str]:
    """Save the figures that are open, if the code has drawn any, and close them. The files' names."""
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    saved = []
    try:
        for number in pyplot.get_fignums() if pyplot is not None else ():
            name = f"plot-{number}.png"
            pyplot.figure(number).savefig(name)
            pyplot.close(number)
            saved.append(name)
    except Exception as error:  # noqa: BLE001 - the code's own
        _report(error)
    return saved


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S112 - the code's own, or closed
            continue


def finish(status: int, main: types.ModuleType) -> int:
    """End as an interpreter does: threads, what is to be done at exit, files that are open. The exit status."""
    threading = sys.modules.get("threading")
    # Python itself has no other names for these.
    threads = () if threading is None else (threading._shutdown,)  # noqa: SLF001
    for end in (*threads, atexit._run_exitfuncs, lambda: _forget(main.__dict__), gc.collect):  # noqa: SLF001
        try:
            end()
        except SystemExit as leaving:
            status = _status(leaving)
        except BaseException as error:  # noqa: BLE001 - the code's own
            _report(error)
    _flush()
    return status


def _forget(names: dict[str, Any]) -> None:
    """Let go of what the code has made, the last first: what ends then still finds what it was made with."""
    for name in reversed(list(names)):
        names.pop(name, None)
