"""One run of the program: its global options, and what is read at most once.

A plugin's command gets it with a decorator:

    @click.command()
    @pass_invocation
    def serve(invocation: Invocation) -> None:
        manager = invocation.manager({"gateway": {"port": 9000}})
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from gleitzeit_core.errors import GleitzeitError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gleitzeit_core.config import Configuration
    from gleitzeit_core.config_reading import RawConfiguration
    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.plugins import PluginHost


class Invocation:
    """What ``--config`` and ``--debug`` said, and what follows from it. Nothing is read before it is asked for.

    Args:
        config_path: The configuration file; None to look at the usual places.
        debug: Whether errors show where they come from.
    """

    def __init__(self, config_path: Path | None = None, *, debug: bool = False) -> None:
        self.config_path = config_path
        self.debug = debug or os.environ.get("GLEITZEIT_DEBUG", "") not in ("", "0")
        self._raw: RawConfiguration | None = None
        self._host: PluginHost | None = None
        self._lenient: tuple[PluginHost, str] | None = None

    def use(self, config_path: Path) -> None:
        """Take this file, and forget what was read from another."""
        if config_path != self.config_path:
            self.config_path, self._raw, self._host, self._lenient = config_path, None, None, None

    def raw(self) -> RawConfiguration:
        """File and environment, merged but not checked.

        Raises:
            ConfigurationError: The file is not there, or is no YAML.
        """
        if self._raw is None:
            self._raw = self._read({})
        return self._raw

    def host(self) -> PluginHost:
        """The plugins, but for those that the configuration disables.

        Raises:
            ConfigurationError: As `raw`.
        """
        if self._host is None:
            self._host = _load_plugins(self.raw())
        return self._host

    def lenient_host(self) -> tuple[PluginHost, str]:
        """The plugins, whatever the configuration is like, and why it was left out, if it was.

        For finding commands: one that reads the configuration reports what is wrong with it, and others need none.
        """
        if self._lenient is None:
            self._lenient = self._load_leniently()
        return self._lenient

    def _load_leniently(self) -> tuple[PluginHost, str]:
        try:
            return self.host(), ""
        except GleitzeitError as error:
            from gleitzeit_core.plugins import PluginHost  # noqa: PLC0415 - slow

            return PluginHost.load(), error.message

    def configuration(self, overrides: Mapping[str, Any] | None = None) -> Configuration:
        """The configuration, checked.

        Args:
            overrides: Flags, nested as in a file; one that is None was not given.

        Raises:
            ConfigurationError: With everything that is wrong.
        """
        from gleitzeit_core.config import check_configuration  # noqa: PLC0415 - slow

        return check_configuration(self._read(overrides) if overrides else self.raw(), self.host())

    def manager(self, overrides: Mapping[str, Any] | None = None) -> ResourceManager:
        """A manager for the configuration, not started. Plugins that are broken are logged as warnings.

        Raises:
            ConfigurationError: As `configuration`.
        """
        from gleitzeit_core.manager import ResourceManager  # noqa: PLC0415 - slow

        configuration = self.configuration(overrides)
        self.host().warn()
        return ResourceManager(configuration, self.host())

    def _read(self, overrides: Mapping[str, Any]) -> RawConfiguration:
        from gleitzeit_core.config_reading import find_configuration, read_configuration  # noqa: PLC0415 - slow

        return read_configuration(find_configuration(self.config_path, os.environ), overrides=overrides)


def _load_plugins(raw: RawConfiguration) -> PluginHost:
    from gleitzeit_core.plugins import PluginHost  # noqa: PLC0415 - slow

    return PluginHost.load(disabled=raw.plugins.disabled, files=raw.plugins.files)


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)
"""Gives a command the `Invocation` as its first argument."""
