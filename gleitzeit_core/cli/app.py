"""The program itself: its own commands, by import string, and the options before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from gleitzeit_core.cli.commands import LazyGroup, show_help, with_global_options

if TYPE_CHECKING:
    from collections.abc import Mapping

_HOME: Final = "gleitzeit_core.cli"
OWN: Final[Mapping[str, tuple[str, str]]] = {
    "chat": (f"{_HOME}.chat:chat", "Chat with a model, or ask it one question."),
    "config": (f"{_HOME}.config:config", "Check and show the configuration."),
    "init": (f"{_HOME}.init:init", "Write a commented configuration file."),
    "events": (f"{_HOME}.events:events", "Follow what happens in a running gateway."),
    "instances": (f"{_HOME}.instances:instances", "List the instances, add, drain and remove them."),
    "metrics": (f"{_HOME}.metrics:metrics", "Show rates, latencies and tokens."),
    "models": (f"{_HOME}.models:models", "List the models and manage them."),
    "plugins": (f"{_HOME}.plugins:plugins", "List the plugins and what they provide."),
    "queues": (f"{_HOME}.status:queues", "Show who waits, for what and how long."),
    "reload": (f"{_HOME}.reload:reload", "Let a running gateway read its configuration again."),
    "run": (f"{_HOME}.run:run", "Carry out any method and print its answer."),
    "status": (f"{_HOME}.status:status", "Show what a running gateway is doing."),
    "strategies": (f"{_HOME}.strategies:strategies", "List the balancing strategies and explain them."),
    "top": (f"{_HOME}.top:top", "Watch a running gateway."),
    "usage": (f"{_HOME}.usage:usage", "Show what each key, model or instance has used."),
}
"""The core's own commands: import string and summary. A plugin cannot take one of these names."""


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click calls it
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version  # noqa: PLC0415 - slow

        click.echo(f"gleitzeit {version('gleitzeit-core')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    own=OWN,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=(
        "gleitzeit serve               run the gateway on http://127.0.0.1:8484",
        "gleitzeit status              what it is doing",
        "gleitzeit chat                talk to a model",
        "gleitzeit init                write a configuration to start from",
        "gleitzeit COMMAND --help      what a command does, with examples",
    ),
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show it.")
@click.pass_context
def root(ctx: click.Context) -> None:
    """Pool LLM servers, containers, functions and processes behind one API."""
    if ctx.invoked_subcommand is None:
        show_help(ctx)


with_global_options(root)
