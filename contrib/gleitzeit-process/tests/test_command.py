"""``gleitzeit python``: a script in the pool, as it would be here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CONFIG = "plugins: {{disabled: {others}}}\nhubs:\n  here: {{type: process, directory: {folder}}}\n"


@pytest.fixture
def shell(tmp_path: Path, folder: Path, others: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a configuration."""
    (tmp_path / "gleitzeit.yaml").write_text(CONFIG.format(folder=folder, others=others))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The command, in this process's folder."""
    command = [sys.executable, "-m", "gleitzeit_core.cli", "python", "--local", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=50)


def test_script(shell: Path) -> None:
    """Arguments, standard input, both outputs and the exit status are passed on."""
    (shell / "script.py").write_text(
        "import sys\nprint(sys.argv, sys.stdin.read(), __name__)\nprint('täil', file=sys.stderr)\nsys.exit(7)\n"
    )
    done = run("script.py", "one", "--two", "-3", stdin=b"hello")
    assert done.stdout.decode() == "['script.py', 'one', '--two', '-3'] hello __main__\n"
    assert (done.stderr.decode(), done.returncode) == ("täil\n", 7)


@pytest.mark.usefixtures("shell")
def test_standard_input_as_script() -> None:
    """A dash takes it from there."""
    done = run("-", "x", stdin=b"import sys\nprint(6*7, sys.argv[1:])")
    assert (done.stdout, done.returncode) == (b"42 ['x']\n", 0)


def test_files_there_and_back(shell: Path) -> None:
    """What is sent lies beside the script, what it writes comes back, and what it leaves as it was does not."""
    (shell / "data.csv").write_text("1,2")
    (shell / "script.py").write_text("open('sub/out.txt', 'w').write(open('sub/in').read() + open('data.csv').read())")
    done = run("--file", "data.csv", "--file", "sub/in=data.csv", "--collect", "results", "script.py")
    assert (done.stderr, done.returncode) == (b"", 0)
    assert {str(path.relative_to("results")): path.read_text() for path in Path("results").rglob("*.*")} == {
        "sub/out.txt": "1,21,2"
    }


@pytest.mark.usefixtures("shell")
def test_time_out() -> None:
    """Said on standard error, with a status of its own; what it had printed is there."""
    done = run("--timeout", "0.5", "-", stdin=b"print('so far')\nwhile True: pass")
    assert (done.stdout, done.returncode) == (b"so far\n", 124)
    assert b"it took longer than 0.5 s and was killed" in done.stderr


@pytest.mark.usefixtures("shell")
def test_killed() -> None:
    """A signal is told as a shell tells it."""
    assert run("-", stdin=b"import os; os.abort()").returncode == 128 + signal.SIGABRT


@pytest.mark.usefixtures("shell")
def test_json() -> None:
    """The whole answer, on one line; the exit status is the script's all the same."""
    done = run("--json", "--interpreter", "fresh", "-", stdin=b"print(1)\nimport sys\nsys.exit(2)")
    answer: dict[str, Any] = json.loads(done.stdout)
    assert (answer["stdout"], answer["exit_status"], done.returncode) == ("1\n", 2, 2)


@pytest.mark.usefixtures("shell")
def test_cut_output_is_told() -> None:
    """Nobody takes a part for the whole."""
    done = run("-", stdin=b"print('x' * 3_000_000)")
    assert len(done.stdout) == 1 << 20
    assert b"stdout was longer than the limit" in done.stderr


def test_output_comes_at_once_and_ctrl_c_ends_it(shell: Path, folder: Path) -> None:
    """The first line is there while it runs; an interrupt ends the script, not only the command."""
    code = "import time\nprint('first', flush=True)\ntime.sleep(1000)\n"
    (shell / "script.py").write_text(code)
    command = [sys.executable, "-m", "gleitzeit_core.cli", "python", "--local", "script.py"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "nowhere.py: No such file"),
        ([], "Missing argument 'SCRIPT'"),
        (["--file", "nowhere", "-"], "nowhere: No such file"),
        (["--interpreter", "other", "-"], "'other' is not one of"),
        (["--timout", "3", "-"], "No such option"),
    ],
)
def test_wrong_use(shell: Path, arguments: list[str], message: str) -> None:
    """Status 2, and why."""
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert [path.name for path in shell.iterdir()] == ["gleitzeit.yaml"]


def test_files_that_do_not_come_back_are_told(shell: Path) -> None:
    """A link is none that was too long."""
    (shell / "script.py").write_text("import os\nos.symlink('/etc/passwd', 'link')\nopen('file', 'w').write('x')")
    done = run("--collect", "results", "script.py")
    assert done.stderr.decode() == (
        "Warning: some files did not come back: links, no plain files, or together more than the limit\n"
    )
    assert [path.name for path in (shell / "results").iterdir()] == ["file"]


@pytest.mark.usefixtures("shell")
def test_session_that_nobody_keeps() -> None:
    """Without a gateway there is nobody who could: it is said, and the script runs."""
    done = run("--session", "mine", "-", stdin=b"print(1)")
    assert (done.stdout, done.returncode) == (b"1\n", 0)
    assert b"the session 'mine' ends with this command: only a gateway keeps one" in done.stderr


def test_output_does_not_command_the_terminal(shell: Path) -> None:
    """On a terminal control characters are shown; into a pipe or a file they go as they are."""
    (shell / "script.py").write_text(r"print('\x1b]0;title\x07')")
    assert run("script.py").stdout == b"\x1b]0;title\x07\n"
    command = [sys.executable, "-m", "gleitzeit_core.cli", "python", "--local", "script.py"]
    ours, theirs = os.openpty()
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, check=True, timeout=50)
        assert os.read(ours, 4096) == b"\\x1b]0;title\\x07\r\n"
    finally:
        os.close(ours)
        os.close(theirs)
