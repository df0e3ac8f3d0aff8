"""Names that no plugin has, and targets that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.errors import PluginError, UnknownName
from gleitzeit_core.hookspecs import HubType, SectionType
from gleitzeit_core.plugins import WELL_KNOWN, PluginHost

from .records import record, write

if TYPE_CHECKING:
    from collections.abc import Callable

    Install = Callable[..., None]

ROOT = Path(__file__).parents[2]


def test_an_unknown_name_answers_with_the_nearest(install: Install) -> None:
    """And with what is installed."""
    install("good")
    with pytest.raises(UnknownName) as caught:
        PluginHost.load().hub_type("lmap")
    assert caught.value.message == "unknown hub type 'lmap'; installed: lamp; did you mean 'lamp'?"


@pytest.mark.parametrize(("kind", "name"), sorted(WELL_KNOWN))
def test_a_well_known_name_answers_with_its_install_line(install: Install, kind: str, name: str) -> None:
    """The paths in it exist in this repository."""
    install()
    hint = PluginHost.load().hint(kind, name)
    assert hint.startswith(f"{name!r} comes with pip install ./")
    assert hint.endswith(" from a checkout of Gleitzeit")
    for folder in WELL_KNOWN[kind, name]:
        assert f" ./{folder}" in hint
        assert (ROOT / folder / "pyproject.toml").is_file()


def test_a_misspelt_well_known_name_answers_with_its_install_line(install: Install) -> None:
    """As if it had been spelt right."""
    install()
    with pytest.raises(UnknownName, match=r"'ollama' comes with pip install \./plugins/gleitzeit-ollama"):
        PluginHost.load().hub_type("olama")


@pytest.mark.parametrize("name", ["broken", "future"])
def test_an_unknown_name_that_a_broken_plugin_is_likely_to_have_says_so(install: Install, name: str) -> None:
    """With the reason why that plugin is not there."""
    install("broken", "future")
    host = PluginHost.load()
    with pytest.raises(UnknownName) as caught:
        host.strategy_type(name)
    assert record(host, name).reason in caught.value.hint


def test_an_unknown_name_that_a_disabled_plugin_has_says_so(install: Install) -> None:
    """The well-known plugin is recognised by its distribution."""
    install("blocked")
    with pytest.raises(UnknownName, match=r"plugin blocked .* is disabled: by plugins.disabled"):
        PluginHost.load(disabled=["blocked"]).provider_type("blocked")


def test_an_unknown_name_that_nobody_has_says_no_more_than_that(install: Install) -> None:
    """No hint is better than a wrong one."""
    install()
    with pytest.raises(UnknownName) as caught:
        PluginHost.load().store_type("zzz")
    assert caught.value.hint == ""


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ("gz_none:Hub", "gz_none:Options", "ModuleNotFoundError: No module named 'gz_none'"),
        ("gz_one_parts:Nothing", "gz_one_parts:Nothing", "AttributeError: module 'gz_one_parts' has no attribute"),
        ("gz_one_parts:switch", "gz_one_parts:LampHub", "TypeError: not a "),
        ("gz_exits:Hub", "gz_exits:Options", "SystemExit: 3"),
    ],
)
def test_a_target_that_cannot_be_used_names_plugin_target_and_cause(
    install: Install, tmp_path: Path, target: str, options: str, reason: str
) -> None:
    """So for options."""
    install("good", "exits")
    body = (
        "@hookimpl\ndef gleitzeit_register_hubs():\n"
        f'    return [HubType(name="odd", target="{target}", options="{options}", summary="")]'
    )
    host = PluginHost.load(files=[write(tmp_path, "odd", body)])
    for load, text in ((host.load_target, target), (host.load_options, options)):
        with pytest.raises(PluginError) as caught:
            load(host.hub_type("odd"))
        assert caught.value.message.startswith("plugin odd (file ")
        assert f"hub type 'odd': {text}: {reason}" in caught.value.message


def test_a_descriptor_from_elsewhere_is_refused_all_the_same() -> None:
    """The host may be asked for one that no plugin brought."""
    host = PluginHost.load()
    with pytest.raises(PluginError, match="No module named 'gz_none'"):
        host.load_target(HubType(name="x", target="gz_none:X", options="gz_none:X", summary=""))
    with pytest.raises(PluginError, match="not of the form module:Name"):
        host.load_options(SectionType(name="x", options="nothing", summary=""))
