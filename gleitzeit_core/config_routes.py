"""One of ``routes`` as it is written: its options and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HedgeOptions(_Options):
    """When a second try is begun beside one that is slow to answer; see `HedgePolicy`."""

    percentile: float = Field(95.0, ge=50, lt=100, description="A try slower than this share of first outputs.")
    budget: float = Field(0.02, gt=0, le=1, description="Second tries for each request, at most.")
    min_samples: int = Field(50, ge=1, description="First outputs that must have been seen before.")


class ShareOptions(_Options):
    """A part of a route's capacity that is kept; see `Share`."""

    share: float = Field(gt=0, le=1, description="Of all slots that are up.")
    tenant: str = Field("", description="Kept for this tenant.")
    model: str = Field("", description="Kept for this model.")

    @model_validator(mode="after")
    def _for_somebody(self) -> Self:
        if not self.tenant and not self.model:
            raise ValueError("needs a 'tenant' or a 'model' to be kept for")
        return self


def _hedge(value: object) -> object:
    if not isinstance(value, bool | Mapping | HedgeOptions | None):
        raise ValueError(f"must be true, false or a mapping with {', '.join(HedgeOptions.model_fields)}")  # noqa: TRY004 - for pydantic
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


Hedge = Annotated[HedgeOptions | None, BeforeValidator(_hedge, json_schema_input_type=HedgeOptions | bool | None)]


class RouteOptions(_Options):
    """One of ``routes``; `RouteSection` says what it means."""

    methods: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    hubs: list[str] | None = Field(None, min_length=1)
    strategy: Any = None
    max_queue: int = Field(256, ge=0)
    timeout_s: float | None = Field(600.0, gt=0, allow_inf_nan=False)
    max_tries: int = Field(3, ge=1)
    shed_from: float = Field(0.8, ge=0, le=1)
    hedge: Hedge = None
    shares: list[ShareOptions] = []

    @model_validator(mode="after")
    def _not_more_than_all(self) -> Self:
        total = sum(share.share for share in self.shares)
        if total > 1 + 1e-9:
            raise ValueError(f"its shares add up to {total:.0%}, more than there is")
        return self
