"""Options of the protocol `llm`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LLMOptions(BaseModel):
    """The section ``providers: {llm: ...}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connect_timeout_s: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="A server that has not accepted a connection after this many seconds is down.",
    )
