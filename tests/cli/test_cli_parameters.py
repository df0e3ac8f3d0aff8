"""Parameters of `gleitzeit run`: from flags, files and standard input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.asking import RUN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended, Gateway

    Cli = Callable[..., Ended]


def test_parameters_are_sent_as_they_were_meant(cli: Cli, gateway: Gateway, tmp_path: Path) -> None:
    """JSON, YAML scalars, text, files and standard input."""
    gateway.on("POST /rpc", lambda exchange: exchange.json({"result": None}))
    (tmp_path / "text.txt").write_text("line 1\nline 2\n", encoding="utf-8")
    (tmp_path / "data.json").write_text('{"a": [1, null]}')
    given = {
        "n=3": 3,
        "x=1.5": 1.5,
        "t=true": True,
        "y=True": True,
        "no=no": "no",
        "nul=null": None,
        "void=": "",
        'quoted="3"': "3",
        "single='3'": "3",
        "text=Why: is the sky blue? #1": "Why: is the sky blue? #1",
        "eq=a=b": "a=b",
        "yaml=[a, {b: 1}]": ["a", {"b": 1}],
        'json=[{"role": "user", "content": "\\ud83d\\ude00"}]': [{"role": "user", "content": "😀"}],
        "time=12:30": "12:30",
        "nan=NaN": "NaN",
        "at='@here'": "@here",
        "file=@text.txt": "line 1\nline 2\n",
        "data=@data.json": {"a": [1, None]},
        "input=@-": "piped",
    }
    arguments = [item for text in given for item in ("--param", text)]
    assert cli(*RUN, "--gateway", gateway.url, *arguments, stdin="piped").status == 0
    assert gateway.seen[-1].body["params"] == {text.partition("=")[0]: value for text, value in given.items()}


def test_parameters_from_a_file(cli: Cli, gateway: Gateway, tmp_path: Path) -> None:
    """From a file or standard input; single ones go before."""
    gateway.on("POST /rpc", lambda exchange: exchange.json({"result": None}))
    (tmp_path / "params.json").write_text('{"a": 1, "b": 2}')
    command = [*RUN, "--gateway", gateway.url]
    assert cli(*command, "--params-file", "params.json", "-p", "b=3").status == 0
    assert gateway.seen[-1].body["params"] == {"a": 1, "b": 3}
    assert cli(*command, "--params-file", "-", stdin='{"c": 4}').status == 0
    assert gateway.seen[-1].body["params"] == {"c": 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--param", "novalue"], "--param 'novalue' is not of the form KEY=VALUE"),
        (["--param", "=3"], "--param '=3' is not of the form KEY=VALUE"),
        (["-p", "a=1", "-p", "a=2"], "--param a is given twice"),
        (["-p", "a=[1"], "--param a is neither JSON nor YAML: "),
        (["-p", "a={b: !c 1}"], "--param a is neither JSON nor YAML: tags"),
        (["-p", "a=.inf"], "--param a: .inf has no place in JSON"),
        (["-p", "a=@nope.txt"], "--param a: nope.txt: No such file or directory"),
        (["-p", "a=@home"], "--param a: home: Is a directory"),
        (["-p", "a=@bin"], "--param a: bin is not text in UTF-8"),
        (["-p", "a=@huge"], "--param a: huge is larger than 67108864 bytes"),
        (["-p", "a=@bad.json"], "--param a: bad.json is not JSON: "),
        (["--params-file", "bad.json"], "--params-file bad.json is not JSON: "),
        (["--params-file", "list.json"], "--params-file list.json: must be a JSON object"),
        (["--params-file", "-"], "--params-file - is not JSON: "),
        (["--params-file", "deep.json"], "--params-file deep.json is not JSON: "),
    ],
)
def test_parameters_that_cannot_be_read(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    """Nothing is sent; the parameter is named, and why; the status is 2."""
    (tmp_path / "bin").write_bytes(b"\xff\x00")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate((64 << 20) + 1)
    (tmp_path / "bad.json").write_text('{"a": NaN}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    ended = cli(*RUN, *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"Error: {message}")
