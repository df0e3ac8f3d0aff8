from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.cli.app import OWN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended, Terminal

    Cli = Callable[..., Ended]
    Install = Callable[..., None]
    Program = Callable[..., subprocess.Popen[str]]

HEAVY = ("docker", "boto3", "kubernetes", "aiohttp", "sqlalchemy")
COMMANDS = '''
import sys, click
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.errors import GleitzeitError, UnknownName
from gleitzeit_core.hookspecs import CommandType, hookimpl

@click.command()
@click.argument("what")
def fail(what):
    raise {
        "ours": GleitzeitError("the lamp is broken"),
        "name": UnknownName("lamp", "lmap", ["lamp"]),
        "bug": KeyError("a bug"),
        "silent bug": AssertionError(),
        "file": FileNotFoundError(2, "No such file or directory", "lamp.txt"),
        "system": OSError(28, "No space left on device"),
        "ctrl-c": KeyboardInterrupt(),
        "abort": click.Abort(),
        "usage": click.UsageError("what a question"),
        "click": click.ClickException("click says no"),
        "exit": click.exceptions.Exit(3),
        "sys": SystemExit(5),
        "pipe": BrokenPipeError(32, "Broken pipe"),
    }[what]

@click.command()
@pass_invocation
def show(invocation):
    """Show what was given."""
    click.echo(f"{invocation.config_path} {invocation.debug}")

@hookimpl
def gleitzeit_register_commands():
    names = {"fail": "fail", "show": "show", "models polish": "show", "instances polish": "show",
             "lamps on": "show", "lamps off": "show", "gone": "nothing_there"}
    return [CommandType(name=name, target=f"{__name__}:{target}", summary=f"Summary of {name}.")
            for name, target in names.items()]
'''


@pytest.fixture
def commands(tmp_path: Path, install: Install) -> None:
    """The core and a file with commands are all there is."""
    install()
    (tmp_path / "lamps.py").write_text(COMMANDS)
    (tmp_path / "gleitzeit.yaml").write_text("plugins: {files: [./lamps.py]}\n")


# -- help and version


def test_version(cli: Cli) -> None:
    """`--version` says name and version."""
    assert re.fullmatch(r"gleitzeit \d+\.\d+\.\d+\n", cli("--version").out)


def test_without_a_command_there_is_help(cli: Cli) -> None:
    """The program alone explains itself, and that is no mistake."""
    ended = cli()
    assert (ended.status, ended.out) == (0, cli("--help").out)
    assert all(re.search(rf"^  {name} +\S", ended.out, re.MULTILINE) for name in OWN)


@pytest.mark.parametrize("command", [*OWN, "config check", "config show", "config schema", "strategies show"])
def test_help_teaches(cli: Cli, command: str) -> None:
    """Each command's help has examples that begin with that command, and says what the options are for."""
    ended = cli(*command.split(), "-h")
    assert ended.status == 0
    assert re.search(rf"^Examples:\n  (\S.*\| )?gleitzeit {command.split(' ', maxsplit=1)[0]}", ended.out, re.MULTILINE)
    assert not re.findall(r"^  -[^ ]+( [A-Z]+)?\n  -", ended.out, re.MULTILINE)
    assert "--config FILE" in ended.out
    assert ended.err == ""


def test_help_lists_commands_of_plugins_without_importing_them(cli: Cli, install: Install) -> None:
    """Names and summaries are enough; a command in a group is shown as its group."""
    install("good")
    ended = cli("--help")
    assert "switch      Switches." in ended.out
    assert "lamps       Commands: list" in ended.out
    assert "gz_one_parts" not in sys.modules


