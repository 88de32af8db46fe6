"""A device for `alexnet-edge deploy`: an OpenSSH server on 127.0.0.1 with its own keys, home folder and configuration."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from alexnet_edge.deploy.link import LinkSettings

ROOT = Path(__file__).parents[2]
REQUIRED = os.environ.get("ALEXNET_EDGE_REQUIRE_SSHD") == "1"
"""Set in continuous integration, where a missing server is a failure and not a reason to skip."""


SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PermitUserRC no
SetEnv {kept}
"""
SSH_CONFIG = """\
Host board
  HostName 127.0.0.1
  Port {port}
  IdentityFile {folder}/user
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


def find_sshd() -> str:
    """The server's path; skips the test where there is none."""
    server = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if server is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        assert not REQUIRED, "ALEXNET_EDGE_REQUIRE_SSHD=1, and OpenSSH's server or client is missing"
        pytest.skip("no OpenSSH server and client here: apt-get install openssh-server openssh-client")
    return server


class LoopbackDevice:
    """Starts, stops, cuts and restarts; `link()` says how it is reached."""

    def __init__(self, folder: Path, environments: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.environments = environments
        """Python environments, shared by the device's roots: making one takes a quarter of a minute."""
        self._sshd = find_sshd()
        self._server: subprocess.Popen[bytes] | None = None
        self.home.mkdir(parents=True)
        self.programs = folder / "bin"
        """First in the device's `PATH`."""
        self.programs.mkdir()
        environments.mkdir(exist_ok=True)
        for name in ("host", "other-host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        self.start()

    def start(self) -> None:
        """Start the server; on a free port the first time, then on the same."""
        if os.geteuid() == 0:  # the server's own unit makes it, where there is an init system; root's server wants it
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for _ in range(10):
            self.port = getattr(self, "port", None) or free_port()
            self._configure()
            command = [self._sshd, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            with (self.folder / "sshd.log").open("ab") as log:
                self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
            deadline = time.monotonic() + 20
            while self._server.poll() is None and time.monotonic() < deadline:
                address = ("127.0.0.1", self.port)
                with contextlib.suppress(OSError), socket.create_connection(address, timeout=1) as probe:
                    if probe.recv(4) == b"SSH-":
                        return
                time.sleep(0.05)
            self.kill()
            del self.port  # somebody else has it by now
        raise AssertionError((self.folder / "sshd.log").read_text())

    def _configure(self) -> None:
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        pip.setdefault("PIP_CONSTRAINT", str(ROOT / "constraints.txt"))
        own = Path.home() / ".config" / "pip" / "pip.conf"
        if own.is_file():
            pip.setdefault("PIP_CONFIG_FILE", str(own))
        path = f"{self.programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        own_values = {"HOME": str(self.home), "PATH": path, **pip}
        kept = " ".join(f'"{name}={value}"' for name, value in own_values.items())
        (self.folder / "sshd_config").write_text(SSHD_CONFIG.format(port=self.port, folder=self.folder, kept=kept))
        (self.folder / "ssh_config").write_text(SSH_CONFIG.format(port=self.port, folder=self.folder))
        self.know("host")

    def know(self, key: str | None) -> None:
        """Let the client know this key as the device's, or none."""
        words = [] if key is None else (self.folder / f"{key}.pub").read_text().split()[:2]
        line = f"[127.0.0.1]:{self.port} {' '.join(words)}\n" if words else ""
        (self.folder / "known_hosts").write_text(line)

    def link(self, root: str, **fields: object) -> LinkSettings:
        values = {"destination": "board", "ssh_config": self.folder / "ssh_config", "python": sys.executable, **fields}
        return LinkSettings(root=root, **values)  # type: ignore[arg-type]

    def root(self, name: str) -> Path:
        """A root folder on the device that uses the shared environments."""
        folder = self.home / name
        folder.mkdir()
        (folder / "environments").symlink_to(self.environments)
        return folder

    def docker(self, **images: str) -> Path:
        """Let the device have the stand-in for Docker, with these images by name; returns the stand-in's folder."""
        folder = self.folder / "docker"
        folder.mkdir(exist_ok=True)
        (folder / "images.json").write_text(json.dumps(images))
        program = self.programs / "docker"
        words = [sys.executable, "-I", str(Path(__file__).with_name("docker_stand_in.py")), str(folder)]
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        program.chmod(0o755)
        return folder

    def _below(self) -> list[psutil.Process]:
        assert self._server is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._server.pid).children(recursive=True)
        return []

    def cut(self) -> None:
        """Break every connection, as a pulled cable does: the server's own processes go, what they started stays."""
        for process in self._below():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith("sshd"):
                    process.kill()

    def kill(self) -> None:
        """The device goes down: the server and everything that it started."""
        below = self._below()
        if self._server is not None:
            self._server.send_signal(signal.SIGKILL)
            self._server.wait()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
