"""Owners and their locks, without any engine."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from gleitzeit_docker.owners import Owner

if TYPE_CHECKING:
    from pathlib import Path

HOLD = "import sys, pathlib; from gleitzeit_docker.owners import Owner; o = Owner.begin(pathlib.Path(sys.argv[1])); print(o.name, flush=True); sys.stdin.read()"


@pytest.fixture
def us(tmp_path: Path) -> Owner:
    """An owner."""
    return Owner.begin(tmp_path)


def test_one_that_lives_is_not_dead(us: Owner, tmp_path: Path) -> None:
    """Nor is one oneself."""
    other = Owner.begin(tmp_path)
    assert not us.is_dead(other.name, other.place)
    assert not us.is_dead(us.name, us.place)
    other.close()
    assert us.is_dead(other.name, other.place)


def test_one_that_was_killed_is_dead(us: Owner, tmp_path: Path) -> None:
    """The kernel drops its lock; what else it left does not matter."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert not us.is_dead(name, us.place)
        process.kill()
    assert us.is_dead(name, us.place)
    assert (tmp_path / f"{name}.lock").exists()
    us.tidy()
    assert not (tmp_path / f"{name}.lock").exists()
    assert us.is_dead(name, us.place)


def test_nobody_is_judged_from_elsewhere(us: Owner, tmp_path: Path) -> None:
    """Another directory, another machine, or a name that is none."""
    assert not us.is_dead("a" * 32, us.place + "x")
    assert not us.is_dead("../../etc/passwd", us.place)
    elsewhere = Owner.begin(tmp_path / "elsewhere")
    assert elsewhere.place != us.place
    assert not elsewhere.is_dead("a" * 32, us.place)


def test_nobody_is_dead_where_the_directory_was_lost(us: Owner, tmp_path: Path) -> None:
    """Somebody has removed the files of those who live as well, ours included."""
    other = Owner.begin(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert not us.is_dead(other.name, other.place)
    us.tidy()
    # Those who come now see another directory.
    after = Owner.begin(tmp_path)
    assert not after.is_dead(other.name, other.place)
    for owner in (us, other, after):
        owner.close()


def test_a_file_that_is_another_users_is_not_judged(us: Owner, tmp_path: Path) -> None:
    """It may be locked; and it is no reason to stop."""
    theirs = tmp_path / f"{us.name[:12]}{'b' * 32}.lock"
    theirs.touch(0o600)
    tmp_path.chmod(0o777)
    for above in tmp_path.parents[:2]:
        above.chmod(0o755)
    if os.geteuid() != 0:
        theirs.chmod(0)
        assert not us.is_dead(theirs.stem, us.place)
        return
    os.seteuid(65534)
    try:
        assert not us.is_dead(theirs.stem, us.place)
        us.tidy()
    finally:
        os.seteuid(0)
    assert theirs.exists()
    assert us.is_dead(theirs.stem, us.place)


def test_files_of_another_start_of_a_machine_are_left(us: Owner, tmp_path: Path) -> None:
    """The directory may be shared with a machine whose locks are not to be seen here."""
    theirs, ours = tmp_path / f"{'f' * 44}.lock", tmp_path / f"{us.name[:12]}{'b' * 32}.lock"
    for path in (theirs, ours):
        path.touch()
    us.tidy()
    assert theirs.exists()
    assert not ours.exists()


def test_the_name_of_the_machine_does_not_matter(us: Owner, tmp_path: Path) -> None:
    """It changes with every container that Gleitzeit itself runs in, and those see each other's locks."""
    unshare = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh"]
    if os.geteuid() != 0:
        pytest.skip("only root may have another host name")
    process = subprocess.Popen(
        [*unshare, sys.executable, "-c", HOLD.replace("o.name", "o.name, o.place"), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        name, place = process.stdout.readline().split()
        assert place == us.place
        assert not us.is_dead(name, place)
        process.kill()
    assert us.is_dead(name, place)


def test_tidying_leaves_those_that_live(us: Owner, tmp_path: Path) -> None:
    """Also those that begin at the same moment."""
    with ThreadPoolExecutor(4) as threads:
        tidying = [threads.submit(lambda: [us.tidy() for _ in range(200)]) for _ in range(2)]
        owners = [Owner.begin(tmp_path) for _ in range(200)]
        for each in tidying:
            each.result()
    assert not [owner for owner in owners if us.is_dead(owner.name, owner.place)]
    for owner in owners:
        owner.close()


def test_closing_twice_is_fine_and_leaves_no_file(us: Owner, tmp_path: Path) -> None:
    """The second does nothing."""
    us.close()
    us.close()
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert "closed" in repr(us)


def test_a_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    """By the operating system's own error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Owner.begin(tmp_path / "file")
