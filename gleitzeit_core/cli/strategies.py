"""``gleitzeit strategies``: the ways to choose an instance."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

import click

from gleitzeit_core.cli.commands import Command, LazyGroup
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.options import OptionField, fields_of
from gleitzeit_core.cli.output import Column, write, write_json, write_table

if TYPE_CHECKING:
    from gleitzeit_core.hookspecs import StrategyType

_LIST: Final = (Column("name"), Column("summary"))
_OPTIONS: Final = (Column("option"), Column("takes"), Column("default"), Column("for"))
_PAGE_WIDTH: Final = 88


@click.group(
    cls=LazyGroup,
    prefix="strategies",
    invoke_without_command=True,
    examples=("gleitzeit strategies", "gleitzeit strategies show least_loaded"),
)
@click.option("--json", "as_json", is_flag=True, help='Print {"strategies": [...]}: name and summary of each.')
@pass_invocation
@click.pass_context
def strategies(ctx: click.Context, invocation: Invocation, *, as_json: bool) -> None:
    """List the balancing strategies, the names that 'strategy:' of a route may have."""
    if ctx.invoked_subcommand is not None:
        return
    found = sorted(invocation.host().strategies.values(), key=lambda strategy: strategy.name)
    if as_json:
        write_json({"strategies": [{"name": it.name, "summary": it.summary} for it in found]})
    else:
        write_table(_LIST, [(it.name, it.summary) for it in found])


@strategies.command(cls=Command, examples=("gleitzeit strategies show least_loaded",))
@click.argument("name")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print name, summary, page and options (name, type, required, default, description).",
)
@pass_invocation
def show(invocation: Invocation, name: str, *, as_json: bool) -> None:
    """Explain one strategy: when to use it, and its options."""
    host = invocation.host()
    strategy = host.strategy_type(name)
    options = fields_of(host.load_options(strategy))
    if as_json:
        write_json({"name": name, "summary": strategy.summary, "page": strategy.page, "options": _plain(options)})
    else:
        _print_page(strategy, options)


def _plain(options: list[OptionField]) -> list[dict[str, object]]:
    return [
        {
            "name": option.name,
            "type": option.takes,
            "required": option.required,
            "default": option.default,
            "description": option.description,
        }
        for option in options
    ]


def _print_page(strategy: StrategyType, options: list[OptionField]) -> None:
    paragraphs = [textwrap.fill(text, _PAGE_WIDTH) for text in strategy.page.split("\n\n") if text]
    write("\n\n".join([f"{strategy.name}: {strategy.summary}", *paragraphs]) + "\n")
    if not options:
        write("It has no options: " + f"strategy: {strategy.name}")
        return
    rows = [(it.name, it.takes, "(required)" if it.required else repr(it.default), it.description) for it in options]
    write_table(_OPTIONS, rows)
