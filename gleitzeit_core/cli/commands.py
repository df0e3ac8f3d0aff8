"""Commands that are imported when they are used, and what all commands have in common."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.context import Invocation
from gleitzeit_core.cli.output import warn
from gleitzeit_core.errors import PluginError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from click.shell_completion import CompletionItem

    from gleitzeit_core.plugins import PluginHost


class _WithExamples(click.Command):
    """A command whose help ends with examples.

    Args:
        examples: Lines to paste, each with a remark if it needs one.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:  # noqa: ANN401 - click's own
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, as they are."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        super().format_epilog(ctx, formatter)


class Command(_WithExamples):
    """A command with examples; see `_WithExamples`."""


class LazyGroup(_WithExamples, click.Group):
    """A group whose commands are imported when they are used; ``--help`` needs only their names and summaries.

    Args:
        prefix: The words before its commands' names: ``models`` for ``models pull``; empty for the program itself.
        own: Commands of the core that are imported lazily: import string and summary by name.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - click's own
        prefix: str = "",
        own: Mapping[str, tuple[str, str]] | None = None,
        **kwargs: Any,  # noqa: ANN401 - click's own
    ) -> None:
        super().__init__(*args, **kwargs)
        self.before, self.own = f"{prefix} " if prefix else "", own or {}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command called `cmd_name`.

        Raises:
            PluginError: It is a plugin's, and cannot be used.
        """
        found = self.commands.get(cmd_name)
        if found is None and cmd_name in self.own:
            from gleitzeit_core.plugin_loading import import_string  # noqa: PLC0415 - slow

            found = import_string(self.own[cmd_name][0])
        if found is None:
            found = _plugin_command(_plugins(ctx), self.before + cmd_name)
        return found and with_global_options(found)

    def rows(self, ctx: click.Context) -> dict[str, str]:
        """Names and summaries, in order."""
        rows = {name: command.get_short_help_str(80) for name, command in self.commands.items()}
        rows.update((name, summary) for name, (_, summary) in self.own.items())
        for name, summary in _offered(_plugins(ctx), self.before).items():
            rows.setdefault(name, summary)
        return dict(sorted(rows.items()))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return list(self.rows(ctx))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names.

        Raises:
            UnknownName: There is none; says what there is, what is near, and how to install what is missing.
        """
        command = self.get_command(ctx, args[0])
        if command is None and not ctx.resilient_parsing:
            asked, known = self.before + args[0], [self.before + name for name in self.rows(ctx)]
            raise UnknownName("command", asked, known, _plugins(ctx).hint("command", asked))
        return args[0] if command else None, command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``."""
        _, trouble = _invocation(ctx).lenient_host()
        if trouble:
            warn(f"plugins are shown as if there were no configuration: {trouble}")
        if rows := list(self.rows(ctx).items()):
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names and options that begin with `incomplete`."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - seldom needed

        names = [CompletionItem(n, help=s) for n, s in self.rows(ctx).items() if n.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def run(self, program: str, arguments: Sequence[str] | None, invocation: Invocation) -> None:
        """Run the program; unlike `main`, leave all errors to the caller.

        Args:
            program: Its name.
            arguments: Those of the command line; None for this process's own.
            invocation: For the commands.
        """
        if instruction := os.environ.get(f"_{program.upper()}_COMPLETE"):
            from click.shell_completion import shell_complete  # noqa: PLC0415 - seldom needed

            variable = f"_{program.upper()}_COMPLETE"
            raise click.exceptions.Exit(shell_complete(self, {"obj": invocation}, program, variable, instruction))
        given = list(sys.argv[1:] if arguments is None else arguments)
        with self.make_context(program, given, obj=invocation) as ctx:
            self.invoke(ctx)


def show_help(ctx: click.Context) -> None:
    """Print the help of a group that was called without a command."""
    click.echo(ctx.get_help(), color=ctx.color)


def _invocation(ctx: click.Context) -> Invocation:
    return ctx.ensure_object(Invocation)


def _plugins(ctx: click.Context) -> PluginHost:
    return _invocation(ctx).lenient_host()[0]


def _offered(host: PluginHost, before: str) -> dict[str, str]:
    """The commands of plugins whose names begin so: the next word, and a summary; of a group, what is in it."""
    groups: dict[str, list[str]] = {}
    for full in host.commands:
        if full.startswith(before):
            name, _, below = full.removeprefix(before).partition(" ")
            groups.setdefault(name, []).append(below)
    alone = {name: host.commands.get(before + name) for name in groups}
    inside = {name: f"Commands: {', '.join(sorted(words))}" for name, words in groups.items()}
    return {name: found.summary if found else inside[name] for name, found in alone.items()}


def _plugin_command(host: PluginHost, name: str) -> click.Command | None:
    """A plugin's command; or, where `name` is only the beginning of names, a group of these."""
    descriptor = host.commands.get(name)
    if descriptor is None:
        below = any(full.startswith(f"{name} ") for full in host.commands)
        return LazyGroup(name, prefix=name, help="Commands of plugins.") if below else None
    command = host.load_target(descriptor)
    if not isinstance(command, click.Command):
        raise PluginError(f"command {name!r}: {descriptor.target} is not a click command")
    return command


def _use_config(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        _invocation(ctx).use(value)


def _use_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click calls it
    if value:
        _invocation(ctx).debug = True


GLOBAL_OPTIONS: Final = (
    click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        callback=_use_config,
        expose_value=False,
        help="The configuration file, instead of $GLEITZEIT_CONFIG, ./gleitzeit.yaml or the user's own.",
    ),
    click.Option(
        ["--debug"],
        is_flag=True,
        callback=_use_debug,
        expose_value=False,
        help="Show where an error comes from; so does GLEITZEIT_DEBUG=1.",
    ),
)


def with_global_options(command: click.Command) -> click.Command:
    """`command` with the options that may stand before or after its name."""
    known = {option for param in command.params for option in param.opts}
    command.params.extend(option for option in GLOBAL_OPTIONS if known.isdisjoint(option.opts))
    return command
