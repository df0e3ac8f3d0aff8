"""A section of the configuration, and a command that goes on with new options when the file is read again.

    plugins: {files: [./greeter.py]}
    greeter: {words: hello}

Then `gleitzeit greet` says hello every second, and something else after SIGHUP if the file says so by then.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import click
from pydantic import BaseModel, ConfigDict

from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.errors import GleitzeitError
from gleitzeit_core.hookspecs import CommandType, SectionType, hookimpl

if TYPE_CHECKING:
    from gleitzeit_core.manager import ResourceManager


class GreeterOptions(BaseModel):
    """The section ``greeter``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: str = "hello"
    every_s: float = 1.0


class Greeter:
    """Has something to say, for as long as the manager runs."""

    def __init__(self, manager: ResourceManager) -> None:
        self._manager = manager
        self.options: GreeterOptions = manager.config.sections["greeter"]  # type: ignore[assignment]  # the model above
        manager.on_reload("greeter", self.reconfigure, fixed=["every_s"])

    def reconfigure(self, options: GreeterOptions) -> str:
        """The file says something else. Raise to refuse it; what is returned is a note for people."""
        self.options = options
        return "from the next greeting on"

    async def run(self) -> None:
        """Until it is cancelled."""
        hung_up = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
        while True:
            click.echo(self.options.words)
            await asyncio.sleep(self.options.every_s)
            if hung_up.is_set():
                hung_up.clear()
                try:
                    await self._manager.reload()
                except GleitzeitError as error:  # nothing has changed
                    click.echo(error.message, err=True)


@click.command()
@pass_invocation
def greet(invocation: Invocation) -> None:
    """Say something, again and again."""

    async def run() -> None:
        async with invocation.manager({}) as manager:
            await Greeter(manager).run()

    asyncio.run(run())


@hookimpl
def gleitzeit_register_sections() -> list[SectionType]:
    """The section."""
    return [SectionType(name="greeter", options=f"{__name__}:GreeterOptions", summary="what is said, and how often")]


@hookimpl
def gleitzeit_register_commands() -> list[CommandType]:
    """The command."""
    return [CommandType(name="greet", target=f"{__name__}:greet", summary="Say something, again and again.")]
