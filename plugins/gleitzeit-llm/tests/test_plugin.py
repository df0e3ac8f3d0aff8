"""What this distribution tells the plugin host."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from gleitzeit_core.plugins import PluginHost
from gleitzeit_llm.options import LLMOptions
from gleitzeit_llm.plugin import gleitzeit_register_providers
from gleitzeit_llm.provider import LLMProvider


def test_it_registers_the_protocol() -> None:
    """The host finds the provider and its options where the descriptor says."""
    host = PluginHost.load()
    kind = host.providers["llm"]
    assert kind == gleitzeit_register_providers()[0]
    assert host.load_options(kind) is LLMOptions
    assert host.load_target(kind) is LLMProvider


def test_the_plugin_and_its_options_load_nothing_heavy() -> None:
    """Listing plugins and checking a configuration need neither an HTTP client nor the dialects."""
    code = (
        "import sys, gleitzeit_llm.plugin, gleitzeit_llm.options\n"
        "print([name for name in sys.modules if name.startswith(('aiohttp', 'msgspec', 'gleitzeit_llm.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['gleitzeit_llm.plugin', 'gleitzeit_llm.options']"


@pytest.mark.parametrize("value", [0, -1, "soon", None])
def test_a_wrong_connect_timeout_is_refused(value: object) -> None:
    """It must be above zero."""
    with pytest.raises(ValidationError):
        LLMOptions.model_validate({"connect_timeout_s": value})


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_connect_timeout_must_be_finite(value: str) -> None:
    """A server that never accepts a connection is down some day."""
    with pytest.raises(ValidationError):
        LLMOptions.model_validate({"connect_timeout_s": float(value)})


def test_unknown_options_are_refused() -> None:
    """A misspelt one is not ignored."""
    with pytest.raises(ValidationError):
        LLMOptions.model_validate({"connect_timeout": 1})
