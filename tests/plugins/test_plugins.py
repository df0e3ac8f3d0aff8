"""Plugins that are well: what they bring, and those that are a single file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.plugins import PluginHost

from .records import record, write

if TYPE_CHECKING:
    from collections.abc import Callable

    Install = Callable[..., None]

FAKES = Path(__file__).parents[1] / "fake_distributions"


# -- good ones


def test_a_good_plugin_brings_all_it_offers(install: Install) -> None:
    """Every kind of descriptor is found by its name, and the record names plugin, distribution and version."""
    install("good")
    host = PluginHost.load()
    one = record(host, "one")
    assert (one.status, one.reason, one.distribution, one.version) == ("ok", "", "gz-one", "1.0")
    assert [it.name for it in one.provides].count("lamp") == 1
    assert len(one.provides) == 7
    assert host.hub_type("lamp") is host.hubs["lamp"]
    assert host.provider_type("light") is host.providers["light"]
    assert host.strategy_type("brightest") is host.strategies["brightest"]
    assert host.store_type("drawer") is host.stores["drawer"]
    assert set(host.commands) == {"switch", "lamps list"}
    assert set(host.sections) == {"mains"}
    assert repr(host) == "<PluginHost 2 ok>"


def test_the_core_brings_its_strategies_and_store_through_the_same_door(install: Install) -> None:
    """Without any other plugin there are the core's strategies and the memory store, and no hubs."""
    install()
    host = PluginHost.load()
    assert [it.name for it in host.records] == ["core"]
    assert {"least_loaded", "round_robin", "random"} <= set(host.strategies)
    assert set(host.stores) == {"memory"}
    assert not host.hubs


def test_targets_are_imported_only_when_asked_for(install: Install) -> None:
    """Loading the host does not import what descriptors point at; `load_target` and `load_options` do."""
    install("good")
    host = PluginHost.load()
    assert "gz_one_parts" not in sys.modules
    assert host.load_target(host.hub_type("lamp")).__name__ == "LampHub"
    assert host.load_options(host.hub_type("lamp")).__name__ == "LampOptions"
    assert host.load_options(host.sections["mains"]).__name__ == "Mains"
    assert host.load_target(host.commands["switch"]) == "a command"


def test_plugins_stand_in_the_order_of_their_distributions_and_the_core_first(install: Install) -> None:
    """The order does not depend on that of `sys.path`."""
    install("good", "takes_core", "same_hub")
    names = [it.name for it in PluginHost.load().records]
    assert names == ["core", "greedy", "one", "two"]


def test_a_distribution_that_is_on_the_path_twice_is_one(install: Install, tmp_path: Path) -> None:
    """The second copy is neither a second plugin nor a conflict."""
    shutil.copytree(FAKES / "good", tmp_path / "copy")
    old, new = tmp_path / "copy" / "gz_one-1.0.dist-info", tmp_path / "copy" / "gz_one-0.9.dist-info"
    old.rename(new)
    (new / "METADATA").write_text((new / "METADATA").read_text().replace("1.0", "0.9"))
    install(tmp_path / "copy", "good")
    one = record(PluginHost.load(), "one")
    assert (one.status, one.version) == ("ok", "1.0")


def test_loading_the_host_imports_no_sdk() -> None:
    """With all that is installed here, no vendor's SDK nor HTTP library is imported by loading the host."""
    code = (
        "import json, sys; from gleitzeit_core.plugins import PluginHost; host = PluginHost.load(); "
        "heavy = {'docker', 'boto3', 'kubernetes', 'aiohttp', 'sqlalchemy', 'xllamacpp'} & set(sys.modules); "
        "print(json.dumps([sorted(heavy), [r.name for r in host.records]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, names = json.loads(done.stdout)
    assert heavy == []
    assert "core" in names


# -- single files


def test_a_single_file_is_a_plugin(install: Install, tmp_path: Path) -> None:
    """Its hub's target is in the same file; its record says where it is."""
    install()
    body = (
        "from pydantic import BaseModel\nclass Options(BaseModel): ...\nclass Hub: ...\n"
        "@hookimpl\ndef gleitzeit_register_hubs():\n"
        '    return [HubType(name="mine", target=f"{__name__}:Hub", options=f"{__name__}:Options", summary="")]\n'
    )
    path = write(tmp_path, "my-hub", body)
    host = PluginHost.load(files=[path, path])
    mine = record(host, "my-hub")
    assert (mine.status, mine.distribution, mine.version, mine.source) == ("ok", "file", "", str(path))
    assert host.load_target(host.hub_type("mine")).__name__ == "Hub"
    assert host.load_options(host.hub_type("mine")).__name__ == "Options"


def test_two_files_of_one_name_are_a_conflict(install: Install, tmp_path: Path) -> None:
    """The reason tells them apart by path."""
    install()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    files = [write(tmp_path / "a", "mine", ""), write(tmp_path / "b", "mine", "")]
    first, second = PluginHost.load(files=files).records[1:]
    assert (first.status, second.status) == ("ok", "conflict")
    assert str(files[0]) in second.reason
    assert str(files[1]) in second.reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.py", None, "FileNotFoundError: no such file"),
        ("plugin.txt", "", "ImportError: not a Python file"),
        ("boom.py", "raise RuntimeError('boom')", "RuntimeError: boom"),
        ("quits.py", "raise SystemExit('bye')", "SystemExit: bye"),
        ("nul.py", "\0", "null bytes"),
    ],
)
def test_a_broken_file_is_a_row(install: Install, tmp_path: Path, name: str, content: str | None, reason: str) -> None:
    """It stays in no table and not in `sys.modules`, and the others are as they were."""
    install("good")
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    before = set(sys.modules)
    host = PluginHost.load(files=[path])
    assert host.records[-1].status == "failed"
    assert reason in host.records[-1].reason
    assert not [it for it in set(sys.modules) - before if it.startswith("gleitzeit_file_")]
    assert record(host, "one").status == "ok"
