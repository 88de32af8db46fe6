"""What the emulated board says where there can be none; that one works is `make test-board`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import emulated_board
import pytest
from emulated_board import NoBoardError, check_here, main, mirror


def test_everything_that_is_missing_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(emulated_board.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(emulated_board.shutil, "which", lambda name: None if "qemu" in name or "boot" in name else name)
    monkeypatch.delenv("ALEXNET_EDGE_DATA", raising=False)
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "emulated board: not run, because it needs root, for chroot and binfmt_misc: run it with "
        "sudo --preserve-env=ALEXNET_EDGE_DATA; programs: apt-get install --no-install-recommends debootstrap "
        "qemu-user-static; real images: set ALEXNET_EDGE_DATA, see CONTRIBUTING.md"
    )


def test_another_kind_of_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated_board.platform, "machine", lambda: "aarch64")
    with pytest.raises(NoBoardError, match="it needs Linux on x86-64, and this is Linux on aarch64"):
        check_here()


TRIXIE = "x-security main http://a/security\ntrixie-updates main http://a/debian\ntrixie main http://a/debian\n"


@pytest.mark.parametrize(
    ("targets", "archive"),
    [
        (TRIXIE, "http://a/debian"),
        ("noble main http://b/ubuntu\nbookworm contrib http://a/debian\n", None),
        ("", None),
    ],
)
def test_the_archive_is_the_one_that_apt_uses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, targets: str, archive: str | None
) -> None:
    (tmp_path / "targets").write_text(targets)
    (tmp_path / "apt-get").write_text(f"#!/bin/sh\n[ $1 = indextargets ] && cat {tmp_path}/targets\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if archive is None:
        with pytest.raises(NoBoardError, match="apt has no Debian archive"):
            mirror()
    else:
        assert mirror() == archive


def test_a_kernel_that_may_not_be_told_of_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emulated_board, "BINFMT", tmp_path)
    (tmp_path / "qemu-aarch64").write_text("enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: P\n")
    (tmp_path / "register").write_text("")
    with pytest.raises(NoBoardError, match="qemu-aarch64 lacks the flag F"):
        emulated_board.aarch64_programs().__enter__()
    (tmp_path / "qemu-aarch64").unlink()
    (tmp_path / "register").unlink()
    (tmp_path / "register").mkdir()
    with pytest.raises(NoBoardError, match="does not let a binfmt_misc handler be registered"):
        emulated_board.aarch64_programs().__enter__()


@pytest.mark.skipif(not Path("/usr/sbin/sshd").exists(), reason="continuous integration would install OpenSSH")
def test_continuous_integration_says_why_it_does_not_run(tmp_path: Path) -> None:
    """`.ci/run` with stand-ins for make and for the rest of a machine."""
    root = Path(__file__).parents[2]
    (tmp_path / "make").write_text("#!/bin/sh\necho made $*\n")
    (tmp_path / "make").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ALEXNET_EDGE_BOARD": "0"}
    done = subprocess.run([root / ".ci" / "run"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["made test", "emulated board: not run, because ALEXNET_EDGE_BOARD=0"]