@pytest.mark.parametrize("arguments", [["--version"], ["plugins"], ["plugins", "--json"], ["--help"], ["strategies"]])
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """Neither SDKs of vendors nor HTTP frameworks are imported by commands that only look around."""
    code = (
        "import json, sys\nfrom gleitzeit_core.cli import main\n"
        f"status = main({arguments!r})\n"
        "open('modules.json', 'w').write(json.dumps(sorted(sys.modules)))\nsys.exit(status)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert "gleitzeit_core.cli" in modules
    assert not {name.partition(".")[0] for name in modules} & set(HEAVY)


def test_the_version_needs_hardly_anything(tmp_path: Path) -> None:
    """`--version` does not even import what configuration, plugins and tables need."""
    code = "import sys\nfrom gleitzeit_core.cli import main\nmain(['--version'])\nprint(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert not {"pydantic", "yaml", "rich", "pluggy", "asyncio"} & set(ended.stdout.split())


def test_the_installed_program_is_this_one() -> None:
    """The entry point `gleitzeit` ends with the status that `main` returns."""
    program = os.path.join(os.path.dirname(sys.executable), "gleitzeit")  # noqa: PTH118, PTH120 - a symlink must stay one
    ended = subprocess.run([program, "nonsense"], check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: unknown command 'nonsense'")


# -- finding commands


@pytest.mark.usefixtures("commands")
def test_commands_of_plugins_stand_beside_the_cores(cli: Cli) -> None:
    """Alone, in a group of the core's, and in a group that only plugins fill."""
    assert cli("show").out == "None False\n"
    assert cli("models", "polish").out == "None False\n"
    assert cli("instances", "polish").out == "None False\n"
    assert cli("lamps", "on").out == "None False\n"
    assert "polish  Summary of models polish." in cli("models", "--help").out
    assert re.search("lamps +Commands: off, on\n", cli("--help").out)
    assert re.findall(r"^  (on|off) ", cli("lamps", "--help").out, re.MULTILINE) == ["off", "on"]


@pytest.mark.usefixtures("commands")
def test_a_command_that_cannot_be_imported_says_why(cli: Cli) -> None:
    """The plugin, the target and the cause are named; other commands work."""
    ended = cli("gone")
    assert ended.status == 1
    assert ended.err.startswith("Error: plugin lamps")
    assert "nothing_there" in ended.err
    assert "Traceback" not in ended.err


def test_a_target_that_is_no_command_says_so(cli: Cli, install: Install) -> None:
    """A plugin that points at something else than a click command gets a sentence, not a traceback."""
    install("good")
    ended = cli("switch")
    assert (ended.status, ended.err) == (1, "Error: command 'switch': gz_one_parts:switch is not a click command\n")


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sttus"], ["unknown command 'sttus'", "did you mean 'status'?"]),
        (["shwo"], ["did you mean 'show'?"]),
        (["models", "polsh"], ["unknown command 'models polsh'", "did you mean 'models polish'?"]),
        (["config", "chek"], ["did you mean 'config check'?"]),
        (["lamps", "of"], ["installed: lamps off, lamps on"]),
        (["serve"], ["'serve' comes with pip install ./plugins/gleitzeit-gateway"]),
        (["srve"], ["'serve' comes with pip install"]),
        (["qqq"], ["installed: chat, config,"]),
    ],
)
def test_unknown_commands_are_answered_with_help(cli: Cli, arguments: list[str], words: list[str]) -> None:
    """What there is, the nearest spelling, and how to install what is missing; the status says: called wrongly."""
    ended = cli(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    for word in words:
        assert word in ended.err


def test_a_plugin_cannot_take_a_name_of_the_cores(cli: Cli, tmp_path: Path, install: Install) -> None:
    """`status` stays the core's, whatever a plugin brings."""
    install()
    (tmp_path / "taker.py").write_text(COMMANDS.replace('"fail": "fail"', '"status": "show"'))
    (tmp_path / "gleitzeit.yaml").write_text("plugins: {files: [./taker.py]}\n")
    assert "Summary of status" not in cli("--help").out
    assert "running gateway" in cli("status", "--help").out


def test_a_broken_configuration_does_not_hide_the_commands(cli: Cli, tmp_path: Path) -> None:
    """Help works with a warning; a command that needs the configuration reports it."""
    (tmp_path / "gleitzeit.yaml").write_text("plugins: [\n")
    shown = cli("--help")
    assert shown.status == 0
    assert "status" in shown.out
    assert shown.err.startswith("Warning: plugins are shown as if there were no configuration")
    assert cli("plugins").status == 2
    assert cli("init", "--output", "new.yaml").status == 0


def test_completion_offers_names_and_summaries(program: Program) -> None:
    """A shell that asks gets the commands that begin so, without their being imported."""
    env = {**os.environ, "_GLEITZEIT_COMPLETE": "zsh_complete", "COMP_WORDS": "gleitzeit st", "COMP_CWORD": "1"}
    out, err = program(env=env).communicate()
    assert out.split("\n")[1::3] == ["status", "strategies"]
    assert err == ""


def test_what_init_writes_is_right_with_all_that_is_installed(cli: Cli) -> None:
    """Whichever plugins there are here, their settings do not spoil it."""
    assert cli("init").status == 0
    ended = cli("config", "check")
    assert (ended.status, ended.out) == (0, "gleitzeit.yaml is right: hubs: what is found; routes: 1; store: memory\n")


# -- global options


@pytest.mark.usefixtures("commands")
def test_global_options_stand_before_or_after_the_command(cli: Cli, tmp_path: Path) -> None:
    """`--config` and `--debug` mean the same at both places; a plugin's command gets them from the invocation."""
    (tmp_path / "other.yaml").write_text("plugins: {files: [./lamps.py]}\n")
    assert cli("--config", "other.yaml", "--debug", "show").out == "other.yaml True\n"
    assert cli("show", "--config", "other.yaml", "--debug").out == "other.yaml True\n"
    assert cli("models", "polish", "--config", "other.yaml").out == "other.yaml False\n"


@pytest.mark.usefixtures("commands")
def test_a_configuration_that_is_not_there_is_an_error(cli: Cli) -> None:
    """A file that was asked for must be there, wherever it was asked for."""
    for arguments in (["--config", "nope.yaml", "plugins"], ["plugins", "--config", "nope.yaml"]):
        ended = cli(*arguments)
        assert ended.status == 2
        assert "no such file: nope.yaml" in ended.err


def test_debug_by_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch, commands: None) -> None:
    """GLEITZEIT_DEBUG=1 shows tracebacks, 0 does not; neither is taken for a part of the configuration."""
    del commands
    monkeypatch.setenv("GLEITZEIT_DEBUG", "1")
    assert "Traceback" in cli("fail", "bug").err
    monkeypatch.setenv("GLEITZEIT_DEBUG", "0")
    monkeypatch.setenv("GLEITZEIT_KEY", "secret")
    assert "Traceback" not in cli("fail", "bug").err
    assert cli("config", "check").status == 0


