"""A board of another architecture on this machine: a Debian arm64 system under QEMU's user mode, with an SSH server of its own.

Programs in it are real aarch64 programs of Debian and of the package index; QEMU translates their instructions and the kernel is
this machine's. What it stands for is a foreign userland behind a real SSH connection. What it cannot stand for: a GPU,
TensorRT, power, and time: no figure measured on it means anything, and every one is marked.

Debian's packages come from the archive that this machine's apt uses, fetched and checked by debootstrap, and unpacked; their
installation scripts are not run, because under emulation that takes five minutes instead of half a one, and nothing here needs
them. The tree is kept below `~/.cache/alexnet-edge/board`, or where `ALEXNET_EDGE_CACHE` says, and each board is a copy of it.

Nothing is installed on this machine. Where the kernel does not start aarch64 programs yet, it is told to as long as a board is
there (`binfmt_misc`, flag F), and no longer.

`python tests/emulated_board.py` fetches what a board is made of, or says in one line why there can be none (exit code 2).

Source: https://docs.kernel.org/admin-guide/binfmt-misc.html; debootstrap(8); sshd_config(5).
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopback_device import free_port

ROOT = Path(__file__).parents[2]

SUITE = "bookworm"
DEBIAN = (SUITE, "trixie", "forky", "sid", "unstable", "testing", "stable", "oldstable")
"""Suites of an archive that has this one too."""
PACKAGES = ("openssh-server", "python3", "python3-venv")
PYTHON = "3.11"
"""Of that suite."""
WHEELS = ("cyclopts", "msgspec", "numpy", "pillow", "rich", "onnx", "onnxruntime")
"""What the package needs there, and what runs an ONNX file; versions as in constraints.txt."""
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
HOST, USER = "board", "edge"
CPU = "cortex-a76"
"""The processor of a Raspberry Pi 5, so that kernels are chosen as for one: QEMU's own default has every extension."""
UID = 51820
"""Of nobody on this machine."""

