"""A recipe for images in which Python runs: what payloads may import, and nothing else.

The runner itself is in no image: it comes through the channel. So a plain ``python:3.x-slim`` will do where the
standard library is enough.
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from gleitzeit_docker import wire
from gleitzeit_docker.images import steps

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from gleitzeit_docker.engine import Engine
    from gleitzeit_docker.images import Step

DEFAULT_TAG: Final = "gleitzeit-runner:latest"
_REQUIREMENTS: Final = "requirements.txt"
# pip in the build asks the same index as pip here, where that is set.
_ARGUMENTS: Final = ("PIP_INDEX_URL", "PIP_TRUSTED_HOST")
_DOCKERFILE: Final = """\
FROM {base}
ENV PYTHONDONTWRITEBYTECODE=1 MPLBACKEND=Agg
"""
_INSTALL: Final = f"""\
COPY {_REQUIREMENTS} /opt/gleitzeit/{_REQUIREMENTS}
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check -r /opt/gleitzeit/{_REQUIREMENTS}
"""


def dockerfile(base: str, *, with_requirements: bool) -> str:
    """The recipe's text.

    Args:
        base: The image to begin with; with ``python3``, and with pip if there are requirements.
        with_requirements: Whether packages are installed.
    """
    text = _DOCKERFILE.format(base=base)
    return text + _INSTALL if with_requirements else text


def arguments_for_pip(environment: Mapping[str, str]) -> dict[str, str]:
    """What pip in the build is told, from variables of the same names here.

    Raises:
        ValueError: One holds a password: whoever has an image can read in its history what it was built with.
    """
    found = {name: environment[name] for name in _ARGUMENTS if environment.get(name)}
    for name, value in found.items():
        if "@" in urlsplit(value).netloc:
            raise ValueError(
                f"{name} holds a user or a password, which the image's history would show to all who get the image: "
                "take the text of --recipe, and give the URL to 'docker build' as a secret"
            )
    return found


def context(text: str, requirements: bytes | None) -> bytes:
    """What an engine builds from: an archive with the recipe and the list of packages."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in (("Dockerfile", text.encode()), (_REQUIREMENTS, requirements)):
            if data is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    # Without the padding to a tape's record, which an engine does not read: it would cut the connection over it.
    data = packed.getvalue().rstrip(b"\0")
    return data + bytes(-len(data) % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


async def build(
    engine: Engine, tag: str, packed: bytes, *, arguments: Mapping[str, str], pull: bool, stall_timeout_s: float
) -> AsyncGenerator[Step, None]:
    """Build an image, and tell of it. Close the iterator when leaving early: that stops it.

    Args:
        engine: Where.
        tag: What it will be called.
        packed: From `context`.
        arguments: Values for the recipe's ``ARG`` lines. The image's history keeps them.
        pull: Whether a newer base is looked for.
        stall_timeout_s: It has failed when the engine is silent for so long.

    Raises:
        ImageMissing: It has failed, in the engine's words.
        EngineDown: The engine does not answer.
    """
    query = {"t": tag, "rm": "1", "forcerm": "1", "buildargs": json.dumps(dict(arguments)), "pull": "1" if pull else ""}
    headers = {"Content-Type": "application/x-tar"}
    # What the engine does first, such as to ask for the base, it does before it answers.
    connection, _ = await wire.answer(
        engine.address, "POST", "/build", query=query, headers=headers, body=packed, timeout_s=stall_timeout_s
    )
    try:
        async for step in steps(connection, stall_timeout_s):
            yield step
    finally:
        await connection.aclose()
