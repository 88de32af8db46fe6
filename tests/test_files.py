"""Files are written whole or not at all, and a failed write is one line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_disk import small_disk

from alexnet_edge.errors import OutputError
from alexnet_edge.files import sha256_file, sha256_json, staged, write_json, write_text, writing


def test_written_whole_with_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    write_text(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    write_text(path, "zwei\n")
    assert path.read_bytes() == b"zwei\n"
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json(tmp_path: Path) -> None:
    path, value = tmp_path / "value.json", {"b": [1, 2.5, None], "a": "ü"}
    write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == value
    before = path.read_bytes()
    for bad in (float("nan"), float("inf"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, {"a": bad})
    assert path.read_bytes() == before


def test_a_failed_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def half() -> None:
        with staged(path) as temporary:
            temporary.write_bytes(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import sys
from pathlib import Path
from alexnet_edge.files import write_text
path = Path(sys.argv[1])
for value in range(1_000_000):
    write_text(path, f"{value % 10}" * 200_000)
    if value == 0:
        print("started", flush=True)
"""


def test_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    pauses = random.Random(0)
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"started\n"
            time.sleep(pauses.uniform(0, 0.05))
            writer.kill()
        text = path.read_text()
        assert text == text[0] * 200_000


def test_disk_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "size=64k") as folder:
        path = folder / "file.txt"
        write_text(path, "old")
        with pytest.raises(OutputError) as error:
            write_text(path, "x" * 200_000)
        assert str(error.value) == (
            f"cannot write, no space left on the disk: {path}; free some space or choose another output folder"
        )
        assert path.read_text() == "old"
        assert list(folder.iterdir()) == [path], "the unfinished file still fills the disk"


def test_read_only_disk(tmp_path: Path) -> None:
    line = r"cannot write, the file system is read-only: .*; choose another output folder"
    with small_disk(tmp_path / "read-only", "ro,size=64k") as folder:
        for path in (folder / "file.txt", folder / "folder" / "file.txt"):
            with pytest.raises(OutputError, match=line):
                write_text(path, "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="no permission to write there"):
        write_text(tmp_path / "closed" / "file.txt", "text")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("file/a.txt", "a part of the path is a file, not a folder"),
        ("file/b/a.txt", "a part of the path is a file, not a folder"),
        ("folder", "the path is a folder, not a file"),
        ("x" * 300, "the name is too long"),
    ],
)
def test_a_path_that_cannot_be_written(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=words):
        write_text(tmp_path / name, "text")
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "folder"}


def test_every_reason_is_one_line_with_the_path(tmp_path: Path) -> None:
    for number in errno.errorcode:
        with pytest.raises(OutputError) as error, writing(tmp_path):
            raise OSError(number, os.strerror(number))
        text = str(error.value)
        assert text.startswith("cannot write, ")
        assert f": {tmp_path}; choose " in text or f": {tmp_path}; free " in text
        assert "\n" not in text


def test_checksums(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    (tmp_path / "empty").touch()
    assert sha256_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_json_checksum_is_of_the_value() -> None:
    assert sha256_json({"a": 1, "b": [2, "ü"]}) == sha256_json({"b": [2, "ü"], "a": 1})
    assert sha256_json({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    assert len({sha256_json(value) for value in ({"a": 1}, {"a": "1"}, {"a": [1]}, [["a", 1]])}) == 4
