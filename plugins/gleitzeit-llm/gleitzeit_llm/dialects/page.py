"""The tables of fields as a page for people: ``python -m gleitzeit_llm.dialects.page docs/apis.md`` writes them there.

What the page says of fields is so what the code does with them, and a test sees that it was not forgotten.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gleitzeit_llm.dialects import (
    fields_from_anthropic,
    fields_from_openai,
    fields_from_responses,
    fields_to_openai,
    messages_from_anthropic,
    messages_from_openai,
    messages_from_responses,
    messages_to_openai,
)
from gleitzeit_llm.dialects.fields import Fate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gleitzeit_llm.dialects.fields import Field, Table

BEGIN = "<!-- From here on by `python -m gleitzeit_llm.dialects.page docs/apis.md`. -->\n"

_OPENAI = fields_from_openai.TABLES
_ITEMS = messages_from_responses.ITEMS
_BLOCKS = messages_from_anthropic.BLOCKS
PAGE: Mapping[str, Mapping[str, Table]] = {
    "Callers of Ollama's API, where a server has only OpenAI's": {
        **{f"`{name}`": rules for name, rules in fields_to_openai.TABLES.items() if name != "options"},
        "`options`": fields_to_openai.OPTIONS,
        "a message": messages_to_openai.MESSAGE,
        "a tool call": messages_to_openai.CALL,
        "its function": messages_to_openai.FUNCTION,
    },
    "Callers of OpenAI's API, where a server has only Ollama's": {
        **{f"`{path}`": rules for path, rules in _OPENAI.items()},
        "a message": messages_from_openai.MESSAGE,
        "a part of its content": messages_from_openai.PART,
        "`image_url`": messages_from_openai.IMAGE,
        "a tool call": messages_from_openai.CALL,
        "its function": messages_from_openai.FUNCTION,
    },
    "Callers of OpenAI's Responses API, where a server does not have it": {
        "`/v1/responses`": fields_from_responses.RESPONSES,
        "`reasoning`": fields_from_responses.REASONING,
        "`text`": fields_from_responses.TEXT,
        "`text.format`": fields_from_responses.FORMAT,
        "a tool": fields_from_responses.TOOL,
        **{f"an item `{kind}`": rules for kind, rules in _ITEMS.items()},
        "`input_text`, `output_text`, `reasoning_text`, `summary_text`": messages_from_responses.TEXT,
        "`refusal`": messages_from_responses.REFUSAL,
        "`input_image`": messages_from_responses.IMAGE,
    },
    "Callers of Anthropic's API, on all servers": {
        **{f"`{path}`": rules for path, rules in fields_from_anthropic.TABLES.items()},
        "a tool": fields_from_anthropic.TOOL,
        "`tool_choice`": fields_from_anthropic.TOOL_CHOICE,
        "`thinking`": fields_from_anthropic.THINKING,
        "`output_config`": fields_from_anthropic.OUTPUT_CONFIG,
        "`output_config.format`": fields_from_anthropic.FORMAT,
        "a message": messages_from_anthropic.MESSAGE,
        **{f"a block `{kind}`": rules for kind, rules in _BLOCKS.items()},
        "the `source` of an image": messages_from_anthropic.SOURCE,
    },
}
"""What stands on the page: a heading, and below it what each table is about."""


def rendered() -> str:
    """The tables, in Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for heading, tables in PAGE.items():
        yield from (f"## {heading}", "")
        for title, rules in tables.items():
            yield from (f"### {title[0].upper()}{title[1:]}", "")
            yield from _table(rules)


def _table(rules: Table) -> Iterator[str]:
    rows = rules.rows.values()
    carried = ", ".join(f"`{row.name}`" for row in rows if row.fate is Fate.MAPPED)
    yield from (f"Mapped: {carried}.", "") if carried else ()
    others = [row for row in rows if row.fate is not Fate.MAPPED]
    if others:
        yield from ("| field | | why |", "|---|---|---|")
        yield from (f"| `{row.name}` | {row.fate} | {_why(row)} |" for row in others)
        yield ""


def _why(row: Field) -> str:
    neutral = ", ".join(f"`{json.dumps(value)}`" for value in row.neutral)
    return f"{row.why}; {neutral} passes" if neutral else row.why


def main(path: str) -> None:
    """Write the tables into a page, in place of those that stand there."""
    page = Path(path)
    page.write_text(page.read_text().partition(BEGIN)[0] + BEGIN + "\n" + rendered())


if __name__ == "__main__":
    main(sys.argv[1])
