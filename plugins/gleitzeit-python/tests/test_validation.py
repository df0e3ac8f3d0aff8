"""``python/validate``: where code is wrong, found without running it."""

from __future__ import annotations

from typing import Any

import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_python import validation
from gleitzeit_python.validation import validate


@pytest.mark.parametrize(
    "code", ["", "x = 1", "import nowhere\n1/0", "def f(:\n".replace("(:", "():\n  pass"), "# -*- coding: x -*-"]
)
async def test_right(code: str) -> None:
    """It could be run; that it would fail is another matter."""
    assert await validate(code, "<code>") == {"valid": True, "error": None}


@pytest.mark.parametrize(
    ("code", "line", "column", "message"),
    [
        ("x = 1\ny = )", 2, 5, "unmatched ')'"),
        ("if x:\npass", 2, 1, "expected an indented block after 'if' statement on line 1"),
        ("return 1", 1, 1, "'return' outside function"),
        ("x = 'ä' +", 1, 10, "invalid syntax"),
        ("print 1", 1, 1, "Missing parentheses in call to 'print'. Did you mean print(...)?"),
    ],
)
async def test_wrong(code: str, line: int, column: int, message: str) -> None:
    """The line, the column, both from 1, and why."""
    found: dict[str, Any] = await validate(code, "<code>")
    error = found["error"]
    assert (found["valid"], error["line"], error["column"], error["message"]) == (False, line, column, message)
    assert error["text"] == code.splitlines()[line - 1]


@pytest.mark.parametrize(
    "code",
    ["(" * 10_000, "x = \0", "-" * 500_000 + "1", "a" + ".b" * 200_000, "\ud800"],
    ids=["brackets", "null", "signs", "dots", "surrogate"],  # pytest tells child processes which test it runs
)
async def test_what_the_compiler_does_not_like(code: str) -> None:
    """It may refuse it, or crash: either way the answer is that it is not valid."""
    found = await validate(code, "<code>")
    assert found["valid"] is False
    assert found["error"]["message"]


async def test_too_long() -> None:
    """More than a person could have written is refused."""
    with pytest.raises(InvalidRequest, match="at most 4194304 bytes"):
        await validate("x" * (5 << 20), "<code>")


async def test_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that takes the compiler too long is given up, and its process with it."""
    monkeypatch.setattr(validation, "_LIMIT_S", 0.0)
    with pytest.raises(InvalidRequest, match="takes longer than 0 s"):
        await validate("x = 1", "<code>")
