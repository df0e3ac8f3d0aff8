"""The files for systemd and compose are held to the program: what they name is there, and what they configure is right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from click.testing import CliRunner

from gleitzeit_core.cli.app import root
from gleitzeit_core.config import check_configuration, read_configuration
from gleitzeit_core.plugins import PluginHost
from gleitzeit_gateway.options import GatewayOptions

if TYPE_CHECKING:
    from gleitzeit_core.config import Configuration

TREE = Path(__file__).parents[2]
HERE = TREE / "docs/examples/deploy"
UNIT = (HERE / "gleitzeit.service").read_text()
COMPOSE = yaml.safe_load((HERE / "compose.yaml").read_text())


def configured(folder: Path) -> Configuration:
    """The example's configuration, with the secret in `folder`."""
    (folder / "alice").write_text("a-key-of-many-characters\n")
    file = folder / "gleitzeit.yaml"
    file.write_text((HERE / "gleitzeit.yaml").read_text().replace("/run/secrets", str(folder)))
    return check_configuration(read_configuration(file, environ={}), PluginHost.load())


def test_the_configuration_is_right(tmp_path: Path) -> None:
    """It listens beyond loopback, with the key from the secret, and names the servers of the compose file."""
    configuration = configured(tmp_path)
    gateway = configuration.sections["gateway"]
    assert isinstance(gateway, GatewayOptions)
    assert gateway.keys[0].key.get_secret_value() == "a-key-of-many-characters"
    urls = re.findall(r"http://(\w+):11434", (HERE / "gleitzeit.yaml").read_text())
    assert set(urls) == COMPOSE["services"].keys() - {"gateway"}
    assert gateway.keys[0].name in COMPOSE["secrets"]


def test_the_unit_starts_the_program() -> None:
    """With options that it has."""
    found = re.search(r"^ExecStart=\S+/gleitzeit (serve .+)$", UNIT, re.MULTILINE)
    assert found is not None
    done = CliRunner().invoke(root, [*shlex.split(found[1]), "--no-such-option"])
    assert re.search(r"No such option:? '?--no-such-option", done.output), done.output


def test_running_answers_are_finished(tmp_path: Path) -> None:
    """Neither ends the gateway before its own grace period is over."""
    gateway = configured(tmp_path).sections["gateway"]
    assert isinstance(gateway, GatewayOptions)
    patience = re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert patience is not None
    assert int(patience[1]) > gateway.grace_s
    assert int(COMPOSE["services"]["gateway"]["stop_grace_period"].removesuffix("s")) > gateway.grace_s


def test_the_image_has_what_the_configuration_needs(tmp_path: Path) -> None:
    """The folders that it copies are there, and bring the types and strategies that are named."""
    text = (HERE / "Dockerfile").read_text().replace("\\\n", " ")
    folders = [path.removeprefix("/src").lstrip("/") for path in re.findall(r"(?<= )/src[\w/-]*", text)]
    assert all((TREE / folder / "pyproject.toml").is_file() for folder in folders)
    names = {folder.rpartition("/")[2].removeprefix("gleitzeit-") for folder in folders}
    configuration = configured(tmp_path)
    wanted = {configuration.hubs["lan"].type.name, *("gateway", "llm", "strategies")}
    assert wanted <= names
    assert re.search(r'^ENTRYPOINT \["gleitzeit"\]$', text, re.MULTILINE)


def test_the_user_who_reads_the_secret() -> None:
    """A secret of compose is a file as it is: who starts it is told whose it must be."""
    user = re.search(r"useradd --uid (\d+) ", (HERE / "Dockerfile").read_text())
    assert user is not None
    file = COMPOSE["secrets"]["alice"]["file"].removeprefix("./")
    assert f"chown {user[1]} {file} && chmod 400 {file}" in (HERE / "compose.yaml").read_text()


def test_no_secret_gets_into_the_image() -> None:
    """The key lies beside the Dockerfile, in a folder that is no part of what the image is built from; the others are."""
    lines = [line for line in (TREE / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    assert "docs" not in kept
    text = (HERE / "Dockerfile").read_text().replace("\\\n", " ")
    folders = {path.split("/")[2] for path in re.findall(r"(?<= )/src/[\w/-]+", text)}
    assert {*folders, "pyproject.toml", "README.md", "LICENSE", "gleitzeit_core"} <= kept
