"""``gleitzeit strategies``: the ways to choose an instance."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

import click
import yaml

from gleitzeit_core.cli.commands import Command, LazyGroup
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.options import OptionField, fields_of, suggested
from gleitzeit_core.cli.output import Column, write, write_json, write_table
from gleitzeit_core.config import DEFAULT_STRATEGY

if TYPE_CHECKING:
    from pydantic import BaseModel

    from gleitzeit_core.hookspecs import StrategyType

_LIST: Final = (Column("name"), Column("filter"), Column("summary"))
_OPTIONS: Final = (Column("option"), Column("takes"), Column("default"), Column("for"))
_LIMITS: Final = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_PAGE_WIDTH: Final = 88


@click.group(
    cls=LazyGroup,
    prefix="strategies",
    invoke_without_command=True,
    examples=("gleitzeit strategies", "gleitzeit strategies show least_loaded"),
)
@click.option("--json", "as_json", is_flag=True, help='Print {"strategies": [...]}: name, summary, filter.')
@pass_invocation
@click.pass_context
def strategies(ctx: click.Context, invocation: Invocation, *, as_json: bool) -> None:
    """List the balancing strategies, the names that 'strategy:' of a route may have.

    Those that are filters may stand before another in a list: they narrow down what it chooses from.
    """
    if ctx.invoked_subcommand is not None:
        return
    found = sorted(invocation.host().strategies.values(), key=lambda strategy: strategy.name)
    if as_json:
        write_json({"strategies": [{"name": it.name, "summary": it.summary, "filter": it.filters} for it in found]})
    else:
        write_table(_LIST, [(it.name, "yes" if it.filters else "", it.summary) for it in found])


@strategies.command(cls=Command, examples=("gleitzeit strategies show least_loaded",))
@click.argument("name")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print name, summary, filter, page, example and options (name, type, limits, required, default, description).",
)
@pass_invocation
def show(invocation: Invocation, name: str, *, as_json: bool) -> None:
    """Explain one strategy: when to use it, how to name it in a configuration, and its options."""
    host = invocation.host()
    strategy = host.strategy_type(name)
    model = host.load_options(strategy)
    options, example = fields_of(model), _example(strategy, model)
    if as_json:
        head = {"name": name, "summary": strategy.summary, "filter": strategy.filters, "page": strategy.page}
        write_json({**head, "example": example, "options": [_plain(option) for option in options]})
        return
    paragraphs = [textwrap.fill(text, _PAGE_WIDTH) for text in strategy.page.split("\n\n") if text]
    shown = ["For example:", textwrap.indent(example, "  ").rstrip()] if example else []
    write("\n\n".join([f"{name}: {strategy.summary}", *paragraphs, *shown]) + "\n")
    if options:
        write_table(_OPTIONS, map(_row, options))
    else:
        write(f"It has no options: strategy: {name}")


def _example(strategy: StrategyType, model: type[BaseModel]) -> str:
    """How a route names it: with its options, and before another if it is a filter. Empty when a person must say."""
    suggestions = {option.name: suggested(option) for option in fields_of(model)}
    its = {name: value for name, value in suggestions.items() if value not in (None, [], {})}
    try:
        model.model_validate(its)
    except ValueError:
        return ""
    chosen = {"name": strategy.name, **its} if its else strategy.name
    route = {"methods": ["llm/*"], "strategy": [chosen, DEFAULT_STRATEGY] if strategy.filters else chosen}
    return yaml.safe_dump({"routes": [route]}, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _plain(option: OptionField) -> dict[str, object]:
    names = ("limits", "required", "default", "description")
    return {"name": option.name, "type": option.takes, **{name: getattr(option, name) for name in names}}


def _row(it: OptionField) -> tuple[object, ...]:
    limits = ", ".join(f"{_LIMITS[name]} {value:g}" for name, value in it.limits.items())
    default = "(required)" if it.required else repr(it.default)
    return it.name, f"{it.takes}, {limits}" if limits else it.takes, default, it.description
