"""The race: small answers and streams through the gateway and through others, all on the same two fast fake servers.

The gateway runs with everything on: keys, metrics, breaker, access log and a strategy. Every contender is one process,
driven by `wrk` with 32 connections; the rounds of all contenders alternate and the median counts, so what else the
machine does hits all of them. Ratios hold within one run only.

    python benchmarks/race.py                          # all, 3 rounds of 4 s
    python benchmarks/race.py --only bare,gateway --rounds 5 --seconds 3
    python benchmarks/race.py --profile                # only where the gateway's time goes, by cProfile

Besides speed it prints what each adds to one request at a time, what 1,000 open slow streams take, how evenly parts
come, and how soon a server hears that a caller has left.

Needs `wrk`. `nginx`, `vllm-router` and `sglang-router` take part where they are installed; it says so where not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pstats
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import slow_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HERE: Final = Path(__file__).parent
CONNECTIONS: Final = 32
CHUNKS: Final = 33
MODEL: Final = "small"
KEY: Final = "a-key-for-the-race-only"
_START_S: Final = 20.0
_PATH: Final = "/v1/chat/completions"
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run of wrk found.

    Args:
        per_s: Answers per second.
        median_s: Latency.
        cpu_s: Of the contender, for one answer.
        wrong: Answers with another status than 2xx, and connections that broke.
    """

    per_s: float
    median_s: float
    cpu_s: float
    wrong: int


@dataclass(frozen=True, slots=True)
class Contender:
    """A program that runs.

    Args:
        url: Where it listens.
        pid: Its process, whose children count as it.
    """

    url: str
    pid: int

    @property
    def cpu_s(self) -> float:
        """The processor time it has used."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
        stats = [
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
            for pid in (self.pid, *children)
        ]
        return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[Contender]:
    """A program that listens on `port`."""
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:  # noqa: S603 - ours
        try:
            _until_it_listens(process, port, log)
            yield Contender(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()


def _until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    limit = time.monotonic() + _START_S
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} does not listen:\n{log.read_text()}")


# -- contenders ----------------------------------------------------------------------------------------------------


def nginx(port: int, servers: Sequence[str], folder: Path) -> list[str]:
    """The program nginx as a reverse proxy with one worker, `least_conn` and kept connections."""
    hosts = "".join(f"server {url.removeprefix('http://')};" for url in servers)
    (folder / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 8192; }}
http {{
  access_log {folder}/nginx-access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 10000000;
  upstream pool {{ least_conn; {hosts} keepalive 64; keepalive_requests 10000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://pool; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
}}""")
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]


def bare(port: int, servers: Sequence[str], folder: Path) -> list[str]:
    """The committed proxy."""
    del folder
    return [sys.executable, str(HERE / "bare_proxy.py"), str(port), *servers]


def gateway(port: int, servers: Sequence[str], folder: Path) -> list[str]:
    """This project, with everything on."""
    instances = [{"url": url, "max_concurrent": slow_streams.OPEN} for url in servers]
    config = {
        "gateway": {"port": port, "keys": [{"name": "race", "key": KEY}], "access_log": True},
        "hubs": {"fast": {"type": "openai", "instances": instances}},
        "routes": [{"methods": ["*"], "strategy": "least_loaded"}],
    }
    path = folder / "gleitzeit.yaml"
    path.write_text(json.dumps(config))
    return [sys.executable, "-m", "gleitzeit_core.cli", "serve", "--config", str(path)]


