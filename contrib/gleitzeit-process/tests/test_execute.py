"""``python/execute`` on real processes: what goes in, and what comes out."""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Execute = Callable[..., Awaitable[dict[str, Any]]]
    Runners = Callable[..., Any]

BOTH = pytest.mark.parametrize("interpreter", ["forked", "fresh"])


@BOTH
async def test_output_and_status(runners: Runners, execute: Execute, interpreter: str) -> None:
    """Both streams, the exit status, and how long it took."""
    code = "import sys\nprint(6*7)\nprint('oops', file=sys.stderr)\nsys.exit(3)"
    async with runners() as provider:
        answer = await execute(provider, code, interpreter=interpreter)
    assert (answer["stdout"], answer["stderr"], answer["exit_status"]) == ("42\n", "oops\n", 3)
    assert (answer["timed_out"], answer["oom_killed"], answer["killed_by"], answer["truncated"]) == (
        False,
        False,
        "",
        [],
    )
    assert set(answer["timings"]) == {"queued_s", "prepared_s", "run_s"}
    assert all(took_s >= 0 for took_s in answer["timings"].values())
    assert answer["instance"].startswith("process-")


@BOTH
@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("6*7", 42),
        ("x = {'a': [1, 2.5, None, True]}\nx", {"a": [1, 2.5, None, True]}),
        ("result = 'named'", "named"),
        ("result = 'named'\nprint('then')", "named"),
        ("result = 1\n2", 2),
        ("x = 1", None),
        ("", None),
        ("'a docstring'", "a docstring"),
        ("{1}", "{1}"),
        ("float('nan')", "nan"),
        ("'\\ud800'", "'\\ud800'"),
        (
            "object.__new__(type('Odd', (), {'__repr__': lambda self: 1/0}))",
            "<Odd whose repr raises ZeroDivisionError>",
        ),
        ("def f(): return 3\nf()", 3),
        ("from __future__ import annotations\ndef f(x: nowhere): ...\nf.__annotations__['x']", "nowhere"),
    ],
)
async def test_result(runners: Runners, execute: Execute, interpreter: str, code: str, result: object) -> None:
    """The last expression's value, or that of ``result``: JSON where it is that, else as Python writes it."""
    async with runners() as provider:
        answer = await execute(provider, code, interpreter=interpreter)
    assert (answer["result"], answer["stderr"]) == (result, "")


async def test_long_result_is_cut(runners: Runners, execute: Execute) -> None:
    """A result that is too long is the beginning of what Python writes, and said to be cut."""
    async with runners() as provider:
        answer = await execute(provider, "'x' * 10_000_000")
    assert answer["truncated"] == ["result"]
    assert answer["result"].startswith("'xxx")
    assert len(answer["result"]) < 1_000_000


@BOTH
async def test_exception_is_an_answer(runners: Runners, execute: Execute, interpreter: str) -> None:
    """Exit status 1, and a traceback as Python shows it, without what is behind it."""
    async with runners() as provider:
        answer = await execute(provider, "def f():\n    1/0\nf()", interpreter=interpreter)
    assert answer["exit_status"] == 1
    assert answer["stderr"].startswith(
        'Traceback (most recent call last):\n  File "<code>", line 3, in <module>\n    f()'
    )
    assert answer["stderr"].endswith("ZeroDivisionError: division by zero\n")
    assert "gleitzeit" not in answer["stderr"]


@BOTH
async def test_syntax_error_is_an_answer(runners: Runners, execute: Execute, interpreter: str) -> None:
    """So is code that is none."""
    async with runners() as provider:
        answer = await execute(provider, "x = (\n", interpreter=interpreter)
    assert answer["exit_status"] == 1
    assert answer["stderr"].endswith("SyntaxError: '(' was never closed\n")
    assert "Traceback" not in answer["stderr"].replace('Traceback (most recent call last):\n  File "<code>"', "")


