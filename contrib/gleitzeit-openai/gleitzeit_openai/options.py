"""Options of the hub type `openai`."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gleitzeit_core.hub import HubOptions
from gleitzeit_llm.server_options import ServerOptions, Text, written_out


class InstanceOptions(ServerOptions):
    """One of ``instances``: a server that speaks OpenAI's API. A URL alone will do."""

    certificates = "ca_file"

    url: str = Field(description="Where it is, with or without /v1 at the end: http://gpu2:8000/v1")
    max_concurrent: int = Field(default=8, ge=1, description="Requests sent to it at once; more wait.")
    models: list[Text] | None = Field(
        default=None,
        min_length=1,
        description="What to use of it, whatever it lists; left out: what its /v1/models lists.",
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

    @model_validator(mode="after")
    def _ca_needs_https(self) -> Self:
        if self.ca_file is not None and not self.url.startswith("https:"):
            raise ValueError("'ca_file' is for https:// URLs only")
        return self

    def tls_context(self) -> ssl.SSLContext | None:
        """With the certificates of `ca_file`; None for the system's."""
        return None if self.ca_file is None else ssl.create_default_context(cafile=self.ca_file)


_Server = Annotated[InstanceOptions, BeforeValidator(written_out, json_schema_input_type=str | InstanceOptions)]


class OpenAIOptions(HubOptions):
    """A hub of type `openai`."""

    model_config = ConfigDict(hide_input_in_errors=True)

    instances: list[_Server] = Field(min_length=1, description="The servers; each a URL or a mapping.")

    @field_validator("instances")
    @classmethod
    def _once(cls, value: list[InstanceOptions]) -> list[InstanceOptions]:
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
