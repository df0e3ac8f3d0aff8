"""What the descriptors of `gz_one` point at; not imported until asked for."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError


class Forbids(BaseModel):
    """As all options should be."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Bulb(Forbids):
    """One instance."""

    url: str
    weight: float = Field(1.0, gt=0)
    colour: Literal["red", "white"] = "white"
    headers: dict[str, str] = {}


class LampOptions(Forbids):
    """Options of the hub type."""

    instances: list[str | Bulb] = []
    discover: bool = False
    api_key: SecretStr | None = None
    pin: SecretStr | None = None
    made: list[datetime] = []
    min_idle: int = Field(0, ge=0, le=10)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: object) -> object:
        """``bulb: x`` was a short form once."""
        if isinstance(data, dict) and "bulb" in data:
            if data["bulb"] == "odd":
                raise PydanticCustomError("greater_than", "a bulb of an odd kind")
            return {"instances": [{"url": "", "link": data["bulb"]}]}
        return data


class LightOptions(BaseModel):
    """Options of the provider, which forgot to forbid unknown keys."""

    dim: bool = False


class BrightestOptions(Forbids):
    """Options of the strategy."""

    patience_s: float = 1.0


class Drawer(Forbids):
    """A store and its options in one; one field is required."""

    path: str


class Mains(Forbids):
    """The section."""

    host: str = "127.0.0.1"
    port: int = Field(8484, ge=1, le=65535)
    keys: list[str] = []
    volts: int = 230

    @field_validator("keys")
    @classmethod
    def _known(cls, keys: list[str]) -> list[str]:
        if "abc" in keys:
            raise ValueError(f"one of {keys} is not safe")
        return keys

    @model_validator(mode="after")
    def _check(self) -> Mains:
        if self.volts == 0:
            raise ValueError(f"no current; and the keys are {self.keys}")
        if self.volts == 1:
            raise KeyError("a validator with a bug")
        return self


class LampHub:
    """The hub."""


class Light:
    """The provider."""


class Brightest:
    """The strategy."""


switch = "a command"
