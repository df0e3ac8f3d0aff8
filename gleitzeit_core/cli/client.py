"""A small HTTP client for a running gateway, from the standard library."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from gleitzeit_core.errors import GleitzeitError

if TYPE_CHECKING:
    import socket
    from collections.abc import Generator, Iterator, Sequence

_CONNECT_TIMEOUT_S: Final = 5.0
_ANSWER_TIMEOUT_S: Final = 15.0
"""For what a gateway knows by itself."""
_DEADLINE_GRACE_S: Final = 0.5
"""The gateway says better why a deadline has passed, so it gets this much longer to say it."""
_MAX_BODY_BYTES: Final = 256 << 20
_SUCCESSES: Final = (200, 201)
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404


class GatewayDown(GleitzeitError):
    """Nothing listens where the gateway should be."""

    code = "gateway_down"


class GatewayError(GleitzeitError):
    """A gateway answered with an error, or not as a gateway does.

    Args:
        message: A sentence for a person.
        code: The gateway's own code of the error, if it gave one.
        problems: What is wrong with a configuration, one by one, if that was the error.
    """

    def __init__(self, message: str, code: str = "gateway", problems: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # whatever the gateway says
        self.problems = tuple(problems)


class GatewayClient:
    """Calls to one gateway, a connection for each.

    Args:
        url: Such as ``http://127.0.0.1:8484``; without a scheme, ``http`` is meant.
        key: An API key; empty for none.

    Raises:
        ValueError: `url` or `key` is none.
    """

    def __init__(self, url: str, key: str = "") -> None:
        parts, port = _split(url)
        if not (key.isascii() and key.isprintable()):
            raise ValueError("a key has only printable ASCII characters")
        tls = parts.scheme == "https"
        self._connection: type[http.client.HTTPConnection]
        self._connection = http.client.HTTPSConnection if tls else http.client.HTTPConnection
        self._host, self._port = str(parts.hostname), port or (443 if tls else 80)
        self._path, self._key = parts.path.rstrip("/"), key
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"{parts.scheme}://{shown}:{self._port}{self._path}"

    def __repr__(self) -> str:
        """The address, never the key."""
        return f"<GatewayClient {self.url}>"

    def listening(self) -> bool:
        """Whether anything listens there."""
        connection = self._connection(self._host, self._port, timeout=_CONNECT_TIMEOUT_S)
        try:
            self._connect(connection)
        except GatewayDown:
            return False
        finally:
            connection.close()
        return True

    def status(self) -> dict[str, Any]:
        """What `ResourceManager.status` says there."""
        return self._object("GET", "/admin/status")

    def models(self) -> dict[str, Any]:
        """The models, as Ollama lists them."""
        return self._object("GET", "/api/tags")

    def admin(
        self, verb: str, path: str, body: object = None, *, timeout_s: float | None = _ANSWER_TIMEOUT_S
    ) -> dict[str, Any]:
        """Ask or change something below ``/admin``.

        Args:
            verb: Of HTTP.
            path: Below ``/admin``, with its slash; what it is put together from must be quoted.
            body: Anything JSON; None for nothing.
            timeout_s: For the whole exchange; None for no limit.

        Raises:
            GatewayDown: Nothing listens.
            GatewayError: It was refused.
        """
        return self._object(verb, f"/admin{path}", body, timeout_s)

    def events(self, *, requests: bool = False) -> Generator[dict[str, Any], None, None]:
        """What happens there, as it happens, until the gateway ends.

        Args:
            requests: Whether each finished request is told as well.

        Raises:
            GatewayDown: Nothing listens.
            GatewayError: It was refused, or the connection broke off.
        """
        with self._exchange("GET", f"/admin/events{'?requests=1' if requests else ''}", None, None) as (response, _):
            if response.headers.get_content_type() != "text/event-stream":
                # A status of success, but no events: says what it is instead.
                self._parsed(response.read(_MAX_BODY_BYTES), whole=not response.length)
                raise self._strange("something that is no stream of events")
            while line := response.readline(_MAX_BODY_BYTES):
                if line.startswith(b"data:"):
                    yield self._parsed(line.removeprefix(b"data:"), whole=line.endswith(b"\n"))

    def call(self, method: str, params: Mapping[str, Any], timeout_s: float | None) -> Any:  # noqa: ANN401 - the method's own
        """Carry `method` out and return its answer.

        Raises:
            GatewayDown: Nothing listens.
            GatewayError: It failed, or took longer than `timeout_s` seconds.
        """
        answer = self._object("POST", "/rpc", _rpc(method, params, timeout_s), timeout_s)
        if "result" not in answer:
            raise _reported(answer) or self._strange("neither a result nor an error")
        return answer["result"]

    def stream(self, method: str, params: Mapping[str, Any], timeout_s: float | None) -> Generator[Any, None, None]:
        """The same in parts, as they come. Leaving early cancels the work.

        Raises:
            GatewayDown: Nothing listens.
            GatewayError: It failed, took too long, or broke off.
        """
        lines = self._lines("/rpc", {**_rpc(method, params, timeout_s), "stream": True}, timeout_s)
        for line in lines:
            if "part" in line:
                yield line["part"]
            elif line.get("done") is True:
                return _read_out(lines)
            else:
                raise _reported(line) or self._strange("neither a part nor an error")
        raise self._broken_off()

    def chat(self, body: Mapping[str, Any], timeout_s: float | None) -> Generator[dict[str, Any], None, None]:
        """The parts of a chat's answer, as Ollama streams them; the last says ``"done": true``.

        Raises:
            GatewayDown: Nothing listens.
            GatewayError: It failed, took too long, or broke off.
        """
        parts = self._lines("/api/chat", {**body, "stream": True}, timeout_s)
        for part in parts:
            if "error" in part:
                raise _reported(part) or self._strange("an error without words")
            yield part
            if part.get("done") is True:
                return _read_out(parts)
        raise self._broken_off()

    # -- one exchange ------------------------------------------------------------------------------------------

    def _object(
        self, verb: str, path: str, body: object = None, timeout_s: float | None = _ANSWER_TIMEOUT_S
    ) -> dict[str, Any]:
        with self._exchange(verb, path, body, timeout_s) as (response, _):
            text = response.read(_MAX_BODY_BYTES)
            if response.length:
                raise self._broken_off()
            return self._parsed(text)

    def _lines(self, path: str, body: object, timeout_s: float | None) -> Iterator[dict[str, Any]]:
        with self._exchange("POST", path, body, timeout_s) as (response, limit):
            while line := response.readline(_MAX_BODY_BYTES):
                if line.strip():
                    yield self._parsed(line, whole=not response.length or line.endswith(b"\n"))
                limit.apply()

    @contextmanager
    def _exchange(
        self, verb: str, path: str, body: object, timeout_s: float | None
    ) -> Iterator[tuple[http.client.HTTPResponse, _Limit]]:
        """A request and the head of its answer, which is a success. Whatever goes wrong becomes one of our errors."""
        connection = self._connection(self._host, self._port, timeout=_CONNECT_TIMEOUT_S)
        response = None
        try:
            self._connect(connection)
            limit = _Limit(connection.sock, timeout_s)
            content = None if body is None else json.dumps(body).encode()
            connection.request(verb, self._path + path, content, self._headers())
            response = connection.getresponse()
            if response.status not in _SUCCESSES:
                raise self._refusal(response, path)
            yield response, limit
        except TimeoutError:
            raise GatewayError(f"no answer from {self.url} within {timeout_s:g} s", "timeout") from None
        except (http.client.RemoteDisconnected, http.client.IncompleteRead, ConnectionError):
            raise self._broken_off() from None
        except http.client.HTTPException:
            raise self._strange("something that is not HTTP") from None
        except OSError as error:
            raise GatewayError(f"the connection to {self.url} failed: {error.strerror or error}") from None
        finally:
            if response is not None:
                response.close()
            connection.close()

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            why = f"its certificate is not trusted: {error.verify_message}; SSL_CERT_FILE may name who signed it"
            raise GatewayError(f"{self.url}: {why}", "tls") from None
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise GatewayDown(f"no gateway at {self.url}: {reason}; 'gleitzeit serve' starts one") from None

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return {**headers, "Authorization": f"Bearer {self._key}"} if self._key else headers

    def _parsed(self, text: bytes, *, whole: bool = True) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self._strange("something that is not a JSON object") if whole else self._broken_off()
        return found

    def _refusal(self, response: http.client.HTTPResponse, path: str) -> GatewayError:
        """What an answer that is no success means."""
        if response.status == _UNAUTHORIZED:
            what = "does not accept this key" if self._key else "wants a key: use --key or GLEITZEIT_KEY"
            return GatewayError(f"the gateway at {self.url} {what}", "unauthorized")
        try:
            answer = json.loads(response.read(_MAX_BODY_BYTES))
        except (ValueError, RecursionError):
            answer = None
        reported = _reported(answer)
        if reported is None and response.status == _NOT_FOUND:
            return self._strange(f"that it has no {path}")
        return reported or self._strange(f"{response.status} {response.reason}".strip())

    def _strange(self, what: str) -> GatewayError:
        return GatewayError(f"{self.url} answered {what}: is it a Gleitzeit gateway?", "strange_answer")

    def _broken_off(self) -> GatewayError:
        return GatewayError(f"the answer from {self.url} broke off", "incomplete")


class _Limit:
    """Bounds all waiting on a socket by one deadline.

    Args:
        sock: A connected one.
        timeout_s: From now, in seconds; None for no limit.
    """

    def __init__(self, sock: socket.socket, timeout_s: float | None) -> None:
        self._sock = sock
        self._end = None if timeout_s is None else time.monotonic() + timeout_s + _DEADLINE_GRACE_S
        self.apply()

    def apply(self) -> None:
        """Let the next wait take no longer than what is left.

        Raises:
            TimeoutError: Nothing is left.
        """
        left_s = None if self._end is None else self._end - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise TimeoutError
        if self._sock.fileno() >= 0:
            self._sock.settimeout(left_s)


@contextmanager
def understood(url: str) -> Iterator[None]:
    """Whoever reads a gateway's answer in this block expects it to be one; if it is not, that is told.

    Raises:
        GatewayError: The answer is JSON, but has another shape.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError):
        text = f"{url} has another idea of its answer: is it a Gleitzeit gateway of this version?"
        raise GatewayError(text, "strange_answer") from None


