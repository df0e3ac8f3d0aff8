"""Stand-ins for tests: a registry with one image, and an engine that can be made to hang."""

from gleitzeit_docker.testing.proxy import EngineProxy
from gleitzeit_docker.testing.registry import Registry

__all__ = ["EngineProxy", "Registry"]