def vllm_router(port: int, servers: Sequence[str], folder: Path) -> list[str]:
    """The router of vLLM, in Rust."""
    del folder
    command = ["vllm-router", "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    return [*command, "--prometheus-port", str(free_port()), "--worker-urls", *servers]


def sglang_router(port: int, servers: Sequence[str], folder: Path) -> list[str]:
    """The router of SGLang, in Rust."""
    del folder
    command = ["sglang-router", "launch", "--host", "127.0.0.1", "--port", str(port)]
    metrics = ["--prometheus-port", str(free_port())]
    return [*command, "--policy", "round_robin", *metrics, "--worker-urls", *servers]


CONTENDERS: Final[dict[str, Callable[[int, Sequence[str], Path], list[str]]]] = {
    "nginx": nginx,
    "bare": bare,
    "vllm": vllm_router,
    "sglang": sglang_router,
    "gateway": gateway,
}
_MISSING: Final[dict[str, Callable[[], bool]]] = {
    "nginx": lambda: shutil.which("nginx") is None,
    "vllm": lambda: shutil.which("vllm-router") is None,
    "sglang": lambda: shutil.which("sglang-router") is None,
}


def taking_part(names: Sequence[str]) -> list[str]:
    """Those of `names` that are installed; what is not is said."""
    missing = [name for name in names if name in _MISSING and _MISSING[name]()]
    for name in missing:
        print(f"{name} is not installed, and does not take part")
    return [name for name in names if name not in missing]


# -- measuring -----------------------------------------------------------------------------------------------------


def script(folder: Path, *, stream: bool) -> Path:
    """What wrk sends."""
    body = json.dumps({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "hi"}]})
    path = folder / f"{'stream' if stream else 'plain'}.lua"
    path.write_text(f"""wrk.method = "POST"
wrk.body = [[{body}]]
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {KEY}"
""")
    return path


def measure(contender: Contender, lua: Path, seconds: int, connections: int = CONNECTIONS) -> Figures:
    """One run of wrk."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(lua), contender.url + _PATH]
    before_s = contender.cpu_s
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - ours
    per_s, median = re.search(r"Requests/sec:\s+([\d.]+)", said), re.search(r"50%\s+([\d.]+)(us|ms|s|m)\b", said)
    if per_s is None or median is None:
        raise SystemExit(f"wrk said nothing of use:\n{said}")
    wrong = sum(map(int, re.findall(r"(?:responses:|connect|read|write|timeout) (\d+)", said)))
    cpu_s = (contender.cpu_s - before_s) / max(1.0, float(per_s[1]) * seconds)
    return Figures(float(per_s[1]), float(median[1]) * _UNITS[median[2]], cpu_s, wrong)


def check(url: str, *, slow: bool = False) -> None:
    """See that an answer and a stream come through whole, before anything is measured; or that a stream begins."""
    if slow:
        _asked(url, slow_streams.MODEL, stream=True, most_bytes=10)
        return
    for stream, wanted in ((False, b'"finish_reason":"stop"'), (True, b"data: [DONE]")):
        found = _asked(url, MODEL, stream=stream)
        if wanted not in found or (stream and found.count(b"data: ") != CHUNKS):
            raise SystemExit(f"{url} answered {found!r}")


def _asked(url: str, model: str, *, stream: bool, most_bytes: int | None = None) -> bytes:
    """The beginning of an answer, or all of it, from a server that may still be about to start."""
    body = json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}]})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(url + _PATH, body.encode(), headers)  # noqa: S310 - ours
    limit = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=_START_S) as answer:  # noqa: S310 - ours
                return bytes(answer.read(most_bytes))
        except urllib.error.URLError as error:
            if time.monotonic() > limit:
                raise SystemExit(f"{url}: {error}") from error
            time.sleep(0.1)


def race(contenders: dict[str, Contender], lua: Path, rounds: int, seconds: int) -> dict[str, list[Figures]]:
    """Rounds of all contenders in turn; the first one, which warms up, does not count."""
    for contender in contenders.values():
        measure(contender, lua, 1)
    found: dict[str, list[Figures]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            found[name].append(measure(contender, lua, seconds))
    return found


def show(title: str, found: dict[str, list[Figures]]) -> None:
    """A table of medians, and of what they are to the bare proxy and to nginx."""
    print(f"\n{title}")
    print(f"  {'':10}{'per s':>9}{'p50 ms':>9}{'cpu us':>9}{'x bare':>9}{'x nginx':>9}{'wrong':>8}")
    rates = {name: statistics.median(one.per_s for one in each) for name, each in found.items()}
    for name, each in found.items():
        ratios = "".join(f"{rates[name] / rates[to]:9.2f}" if to in rates else " " * 9 for to in ("bare", "nginx"))
        median_ms = statistics.median(one.median_s for one in each) * 1000
        cpu_us = statistics.median(one.cpu_s for one in each) * 1e6
        print(
            f"  {name:10}{rates[name]:9.0f}{median_ms:9.2f}{cpu_us:9.0f}{ratios}{sum(one.wrong for one in each):8}",
            flush=True,
        )


def show_added(contenders: dict[str, Contender], lua: Path, seconds: int) -> None:
    """What each adds to one request at a time."""
    found = {name: measure(one, lua, seconds, connections=1).median_s * 1e6 for name, one in contenders.items()}
    print("\nadded latency, one connection, median:", end="")
    print(*(f" {name} {found[name] - found['direct']:.0f} us" for name in found if name != "direct"), sep=",")


async def show_slowness(names: Sequence[str], folder: Path) -> None:
    """Each contender once more, before slow servers."""
    print(
        f"\nslow streams{'':6}{'KB each of ' + str(slow_streams.OPEN):>18}{'gap ms':>9}{'p99 gap':>9}{'leaving ms':>12}"
    )
    for name in names:
        slow = slow_streams.Slow()
        async with slow.listening() as url:
            port = free_port()
            starting = running(CONTENDERS[name](port, [url], folder), port, folder / f"{name}-slow.log")
            with contextlib.ExitStack() as stack:
                # Some listen only when their server has answered, which is in this loop.
                contender = await asyncio.to_thread(_streaming, stack, starting)
                headers = f"Content-Type: application/json\r\nAuthorization: Bearer {KEY}\r\n"
                found = contender and await slow_streams.measure(contender, slow, _PATH, headers)
        if not found:
            print(f"  {name:16} does not pass a stream on")
            continue
        few = f" (only {found.opened} could be opened)" if found.opened < slow_streams.OPEN else ""
        print(
            f"  {name:16}{found.stream_bytes / 1024:18.1f}{found.gap_s * 1000:9.2f}{found.gap_p99_s * 1000:9.2f}"
            f"{found.leaving_s * 1000:12.2f}{few}",
            flush=True,
        )


def _streaming(stack: contextlib.ExitStack, starting: contextlib.AbstractContextManager[Contender]) -> Contender | None:
    """The contender, once it passes a stream on; None when it does not come to that."""
    try:
        contender = stack.enter_context(starting)
        check(contender.url, slow=True)
    except SystemExit:
        return None
    return contender


def show_profile(urls: Sequence[str], folder: Path, seconds: int) -> None:
    """Where the gateway's time goes, function by function; measuring makes all of it slower, small functions most."""
    for stream in (False, True):
        port, written = free_port(), folder / f"profile-{stream}"
        interpreter, *rest = gateway(port, urls, folder)
        command = [interpreter, "-m", "cProfile", "-o", str(written), *rest]
        with running(command, port, folder / "profile.log") as contender:
            check(contender.url)
            found = measure(contender, script(folder, stream=stream), seconds)
            os.kill(contender.pid, signal.SIGTERM)
            limit = time.monotonic() + _START_S
            while not written.exists() and time.monotonic() < limit:
                time.sleep(0.1)
            time.sleep(0.5)
        print(f"\n{'streams' if stream else 'plain'}: {found.per_s * seconds:.0f} answers under the profiler")
        pstats.Stats(str(written)).sort_stats("tottime").print_stats("gleitzeit|built-in|method", 40)


