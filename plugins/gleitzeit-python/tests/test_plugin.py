"""What the distribution adds, and that looking at it imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

from gleitzeit_core.plugins import PluginHost
from gleitzeit_python.options import PythonOptions
from gleitzeit_python.provider import PythonProvider


def test_is_found() -> None:
    """The protocol and the command."""
    host = PluginHost.load()
    assert host.load_target(host.provider_type("python")) is PythonProvider
    assert host.load_options(host.provider_type("python")) is PythonOptions
    assert host.commands["python"].summary


def test_all_methods_must_be_allowed_one_by_one() -> None:
    """Through a gateway none of them is there unless its configuration says so; code that may have run is not run again."""
    assert all(method.restricted for method in PythonProvider.methods)
    replayable = {method.name: method.replayable for method in PythonProvider.methods}
    assert replayable["python/execute"] is False


def test_registering_is_light() -> None:
    """Neither the provider nor pydantic's models are imported by it."""
    code = "import sys, gleitzeit_python.plugin; print('gleitzeit_python.provider' in sys.modules, 'gleitzeit_python.schemas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
