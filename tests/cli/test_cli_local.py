from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.cli.backend import LocalBackend
from gleitzeit_core.cli.context import Invocation
from gleitzeit_core.errors import ClosedError, GleitzeitError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended, Gateway

    Cli = Callable[..., Ended]
    Program = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def here(local: Path, free_port: int) -> None:
    """Nothing but the core and the echo, and no gateway at the address of the configuration."""
    with local.open("a") as file:
        file.write(f"gateway: {{port: {free_port}}}\n")


@pytest.fixture(autouse=True)
def section(here: None, tmp_path: Path) -> None:
    """The section `gateway` is valid also where its plugin is not installed or is disabled."""
    del here
    (tmp_path / "section.py").write_text(
        "from pydantic import BaseModel\nfrom gleitzeit_core.hookspecs import SectionType, hookimpl\n\n\n"
        "class Options(BaseModel):\n    port: int = 8484\n\n\n@hookimpl\ndef gleitzeit_register_sections():\n"
        "    return [SectionType(name='gateway', options=f'{__name__}:Options', summary='Where.')]\n"
    )
    path = tmp_path / "gleitzeit.yaml"
    path.write_text(path.read_text().replace("[./echo.py]", "[./echo.py, ./section.py]"))


def notes(folder: Path) -> list[str]:
    """What the work wrote down."""
    path = folder / "notes"
    return path.read_text().splitlines() if path.exists() else []


# -- run


def test_without_a_gateway_it_runs_here(cli: Cli, free_port: int) -> None:
    """One dim line on standard error says so; the answer is the same."""
    ended = cli("run", "echo/say", "-p", "text=hi")
    assert (ended.status, ended.err) == (0, f"no gateway at http://127.0.0.1:{free_port}; running in this process\n")
    assert ended.json() == {"params": {"text": "hi"}}


def test_local_runs_here_without_a_word(cli: Cli) -> None:
    """Also in parts; what was created is destroyed."""
    ended = cli("run", "echo/text", "--local", "--stream", "-p", "text=one two")
    assert (ended.status, ended.out, ended.err) == (0, "one two \n", "")


def test_local_does_not_even_ask_a_gateway(cli: Cli, gateway: Gateway) -> None:
    """`--local` means it, also beside an address."""
    ended = cli("run", "echo/text", "--local", "--gateway", gateway.url, "-p", "text=hi")
    assert (ended.status, ended.out, gateway.seen) == (0, "hi\n", [])


def test_a_gateway_that_runs_is_used(cli: Cli, gateway: Gateway, tmp_path: Path, free_port: int) -> None:
    """Where the configuration says, unasked and without a word."""
    path = tmp_path / "gleitzeit.yaml"
    path.write_text(path.read_text().replace(str(free_port), str(gateway.port)))
    gateway.on("POST /rpc", lambda exchange: exchange.json({"result": "from the gateway"}))
    ended = cli("run", "echo/text", "-p", "text=hi")
    assert (ended.status, ended.out, ended.err) == (0, "from the gateway\n", "")
    assert notes(tmp_path) == []


def test_what_json_lacks_is_put_into_words(cli: Cli) -> None:
    """An answer in this process looks as one from a gateway would."""
    assert cli("run", "echo/odd", "--local").json() == {"inf": None, "bytes": "YWI=", "path": "x", "set": [1]}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["echo/sya"], 1, "unknown method 'echo/sya'"),
        (["ecoh/say"], 2, "unknown provider 'ecoh'; installed: echo, llm; did you mean 'echo'?"),
        (["nonsense"], 2, "unknown provider 'nonsense'"),
        (["echo/fail", "-p", "mine=true"], 1, "no such luck"),
        (["echo/fail"], 1, "provider failed: RuntimeError"),
        (["echo/odd", "--stream"], 1, "echo/odd"),
        (["echo/wait", "--timeout", "0.01"], 1, "deadline exceeded"),
        (["echo/wait", "--timeout", "0.01", "--stream"], 1, "deadline exceeded"),
    ],
)
def test_failures_are_told_in_a_sentence(cli: Cli, arguments: list[str], status: int, message: str) -> None:
    """Whatever a method raises, here as through a gateway; nothing is a traceback."""
    ended = cli("run", "--local", *arguments)
    assert ended.status == status
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_debug_shows_the_traceback_of_a_provider(cli: Cli) -> None:
    """What is only logged as a sentence is logged with where it comes from."""
    ended = cli("--debug", "run", "--local", "echo/fail")
    assert "in execute_on_resource" in ended.err


def test_what_is_logged_is_told_without_tracebacks(program: Program) -> None:
    """A provider that fails is told in sentences; what is logged besides has the same form."""
    process = program("run", "--local", "echo/fail")
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert all(line.startswith("Error: ") for line in err.splitlines())


