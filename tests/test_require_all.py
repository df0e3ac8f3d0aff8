"""GLEITZEIT_REQUIRE_ALL: on a machine that must run everything, a test that is left out fails the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

SOURCES = {
    "test_call.py": "def test_it():\n    pytest.skip('no engine')\n",
    "test_mark.py": "@pytest.mark.skip(reason='no engine')\ndef test_it():\n    pass\n",
    "test_file.py": "pytest.importorskip('no_such_engine')\n",
    "test_xfail.py": "@pytest.mark.xfail(reason='known')\ndef test_it():\n    raise ValueError\n",
}


def _run(folder: Path, required: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder)
    for name, source in SOURCES.items():
        (folder / name).write_text(f"import pytest\n{source}")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--continue-on-collection-errors", "--rootdir", folder, folder],
        cwd=folder,
        env={**os.environ, "GLEITZEIT_REQUIRE_ALL": required, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_skips_fail_where_all_is_required(tmp_path: Path) -> None:
    """Each way to skip fails the run and says why; an expected failure was run, and stays what it is."""
    done = _run(tmp_path, "1")
    assert done.returncode == 1
    assert "1 failed, 1 xfailed, 2 errors in" in done.stdout
    assert done.stdout.count("a skipped test is a failure") >= len(SOURCES) - 1
    assert "could not import 'no_such_engine'" in done.stdout


@pytest.mark.parametrize("required", ["", "0"])
def test_skips_stay_skips_elsewhere(required: str, tmp_path: Path) -> None:
    """Without the variable, or with 0, a skipped test is no failure."""
    done = _run(tmp_path, required)
    assert done.returncode == 0
    assert "3 skipped, 1 xfailed in" in done.stdout
