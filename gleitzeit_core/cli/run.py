"""``gleitzeit run``: carry out any method."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.connection import Connection, connection_options
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.output import write, write_json
from gleitzeit_core.cli.texts import read_text
from gleitzeit_core.config_reading import parse_value
from gleitzeit_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXAMPLES: Final = (
    "gleitzeit run llm/models",
    "gleitzeit run llm/generate --param model=smollm2 --param prompt='Why is the sky blue?' --stream",
    "gleitzeit run llm/embed --param model=smollm2 --param 'input=[one, two]' --json",
    "gleitzeit run llm/generate --param model=smollm2 --param prompt=@question.txt",
    'echo \'{"model": "smollm2", "prompt": "hi"}\' | gleitzeit run llm/generate --params-file -',
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("method")
@click.option(
    "--param",
    "-p",
    "given",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter. VALUE is JSON or a YAML scalar, so 3 is a number and '\"3\"' is text; what is neither is text. "
    "@FILE stands for a file's text (@- for the standard input's), and for its content if it is called .json.",
)
@click.option("--params-file", metavar="FILE", help="All parameters, as a JSON object; - is the standard input.")
@click.option("--stream", is_flag=True, help="Print the answer's parts as they come.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), metavar="S", help="At most S seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on one line, with --stream a line for each part.")
@click.option("--local", is_flag=True, help="Do it in this process, even if a gateway runs.")
@connection_options
@pass_invocation
def run(  # noqa: PLR0913 - one for each option
    invocation: Invocation,
    connection: Connection,
    method: str,
    given: Sequence[str],
    params_file: str | None,
    timeout_s: float | None,
    *,
    stream: bool,
    as_json: bool,
    local: bool,
) -> None:
    """Carry out METHOD, such as llm/chat, and print its answer.

    A gateway does it if one runs; else this process, with the same configuration. An answer that is text is printed as
    it is, any other as JSON.
    """
    params = _parameters(params_file, given)
    with connection.backend(invocation, local=local) as backend:
        if not stream:
            _print_answer(backend.call(method, params, timeout_s), as_json=as_json)
            return
        part: object = None
        with closing(backend.stream(method, params, timeout_s)) as parts:
            for part in parts:
                _print_part(part, as_json=as_json)
        if isinstance(part, str) and not as_json:
            write("")


def _print_answer(answer: object, *, as_json: bool) -> None:
    if isinstance(answer, str) and not as_json:
        write(answer)
    else:
        write_json(answer, indent=None if as_json else 2)


def _print_part(part: object, *, as_json: bool) -> None:
    if isinstance(part, str) and not as_json:
        write(part, end="")
    else:
        write_json(part, indent=None)


def _parameters(params_file: str | None, given: Sequence[str]) -> dict[str, Any]:
    """Those of the file, then those given one by one, which go before.

    Raises:
        UsageError: One cannot be read, or is given twice.
    """
    params = {} if params_file is None else _from_file(params_file)
    seen: set[str] = set()
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.UsageError(f"--param {text!r} is not of the form KEY=VALUE")
        if key in seen:
            raise click.UsageError(f"--param {key} is given twice")
        seen.add(key)
        params[key] = _value(key, value)
    return params


def _from_file(name: str) -> dict[str, Any]:
    params = _json(read_text(name, "--params-file"), f"--params-file {name}")
    if not isinstance(params, dict):
        raise click.UsageError(f'--params-file {name}: must be a JSON object, such as {{"model": "smollm2"}}')
    return params


def _value(key: str, text: str) -> Any:  # noqa: ANN401 - any JSON
    """What ``key=text`` means."""
    if text.startswith("@"):
        content = read_text(text[1:], f"--param {key}")
        return _json(content, f"--param {key}: {text[1:]}") if text.endswith(".json") else content
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        pass  # so it is YAML, or simply text
    try:
        value = parse_value(text, (key,))
        json.dumps(value, allow_nan=False)
    except ConfigurationError as error:
        reasons = "; ".join(problem.message for problem in error.problems)
        raise click.UsageError(f"--param {key} is neither JSON nor YAML: {reasons}") from None
    except ValueError:
        raise click.UsageError(f"--param {key}: {text} has no place in JSON") from None
    return value


def _json(text: str, what: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{what} is not JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} has no place in JSON")