@BOTH
async def test_what_a_program_gets(
    runners: Runners, execute: Execute, interpreter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments, standard input, files and environment, and a folder of its own that is its home."""
    monkeypatch.setenv("SECRET_OF_OURS", "x")
    code = """
import os, sys, json, pathlib
from lib.helper import double
here = os.getcwd()
result = {
    "argv": sys.argv, "stdin": sys.stdin.read(), "double": double(21), "word": os.environ["WORD"],
    "data": list(pathlib.Path("data.bin").read_bytes()),
    "home": os.environ["HOME"] == here, "tmp": os.environ["TMPDIR"] == here, "name": __name__,
    "secret": os.environ.get("SECRET_OF_OURS"),
}
"""
    files = {"lib/helper.py": "def double(x):\n    return 2 * x\n", "data.bin": b"\0\xff"}
    async with runners(environment={"WORD": "of the hub"}) as provider:
        answer = await execute(
            provider, code, args=["one", "two words"], stdin="tä\n", files=files, interpreter=interpreter
        )
        other = await execute(provider, "import os\nos.environ['WORD']", environment={"WORD": "own"})
    assert answer["stderr"] == ""
    assert answer["result"] == {
        "argv": ["-c", "one", "two words"],
        "stdin": "tä\n",
        "double": 42,
        "word": "of the hub",
        "data": [0, 255],
        "home": True,
        "tmp": True,
        "name": "__main__",
        "secret": None,
    }
    assert other["result"] == "own"


@BOTH
async def test_file_is_run(runners: Runners, interpreter: str) -> None:
    """``file`` names one of the files; it knows where it is."""
    files = {
        "sub/script.py": "# -*- coding: latin-1 -*-\nprint('\xe4', __file__.endswith('sub/script.py'))\n".encode(
            "latin-1"
        )
    }
    async with runners() as provider:
        params = {"file": "sub/script.py", "files": files, "interpreter": interpreter, "args": ["x"]}
        answer = await provider.execute("python/execute", params)
    assert (answer["stdout"], answer["stderr"]) == ("ä True\n", "")


@BOTH
async def test_files_come_back(runners: Runners, execute: Execute, interpreter: str) -> None:
    """Those that match, wherever they are below the folder, and nothing else; also what was never closed."""
    code = """
import os
os.makedirs("deep/er")
open("deep/er/a.txt", "w").write("A" * 3_000_000)
kept = open("b.txt", "wb"); kept.write(b"\\0\\xff")
open("c.log", "w").write("no")
os.symlink("/etc/passwd", "link.txt")
os.mkfifo("pipe.txt")
"""
    async with runners() as provider:
        answer = await execute(provider, code, collect=["*.txt"], interpreter=interpreter)
    found = {name: base64.b64decode(content["base64"]) for name, content in answer["files"].items()}
    assert found == {"deep/er/a.txt": b"A" * 3_000_000, "b.txt": b"\0\xff"}
    assert answer["files"]["b.txt"]["size"] == 2
    assert answer["truncated"] == ["files"]


async def test_figures_come_back(runners: Runners, execute: Execute) -> None:
    """What is drawn and not saved is saved as a picture, without being asked for."""
    pyplot = """
figures = {1: "one", 2: "two"}
class Figure:
    def __init__(self, text): self.text = text
    def savefig(self, name): open(name, "w").write(self.text)
def get_fignums(): return sorted(figures)
def figure(number): return Figure(figures[number])
def close(number): del figures[number]
"""
    files = {"matplotlib/__init__.py": "", "matplotlib/pyplot.py": pyplot}
    async with runners() as provider:
        answer = await execute(provider, "import matplotlib.pyplot, os\nos.environ['MPLBACKEND']", files=files)
    assert answer["result"] == "Agg"
    assert {name: base64.b64decode(file["base64"]) for name, file in answer["files"].items()} == {
        "plot-1.png": b"one",
        "plot-2.png": b"two",
    }


async def test_files_that_come_back_are_bounded(runners: Runners, execute: Execute) -> None:
    """What does not fit is left out, and said to be; a file that only seems huge costs nothing."""
    code = "open('a', 'w').write('a' * 900)\nopen('b', 'w').write('b' * 900)\nopen('c', 'w').truncate(10**13)\n"
    async with runners({"files_bytes": 1000}) as provider:
        answer = await execute(provider, code, collect=["*"])
    assert list(answer["files"]) == ["a"]
    assert answer["truncated"] == ["files"]


async def test_what_came_back_can_be_sent_again(runners: Runners, execute: Execute) -> None:
    """The shape of a file is the same both ways."""
    async with runners() as provider:
        first = await execute(provider, "open('x', 'wb').write(bytes(range(256)))", collect=["x"])
        again = await execute(provider, "list(open('x', 'rb').read()) == list(range(256))", files=first["files"])
    assert again["result"] is True


@BOTH
async def test_at_exit_and_threads(runners: Runners, execute: Execute, interpreter: str) -> None:
    """A program ends as it does anywhere: threads first, then what is to be done at exit; it may change its mind."""
    code = """
import atexit, threading, os, sys
atexit.register(lambda: print("exit"))
go = threading.Event()
def work():
    go.wait()
    print("thread")
threading.Thread(target=work).start()
threading.Timer(0.05, go.set).start()
print("main")
"""
    async with runners() as provider:
        answer = await execute(provider, code, interpreter=interpreter)
    assert (answer["stdout"], answer["stderr"], answer["exit_status"]) == ("main\nthread\nexit\n", "", 0)


@BOTH
async def test_what_ends_last_finds_what_it_needs(runners: Runners, execute: Execute, interpreter: str) -> None:
    """Objects that live to the end are let go of before what they were made with; files are written."""
    code = """
import os
def told(name): return os.path.basename(name)
class Made:
    def __init__(self, name): self.name = name
    def __del__(self): print(told(self.name))
first, file = Made("x/first"), open("file", "w")
second = Made("x/second")
file.write("kept")
"""
    async with runners() as provider:
        answer = await execute(provider, code, interpreter=interpreter, collect=["file"])
    assert (answer["stdout"], answer["stderr"]) == ("second\nfirst\n", "")
    assert base64.b64decode(answer["files"]["file"]["base64"]) == b"kept"


async def test_one_run_knows_nothing_of_another(runners: Runners, execute: Execute) -> None:
    """Names, modules, files, environment and folder are those of a new interpreter each time, on the same instance."""
    code = (
        "import os, sys\nfirst = not os.path.exists('mark') and 'mark' not in globals() and not hasattr(sys, 'mark')\n"
    )
    code += "first = first and 'MARK' not in os.environ\n"
    code += "mark = sys.mark = 1\nos.environ['MARK'] = '1'\nopen('mark', 'w').write('x')\nfirst"
    async with runners() as provider:
        answers = [await execute(provider, code) for _ in range(3)]
    assert [answer["result"] for answer in answers] == [True, True, True]
    assert len({answer["instance"] for answer in answers}) == 1


async def test_streams_parts_then_the_answer(runners: Runners) -> None:
    """Output comes while the program runs: it waits here for what only a reader can have seen."""
    code = "import sys\nprint('first', flush=True)\nprint('second', file=sys.stderr)\nprint('täil')\n3"
    async with runners() as provider:
        parts = [part async for part in provider.stream("python/execute", {"code": code})]
    assert "".join(part.get("stdout", "") for part in parts[:-1]) == "first\ntäil\n"
    assert "".join(part.get("stderr", "") for part in parts[:-1]) == "second\n"
    assert (parts[-1]["stdout"], parts[-1]["result"]) == ("first\ntäil\n", 3)


async def test_output_comes_before_the_end(runners: Runners, tmp_path: object) -> None:
    """The first part is there while the program still waits."""
    code = f"import os, time\nprint('here')\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"  # type: ignore[operator]
    async with runners() as provider, provider.stream("python/execute", {"code": code}) as parts:
        first = await anext(parts)
        (tmp_path / "go").touch()  # type: ignore[operator]
        rest = [part async for part in parts]
    assert "".join(part.get("stdout", "") for part in (first, *rest[:-1])) == "here\n"
    assert rest[-1]["exit_status"] == 0


@BOTH
async def test_fresh_and_forked_have_the_same_packages(runners: Runners, execute: Execute, interpreter: str) -> None:
    """The interpreter is that of the hub's options, with what is installed there."""
    async with runners() as provider:
        answer = await execute(
            provider, "import sys, pydantic\n[sys.executable, sys.path[1:]]", interpreter=interpreter
        )
        other = await execute(provider, "import sys\n[sys.executable, sys.path[1:]]")
    assert answer["result"][0] == sys.executable
    assert answer["result"] == other["result"]


async def test_info(runners: Runners) -> None:
    """A runner says what it is, what it can do and, when asked, what is installed."""
    async with runners() as provider:
        told = await provider.execute("python/info")
        packages = (await provider.execute("python/info", {"packages": True}))["packages"]
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["abilities"] == {"separate_user": False, "kill_all": False, "verified_reset": False, "fork": True}
    assert "packages" not in told
    assert "pydantic" in packages


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "either 'code' or 'file'"),
        ({"code": "1", "file": "x"}, "either 'code' or 'file'"),
        ({"file": "x"}, "none of 'files'"),
        ({"code": "1", "timeout_s": 0}, "greater than 0"),
        ({"code": "1", "timeout_s": 10**9}, "at most 3600"),
        ({"code": "1", "files": {"../x": "x"}}, "no file's name"),
        ({"code": "1", "files": {"/etc/x": "x"}}, "no file's name"),
        ({"code": "1", "files": {"a": "x", "a/b": "x"}}, "'a/b'"),
        ({"code": "1", "files": {"a": {"base64": "!"}}}, "files"),
        ({"code": "1", "environment": {"A=B": "x"}}, "no '='"),
        ({"code": "1", "args": ["\0"]}, "no NUL"),
        ({"code": "1", "limits": {"processes": 5}}, "a user of its own"),
        ({"code": "1", "limits": {"shoes": 5}}, "limits"),
        ({"code": "1", "interpreter": "other"}, "interpreter"),
        ({"code": "x" * 2000}, "at most 1000 are taken"),
        ({"code": "1", "session": ""}, "session"),
        ({"code": "1", "nonsense": 1}, "nonsense"),
    ],
)
async def test_wrong_parameters_are_refused(runners: Runners, params: dict[str, Any], message: str) -> None:
    """With a sentence that says what is wrong; and the runner goes on."""
    async with runners({"input_bytes": 1000}) as provider:
        with pytest.raises(InvalidRequest, match=message):
            await provider.execute("python/execute", params)
        assert (await provider.execute("python/execute", {"code": "1"}))["result"] == 1


async def test_preloaded_modules_are_there(runners: Runners, execute: Execute) -> None:
    """A forked interpreter has imported them already."""
    async with runners(preload=["decimal"]) as provider:
        assert (await execute(provider, "import sys\n'decimal' in sys.modules"))["result"] is True
        assert (await execute(provider, "import sys\n'fractions' in sys.modules"))["result"] is False


async def test_limits_of_the_hub_hold(runners: Runners, execute: Execute) -> None:
    """A request can ask for less than the hub allows, never for more."""
    code = "import resource\nresource.getrlimit(resource.RLIMIT_NOFILE)[0]"
    async with runners(limits={"open_files": 64}) as provider:
        assert (await execute(provider, code))["result"] == 64
        assert (await execute(provider, code, limits={"open_files": 32}))["result"] == 32
        assert (await execute(provider, code, limits={"open_files": 128}))["result"] == 64
