"""Plugins that tests write, and what the host records of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from gleitzeit_core.plugin_discovery import PluginRecord
    from gleitzeit_core.plugins import PluginHost

HUB = 'HubType(name="lamp", target="gz_x:Hub", options="gz_x:Options", summary="")'


def record(host: PluginHost, name: str) -> PluginRecord:
    """The one plugin of that name."""
    (found,) = [it for it in host.records if it.name == name]
    return found


def write(folder: Path, name: str, body: str) -> Path:
    """A single-file plugin."""
    path = folder / f"{name}.py"
    path.write_text(f"from gleitzeit_core.hookspecs import *\nfrom gleitzeit_core.hookspecs import hookimpl\n{body}")
    return path
