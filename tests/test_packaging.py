"""Every distribution builds, carries what it must, and works when it is installed alone.

The builds are made with uv: the wheel from the sdist, so that a sdist that lacks a file fails too.
"""

from __future__ import annotations

import email.parser
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from email.message import Message

pytestmark = [pytest.mark.packages, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Distribution:
    """One project of this repository."""

    folder: Path
    name: str
    version: str
    package: str
    entry_points: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> Distribution:
        """What the `pyproject.toml` in `folder` says."""
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        return cls(
            folder=folder,
            name=project["name"],
            version=project["version"],
            package=project["name"].replace("-", "_"),
            entry_points=project["entry-points"]["gleitzeit"],
        )

    @property
    def stem(self) -> str:
        """How its files' names begin."""
        return f"{self.package}-{self.version}"


def _projects() -> list[Distribution]:
    plugins = [*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("contrib/*/pyproject.toml")]
    folders = [ROOT, *sorted(file.parent for file in plugins)]
    return [Distribution.read(folder) for folder in folders]


PROJECTS = _projects()
each_project = pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)


def _find_uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


def _uv(*arguments: str | Path, cwd: Path) -> str:
    uv = _find_uv()
    if uv is None:
        pytest.skip("uv is not installed")
    # Without this, uv would take the sources in this tree instead of what was built from them.
    environment = {**os.environ, "UV_NO_SOURCES": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [uv, "--quiet", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of every distribution."""
    folder = tmp_path_factory.mktemp("built")
    _uv("build", "--all-packages", "--python", sys.executable, "--out-dir", folder, cwd=ROOT)
    return folder


def _wheel(built: Path, project: Distribution) -> zipfile.ZipFile:
    return zipfile.ZipFile(built / f"{project.stem}-py3-none-any.whl")


def _metadata(built: Path, project: Distribution) -> Message:
    with _wheel(built, project) as wheel:
        text = wheel.read(f"{project.stem}.dist-info/METADATA").decode()
    return email.parser.Parser().parsestr(text)


@each_project
def test_wheel_names_license_readme_and_python(built: Path, project: Distribution) -> None:
    """Who installs it can see the licence, what it is for and what it needs."""
    metadata = _metadata(built, project)
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).lstrip().startswith("# ")


@each_project
def test_wheel_holds_one_typed_package(built: Path, project: Distribution) -> None:
    """Nothing of the tree around the package gets into its wheel."""
    with _wheel(built, project) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {
        project.package,
        f"{project.stem}.dist-info",
    }
    assert f"{project.package}/py.typed" in names


@each_project
def test_every_requirement_has_a_floor(built: Path, project: Distribution) -> None:
    """Without floors an installer may search for minutes among old releases."""
    requirements = _metadata(built, project).get_all("Requires-Dist") or []
    assert requirements
    sets = f"{PROJECTS[0].name}["
    assert [r for r in requirements if ">=" not in r and not r.startswith(sets)] == []


def test_sdist_of_the_core_holds_only_the_core(built: Path) -> None:
    """The plugins are distributions of their own."""
    core = PROJECTS[0]
    with tarfile.open(built / f"{core.stem}.tar.gz") as sdist:
        names = {Path(name).parts[1] for name in sdist.getnames() if len(Path(name).parts) > 1}
    assert names - {".gitignore"} == {
        core.package,
        "CHANGELOG.md",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
    }


# Runs in the fresh environment: imports every module, and says what the entry points load.
PROBE = """
import importlib, importlib.metadata, json, pkgutil, sys
package = importlib.import_module(sys.argv[2])
for module in pkgutil.walk_packages(package.__path__, sys.argv[2] + "."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
own = importlib.metadata.distribution(sys.argv[1]).entry_points.select(group="gleitzeit")
print(json.dumps({point.name: point.load().__name__ for point in own}))
"""


@each_project
def test_installs_alone_and_loads(built: Path, project: Distribution, tmp_path: Path) -> None:
    """Its metadata names all that any of its modules imports: a fresh environment is enough."""
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    _uv("venv", "--python", sys.executable, environment, cwd=tmp_path)
    wheel = built / f"{project.stem}-py3-none-any.whl"
    _uv("pip", "install", "--python", python, "--find-links", built, wheel, cwd=tmp_path)
    done = subprocess.run(
        [python, "-W", "error", "-I", "-c", PROBE, project.name, project.package],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == project.entry_points
