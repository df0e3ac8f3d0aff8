from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gleitzeit_ollama.claims import Claim, Note, start_of

if TYPE_CHECKING:
    from pathlib import Path

SLEEPER = [sys.executable, "-c", "import time; time.sleep(1000)"]
HOLDER = """
import sys
from pathlib import Path
from gleitzeit_ollama.claims import Claim, Note
claim = Claim.take(Path(sys.argv[1]))
claim.write(Note(7, "then", 11434, "so"))
print("held", flush=True)
sys.stdin.read()
"""


def test_only_one_has_it(tmp_path: Path) -> None:
    """The second is told no, until the first has dropped it; the file goes with it, and dropping twice is fine."""
    path = tmp_path / "note.json"
    first = Claim.take(path)
    assert first is not None
    assert Claim.take(path) is None
    first.drop()
    first.drop()
    assert not path.exists()
    again = Claim.take(path)
    assert again is not None
    again.drop()
    assert repr(again) == "<Claim note.json, dropped>"


@pytest.mark.parametrize("room_bytes", [0, 10])
def test_a_note_that_is_not_written_whole_is_an_error(tmp_path: Path, room_bytes: int) -> None:
    """The error names the file; half a note would leave behind a process that nobody finds again."""
    claim = Claim.take(tmp_path / "note.json")
    assert claim is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a disk that is full, a write beyond the limit is short, and the next one fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, hard))
    try:
        with pytest.raises(OSError, match=r"note\.json"):
            claim.write(Note(7, "then", 11434, "so"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    claim.drop()


def test_a_note_is_read_by_the_next_owner(tmp_path: Path) -> None:
    """The last one written; when the owner is killed the lock is free and the note is still there."""
    path = tmp_path / "note.json"
    command = [sys.executable, "-c", HOLDER, str(path)]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert Claim.take(path) is None
        holder.kill()
    claim = Claim.take(path)
    assert claim is not None
    assert claim.read() == Note(7, "then", 11434, "so")
    claim.write(Note(8, "now", 1, ""))
    assert claim.read() == Note(8, "now", 1, "")
    claim.drop()
    assert claim.read() is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"pid": "x", "started": "", "port": 1, "made": ""}', '{"pid": 1}']
)
def test_what_makes_no_sense_is_no_note(text: str, tmp_path: Path) -> None:
    """As one that was half written when the machine went down."""
    path = tmp_path / "note.json"
    path.write_text(text)
    claim = Claim.take(path)
    assert claim is not None
    assert claim.read() is None
    claim.drop()


def test_nobody_is_led_elsewhere(tmp_path: Path) -> None:
    """A symbolic link is not followed."""
    (tmp_path / "target").write_text("precious")
    (tmp_path / "note.json").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match=r"note\.json"):
        Claim.take(tmp_path / "note.json")
    assert (tmp_path / "target").read_text() == "precious"


def test_a_process_is_known_by_its_start() -> None:
    """The same while it lives, and nothing once it has ended, also while nobody has asked for its status."""
    with subprocess.Popen(SLEEPER, start_new_session=True) as process:
        started = start_of(process.pid)
        assert started == start_of(process.pid) != ""
        assert Note(process.pid, started, 1, "").lives()
        assert not Note(process.pid, f"{started}0", 1, "").lives()
        assert not Note(process.pid, "", 1, "").lives()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert start_of(process.pid) == ""
    assert not Note(process.pid, started, 1, "").lives()


def test_a_process_in_the_group_of_another_is_not_taken_for_ours() -> None:
    """Ours lead their groups: the signal that ends one must reach nobody else."""
    with subprocess.Popen(SLEEPER) as process:
        assert not Note(process.pid, start_of(process.pid), 1, "").lives()
        process.kill()
