"""Options of the provider `python`. Without heavy imports: a configuration is checked before anything starts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Interpreter = Literal["forked", "fresh"]
"""A copy of an interpreter that is there already and has run nothing, in about 2 ms; or a new one, in about 40 ms."""

_MIB = 1 << 20


class PythonOptions(BaseModel):
    """Limits of every run, and of sessions. Times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    interpreter: Interpreter = Field(default="forked", description="Unless a request says: `forked` or `fresh`.")
    timeout_s: float = Field(default=60.0, gt=0, description="A run that takes longer is killed, unless it says.")
    max_timeout_s: float = Field(default=3600.0, gt=0, description="No request may ask for more.")
    input_bytes: int = Field(
        default=32 * _MIB, ge=0, description="Code, standard input, arguments, patterns and files of one request."
    )
    output_bytes: int = Field(
        default=_MIB, ge=0, description="Of standard output, and of standard error; the rest is lost."
    )
    files_bytes: int = Field(default=16 * _MIB, ge=0, description="Of all files that one run brings back.")
    max_sessions: int = Field(default=4, ge=0, description="Open at once for one tenant; 0 is none at all.")
    session_ttl_s: float = Field(default=600.0, gt=0, description="A session that is not used for so long is closed.")
