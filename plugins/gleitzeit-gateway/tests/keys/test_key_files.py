"""Keys that stand in files of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from gleitzeit_gateway.options import GatewayOptions

from .alice import KEY

if TYPE_CHECKING:
    from pathlib import Path


def test_key_from_a_file(tmp_path: Path) -> None:
    """Without the white space around it; relative to the folder of the configuration."""
    (tmp_path / "alice").write_text(f"\n{KEY}\n")
    for path in ("alice", str(tmp_path / "alice")):
        options = GatewayOptions.model_validate(
            {"keys": [{"name": "alice", "key_file": path}]}, context={"base_dir": tmp_path}
        )
        assert options.keys[0].key.get_secret_value() == KEY
        assert KEY not in repr(options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"'key_file' .*/alice cannot be read: No such file or directory"),
        (b"", r"'key_file' .*/alice is empty"),
        (b" \n\t\n", r"'key_file' .*/alice is empty"),
        (b"x" * 5000, r"'key_file' .*/alice is larger than 4096 bytes"),
        (b"short", "at least 16 characters"),
        (b"two-lines-of-keys\nare-not-one-key", "printable ASCII"),
        (b"\xff" * 20, "printable ASCII"),
    ],
)
def test_files_without_a_key(tmp_path: Path, content: bytes | None, words: str) -> None:
    """Say what is wrong, and nothing of what is in them."""
    if content is not None:
        (tmp_path / "alice").write_bytes(content)
    with pytest.raises(ValidationError, match=words) as caught:
        GatewayOptions.model_validate(
            {"keys": [{"name": "alice", "key_file": "alice"}]}, context={"base_dir": tmp_path}
        )
    assert "two-lines" not in str(caught.value)


def test_a_folder_is_no_key_file(tmp_path: Path) -> None:
    """Nor is a key in two places one."""
    for key, words in (({"key_file": str(tmp_path)}, "is no file"), ({"key": KEY, "key_file": "x"}, "not both")):
        with pytest.raises(ValidationError, match=words):
            GatewayOptions.model_validate({"keys": [{"name": "alice", **key}]})
