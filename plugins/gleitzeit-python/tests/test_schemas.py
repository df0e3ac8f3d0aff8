"""What a request may ask for: each thing has a limit, and whoever is beyond it is told where, before anything begins."""

from __future__ import annotations

from typing import Any

import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_python.agent import frames
from gleitzeit_python.exchange import Exchange
from gleitzeit_python.options import PythonOptions
from gleitzeit_python.provider import PythonProvider

MIB = 1 << 20


def refusal(options: PythonOptions | None = None, **params: Any) -> InvalidRequest:  # noqa: ANN401 - any parameter
    """Why ``python/execute`` refuses `params`."""
    with pytest.raises(InvalidRequest) as caught:
        PythonProvider(options).request("python/execute", {"code": "1", **params})
    return caught.value


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../x", "./x", "a//x", "a/", ".", ".."])
def test_name_that_is_not_below_the_folder(name: str) -> None:
    """Nor is it quietly made one that is."""
    error = refusal(files={"right": "x", name: "x"})
    assert str(error) == f"python/execute: files: {name!r} is no file's name below the working directory"
    assert error.param == "files"


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_name_that_no_file_can_have(name: str) -> None:
    """A file's name is text."""
    assert str(refusal(files={name: "x"})).startswith("python/execute: files: must ")


@pytest.mark.parametrize("name", ["x" * 256, "ä" * 128, "a/" * 2048 + "x", "x" * 70_000])
def test_name_that_is_too_long(name: str) -> None:
    """For a file, or for a path."""
    assert str(refusal(files={name: "x"})).endswith("is longer than a file's can be")


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "a/" * 2047 + "x", ".hidden", "...", "a b\n", "täil/ß"])
def test_name_as_a_file_may_have_it(name: str) -> None:
    """Up to the very limit."""
    assert PythonProvider().request("python/execute", {"code": "1", "files": {name: "x"}}).params["files"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"": "x"}, "environment: names must not be empty, and have no '='"),
        ({"A=B": "x"}, "environment: names must not be empty, and have no '='"),
        ({"A": "\0"}, "environment.A: must have no NUL"),
        ({"A": "\ud800"}, "environment.A: must be text that UTF-8 can encode"),
        (
            {"A": "x" * 131_070},
            "environment: has 131072 bytes; at most 1048576, and 131071 of each variable, are taken",
        ),
        (
            {f"A{number}": "x" * 120_000 for number in range(9)},
            "environment: has 1080027 bytes; at most 1048576, and 131071 of each variable, are taken",
        ),
    ],
)
def test_environment_that_no_interpreter_can_be_started_with(environment: dict[str, str], message: str) -> None:
    """It is not left to the kernel to refuse it."""
    assert str(refusal(environment=environment)) == f"python/execute: {message}"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"args": ["x", "\0"]}, "args.1"),
        ({"args": ["\ud800"]}, "args.0"),
        ({"collect": ["*"] * 1001}, "collect"),
        ({"files": {str(number): "" for number in range(10_001)}}, "files"),
        ({"limits": {"cpu_s": 2**63}}, "limits.cpu_s"),
        ({"limits": {"memory_bytes": 10**30}}, "limits.memory_bytes"),
        ({"session": "x" * 201}, "session"),
    ],
)
def test_too_much(params: dict[str, Any], param: str) -> None:
    """The place is told."""
    assert refusal(**params).param == param


@pytest.mark.parametrize(
    "params",
    [
        {"code": "x" * 1001},
        {"stdin": "x" * 1000},
        {"stdin": b"\xff" * 1000},
        {"stdin": {"base64": "/" * 1336}},
        {"args": ["x" * 500, "x" * 500]},
        {"collect": ["x" * 1000]},
        {"files": {"a": "x" * 999}},
        {"files": {"a": "x" * 500, "b" * 250: "", "c" * 250: ""}},
    ],
)
def test_together_they_are_more_than_the_options_allow(params: dict[str, Any]) -> None:
    """Whatever it is that is so long."""
    text = str(refusal(PythonOptions(input_bytes=1000), **params))
    assert text.startswith("code, standard input, arguments, patterns and files are 100")
    assert text.endswith(" bytes; at most 1000 are taken")


def test_all_that_is_wrong_with_code_and_file_is_said_plainly() -> None:
    """In our words only."""
    assert str(refusal(file="x")) == "python/execute: parameters: either 'code' or 'file' is needed"


async def test_message_that_is_too_long_is_not_sent() -> None:
    """Control characters take six bytes each as JSON: what fits the options may not fit an agent."""
    exchange = Exchange(NoChannel(), 1, 1.0)
    code = "'" + "\x01" * (frames.MAX_MESSAGE_BYTES // 6) + "'"
    with pytest.raises(InvalidRequest, match=r"all but the files are 1342\d{5} bytes as JSON; at most 134217728"):
        async with exchange:
            await exchange.begin({"code": code}, {})


class NoChannel:
    """Nothing may be sent."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of any channel
        """Whatever is wanted of it."""
        raise AssertionError(name)
