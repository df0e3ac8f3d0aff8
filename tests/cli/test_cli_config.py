from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from gleitzeit_core.cli.options import fields_of
from gleitzeit_core.cli.views import configuration_schema
from gleitzeit_core.config import RouteOptions
from gleitzeit_core.plugins import PluginHost

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended

    Cli = Callable[..., Ended]
    Install = Callable[..., None]

FIVE_MISTAKES = """\
plugins: {disabled: core}
hubs:
  hall: {type: lmap}
  attic: {type: lamp, min_idle: 99}
routes:
  - {methods: ["light/*"], hubs: [hal], strategy: brightest}
mains: {prot: 80}
"""


@pytest.fixture(autouse=True)
def lamps(install: Install) -> None:
    """The core, and a plugin that brings one of each kind."""
    install("good")


# -- check


def test_all_mistakes_are_listed_at_once(cli: Cli, tmp_path: Path) -> None:
    """Each with its place, path, what is wrong and what to do; the status is 2."""
    (tmp_path / "gleitzeit.yaml").write_text(FIVE_MISTAKES)
    ended = cli("config", "check")
    assert (ended.status, ended.out) == (2, "")
    first, *rest = ended.err.splitlines()
    assert first == "Error: configuration: 5 problems"
    assert sorted(line.split(": ")[1] for line in rest) == [
        "hubs.attic.min_idle",
        "hubs.hall.type",
        "mains.prot",
        "plugins.disabled",
        "routes[0].hubs[0]",
    ]
    assert any("gleitzeit.yaml:3: hubs.hall.type" in line and "did you mean 'lamp'?" in line for line in rest)


def test_mistakes_for_programs(cli: Cli, tmp_path: Path) -> None:
    """With `--json`, the same as data; the status stays."""
    (tmp_path / "gleitzeit.yaml").write_text(FIVE_MISTAKES)
    ended = cli("config", "check", "--json")
    found = ended.json()
    assert (ended.status, found["ok"], len(found["problems"]), ended.err) == (2, False, 5, "")
    assert {frozenset(problem) for problem in found["problems"]} == {
        frozenset({"path", "message", "suggestion", "place"})
    }


def test_a_right_configuration_is_told_so(cli: Cli, tmp_path: Path) -> None:
    """With the file and what it comes to, so that nobody checks the wrong one."""
    assert cli("config", "check").out.startswith("there is no configuration file; the defaults are right")
    (tmp_path / "other.yaml").write_text("hubs: {hall: {type: lamp}}\n")
    ended = cli("config", "check", "--config", "other.yaml")
    assert (ended.status, ended.out) == (0, "other.yaml is right: hubs: hall; routes: 1; store: memory\n")
    assert cli("config", "check", "--config", "other.yaml", "--json").json() == {
        "ok": True,
        "file": "other.yaml",
        "problems": [],
    }


@pytest.mark.parametrize("command", [["config", "show"], ["run", "light/on"], ["models"], ["chat", "-m", "x", "hi"]])
def test_a_wrong_configuration_ends_every_command_that_needs_it(cli: Cli, tmp_path: Path, command: list[str]) -> None:
    """With all problems, and the status 2."""
    (tmp_path / "gleitzeit.yaml").write_text(FIVE_MISTAKES + "gateway: {port: 1}")
    ended = cli(*command)
    assert ended.status == 2
    assert "configuration: 6 problems" in ended.err


# -- show and schema


