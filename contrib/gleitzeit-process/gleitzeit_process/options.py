"""Options of the hub type `process`. Without heavy imports: a configuration is checked before anything starts."""

from __future__ import annotations

import sys

from pydantic import Field

from gleitzeit_core.hub import HubOptions
from gleitzeit_core.supply_options import SupplyOptions
from gleitzeit_python.schemas import Environment, Limits


class ProcessOptions(SupplyOptions, HubOptions):
    """Options of the hub type `process`: child processes that run Python. No sandbox: for code you trust."""

    python: str = Field(default=sys.executable, min_length=1, description="The interpreter, 3.8 or newer.")
    reuse: bool = Field(
        default=True,
        description="Use a process again, as its code is trusted. false: only where it has a user of its own "
        "(`first_user`), so that it can be made sure that nothing is left of the code before.",
    )
    first_user: int | None = Field(
        default=None,
        ge=1000,
        description="For root: the code runs as this user, that of the second process as the next one, and so on. "
        "Nobody else may have these, for what they own in /tmp and the like is removed. null: as who runs Gleitzeit.",
    )
    environment: Environment = Field(
        default={}, description="What the code has in its environment; nothing else of Gleitzeit's own is."
    )
    directory: str = Field(default="", description="Where working directories are made; empty: with temporary files.")
    preload: list[str] = Field(default=[], description="Modules that forked interpreters have imported already.")
    limits: Limits = Field(default=Limits(), description="Of every run; a request can only ask for less.")