# -- how it ends


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(
    ("what", "status", "message"),
    [
        ("ours", 1, "Error: the lamp is broken\n"),
        ("name", 2, "Error: unknown lamp 'lmap'; installed: lamp; did you mean 'lamp'?\n"),
        ("bug", 1, "Error: unexpected KeyError: 'a bug' (--debug shows where)\n"),
        ("silent bug", 1, "Error: unexpected AssertionError (--debug shows where)\n"),
        ("file", 1, "Error: lamp.txt: No such file or directory\n"),
        ("system", 1, "Error: No space left on device\n"),
        ("ctrl-c", 130, "\n"),
        ("abort", 130, "\n"),
        ("click", 1, "Error: click says no\n"),
        ("exit", 3, ""),
        ("pipe", 1, ""),
    ],
)
def test_every_ending_has_a_status_and_one_sentence(cli: Cli, what: str, status: int, message: str) -> None:
    """Nothing that a command raises shows as a traceback."""
    ended = cli("fail", what)
    assert (ended.status, ended.err, ended.out) == (status, message, "")


@pytest.mark.usefixtures("commands")
def test_a_usage_error_names_the_help(cli: Cli) -> None:
    """Called wrongly: status 2, and where to read on."""
    for arguments in (["fail"], ["fail", "usage"], ["fail", "--nope"]):
        ended = cli(*arguments)
        assert ended.status == 2
        assert ended.err.startswith("Error: ")
    assert cli("fail").err.endswith("\nTry 'gleitzeit fail --help'.\n")


@pytest.mark.usefixtures("commands")
def test_a_command_may_end_the_process_itself(cli: Cli) -> None:
    """`sys.exit` in a plugin's command is obeyed."""
    with pytest.raises(SystemExit) as raised:
        cli("fail", "sys")
    assert raised.value.code == 5


@pytest.mark.usefixtures("commands")
def test_debug_shows_where(cli: Cli) -> None:
    """With `--debug` the traceback comes first, then the same sentence."""
    ended = cli("--debug", "fail", "ours")
    assert ended.err.startswith("Traceback")
    assert ended.err.endswith("\nError: the lamp is broken\n")


def test_a_reader_who_leaves_is_no_error(program: Program) -> None:
    """A closed pipe ends the program without a word, before its first output and after."""
    process = program("config", "schema")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate()
    assert (process.returncode, err) == (1, "")


def test_output_that_cannot_be_written_is_an_error(program: Program) -> None:
    """A full disk is told."""
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        process = program("--version", stdout=full)
        _, err = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in err


def test_letters_that_the_output_lacks_are_no_error(program: Program, tmp_path: Path) -> None:
    """An encoding without arrows gets escapes instead."""
    (tmp_path / "gleitzeit.yaml").write_text("hubs: {'→': {}}", encoding="utf-8")
    process = program("config", "check", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    _, err = process.communicate()
    assert process.returncode == 2
    assert "\\u2192" in err


def test_colours_on_a_terminal_only_and_not_against_the_readers_will(terminal: Callable[..., Terminal]) -> None:
    """Escape sequences are for terminals, and NO_COLOR turns colours off there."""
    env: dict[str, Any] = {**os.environ, "TERM": "xterm-256color"}
    assert "\x1b[31m" in terminal("nonsense", env=env).rest()
    assert "\x1b[31m" not in terminal("nonsense", env={**env, "NO_COLOR": "1"}).rest()
    assert "\x1b[" in terminal("strategies", env=env).rest()
    assert "\x1b[3" not in terminal("plugins", env={**env, "NO_COLOR": "1"}).rest()


def test_ctrl_c_before_anything_happens(program: Program, tmp_path: Path) -> None:
    """Ctrl-C while a plugin is being imported ends with 130 and without a traceback."""
    os.mkfifo(tmp_path / "reached")
    (tmp_path / "slow.py").write_text("open('reached', 'w').close()\nimport signal\nsignal.pause()\n")
    (tmp_path / "gleitzeit.yaml").write_text("plugins: {files: [./slow.py]}\n")
    process = program("plugins")
    with open(tmp_path / "reached"):  # noqa: PTH123 - returns when the plugin opens it too
        process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "\n")