def test_a_broken_plugin_that_nobody_named_is_worth_a_warning(program: Program, tmp_path: Path) -> None:
    """The others go on without it."""
    broken = tmp_path / "site" / "gz_bad-1.0.dist-info"
    broken.mkdir(parents=True)
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: gz-bad\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[gleitzeit]\nbad = nothing_of_that_name\n")
    env = {**os.environ, "PYTHONPATH": str(broken.parent)}
    process = program("run", "--local", "echo/text", "-p", "text=hi", env=env)
    out, err = process.communicate()
    assert (process.returncode, out) == (0, "hi\n")
    assert err.startswith("Warning: plugin bad (gz-bad 1.0) is failed: ModuleNotFoundError")
    assert err.count("\n") == 1


def test_a_broken_plugin_that_the_configuration_names_is_an_error(cli: Cli, tmp_path: Path) -> None:
    """With its place, and the status 2."""
    path = tmp_path / "gleitzeit.yaml"
    path.write_text(path.read_text().replace("./section.py", "./section.py, ./nowhere.py"))
    ended = cli("run", "--local", "echo/text", "-p", "text=hi")
    assert ended.status == 2
    assert "plugins.files[2]" in ended.err


# -- interruption


@pytest.mark.parametrize("stream", [[], ["--stream"]])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_work_and_cleans_up(
    program: Program, tmp_path: Path, stream: list[str], number: signal.Signals, status: int
) -> None:
    """The work is cancelled first, then what was created is destroyed; nothing is told."""
    os.mkfifo(tmp_path / "notes.fifo")
    text = (tmp_path / "echo.py").read_text()
    hold = 'note("waiting"); open("notes.fifo", "w").close()'
    (tmp_path / "echo.py").write_text(text.replace('note("waiting")', hold))
    process = program("run", "--local", "echo/wait", *stream)
    with (tmp_path / "notes.fifo").open():
        process.send_signal(number)
    _, err = process.communicate()
    assert (process.returncode, err) == (status, "\n" if number == signal.SIGINT else "")
    assert notes(tmp_path) == ["waiting", "stopped", "destroyed"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts_cleans_up_too(program: Program, tmp_path: Path, number: signal.Signals) -> None:
    """What was opened before the signal is closed."""
    os.mkfifo(tmp_path / "reached")
    parts = (tmp_path / "echo.py").read_text().split('    protocol = "llm"\n')
    parts[0] = parts[0].replace("class Talker", '    async def close(self):\n        note("closed")\n\n\nclass Talker')
    hang = "    async def open(self):\n        open('reached', 'w').close()\n        await asyncio.Event().wait()\n\n"
    (tmp_path / "echo.py").write_text(parts[0] + hang + '    protocol = "llm"\n' + parts[1])
    process = program("run", "--local", "echo/text", "-p", "text=hi")
    with (tmp_path / "reached").open():
        process.send_signal(number)
    _, err = process.communicate()
    assert (process.returncode, err) == ((130, "\n") if number == signal.SIGINT else (143, ""))
    assert notes(tmp_path) == ["closed"]


# -- models


def test_models_without_a_gateway(cli: Cli) -> None:
    """The instances are asked directly."""
    ended = cli("models", "--json")
    assert [model["name"] for model in ended.json()["models"]] == ["parrot"]
    assert ended.err.endswith("running in this process\n")


def test_models_without_the_protocol(cli: Cli, tmp_path: Path) -> None:
    """Where nothing speaks `llm`, the error says how to install what does."""
    path = tmp_path / "gleitzeit.yaml"
    path.write_text(path.read_text().replace("./echo.py, ", ""))
    ended = cli("models")
    assert ended.status == 2
    assert "unknown provider 'llm'" in ended.err
    assert "llm" in ended.err.split("installed: none; ")[1]


# -- the backend itself


def test_a_manager_that_cannot_start_is_stopped_and_told(tmp_path: Path) -> None:
    """The error of the start comes out, and the thread is gone."""
    before = threading.active_count()
    text = (tmp_path / "echo.py").read_text()
    fail = '    async def open(self):\n        raise ClosedError("no")\n\n'
    text = text.replace('    protocol = "llm"', fail + '    protocol = "llm"')
    text = text.replace("import InvalidRequest", "import ClosedError, InvalidRequest")
    (tmp_path / "echo.py").write_text(text)
    with pytest.raises(ClosedError, match="no"), LocalBackend(Invocation().manager()):
        pytest.fail("it must not start")
    assert threading.active_count() == before


def test_a_stream_that_is_left_early_is_cancelled(tmp_path: Path) -> None:
    """Closing the iterator stops the work; at the end nothing of it is left."""
    with LocalBackend(Invocation().manager()) as backend:
        parts = backend.stream("echo/wait", {}, None)
        assert next(parts) == "begun "
        parts.close()
        assert backend.call("echo/text", {"text": "still there"}, None) == "still there"
    assert notes(tmp_path)[-1] == "destroyed"


def test_a_backend_must_be_entered() -> None:
    """Used without its `with` block it says so."""
    with pytest.raises(GleitzeitError, match="not started"):
        LocalBackend(Invocation().manager()).call("echo/text", {"text": "x"}, None)
