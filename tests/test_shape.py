"""The shape of the core: small, light to import, and built from the ground up."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gleitzeit_core

CORE = Path(gleitzeit_core.__file__).parent
MODULES = [path for path in sorted(CORE.rglob("*.py")) if not {"cli", "testing"} & set(path.relative_to(CORE).parts)]
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for folder in ("plugins", "contrib") for path in ROOT.glob(f"{folder}/*/pyproject.toml"))
# Distributions by what is imported of them, where the names differ.
NAMES = {"pydantic-core": "pydantic", "yaml": "pyyaml"}
HEAVY = ("docker", "boto3", "kubernetes", "aiohttp", "sqlalchemy")


def code_lines(path: Path) -> int:
    """Lines with code: no blank ones, no comments, no docstrings."""
    source = path.read_text()
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(found)


def imported_at_run_time(path: Path) -> set[str]:
    """The core's modules that a module imports at its top, for more than its annotations."""
    body = ast.parse(path.read_text()).body
    names = [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    return {name for name in names if name.startswith("gleitzeit_core.")}


def imported_from(*paths: Path) -> set[str]:
    """The distributions outside the standard library that these modules import, wherever they do."""
    found: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module or "")
    names = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    return {NAMES.get(name.replace("_", "-"), name.replace("_", "-")) for name in names}


def test_the_core_is_small() -> None:
    """Without the command line and what is for tests, it has fewer than 7,250 lines of code."""
    assert sum(code_lines(path) for path in MODULES) < 7250


def test_modules_stand_on_each_other_without_a_circle() -> None:
    """A module imports only what stands before it."""
    graph = {}
    for path in MODULES:
        name = ".".join(("gleitzeit_core", *path.relative_to(CORE).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = imported_at_run_time(path)
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("gleitzeit_core.errors") < order.index("gleitzeit_core.pool")
    assert order.index("gleitzeit_core.pool") < order.index("gleitzeit_core.dispatch")
    assert order.index("gleitzeit_core.dispatch") < order.index("gleitzeit_core.manager")


@pytest.mark.parametrize("arguments", [["--version"], ["plugins"], ["strategies"], ["--help"]])
def test_looking_around_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """With all plugins of this repository installed, no SDK and no HTTP library is imported."""
    code = (
        "import sys\nfrom gleitzeit_core.cli import main\n"
        f"sys.argv = ['gleitzeit', *{arguments}]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", [ROOT, *PLUGINS], ids=lambda folder: folder.name)
def test_what_is_imported_is_declared(folder: Path) -> None:
    """And nothing else: no distribution counts on what another one happens to bring along."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=\[;]", requirement)[0].lower() for requirement in project["dependencies"]}
    imported = imported_from(*(folder / project["name"].replace("-", "_")).rglob("*.py")) - {project["name"]}
    # Where there is a gateway this one adds to it; where there is none nothing of that is imported.
    assert imported - declared <= ({"gleitzeit-gateway"} if project["name"] == "gleitzeit-ollama" else set())
    assert declared <= imported


def test_the_cores_tests_need_no_plugin() -> None:
    """Those that do stand in folders of their own, `together`, which tox leaves out where only the core is installed."""
    plugins = {folder.name for folder in PLUGINS}
    for path in (ROOT / "tests").rglob("test_*.py"):
        if "together" not in path.parts:
            assert not plugins & imported_from(path), path.name
