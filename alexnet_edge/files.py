"""Files written whole or not at all, and their checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alexnet_edge.errors import OutputError

_ELSEWHERE = "choose another output folder"
_WHY = {
    errno.ENOSPC: ("no space left on the disk", f"free some space or {_ELSEWHERE}"),
    errno.EDQUOT: ("the disk quota is used up", f"free some space or {_ELSEWHERE}"),
    errno.EROFS: ("the file system is read-only", _ELSEWHERE),
    **dict.fromkeys((errno.EACCES, errno.EPERM), ("no permission to write there", _ELSEWHERE)),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), ("a part of the path is a file, not a folder", _ELSEWHERE)),
    errno.EISDIR: ("the path is a folder, not a file", "choose another output name"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter output name"),
}
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What reading a JSON text, or taking fields from its value, raises when it is damaged or not what was expected."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system error while writing `path` into an OutputError with the reason, the path and a fix."""
    try:
        yield
    except OSError as error:
        reason, fix = _WHY.get(error.errno or 0, (error.strerror or str(error), _ELSEWHERE))
        raise OutputError(f"cannot write, {reason}", value=path, fix=fix) from error


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving, flush it to disk and rename it to `path`.

    When the block raises, or the process is killed inside it, `path` keeps its old content; OutputError as `writing`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            sync_and_replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def sync_and_replace(temporary: Path, path: Path) -> None:
    """fsync `temporary`, rename it to `path` and fsync the folder, so that a power cut keeps one of the two whole."""
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all; OutputError when it cannot be written."""
    with staged(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, as `write_text` does; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of a JSON value in canonical form (sorted keys, no white space): a content key for caches."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
