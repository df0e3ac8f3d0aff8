"""TLS for callers: the options, and certificates that are renewed while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

logger = logging.getLogger(__name__)

HANDSHAKE_S: Final = 10.0
"""A caller who has not shaken hands by then is cut off."""
_LOOK_EVERY_S: Final = 60.0


class TlsOptions(BaseModel):
    """The gateway's certificate. Paths are relative to the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: Path = Field(description="A PEM file: the certificate, then those that signed it.")
    key_file: Path | None = Field(
        default=None, description="Its private key, not encrypted; left out: in the same file."
    )
    client_ca: Path | None = Field(
        default=None, description="Only callers whose certificate one of these has signed may connect."
    )

    @field_validator("certificate", "key_file", "client_ca")
    @classmethod
    def _found(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None:
            return None
        full = Path((info.context or {}).get("base_dir") or "", path.expanduser())
        if not full.is_file():
            raise ValueError(f"no such file: {full}")
        return full

    @model_validator(mode="after")
    def _usable(self) -> Self:
        try:
            self.context()
        except OSError as error:
            raise ValueError(_why(error, self)) from None
        return self

    def context(self) -> ssl.SSLContext:
        """A new context for a server: TLS 1.2 and newer.

        Raises:
            OSError: A file cannot be read, or is not what it should be.
        """
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.client_ca)
        except ssl.SSLError as error:
            # OpenSSL says neither which file it was, nor what it looked for in it.
            error.filename = self.client_ca
            raise
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have `context` show the certificate as its files are now.

        Raises:
            OSError: As for `context`.
        """
        # Without a password of ours, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(self.certificate, self.key_file, password="")

    def seen(self) -> tuple[tuple[int, int, int], ...]:
        """What changes when the files do.

        Raises:
            OSError: One of them is gone.
        """
        files = [path.stat() for path in (self.certificate, self.key_file) if path is not None]
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in files)


class Certificate:
    """The certificate that new connections are shown. Reads files; make it outside the loop, or before it serves.

    Args:
        options: Where it is.

    Raises:
        OSError: It cannot be used.
    """

    def __init__(self, options: TlsOptions) -> None:
        self._options = options
        self._seen = options.seen()
        self.context = options.context()

    def __repr__(self) -> str:
        """Its file."""
        return f"<Certificate {self._options.certificate}>"

    @property
    def how(self) -> dict[str, Any]:
        """What a server is made with."""
        return {"ssl": self.context, "ssl_handshake_timeout": HANDSHAKE_S}

    async def watch(self) -> None:
        """Look for renewed files each minute, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Take the files as they are now; where they are broken, it stays as it was."""
        try:
            seen = await asyncio.to_thread(self._changed)
            if seen is not None:
                self._options.load_into(self.context)
                self._seen = seen
                logger.warning("the certificate %s was renewed", self._options.certificate)
        except OSError as error:
            why = await asyncio.to_thread(_why, error, self._options)
            logger.warning("the certificate stays as it was: %s", why)

    def _changed(self) -> tuple[tuple[int, int, int], ...] | None:
        """What the files look like, where that has changed; in a thread, because it reads them.

        A key that does not fit would leave the context with neither, so they are tried on another one.
        """
        seen = self._options.seen()
        if seen == self._seen:
            return None
        self._options.context()
        return seen


def _why(error: OSError, options: TlsOptions) -> str:
    """What is wrong with the files, for a person."""
    if not isinstance(error, ssl.SSLError):
        return f"{error.filename or options.certificate}: {error.strerror or error}"
    if error.filename is not None:
        return f"'client_ca' {error.filename} has no usable certificates in it ({error.reason or error})"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the private key in {options.key_file or options.certificate} is not that of the certificate"
    return _missing(options) or f"{options.certificate} or its private key cannot be used ({error.reason or error})"


def _missing(options: TlsOptions) -> str:
    """What the two files do not have that they should; empty where that cannot be told."""
    try:
        certificate = options.certificate.read_bytes()
        key = certificate if options.key_file is None else options.key_file.read_bytes()
    except OSError:
        return ""
    if b"CERTIFICATE-----" not in certificate:
        return f"{options.certificate} has no certificate in it: a PEM file is needed"
    if b"PRIVATE KEY-----" not in key and options.key_file is None:
        return f"{options.certificate} has no private key in it: name its file with 'key_file'"
    if b"PRIVATE KEY-----" not in key:
        return f"{options.key_file} has no private key in it: a PEM file is needed"
    return "the private key is encrypted: give one that is not" if b"ENCRYPTED" in key else ""