NEEDED = {
    "debootstrap": "debootstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "dpkg-deb": "dpkg",
    "gpgv": "gpgv",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
"""Debian package of each program."""
BINFMT = Path("/proc/sys/fs/binfmt_misc")
_MAGIC = r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"

SSHD_CONFIG = """\
ListenAddress 127.0.0.1
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PermitRootLogin no
AllowUsers {user}
PidFile none
SetEnv QEMU_CPU={cpu}
Subsystem sftp /usr/lib/openssh/sftp-server
"""

ENTER = """\
set -e
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$@"
"""
"""Without sysfs: ONNX Runtime's look at the processor dies where it lists processors of which /proc/cpuinfo, the host's, says
nothing that an ARM processor's would."""
_INSIDE = (
    "setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh",
)  # fmt: skip
"""Before a tree and a program of it: what it mounts and starts is its own, and ends with this process."""


class NoBoardError(Exception):
    """There can be no emulated board here; the message is one line and says why, and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """A board that answers."""

    ssh_config: Path
    """For `ssh -F`: it knows the host `board`, its key and ours."""
    root: Path
    """The board's file system, as this machine sees it."""
    log: Path
    """What the SSH server says."""

    @property
    def home(self) -> Path:
        return self.root / "home" / USER

    def run(self, command: str, *, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command there, over SSH, as the board's user."""
        return _run("ssh", "-F", self.ssh_config, HOST, command, timeout_s=timeout_s, check=False)


def give(path: Path) -> None:
    """Give a file or folder in a board's root to the board's user."""
    for entry in (path, *path.rglob("*")):
        os.chown(entry, UID, UID, follow_symlinks=False)


def cache_folder() -> Path:
    named = os.environ.get("ALEXNET_EDGE_CACHE")
    return (Path(named) if named else Path.home() / ".cache" / "alexnet-edge") / "board"


def tree_folder() -> Path:
    """Where the tree is kept, by what it is made from."""
    made_from = repr((SUITE, PACKAGES, inspect.getsource(debian_tree)))
    return cache_folder() / f"debian-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"


def check_here() -> None:
    """Raises NoBoardError when there can be no board here, with everything that is missing."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise NoBoardError(f"it needs Linux on x86-64, and this is {platform.system()} on {platform.machine()}")
    missing = []
    if os.geteuid() != 0:
        missing.append("root, for chroot and binfmt_misc: run it with sudo --preserve-env=ALEXNET_EDGE_DATA")
    if packages := sorted({package for program, package in NEEDED.items() if shutil.which(program) is None}):
        missing.append(f"programs: apt-get install --no-install-recommends {' '.join(packages)}")
    if not os.environ.get("ALEXNET_EDGE_DATA"):
        missing.append("real images: set ALEXNET_EDGE_DATA, see CONTRIBUTING.md")
    if missing:
        raise NoBoardError(f"it needs {'; '.join(missing)}")


def mirror() -> str:
    """The Debian archive that this machine's apt uses."""
    if shutil.which("apt-get"):
        answer = _run("apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", check=False)
        for line in answer.stdout.splitlines():
            suite, component, uri = line.split(maxsplit=2)
            if suite in DEBIAN and component == "main":
                return uri
    raise NoBoardError(f"this machine's apt has no Debian archive ({', '.join(DEBIAN)}) to fetch Debian {SUITE} from")


def _proxy() -> dict[str, str]:
    """The environment of a program that fetches through the proxy that apt uses."""
    answer = _run("apt-config", "shell", "proxy", "Acquire::http::Proxy", check=False).stdout
    proxy = re.fullmatch(r"proxy=(.+)", answer.strip())
    return {"http_proxy": shlex.split(proxy.group(1))[0], **os.environ} if proxy else dict(os.environ)


@contextmanager
def aarch64_programs() -> Iterator[None]:
    """Inside, the kernel starts aarch64 programs with QEMU; NoBoardError when it may not be told to."""
    entry = BINFMT / "qemu-aarch64"
    mounted = (BINFMT / "register").exists()
    if not mounted:
        answer = _run("mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT, check=False)
        if answer.returncode:
            raise NoBoardError(f"the kernel's binfmt_misc cannot be mounted here: {answer.stderr.strip()}")
    registered = entry.exists()
    if not registered:
        line = f":qemu-aarch64:M::{_MAGIC}:{_MASK}:{shutil.which('qemu-aarch64-static')}:F"
        try:
            (BINFMT / "register").write_text(line, encoding="ascii")
        except OSError as error:
            problem = f"this machine does not let a binfmt_misc handler be registered ({error.strerror})"
            raise NoBoardError(problem) from error
    elif not re.search(r"^flags:.*F", entry.read_text(encoding="ascii"), re.MULTILINE):
        raise NoBoardError(f"{entry} lacks the flag F, so it does not reach into a chroot: register it with F")
    try:
        yield
    finally:
        if not registered:
            entry.write_text("-1", encoding="ascii")
        if not mounted:
            _run("umount", BINFMT, check=False)


def debian_tree() -> Path:
    """The unpacked system, made once."""
    tree = tree_folder()
    if tree.exists():
        return tree
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix="building-") as folder:
        root = Path(folder) / "root"
        options = ["--arch=arm64", "--variant=minbase", "--foreign", "--force-check-gpg"]
        options.append(f"--include={','.join(PACKAGES)}")
        answer = _run("debootstrap", *options, SUITE, root, mirror(), timeout_s=1200, check=False, env=_proxy())
        if answer.returncode:
            last = (answer.stdout + answer.stderr).strip().splitlines()[-1:]
            raise NoBoardError(f"Debian's packages cannot be fetched: {' '.join(last)}")
        for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacking:
                words = ["tar", "-C", root, "-x", "--keep-directory-symlink", "-f", "-"]
                subprocess.run(words, stdin=unpacking.stdout, check=True)
            assert unpacking.returncode == 0, package
            package.unlink()
        for name in ("proc", "sys", "dev"):  # links to this machine's, where debootstrap found itself in a container
            if (root / name).is_symlink():
                (root / name).unlink()
                (root / name).mkdir()
        for name in ("passwd", "group"):
            shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / f"etc/{name}")
        root.rename(tree)
    return tree


def wheelhouse() -> Path:
    """The aarch64 wheels of what the package needs, fetched once."""
    pins = (ROOT / "constraints.txt").read_bytes()
    key = hashlib.sha256(repr((PYTHON, WHEELS, PLATFORMS, pins)).encode()).hexdigest()[:16]
    folder = cache_folder() / f"wheels-{key}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as fetching:
        answer = _run(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--implementation", "cp"),
            *("--python-version", PYTHON, "-c", ROOT / "constraints.txt", "--dest", Path(fetching) / "wheels"),
            *(word for name in PLATFORMS for word in ("--platform", name)),
            *WHEELS,
            timeout_s=900,
            check=False,
        )
        if answer.returncode:
            reasons = [line for line in answer.stderr.splitlines() if line.startswith("ERROR")]
            raise NoBoardError(f"the aarch64 wheels cannot be fetched: {' '.join(reasons[-1:])}")
        (Path(fetching) / "wheels").rename(folder)
    return folder


@contextmanager
def emulated_board(folder: Path) -> Iterator[Board]:
    """A fresh board in `folder`, gone afterwards; NoBoardError when there can be none here."""
    with aarch64_programs():
        root, port = folder / "root", free_port()
        _run("cp", "--archive", "--reflink=auto", debian_tree(), root)
        _prepare(root, folder, port)
        log = folder / "sshd.log"
        server = [*_INSIDE, root, "/usr/sbin/sshd", "-D", "-e", "-p", str(port)]
        with log.open("wb") as stream:
            process = subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        try:
            board = Board(ssh_config=folder / "ssh_config", root=root, log=log)
            _wait(board, process)
            yield board
        finally:
            process.kill()  # and with it every process of its namespace
            process.wait()
            shutil.rmtree(root, ignore_errors=True)


def _prepare(root: Path, folder: Path, port: int) -> None:
    """A user, keys and the server's configuration; on this side the client's."""
    for name in ("host_key", "user_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name)
    files = {
        "etc/hostname": f"{HOST}\n",
        "etc/hosts": f"127.0.0.1 localhost {HOST}\n",
        "etc/shadow": f"root:*:19000::::::\n{USER}:*:19000::::::\n",
        "etc/ssh/sshd_config": SSHD_CONFIG.format(user=USER, cpu=CPU),
        "etc/ssh/host_key": (folder / "host_key").read_text(encoding="ascii"),
        "etc/ssh/authorized_keys": (folder / "user_key.pub").read_text(encoding="ascii"),
    }
    for path, text in files.items():
        (root / path).write_text(text, encoding="ascii")
    for path in ("etc/shadow", "etc/ssh/host_key"):
        (root / path).chmod(0o600)
    with (root / "etc/passwd").open("a", encoding="ascii") as stream:
        stream.write(f"{USER}:x:{UID}:{UID}::/home/{USER}:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n")
    with (root / "etc/group").open("a", encoding="ascii") as stream:
        stream.write(f"{USER}:x:{UID}:\n")
    (root / "run/sshd").mkdir(parents=True, exist_ok=True)
    home = root / "home" / USER
    home.mkdir(parents=True, exist_ok=True)
    give(home)
    host_key = (folder / "host_key.pub").read_text(encoding="ascii")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}", encoding="ascii")
    (folder / "ssh_config").write_text(
        f"Host {HOST}\n HostName 127.0.0.1\n Port {port}\n User {USER}\n IdentityFile {folder / 'user_key'}\n"
        f" IdentitiesOnly yes\n UserKnownHostsFile {folder / 'known_hosts'}\n StrictHostKeyChecking yes\n"
        " BatchMode yes\n",
        encoding="ascii",
    )


def _wait(board: Board, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if board.run("true", timeout_s=30).returncode == 0:
            return
        time.sleep(0.3)
    lines = board.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise NoBoardError(f"the board's SSH server does not answer: {' | '.join(lines[-3:])}")


def _run(
    *command: object, timeout_s: float = 120, check: bool = True, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    words: Sequence[str] = list(map(str, command))
    pipes: Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    try:
        answer: subprocess.CompletedProcess[str] = subprocess.run(
            words, timeout=timeout_s, check=False, env=env, **pipes
        )
    except subprocess.TimeoutExpired as error:
        raise NoBoardError(f"{words[0]} took more than {timeout_s:.0f} s") from error
    if check and answer.returncode:
        reason = (answer.stderr or answer.stdout).strip()[-300:]
        raise NoBoardError(f"{words[0]} ended with {answer.returncode}: {reason}")
    return answer


def main() -> int:
    """Fetch what a board is made of, and see that its programs start here."""
    try:
        check_here()
        print(
            "emulated board: fetching Debian's packages and the aarch64 wheels, about 150 MB, unless kept", flush=True
        )
        tree, wheels = debian_tree(), wheelhouse()
        with aarch64_programs():
            machine = _run(*_INSIDE, tree, "/usr/bin/uname", "-m").stdout.strip()
        print(f"emulated board: {tree} and {wheels}; a program in it says {machine}")
    except NoBoardError as error:
        print(f"emulated board: not run, because {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
