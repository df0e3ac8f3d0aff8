from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from gleitzeit_core.config import check_configuration, read_configuration
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_core.plugins import PluginHost
from gleitzeit_llamacpp.options import LlamaCppOptions

if TYPE_CHECKING:
    from pathlib import Path


def test_without_options_two_processes_serve_the_packaged_model() -> None:
    """That is what `gleitzeit serve` starts where it finds nothing else."""
    (model,) = LlamaCppOptions().models
    assert (model.path, model.instances, model.slots, model.context, model.embeddings) == ("smollm2", 2, 4, 4096, True)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"slots": 0}, "greater than or equal to 1"),
        ({"instances": 0}, "greater than or equal to 1"),
        ({"context": 0}, "greater than or equal to 64"),
        ({"threads": 0}, "greater than or equal to 1"),
        ({"gpu_layers": -2}, "greater than or equal to -1"),
        ({"context": 99_999_999_999}, "less than or equal to 8388607"),
        ({"gpu_layers": 99_999_999_999}, "less than or equal to 1000000"),
        ({"threads": 99_999_999_999}, "less than or equal to 1024"),
        ({"treads": 2}, "not permitted"),
        ({"path": ""}, "at least 1 character"),
        (7, "dictionary"),
    ],
)
def test_a_wrong_option_is_refused(wrong: object, says: str) -> None:
    """Each option has limits, and says so."""
    with pytest.raises(ValidationError, match=says):
        LlamaCppOptions.model_validate({"models": [wrong]})


def test_at_least_one_model_is_needed() -> None:
    """A hub without models is a mistake."""
    with pytest.raises(ValidationError, match="at least 1 item"):
        LlamaCppOptions.model_validate({"models": []})


def test_mistakes_are_all_reported_with_their_place(tmp_path: Path) -> None:
    """A configuration's mistakes come at once, each with its path and the key that was meant."""
    file = tmp_path / "gleitzeit.yaml"
    file.write_text("hubs:\n  e: {type: llamacpp, start_timeout: 9, models: [{path: smollm2, slot: 2}, {slots: 0}]}\n")
    with pytest.raises(ConfigurationError) as caught:
        check_configuration(read_configuration(file, overrides={}), PluginHost.load())
    told = {problem.path: problem.suggestion for problem in caught.value.problems}
    assert told == {
        "hubs.e.models[0].slot": "did you mean 'slots'?",
        "hubs.e.models[1].slots": "",
        "hubs.e.start_timeout": "did you mean 'start_timeout_s'?",
    }


@pytest.mark.parametrize("second", ["smollm2", "SmolLM2", "smollm2:latest"])
def test_two_models_cannot_have_one_name(second: str) -> None:
    """Callers could not tell them apart, and one would take the other's place."""
    with pytest.raises(ValidationError, match="more than one model is called smollm2"):
        LlamaCppOptions.model_validate({"models": [{}, {"name": second}]})


def test_paths_are_relative_to_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the program is started."""
    file = tmp_path / "etc" / "gleitzeit.yaml"
    file.parent.mkdir()
    file.write_text("hubs:\n  e: {type: llamacpp, models: [{path: mine.gguf}]}\n")
    monkeypatch.chdir(tmp_path)
    options = check_configuration(read_configuration(file, overrides={}), PluginHost.load()).hubs["e"].options
    assert isinstance(options, LlamaCppOptions)
    assert options.models[0].path == str(tmp_path / "etc" / "mine.gguf")