def test_show_prints_what_is_in_effect(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults, file and environment together, as YAML that can be read again, and as JSON."""
    (tmp_path / "gleitzeit.yaml").write_text("hubs: {hall: {type: lamp, discover: true}}\n")
    monkeypatch.setenv("GLEITZEIT_MAINS__PORT", "99")
    shown: dict[str, Any] = yaml.safe_load(cli("config", "show").out)
    assert shown == cli("config", "show", "--json").json()
    assert shown["hubs"]["hall"]["discover"] is True
    assert shown["mains"]["port"] == 99
    assert list(shown) == ["plugins", "hubs", "providers", "routes", "store", "mains"]


def test_show_shows_no_secret(cli: Cli, tmp_path: Path) -> None:
    """Keys and passwords are masked in both forms."""
    (tmp_path / "gleitzeit.yaml").write_text(
        "hubs: {hall: {type: lamp, api_key: hush-hush, instances: ['http://me:hush-hush@lamp']}}\n"
        "mains: {keys: [hush-hush]}\n"
    )
    for arguments in (["config", "show"], ["config", "show", "--json"]):
        ended = cli(*arguments)
        assert ended.status == 0
        assert "hush" not in ended.out
        assert "***" in ended.out


def test_schema_is_that_of_what_is_installed(cli: Cli) -> None:
    """It is JSON schema, with the sections and hub types of plugins."""
    schema = cli("config", "schema").json()
    assert schema == json.loads(json.dumps(configuration_schema(PluginHost.load())))
    assert set(schema["properties"]) == {"plugins", "hubs", "providers", "routes", "store", "mains"}


def test_config_alone_shows_its_help(cli: Cli) -> None:
    """`gleitzeit config` lists its commands."""
    assert cli("config").out == cli("config", "--help").out


# -- init


def settings_uncommented(text: str) -> str:
    """The configuration with every setting that has a default uncommented."""
    lines = [line.removeprefix("# ") for line in text.splitlines()]
    return "\n".join(line for line in lines if "CHANGE-ME" not in line)


def test_init_writes_a_configuration_that_is_right_and_changes_nothing(cli: Cli, tmp_path: Path) -> None:
    """As written it passes the check, and shows the same values as no configuration at all."""
    before = cli("config", "show").out
    ended = cli("init")
    assert (ended.status, ended.out) == (0, "")
    assert ended.err == "wrote gleitzeit.yaml; when you have changed it, check it with 'gleitzeit config check'\n"
    assert (tmp_path / "gleitzeit.yaml").is_file()
    assert cli("config", "check").status == 0
    assert cli("config", "show").out == before


def test_init_with_every_setting_uncommented_is_right(cli: Cli, tmp_path: Path) -> None:
    """Each setting in it is valid where it stands, and the default."""
    text = settings_uncommented(cli("init", "--output", "-").out)
    (tmp_path / "gleitzeit.yaml").write_text(text)
    ended = cli("config", "check")
    assert (ended.status, ended.err) == (0, "")
    data = yaml.safe_load(text)
    host = PluginHost.load()
    lamp, mains = (host.load_options(kind)().model_dump() for kind in (host.hubs["lamp"], host.sections["mains"]))
    assert data["hubs"] == {"my-lamp": {"type": "lamp", **lamp}}
    assert data["mains"] == mains
    assert data["routes"] == [
        {
            "methods": ["*"],
            "strategy": "least_loaded",
            "max_queue": 256,
            "timeout_s": 600.0,
            "max_tries": 3,
            "shed_from": 0.8,
            "hedge": False,
            "shares": [],
        }
    ]


def test_init_covers_every_section_and_option(cli: Cli) -> None:
    """Whatever may stand in a configuration stands in what `init` writes."""
    text = cli("init", "--output", "-").out
    host = PluginHost.load()
    for section in ("plugins", "hubs", "providers", "routes", "store", *host.sections):
        assert f"\n{section}:" in text or f"\n# {section}:" in text, section
    kinds = [*host.hubs.values(), *host.providers.values(), *host.stores.values(), *host.sections.values()]
    for kind in kinds:
        for option in fields_of(host.load_options(kind)):
            assert f" {option.name} ({option.takes}" in text, f"{kind.name}.{option.name}"
    assert all(f" {option.name} " in text for option in fields_of(RouteOptions))
    assert "##       colour ('red' or 'white', white)" in text
    assert "weight (number, 1.0)" in text


def test_init_without_any_hub_says_how_to_get_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no hub type is installed, the well-known ones are named with how to install them."""
    monkeypatch.setenv("GLEITZEIT_PLUGINS__DISABLED", "[one]")
    text = cli("init", "--output", "-").out
    assert "## For type ollama: pip install ./plugins/gleitzeit-ollama ./plugins/gleitzeit-llm\n" in text
    assert "\n# hubs:" not in text
    assert yaml.safe_load(text)["providers"] is None


def test_init_leaves_out_options_that_cannot_be_loaded(cli: Cli, tmp_path: Path) -> None:
    """A broken plugin costs only its own options."""
    (tmp_path / "bad.py").write_text(
        "from gleitzeit_core.hookspecs import HubType, hookimpl\n\n\n@hookimpl\ndef gleitzeit_register_hubs():\n"
        "    return [HubType(name='bad', target='gone:Hub', options='gone:Options', summary='Broken.')]\n"
    )
    (tmp_path / "gleitzeit.yaml").write_text("plugins: {files: [./bad.py]}\n")
    text = cli("init", "--output", "-").out
    assert "#   my-bad:\n#     type: bad\n\n## providers" in text
    assert "#   my-lamp:\n#     type: lamp\n##     instances" in text


NEEDY = """
from pydantic import BaseModel, Field
from gleitzeit_core.hookspecs import HubType, SectionType, hookimpl

class Wire(BaseModel):
    url: str
    metres: float = 1.0

class Needy(BaseModel):
    wires: list[Wire] = Field(description="The wires.")
    plug: Wire
    name: str
    amps: int = Field(default=16, examples=[32])

@hookimpl
def gleitzeit_register_sections():
    return [SectionType(name="needy", options=f"{__name__}:Needy", summary="Needs much.")]
"""


def test_init_shows_what_must_be_filled_in(cli: Cli, tmp_path: Path) -> None:
    """An option without a default stands there in its shape, with what is required; an author's example goes before."""
    (tmp_path / "needy.py").write_text(NEEDY)
    (tmp_path / "gleitzeit.yaml").write_text("plugins: {files: [./needy.py]}\n")
    text = cli("init", "--output", "-").out
    assert (
        "## needy: Needs much.\nneedy:\n"
        "##   wires (list of mapping, required): The wires.\n"
        "##     url (text, required)\n"
        "##     metres (number, 1.0)\n"
        "#   wires: [{url: CHANGE-ME}]\n"
    ) in text
    assert "#   plug: {url: CHANGE-ME}\n" in text
    assert "#   name: CHANGE-ME\n" in text
    assert "#   amps: 32\n" in text


def test_init_replaces_nothing_unasked(cli: Cli, tmp_path: Path) -> None:
    """A file that is there stays, unless `--force` is given; nothing else is left behind."""
    path = tmp_path / "gleitzeit.yaml"
    path.write_text("# mine\n")
    ended = cli("init")
    assert (ended.status, path.read_text()) == (2, "# mine\n")
    assert ended.err.startswith("Error: gleitzeit.yaml is there already; --force replaces it\n")
    assert cli("init", "--force").status == 0
    assert path.read_text().startswith("## The configuration of Gleitzeit")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["core", "gleitzeit.yaml", "home"]


@pytest.mark.parametrize(
    ("output", "message"),
    [("home", "home is a folder; name a file in it"), ("no/such.yaml", "there is no folder no"), ("", ". is a folder")],
)
def test_init_where_nothing_can_be_written(cli: Cli, output: str, message: str) -> None:
    """Called wrongly, and told how."""
    ended = cli("init", "--output", output)
    assert ended.status == 2
    assert message in ended.err


def test_init_that_fails_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    """A name that the file system refuses is an error in one sentence."""
    name = "x" * 250 + ".yaml"
    ended = cli("init", "--output", name)
    assert (ended.status, ended.err) == (1, f"Error: {name} cannot be written: File name too long\n")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["core", "home"]


def test_init_follows_a_home(cli: Cli, tmp_path: Path) -> None:
    """`~` is the user's own folder, also where no shell replaces it; the remark says how to check that file."""
    ended = cli("init", "--output", "~/mine.yaml")
    assert (tmp_path / "home/mine.yaml").is_file()
    assert f"gleitzeit config check --config {tmp_path}/home/mine.yaml" in ended.err
