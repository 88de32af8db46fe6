"""Published weights from the web: whole and as published, or not there at all."""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from alexnet_edge.errors import CheckpointError
from alexnet_edge.files import staged, writing

if TYPE_CHECKING:
    from alexnet_edge.progress import Reporter

SILENCE_S = 30.0
"""A server that sends nothing for so long is asked again."""

ATTEMPTS = 4
"""Times that it is asked in a row without sending anything new."""

PAUSE_S = 2.0
"""Between two attempts."""

_BLOCK_BYTES = 1 << 20
_BUSY = (408, 429)
"""Answers below 500 that another attempt may change."""


def download_once(url: str, path: Path, *, sha256: str, fix: str, reporter: Reporter) -> None:
    """Fetch `url` into `path` unless it is there; of processes that ask for it together one does, the others wait.

    What breaks off is gone on with, what is not as published is thrown away: `sha256` begins with the first digits of the
    file's checksum. The environment's proxies are used. `fix` is what to do instead, for the message.

    Raises:
        CheckpointError: when the server refuses or stays silent, or sends another file.
        OutputError: when `path` cannot be written.
    """
    if path.is_file():
        return
    lock = path.with_name(f".{path.name}.lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w")
    with stream:
        with suppress(OSError):  # a file system without locks: each fetches its own, the last one stays
            fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            if not path.is_file():
                _download(url, path, sha256=sha256, fix=fix, reporter=reporter)
        finally:
            with suppress(OSError):
                lock.unlink()


def _download(url: str, path: Path, *, sha256: str, fix: str, reporter: Reporter) -> None:
    digest, done = hashlib.sha256(), 0
    with staged(path) as temporary, temporary.open("wb") as stream:
        for block, total in _blocks(url, fix):
            if not done:
                reporter.start(f"Download of {path.name}, MB", total and -(-total // 1_000_000))
            stream.write(block)
            digest.update(block)
            done += len(block)
            reporter.update(done // 1_000_000)
        if not digest.hexdigest().startswith(sha256):
            raise CheckpointError(
                f"not the published file: its SHA-256 begins with {digest.hexdigest()[: len(sha256)]}, not {sha256}",
                value=url,
                fix=fix,
            )
    reporter.finish(f"{done / 1e6:.1f} MB, checksum right")


def _blocks(url: str, fix: str) -> Iterator[tuple[bytes, int | None]]:
    """The file's bytes in order, each once, with its length where the server says it."""
    done, fruitless = 0, 0
    while True:
        before = done
        try:
            headers = {"User-Agent": "alexnet-edge", **({"Range": f"bytes={done}-"} if done else {})}
            with urlopen(Request(url, headers=headers), timeout=SILENCE_S) as response:
                known = 0 if response.status == 206 else done  # a server may send everything again
                length = response.headers["Content-Length"]
                total = None if length is None else done - known + int(length)
                while block := response.read1(_BLOCK_BYTES):  # what is there: all of it counts, should the next be late
                    fresh, known = block[known:], max(0, known - len(block))
                    if fresh:
                        done += len(fresh)
                        yield fresh, total
            if total is None or done >= total:
                return
            why = f"the connection ended after {done} of {total} bytes"
        except HTTPError as error:
            why = f"the server answers {error.code}, {error.reason}"
            error.close()
            if error.code < 500 and error.code not in _BUSY:
                fruitless = ATTEMPTS
        except (OSError, HTTPException, ValueError) as error:
            why = str(getattr(error, "reason", None) or error) or type(error).__name__
        fruitless = 0 if done > before else fruitless + 1
        if fruitless >= ATTEMPTS:
            raise CheckpointError(f"it cannot be downloaded ({why})", value=url, fix=fix)
        time.sleep(PAUSE_S)
