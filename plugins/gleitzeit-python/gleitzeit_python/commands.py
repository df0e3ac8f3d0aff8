"""The command ``gleitzeit python``: a script, run where the configuration says instead of here."""

from __future__ import annotations

import base64
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.client import GatewayClient
from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.connection import Connection, connection_options
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.output import printable, warn, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gleitzeit_core.cli.backend import Backend

_METHOD: Final = "python/execute"
_TIMED_OUT: Final = 124
_SIGNALLED: Final = 128
_INPUT_BYTES: Final = 64 << 20
_CUT: Final = {"files": "some files did not come back: links, no plain files, or together more than the limit"}
_EXAMPLES: Final = (
    "gleitzeit python script.py one two",
    "echo 'print(6*7)' | gleitzeit python -",
    "gleitzeit python --file data.csv --collect results report.py data.csv",
    "gleitzeit python --interpreter fresh --timeout 10 script.py < input.txt",
    "gleitzeit python --gateway http://127.0.0.1:8484 --session mine step.py",
)


@click.command(
    "python",
    cls=Command,
    examples=_EXAMPLES,
    context_settings={"allow_interspersed_args": False},
)
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--interpreter", type=click.Choice(["forked", "fresh"]), help="A copy of one that is there, or a new one."
)
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), metavar="S", help="Kill it after S seconds."
)
@click.option("--file", "files", multiple=True, metavar="[NAME=]FILE", help="Put a file beside the script; repeatable.")
@click.option(
    "--collect",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Bring all files that it has written back, into DIR.",
)
@click.option(
    "--session", metavar="NAME", help="Keep the interpreter in the gateway for the next script with this name."
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON, at its end.")
@click.option("--local", is_flag=True, help="Do it in this process, even if a gateway runs.")
@connection_options
@pass_invocation
def python(  # noqa: PLR0913 - one for each option
    invocation: Invocation,
    /,
    script: str,
    args: Sequence[str],
    connection: Connection,
    *,
    interpreter: str | None,
    timeout_s: float | None,
    files: Sequence[str],
    collect: Path | None,
    session: str | None,
    as_json: bool,
    local: bool,
) -> None:
    """Run SCRIPT with ARGS in a runner of the pool; - is standard input.

    Options stand before SCRIPT; what follows it is the script's. Standard input, unless it is a terminal, is read to
    its end and passed on; output comes as it is written. The exit status is the script's: 124 when it took too long,
    128 and the signal's number when it was killed. With no hub configured it runs in a child process on this machine,
    which is no sandbox.
    """
    params = _params(script, args, files)
    optional = {"interpreter": interpreter, "timeout_s": timeout_s, "session": session}
    params |= {name: value for name, value in optional.items() if value is not None}
    if collect is not None:
        params["collect"] = ["*"]
    with connection.backend(invocation, local=local) as backend:
        if session is not None and not isinstance(backend, GatewayClient):
            warn(f"the session {session!r} ends with this command: only a gateway keeps one")
        whole = as_json or session is not None
        answer = backend.call(_METHOD, params, None) if whole else _streamed(backend, params)
    if as_json:
        write_json(answer, indent=None)
    elif whole:
        _print_part(answer)
    if collect is not None:
        _store(collect, answer["files"], params["files"])
    raise click.exceptions.Exit(_status(answer, timeout_s))


def _params(script: str, args: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
    """What to run, with what."""
    name = "main.py" if script == "-" else Path(script).name
    sent = dict([_file(one) for one in files])
    sent[name] = _encoded(_standard_input() if script == "-" else _read(script))
    params: dict[str, Any] = {"file": name, "args": list(args), "files": sent}
    if script != "-" and sys.stdin is not None and not sys.stdin.isatty():
        params["stdin"] = _encoded(_standard_input())
    return params


def _file(given: str) -> tuple[str, dict[str, str]]:
    name, mark, path = given.partition("=")
    return (name, _encoded(_read(path))) if mark else (Path(given).name, _encoded(_read(given)))


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None


def _standard_input() -> bytes:
    content = sys.stdin.buffer.read(_INPUT_BYTES + 1) if sys.stdin is not None else b""
    if len(content) > _INPUT_BYTES:
        raise click.UsageError(f"standard input is longer than {_INPUT_BYTES} bytes")
    return content


def _encoded(content: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(content).decode()}


def _streamed(backend: Backend, params: Mapping[str, Any]) -> dict[str, Any]:
    """Print output as it comes. The whole answer, which is the last part."""
    part: dict[str, Any] = {}
    with closing(backend.stream(_METHOD, params, None)) as parts:
        for part in parts:
            if "exit_status" not in part:
                _print_part(part)
    return part


def _print_part(part: Mapping[str, Any]) -> None:
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        text = part.get(name)
        if text and stream is not None:
            # What others have written must not command the terminal.
            stream.write(printable(text) if stream.isatty() else text)
            stream.flush()


def _store(folder: Path, found: Mapping[str, Any], sent: Mapping[str, Any]) -> None:
    """Write what came back, but for what was sent and has not changed.

    Raises:
        ClickException: A name would not be below `folder`.
    """
    for name, content in found.items():
        if content["base64"] == sent.get(name, {}).get("base64"):
            continue
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise click.ClickException(f"{name!r} would not be below {folder}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(content["base64"]))


def _status(answer: Mapping[str, Any], timeout_s: float | None) -> int:
    """As a shell would see it; says what cannot be seen from it."""
    for name in answer["truncated"]:
        if name != "result":
            warn(_CUT.get(name, f"{name} was longer than the limit, and the rest is lost"))
    if answer["timed_out"]:
        warn(f"it took longer than {timeout_s:g} s and was killed" if timeout_s else "it took too long and was killed")
        return _TIMED_OUT
    if answer["oom_killed"]:
        warn("it was killed for want of memory")
    status: int = answer["exit_status"] or 0
    return status if status >= 0 else _SIGNALLED - status
