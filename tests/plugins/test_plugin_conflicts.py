"""Names that two plugins want, and plugins that are disabled or needed."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.errors import PluginError
from gleitzeit_core.plugins import PluginHost

from .records import HUB, record, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Install = Callable[..., None]


# -- conflicts


def test_the_second_plugin_of_a_name_loses_it(install: Install) -> None:
    """It is not imported, and its reason names both providers with versions and says what to do."""
    install("good", "same_name")
    host = PluginHost.load()
    first, second = (it for it in host.records if it.name == "one")
    assert (first.distribution, first.status) == ("gz-one", "ok")
    assert (second.distribution, second.status) == ("gz-other", "conflict")
    assert "one (gz-one 1.0)" in second.reason
    assert "one (gz-other 1.0)" in second.reason
    assert "plugins: {disabled: [gz-other]}" in second.reason
    assert "gz_other" not in sys.modules


def test_a_conflict_of_plugin_names_is_settled_by_disabling_a_distribution(install: Install) -> None:
    """What the message says to do is enough."""
    install("good", "same_name")
    host = PluginHost.load(disabled=["gz-one"])
    assert [it.status for it in host.records if it.name == "one"] == ["disabled", "ok"]


def test_the_second_hub_type_of_a_name_loses_it_and_keeps_the_rest(install: Install) -> None:
    """The first by order has the name; both are named; the loser's other descriptors stay."""
    install("good", "same_hub")
    host = PluginHost.load()
    two = record(host, "two")
    assert two.status == "conflict"
    assert "hub type 'lamp'" in two.reason
    assert "one (gz-one 1.0), which keeps it" in two.reason
    assert "two (gz-two 1.0)" in two.reason
    assert "plugins: {disabled: [one]}" in two.reason
    assert [it.name for it in two.provides] == ["darkest"]
    assert host.hub_type("lamp").target == "gz_one_parts:LampHub"


def test_the_core_never_loses_a_name(install: Install) -> None:
    """Not to a distribution that comes before it in the alphabet; nor does it give its sections away."""
    install("takes_core")
    host = PluginHost.load()
    greedy = record(host, "greedy")
    assert greedy.status == "conflict"
    assert "strategy 'least_loaded'" in greedy.reason
    assert "section 'hubs' is the core's own" in greedy.reason
    assert host.strategy_type("least_loaded").target.startswith("gleitzeit_core.")
    assert not host.sections


def test_a_name_brought_twice_by_one_plugin(install: Install, tmp_path: Path) -> None:
    """The first is kept and the second reported."""
    install()
    host = PluginHost.load(
        files=[write(tmp_path, "twin", f"@hookimpl\ndef gleitzeit_register_hubs(): return [{HUB}, {HUB}]")]
    )
    assert record(host, "twin").status == "conflict"
    assert "brought twice" in record(host, "twin").reason
    assert set(host.hubs) == {"lamp"}


def test_one_module_is_one_plugin(install: Install, tmp_path: Path) -> None:
    """A second entry point for a module that is a plugin already is a conflict."""
    info = tmp_path / "alias" / "gz_zalias-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gz-zalias\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gleitzeit]\nzalias = gz_one\n")
    install("good", tmp_path / "alias")
    host = PluginHost.load()
    assert record(host, "zalias").status == "conflict"
    assert record(host, "zalias").reason == "the same module as plugin 'one'"
    assert record(host, "one").status == "ok"


# -- disabled ones


def test_a_disabled_plugin_is_not_even_imported(install: Install) -> None:
    """By its name, or by that of its distribution."""
    install("blocked", "good")
    for name in ("blocked", "gz-blocked"):
        host = PluginHost.load(disabled=[name])
        assert record(host, "blocked").status == "disabled"
        assert record(host, "one").status == "ok"
        assert "gz_blocked" not in sys.modules


def test_a_disabled_name_that_nothing_has_is_a_warning(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """With the nearest spelling; it stops nothing."""
    install("good")
    host = PluginHost.load(disabled=["onne"])
    assert host.unknown_disabled == ("onne",)
    host.warn()
    assert "'onne'" in caplog.text
    assert "did you mean 'one'?" in caplog.text


def test_every_broken_plugin_is_one_warning(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """A good or disabled one is none."""
    install("good", "broken", "blocked", "same_hub")
    with caplog.at_level(logging.WARNING):
        PluginHost.load(disabled=["blocked"]).warn()
    messages = [it.getMessage() for it in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("plugin broken (gz-broken 1.0) is failed: ModuleNotFoundError")
    assert messages[1].startswith("plugin two (gz-two 1.0) is conflict: ")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "broken is failed: ModuleNotFoundError"),
        ("blocked", "blocked is disabled: by plugins.disabled"),
        ("missing", "missing is not installed"),
    ],
)
def test_a_needed_plugin_that_is_not_well_stops_the_start(install: Install, name: str, reason: str) -> None:
    """With the reason; the others are as they were."""
    install("good", "broken", "blocked")
    with pytest.raises(PluginError, match=reason):
        PluginHost.load(disabled=["blocked"], needed=["one", name])


def test_needed_plugins_that_are_well_are_enough(install: Install) -> None:
    """A broken plugin that nobody needs does not matter; nor does another of the same name that lost it."""
    install("good", "broken", "same_name")
    PluginHost.load(needed=["one", "core"])