def main() -> int:
    """Run the race. The exit status is 1 when it cannot be run."""
    parser = argparse.ArgumentParser(description="The race: see the text of this file.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, besides the servers themselves")
    parser.add_argument("--profile", action="store_true", help="only say where the gateway's time goes")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print(
            "wrk is not installed, and nothing else drives this race; on Debian: apt-get install wrk", file=sys.stderr
        )
        return 1
    names = taking_part([name for name in options.only.split(",") if name])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        servers = []
        for _ in range(2):
            port = free_port()
            command = [sys.executable, str(HERE / "fast_server.py"), str(port), str(CHUNKS), MODEL]
            servers.append(stack.enter_context(running(command, port, folder / "servers.log")))
        contenders = {"direct": servers[0]}
        urls = [server.url for server in servers]
        if options.profile:
            show_profile(urls, folder, options.seconds)
            return 0
        for name in names:
            port = free_port()
            command = CONTENDERS[name](port, urls, folder)
            contenders[name] = stack.enter_context(running(command, port, folder / f"{name}.log"))
        for contender in contenders.values():
            check(contender.url)
        plain, streams = script(folder, stream=False), script(folder, stream=True)
        show("small plain answers", race(contenders, plain, options.rounds, options.seconds))
        show(f"streams of {CHUNKS} chunks", race(contenders, streams, options.rounds, options.seconds))
        show_added(contenders, plain, max(1, options.seconds // 2))
        asyncio.run(show_slowness(names, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
