"""What can go wrong with an engine, in one tree.

DockerError
├── EngineDown      it does not answer, or not in time
├── NotFound        it has no such thing (404)
├── Conflict        not in the state that a thing is in (409)
├── ImageMissing    it has not got an image, or not yet
└── RuntimeMissing  it has not got a runtime
"""

from __future__ import annotations

from gleitzeit_core.errors import GleitzeitError


class DockerError(GleitzeitError):
    """An engine refuses something; in its own words."""

    code = "docker"


class EngineDown(DockerError):
    """An engine does not answer. With `hangs` it takes connections and is silent."""

    code = "docker_engine"
    retryable = True

    def __init__(self, message: str, *, hangs: bool = False) -> None:
        super().__init__(message)
        self.hangs = hangs


class NotFound(DockerError):
    """An engine has no such thing."""

    code = "docker_not_found"


class Conflict(DockerError):
    """A thing is not in a state in which this could be done to it."""

    code = "docker_conflict"


class ImageMissing(DockerError):
    """An image is not there, or not yet."""

    code = "docker_image"
    retryable = True


class RuntimeMissing(DockerError):
    """A runtime that a configuration asks for is not there: nothing else will do instead."""

    code = "docker_runtime"


def by_status(status: int, message: str) -> DockerError:
    """The error that an engine's answer stands for."""
    kind = {404: NotFound, 409: Conflict}.get(status, DockerError)
    return kind(message)
