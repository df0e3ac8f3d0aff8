"""The page about client APIs is held to the code: each field and what becomes of it, and which APIs pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gleitzeit_llm import dialects
from gleitzeit_llm.dialects import CLIENTS, DIALECTS, RESPONSES, page
from gleitzeit_llm.dialects.fields import Table
from gleitzeit_llm.provider import LLMProvider

pytestmark = pytest.mark.fidelity

PAGE = Path(__file__).parents[2] / "docs/apis.md"


def test_the_tables_are_those_of_the_code() -> None:
    """Written anew when a table changes: ``python -m gleitzeit_llm.dialects.page docs/apis.md``."""
    _, mark, tables = PAGE.read_text().partition(page.BEGIN)
    assert mark
    assert tables.strip() == page.rendered().strip()


def test_every_table_stands_there() -> None:
    """No module of a dialect has a table that the page leaves out."""
    shown = [rules for tables in page.PAGE.values() for rules in tables.values()]
    for module in (vars(dialects)[name] for name in dir(dialects) if re.match(r"(fields|messages)_", name)):
        for name, value in vars(module).items():
            tables = value.values() if isinstance(value, dict) else [value]
            for rules in tables:
                assert not isinstance(rules, Table) or rules in shown, f"{module.__name__}.{name}"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("api", [*DIALECTS, RESPONSES])
def test_which_apis_pass_and_which_are_translated(client: str, api: str) -> None:
    """The page's first table says what the provider does."""
    (row,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{client}`:"))
    head = next(line for line in PAGE.read_text().splitlines() if line.startswith("| callers speak"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    told = dict(zip(re.findall(r"`([\w-]+)`", head), cells[1:], strict=True))[api]
    path = next(iter(CLIENTS[client].endpoints))
    body = b'{"model":"m","input":"hi","messages":[],"max_tokens":9}'
    accepted = [speaks.api for speaks in LLMProvider().raw_request(client, path, body).requirements.accepts]
    assert told == ("pass" if api == client else "translated" if api in accepted else "")
    assert set(re.findall(r"`(/[\w/]+)`", cells[0])) == set(CLIENTS[client].endpoints)
