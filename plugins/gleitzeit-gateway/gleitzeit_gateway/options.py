"""Options of the gateway: the section ``gateway``."""

from __future__ import annotations

import ipaddress
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

_KEY_CHARACTERS: Final = 16
FIXED: Final = ("host", "port")
"""What a gateway that runs keeps until it is started again."""


class KeyOptions(BaseModel):
    """One API key."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(min_length=1, description="Who it belongs to; the tenant of its requests, shown in logs.")
    key: SecretStr = Field(description="At least 16 characters; callers send it as a bearer token.")
    priority: int = Field(default=0, description="Of its requests; higher goes first.")
    admin: bool = Field(
        default=False, description="Whether it may add, drain and remove instances, manage models, and reload."
    )

    @field_validator("key")
    @classmethod
    def _sendable(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if len(text) < _KEY_CHARACTERS:
            raise ValueError(f"a key has at least {_KEY_CHARACTERS} characters, or it could be guessed")
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise ValueError("a key has printable ASCII characters only, and no spaces, or nobody could send it")
        return key


class GatewayOptions(BaseModel):
    """The section ``gateway``."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = Field(default="127.0.0.1", min_length=1, description="Where to listen. Beyond loopback only with keys.")
    port: int = Field(default=8484, ge=0, le=65535, description="0 takes any free port.")
    keys: list[KeyOptions] = Field(default=[], description="Who may call; with none, anybody who reaches it.")
    allow_anonymous: bool = Field(default=False, description="Listen beyond loopback without keys all the same.")
    allowed_hosts: list[str] = Field(
        default=[],
        description="Names in a Host header, besides local ones and addresses; '*' for any. "
        "Empty beyond loopback with keys: any.",
    )
    allowed_origins: list[str] = Field(
        default=[], description="Origins of web pages, besides those on loopback; '*' for any."
    )
    max_body_bytes: int = Field(default=100 * 1024 * 1024, gt=0, description="A larger request is refused.")
    max_batch: int = Field(default=100, ge=1, description="A JSON-RPC batch of more calls is refused.")
    body_timeout_s: float = Field(
        default=60.0, gt=0, allow_inf_nan=False, description="A request must have arrived whole by then."
    )
    grace_s: float = Field(
        default=30.0, ge=0, allow_inf_nan=False, description="How long running answers may take at shutdown."
    )
    access_log: bool = Field(default=True, description="One line per request on standard error.")

    @property
    def is_open(self) -> bool:
        """Whether anybody on other machines could call, and nobody has said that this is meant."""
        return not (is_loopback(self.host) or self.keys or self.allow_anonymous)

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.is_open:
            raise ValueError(
                f"{self.host} can be reached from other machines: configure 'keys', or say that anybody may call with "
                "'allow_anonymous: true' (--allow-anonymous)"
            )
        if len({key.name for key in self.keys}) != len(self.keys):
            raise ValueError("two keys have the same name")
        if len({key.key.get_secret_value() for key in self.keys}) != len(self.keys):
            raise ValueError("two names have the same key")
        return self


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine only; what is no address and not ``localhost`` is not."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
