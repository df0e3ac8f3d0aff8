"""docs/python.md says what the protocol takes and answers: all of it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gleitzeit_process.hub import ProcessHub
from gleitzeit_python.provider import PythonProvider
from gleitzeit_python.schemas import ExecuteParams, Limits

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text("utf-8")


def first_column(heading: str) -> list[str]:
    """The names in the first column of the table under the row `heading`."""
    table = PAGE.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_methods() -> None:
    """Each has a row."""
    assert first_column("method") == [method.name for method in PythonProvider.methods]


def test_parameters() -> None:
    """Each has a row, and so has each limit a name there."""
    assert first_column("parameter") == list(ExecuteParams.model_fields)
    limits = next(row for row in PAGE.splitlines() if row.startswith("| `limits`"))
    assert set(re.findall(r"`(\w+)`", limits)) - {"limits"} == set(Limits.model_fields)


@pytest.mark.parametrize("session", [None, "mine"])
async def test_answer(session: str | None) -> None:
    """Each field has a row, and each thing that is told of the time a name."""
    async with PythonProvider(hub=ProcessHub()) as provider:
        params = {"code": "1"} if session is None else {"code": "1", "session": session}
        answer = await provider.execute("python/execute", params)
    documented = first_column("field")
    assert sorted(answer) == sorted(documented if session else set(documented) - {"session"})
    timings = next(row for row in PAGE.splitlines() if row.startswith("| `timings`"))
    assert set(re.findall(r"`(\w+_s)`", timings)) == set(answer["timings"])


async def test_what_validate_and_info_say() -> None:
    """In their rows, each field by name."""
    async with PythonProvider(hub=ProcessHub()) as provider:
        found = await provider.execute("python/validate", {"code": "("})
        told = await provider.execute("python/info")
    said = {method: set(re.findall(r"`(\w+)`", row)) for method, row in re.findall(r"\n\| `(python/\w+)` \|(.*)", PAGE)}
    assert {*found, *found["error"]} <= said["python/validate"]
    assert set(told) <= said["python/info"]
    abilities = PAGE.partition("\n| ability |")[2].partition("\n\n")[0]
    assert set(told["abilities"]) == set(re.findall(r"\n\| `(\w+)` \|", abilities))
