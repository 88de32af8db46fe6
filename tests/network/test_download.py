"""Downloads, from a server on this machine that breaks off, stays silent, refuses or sends something else."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from alexnet_edge.errors import CheckpointError, OutputError
from alexnet_edge.network import download
from alexnet_edge.network.download import download_once
from alexnet_edge.progress import QuietReporter

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()[:8]

Answer = Callable[[BaseHTTPRequestHandler], object]


class Server:
    """Answers each request as the next of `answers` says, the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [send()]
        self.ranges: list[str | None] = []
        """The `Range` of each request, in order."""
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.ranges.append(self.headers["Range"])
                answer = outer.answers[min(len(outer.ranges), len(outer.answers)) - 1]
                answer(self)

            def log_message(self, format: str, *arguments: object) -> None:
                """Nothing to show."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/weights.pth"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def send(upto: int | None = None, *, ranges: bool = True, content: bytes = CONTENT, length: bool = True) -> Answer:
    """Send the content, or the part that is asked for, but of it only `upto` bytes."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        part = re.fullmatch(r"bytes=(\d+)-", request.headers["Range"] or "")
        first = int(part[1]) if part and ranges else 0
        request.send_response(206 if first else 200)
        if length:
            request.send_header("Content-Length", str(len(content) - first))
        request.end_headers()
        request.wfile.write(content[first:][:upto])

    return answer


def refuse(code: int) -> Answer:
    return lambda request: request.send_error(code)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    running = Server()
    yield running
    running.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache/weights.pth"


def fetch(server: Server, path: Path, sha256: str = SHA256) -> None:
    download_once(server.url, path, sha256=sha256, fix="bring it", reporter=QuietReporter())


def refused(server: Server, path: Path, sha256: str = SHA256) -> str:
    """The message of a download that fails and leaves nothing behind."""
    with pytest.raises(CheckpointError) as error:
        fetch(server, path, sha256)
    assert list(path.parent.iterdir()) == []
    assert str(error.value).endswith(f": {server.url}; bring it")
    return str(error.value)


def test_a_file_is_fetched_once(server: Server, path: Path) -> None:
    fetch(server, path)
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("ranges", [True, False])
def test_what_breaks_off_is_gone_on_with(server: Server, path: Path, ranges: bool) -> None:
    server.answers = [send(1000, ranges=ranges), refuse(503), send(100_000, ranges=ranges), send(ranges=ranges)]
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=1000-", f"bytes={101_000 if ranges else 100_000}-"]


def test_a_length_that_nobody_says(server: Server, path: Path) -> None:
    server.answers = [send(length=False)]
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_a_silent_server_is_left_after_some_attempts(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SILENCE_S", 0.1)

    def silent(request: BaseHTTPRequestHandler) -> None:
        send(1000)(request)
        request.wfile.flush()
        server.released.wait(60)

    server.answers = [silent, lambda request: server.released.wait(60)]
    assert "it cannot be downloaded (" in refused(server, path)
    assert "timed out" in refused(server, path)
    assert server.ranges[: 1 + download.ATTEMPTS] == [None, *["bytes=1000-"] * download.ATTEMPTS]


def test_an_answer_that_will_not_change_ends_it_at_once(server: Server, path: Path) -> None:
    server.answers = [refuse(404)]
    assert "it cannot be downloaded (the server answers 404, Not Found)" in refused(server, path)
    assert len(server.ranges) == 1


def test_another_file_is_not_kept(server: Server, path: Path) -> None:
    server.answers = [send(content=CONTENT[::-1])]
    other = hashlib.sha256(CONTENT[::-1]).hexdigest()[:8]
    assert f"not the published file: its SHA-256 begins with {other}, not {SHA256}" in refused(server, path)
    server.answers = [send(content=CONTENT[:-1])]
    assert "not the published file" in refused(server, path)


def test_processes_that_ask_together_fetch_it_once(server: Server, path: Path) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        send()(request)

    server.answers = [slow]
    with ThreadPoolExecutor(3) as pool:  # each opens the lock's file for itself, as processes do
        list(pool.map(lambda _: fetch(server, path), range(3)))
    assert path.read_bytes() == CONTENT
    assert len(server.ranges) == 1


def test_a_cache_that_cannot_be_written_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a part of the path is a file, not a folder"):
        fetch(server, tmp_path / "file/weights.pth")
    assert server.ranges == []
