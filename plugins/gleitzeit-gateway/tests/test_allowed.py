"""Hosts and origins that are allowed: entries that could never match are refused, with their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.config import check_configuration, read_configuration
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_core.plugins import PluginHost
from gleitzeit_gateway.access import Access
from gleitzeit_gateway.options import GatewayOptions

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["gpu1", "gpu1.lan", "my_host", "192.0.2.7", "2001:db8::1", "[2001:db8::1]", "Gpu1"])
def test_hosts_that_match(name: str) -> None:
    """What may stand there is answered, with any port."""
    options = GatewayOptions(allowed_hosts=[name])
    asked = f"[{name.strip('[]')}]" if ":" in name else name
    assert Access(options).host_allowed(f"{asked}:8484")


@pytest.mark.parametrize(
    "origin",
    [
        *("https://app.example", "http://gpu1:3000", "https://app.example/", "HTTPS://App.Example", "null"),
        *("http://[2001:db8::1]:3000", "chrome-extension://abcdef", "http://app.example:443"),
    ],
)
def test_origins_that_match(origin: str) -> None:
    """What may stand there is what a browser sends."""
    assert Access(GatewayOptions(allowed_origins=[origin])).origin_allowed(origin.rstrip("/").lower())


@pytest.mark.parametrize(
    ("key", "entry", "words"),
    [
        ("hosts", "http://gpu1/", "write 'gpu1'"),
        ("hosts", "gpu1:8484", "write 'gpu1'"),
        ("hosts", "gpu1/api", "write 'gpu1'"),
        ("hosts", "*.lan", "'*' stands alone"),
        ("hosts", "", "is no name of a host"),
        ("hosts", "gpu 1", "is no name of a host"),
        ("hosts", "http://[", "is no name of a host"),
        ("hosts", "gpu1.", "is no name of a host"),
        ("origins", "app.example", "write 'https://app.example'"),
        ("origins", "https://app.example/chat?x=1", "write 'https://app.example'"),
        ("origins", "https://me@app.example", "write 'https://app.example'"),
        ("origins", "https://app.example:443", "leave out the usual port of https: write 'https://app.example'"),
        ("origins", "https://*.example", "'*' stands alone"),
        ("origins", "", "is no origin"),
        ("origins", "not an origin", "is no origin"),
        ("origins", "https://[", "is no origin"),
    ],
)
def test_entries_that_never_match(tmp_path: Path, key: str, entry: str, words: str) -> None:
    """Each is told with its line, and what to write, where that can be known."""
    file = tmp_path / "gleitzeit.yaml"
    file.write_text(f"gateway:\n  allowed_{key}:\n    - '*'\n    - '{entry}'\n")
    with pytest.raises(ConfigurationError) as caught:
        check_configuration(read_configuration(file, environ={}), PluginHost.load())
    (problem,) = caught.value.problems
    assert problem.path == f"gateway.allowed_{key}[1]"
    assert problem.place == f"{file}:4"
    assert words in problem.message
    assert repr(entry) in problem.message or "usual port" in problem.message
