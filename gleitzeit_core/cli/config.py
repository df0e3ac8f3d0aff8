"""``gleitzeit config``: check it, show what it comes to, and its schema."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click
import yaml

from gleitzeit_core.cli.commands import Command, LazyGroup, show_help
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.output import write, write_json
from gleitzeit_core.cli.views import configuration_schema, show_configuration
from gleitzeit_core.errors import ConfigurationError

if TYPE_CHECKING:
    from gleitzeit_core.config import Configuration, RouteSection

_WRONG: Final = 2


@click.group(
    cls=LazyGroup,
    prefix="config",
    invoke_without_command=True,
    examples=("gleitzeit config check", "gleitzeit config show --config ./other.yaml"),
)
@click.pass_context
def config(ctx: click.Context) -> None:
    """Check and show the configuration.

    It is the file named by --config, else by $GLEITZEIT_CONFIG, else ./gleitzeit.yaml, else gleitzeit/gleitzeit.yaml in
    the user's configuration directory. Variables such as GLEITZEIT_GATEWAY__PORT=9000 go before it.
    """
    if ctx.invoked_subcommand is None:
        show_help(ctx)


@config.command(
    cls=Command,
    examples=("gleitzeit config check", "gleitzeit config check --json | jq -r '.problems[].path'"),
)
@click.option("--json", "as_json", is_flag=True, help="Print ok, file and problems (path, message, suggestion, place).")
@pass_invocation
def check(invocation: Invocation, *, as_json: bool) -> None:
    """Check everything, and list all that is wrong at once.

    Each problem is shown with where it stands, its path, what is wrong and what to do. The exit status is 2 if there
    is one.
    """
    try:
        found = invocation.configuration()
    except ConfigurationError as error:
        if not as_json:
            raise
        write_json({"ok": False, "file": None, "problems": [asdict(problem) for problem in error.problems]})
        raise click.exceptions.Exit(_WRONG) from None
    if as_json:
        write_json({"ok": True, "file": str(found.source) if found.source else None, "problems": []})
    else:
        write(_verdict(found))


def _verdict(found: Configuration) -> str:
    what = f"{found.source} is right" if found.source else "there is no configuration file; the defaults are right"
    hubs = ", ".join(found.hubs) or ("none" if found.explicit_hubs else "what is found")
    return f"{what}: hubs: {hubs}; routes: {len(found.routes)}; store: {found.store.type.name}"


@config.command(cls=Command, examples=("gleitzeit config show", "gleitzeit config show --json | jq .gateway"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
@pass_invocation
def show(invocation: Invocation, *, as_json: bool) -> None:
    """Show the values in effect, defaults included, with *** for secrets.

    Comments at its end say which strategies of a route are filters, and which one picks.
    """
    configuration = invocation.configuration()
    found = show_configuration(configuration)
    if as_json:
        write_json(found)
        return
    chains = [f"# {route.name}: {_chain(route)}\n" for route in configuration.routes if route.filters]
    write(yaml.safe_dump(found, sort_keys=False, allow_unicode=True) + "".join(chains), end="")


def _chain(route: RouteSection) -> str:
    filters = " -> ".join(one.type.name for one in route.filters)
    return f"filters {filters}, then {route.strategy.type.name}"


@config.command(cls=Command, examples=("gleitzeit config schema > gleitzeit.schema.json",))
@pass_invocation
def schema(invocation: Invocation) -> None:
    """Print the JSON schema of what is installed, for editors and other programs."""
    write_json(configuration_schema(invocation.host()))
