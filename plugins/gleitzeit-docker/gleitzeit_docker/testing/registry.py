"""A registry with one image, of the kind that engines pull from (Docker Registry HTTP API V2), on loopback.

Engines take an unencrypted registry on 127.0.0.0/8 without being told to. It can be held up at its layers, so that a
test sees a pull that goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_NAME: Final = "tiny"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """Serves one image. A context.

    Args:
        saved: The image, as ``docker save`` writes it.

    Attributes:
        open: Cleared, no layer is sent until it is set.
        asked: The paths that were asked for.
    """

    def __init__(self, saved: bytes) -> None:
        self.open = threading.Event()
        self.open.set()
        self.asked: list[str] = []
        self._blobs: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
            about = json.loads(_read(archive, "manifest.json"))[0]
            config = _read(archive, about["Config"])
            layers = [_read(archive, name) for name in about["Layers"]]
        self._manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": self._blob(_CONFIG, config),
                "layers": [self._blob(_LAYER, layer) for layer in layers],
            }
        ).encode()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def _blob(self, kind: str, data: bytes) -> dict[str, Any]:
        self._blobs[_digest(data)] = data
        return {"mediaType": kind, "size": len(data), "digest": _digest(data)}

    @property
    def image(self) -> str:
        """What to pull."""
        return f"127.0.0.1:{self._server.server_port}/{_NAME}:latest"

    @property
    def digest(self) -> str:
        """What the image is known by."""
        return _digest(self._manifest)

    def __enter__(self) -> Self:
        """Serve."""
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop."""
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry.asked.append(self.path)
                status, kind, body, digest = registry.answer(self.path)
                self.send_response(status)
                self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                if digest:
                    self.send_header("Docker-Content-Digest", digest)
                self.end_headers()
                if self.command == "GET":
                    self._send(body, held=kind == _LAYER)

            def do_HEAD(self) -> None:
                self.do_GET()

            def _send(self, body: bytes, *, held: bool) -> None:
                half = len(body) // 2
                for part in (body[:half], body[half:]):
                    try:
                        self.wfile.write(part)
                        self.wfile.flush()
                    except OSError:
                        return
                    if held:
                        registry.open.wait()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - as the base has it
                """Say nothing."""

        return Handler

    def answer(self, path: str) -> tuple[int, str, bytes, str]:
        """Status, type, body and digest of what stands at a path."""
        parts = path.partition("?")[0].strip("/").split("/")
        if parts == ["v2"]:
            return HTTPStatus.OK, "application/json", b"{}", ""
        if parts[:3] == ["v2", _NAME, "manifests"] and parts[3] in ("latest", self.digest):
            return HTTPStatus.OK, _MANIFEST, self._manifest, self.digest
        if parts[:3] == ["v2", _NAME, "blobs"] and parts[3] in self._blobs:
            kind = _CONFIG if parts[3] == json.loads(self._manifest)["config"]["digest"] else _LAYER
            return HTTPStatus.OK, kind, self._blobs[parts[3]], parts[3]
        error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        return HTTPStatus.NOT_FOUND, "application/json", json.dumps(error).encode(), ""


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    found = archive.extractfile(name)
    if found is None:
        raise KeyError(name)
    return found.read()
