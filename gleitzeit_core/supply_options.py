"""How many instances a hub that creates them keeps: checked before anything starts, so without what creates them."""

from __future__ import annotations

from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SupplyOptions(BaseModel):
    """How many instances a hub keeps, and for how long. Times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_total: int = Field(default=0, ge=0, description="Created at start and kept.")
    max_total: int = Field(default=4, ge=1, description="Never more than this.")
    min_idle: int = Field(
        default=0, ge=0, description="So many are kept ready beyond those at work, as far as max_total allows."
    )
    create_timeout_s: float = Field(default=60.0, gt=0, description="A creation that takes longer has failed.")
    idle_ttl_s: float | None = Field(
        default=None,
        gt=0,
        description="One without work for so long is ended, down to min_total and min_idle; null: none ever is.",
    )
    max_age_s: float | None = Field(
        default=None, gt=0, description="One that was created so long ago is ended, one after another; null: never."
    )
    max_uses: int | None = Field(
        default=None, ge=1, description="One is ended after so many uses; 1: each use gets a new one; null: never."
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        for least in ("min_total", "min_idle"):
            if getattr(self, least) > self.max_total:
                raise ValueError(f"{least} must not be above max_total")
        return self


NO_SUPPLY: Final = SupplyOptions.model_construct(max_total=0)
"""Of a hub that is to create nothing."""
