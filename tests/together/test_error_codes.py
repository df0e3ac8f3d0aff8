"""The table of error codes is held to the code: no code is missing there, none is made up, and the statuses are right."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import gleitzeit_gateway
from gleitzeit_core import errors
from gleitzeit_core.errors import FailureKind, GleitzeitError, InstanceFailure, Problem, RequestError
from gleitzeit_gateway import http_parsing
from gleitzeit_gateway.errors import status_of
from gleitzeit_gateway.limits import LimitReached
from gleitzeit_gateway.rpc_messages import described
from gleitzeit_llm.dialects import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (
    (Path(__file__).parents[2] / "docs/operations.md")
    .read_text()
    .partition("## Codes of errors")[2]
    .partition("\n## ")[0]
)
ROWS = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", PAGE, re.MULTILINE)
TOLD = {code: status for codes, status in ROWS for code in re.findall(r"`(\w+)`", codes)}
NAMES = {"ollama": "Ollama", "openai": "OpenAI", "openai-responses": "OpenAI", "anthropic": "Anthropic"}
EXAMPLES: tuple[Exception, ...] = (
    errors.ConfigurationError([Problem("", "wrong")]),
    errors.PluginError("x"),
    errors.ClosedError("x"),
    errors.CircuitOpen(retry_after_s=1.0),
    errors.InvalidRequest("x"),
    errors.UnknownMethod("x", ()),
    errors.NoCapableInstance("x"),
    errors.Unavailable("x"),
    errors.QueueFull(size=1, limit=1, retry_after_s=1.0),
    errors.DeadlineExceeded(where="queue", after_s=1.0),
    errors.ShuttingDown("x"),
    errors.LeaseExpired("x"),
    errors.UnknownName("strategy", "x", ()),
    InstanceFailure(FailureKind.REJECTED, "x"),
    RequestError("x"),
    RuntimeError("a mistake of ours"),
    LimitReached("x", retry_after_s=1.0),
)


def refusals() -> Iterator[tuple[str, int]]:
    """Each code and status that the gateway's own modules refuse something with."""
    folder = Path(gleitzeit_gateway.__file__).parent
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refused":
                status, _, code = node.args
                if isinstance(status, ast.Attribute):
                    continue  # What is no request has the status that its reader says.
                module = importlib.import_module(f"gleitzeit_gateway.{path.stem}")
                yield ast.literal_eval(code), eval(ast.unparse(status), vars(module))  # noqa: S307 - a number or its name


REFUSALS = sorted(set(refusals()))


def classes(base: type[Exception]) -> Iterator[type[Exception]]:
    """All errors of the core and of the gateway that callers may get."""
    for kind in base.__subclasses__():
        if kind.__module__ in ("gleitzeit_core.errors", "gleitzeit_gateway.limits", "gleitzeit_gateway.rpc_messages"):
            yield kind
            yield from classes(kind)


def test_every_code_stands_there() -> None:
    """And no other."""
    ours = {kind.code for kind in classes(GleitzeitError) if "code" in vars(kind)}  # type: ignore[attr-defined]
    examples = {described(example)["data"]["code"] for example in EXAMPLES}
    assert set(TOLD) == {*ours, *examples, *(code for code, _ in REFUSALS), "bad_request"}
    assert len(REFUSALS) > 10


@pytest.mark.parametrize(("code", "status"), REFUSALS)
def test_status_of_a_refusal(code: str, status: int) -> None:
    """What the gateway itself refuses has one status in all APIs."""
    assert TOLD[code] == str(status)


@pytest.mark.parametrize("api", CLIENTS)
@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_status_in_each_api(error: Exception, api: str) -> None:
    """As the table says: one for all, and another where an API is named."""
    cell = TOLD[described(error)["data"]["code"]]
    special = dict(re.findall(r"; (\w+) (\d+)", cell))
    usual = re.findall(r"\d{3}", cell.removeprefix("the instance's own 4xx or 501"))[0]
    assert status_of(error, api) == int(special.get(NAMES[api], usual))


def test_statuses_of_failures() -> None:
    """Those that the table names are those there are, and an instance's own goes before."""
    kinds = set(FailureKind) - {FailureKind.REJECTED}
    there = {str(status_of(InstanceFailure(kind, "x"), api)) for kind in kinds for api in CLIENTS}
    assert set(re.findall(r"\d{3}", TOLD["instance_failure"])) == there
    assert status_of(InstanceFailure(FailureKind.SERVER_ERROR, "x", status=507), "ollama") == 507
    assert [status_of(InstanceFailure(FailureKind.REJECTED, "x", status=n), "openai") for n in (418, 501)] == [418, 501]


def test_statuses_below_http() -> None:
    """What is no request at all."""
    refused = {http_parsing.BAD_REQUEST, http_parsing._TOO_LONG, http_parsing.TOO_MANY}
    assert set(map(int, re.findall(r"\d{3}", TOLD["bad_request"]))) == refused


def test_numbers_of_json_rpc() -> None:
    """The page names those that are JSON-RPC's own."""
    numbers: dict[str, Any] = {described(example)["data"]["code"]: described(example)["code"] for example in EXAMPLES}
    own = {code: number for code, number in numbers.items() if number != -32000}
    assert own == {code: int(number) for number, code in re.findall(r"(-\d+)\s+for `(\w+)`", PAGE)}