def _split(url: str) -> tuple[SplitResult, int | None]:
    """The parts of a gateway's address, and its port.

    Raises:
        ValueError: It is no such address.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme in ("http", "https") and parts.hostname and not parts.query and parts.username is None:
            return parts, parts.port
    except ValueError:
        pass  # brackets or a port that make no sense
    raise ValueError("not an address of a gateway, which looks like http://127.0.0.1:8484")


def _read_out(lines: Iterator[object]) -> None:
    """To the end of an answer that is complete: to the gateway, who leaves before has stopped waiting for it."""
    with suppress(GatewayError):
        for _ in lines:
            pass


def _rpc(method: str, params: Mapping[str, Any], timeout_s: float | None) -> dict[str, Any]:
    """A call in JSON-RPC 2.0, with our extension ``timeout_s``."""
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": dict(params)}
    return call if timeout_s is None else {**call, "timeout_s": timeout_s}


def _reported(answer: object) -> GatewayError | None:
    """The error in an answer, whichever API's shape it has; None if there is none."""
    error = answer.get("error") if isinstance(answer, Mapping) else None
    if isinstance(error, str) and error:
        return GatewayError(error)
    if not isinstance(error, Mapping) or not isinstance(error.get("message"), str):
        return None
    data = error.get("data")
    code = data.get("code") if isinstance(data, Mapping) else error.get("code")
    problems = [problem for problem in error.get("problems") or () if isinstance(problem, Mapping)]
    return GatewayError(error["message"], code if isinstance(code, str) else "gateway", problems)
