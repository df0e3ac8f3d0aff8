"""Options of the hub type `openai`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gleitzeit_core.hub import HubOptions

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class ServerOptions(BaseModel):
    """One of ``instances``: a server that speaks OpenAI's API. A URL alone will do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(description="Where it is, with or without /v1 at the end: http://gpu2:8000/v1")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="Capacity relative to the others.")
    max_concurrent: int = Field(default=8, ge=1, description="Requests sent to it at once.")
    tags: list[str] = Field(default=[], description="Labels a request may ask for.")
    models: list[Annotated[str, Field(min_length=1)]] | None = Field(
        default=None,
        min_length=1,
        description="What to use of it, whatever it lists; left out: what its /v1/models lists.",
    )
    probe: bool = Field(default=True, description="false: nothing but users' requests is sent to it; needs models.")
    headers: dict[str, SecretStr] = Field(default={}, description="Sent with every request.")
    api_key: SecretStr | None = Field(default=None, min_length=1, description="Sent as a bearer token.")
    api_key_env: str | None = Field(
        default=None, min_length=1, description="The environment variable with the key, in place of api_key."
    )
    ca_file: Path | None = Field(
        default=None, description="The only certificates to trust, as PEM; left out: the system's."
    )

    @field_validator("url")
    @classmethod
    def _base(cls, value: str) -> str:
        return base_url(value)

    @field_validator("ca_file")
    @classmethod
    def _beside_the_configuration(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None:
            return None
        base_dir: Path = (info.context or {}).get("base_dir") or Path()
        found = base_dir / value.expanduser()
        if not found.is_file():
            raise ValueError(f"there is no file {found}")
        return found

    @field_validator("headers")
    @classmethod
    def _can_be_sent(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, content in value.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a header")
            if _CONTROL.search(content.get_secret_value()):
                raise ValueError(f"the header {name!r} has a line break or another control character in it")
        return value

    @field_validator("api_key")
    @classmethod
    def _can_be_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _checked_key(value.get_secret_value(), "the key")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _is_set(cls, value: str | None) -> str | None:
        if value is not None:
            _checked_key(os.environ.get(value, ""), f"the environment variable {value!r}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = {name.lower() for name in self.headers}
        if self.api_key is not None and self.api_key_env is not None:
            raise ValueError("give api_key or api_key_env, not both")
        if "authorization" in names and self.key is not None:
            raise ValueError("give a key or the header 'Authorization', not both")
        if not self.probe and self.models is None:
            raise ValueError("with 'probe: false' it is never asked for its models: name them in 'models'")
        if self.ca_file is not None and not self.url.startswith("https:"):
            raise ValueError("'ca_file' is for https:// URLs only")
        return self

    @property
    def key(self) -> str | None:
        """The key, from wherever it is kept; None when there is none."""
        if self.api_key_env is not None:
            return os.environ.get(self.api_key_env, "").strip() or None
        return None if self.api_key is None else self.api_key.get_secret_value().strip()


def _long_form(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


_Server = Annotated[ServerOptions, BeforeValidator(_long_form, json_schema_input_type=str | ServerOptions)]


class OpenAIOptions(HubOptions):
    """A hub of type `openai`."""

    instances: list[_Server] = Field(min_length=1, description="The servers; each a URL or a mapping.")

    @field_validator("instances")
    @classmethod
    def _once(cls, value: list[ServerOptions]) -> list[ServerOptions]:
        urls = [server.url for server in value]
        twice = sorted({url for url in urls if urls.count(url) > 1})
        if twice:
            raise ValueError(f"named more than once: {', '.join(twice)}")
        return value


def base_url(url: str) -> str:
    """`url` as a channel wants it: without ``/v1``, without a slash at the end, scheme and host in lower case.

    Raises:
        ValueError: It is not the URL of a server, or holds a user name or password, which would show up in listings.
    """
    try:
        parts = urlsplit(url.strip())
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed or re.search(r"\s", url.strip()):
        raise ValueError("is not a URL such as http://gpu2:8000/v1")
    if "@" in parts.netloc:
        raise ValueError("has a user name or password in it: use 'api_key' or 'headers'")
    if parts.query or parts.fragment:
        raise ValueError("must end with its path: nothing after '?' or '#'")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc.lower(), path, "", ""))


def _checked_key(key: str, where: str) -> None:
    """Refuse what cannot be sent as a header, without showing it."""
    if not key.strip():
        raise ValueError(f"{where} is empty or not set")
    if not key.strip().isascii() or _CONTROL.search(key.strip()):
        raise ValueError(f"{where} has characters in it that no key has")
