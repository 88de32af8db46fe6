"""A Jetson's power mode and clocks: what `nvpmodel` and `jetson_clocks` say, and the files they keep.

Jetson Linux Developer Guide, Platform Power and Performance. The commands are looked up on `PATH`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alexnet_edge.environment import ROOT, cpu_governor, read_text

CONF = "etc/nvpmodel.conf"
"""The power modes of this board."""
STATUS = "var/lib/nvpmodel/status"
"""The mode that `nvpmodel` set last: `pmode:0002`. Modes survive a reboot through it."""

_MODE = re.compile(r"POWER[_ ]MODEL:? ID=(\d+) NAME=([^\s>]+)")
_CLOCKS = re.compile(r"^(GPU|EMC|cpu\d+):?\s.*?MinFreq=(\d+)\s+MaxFreq=(\d+)\s+CurrentFreq=(\d+)", re.MULTILINE)
_GOVERNOR = re.compile(r"^cpu\d+:.*?Governor=(\S+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerMode:
    """One of a board's power modes."""

    id: int
    name: str | None
    """None when the board's list of modes cannot be read."""

    def __str__(self) -> str:
        return f"{self.id}" if self.name is None else f"{self.name} ({self.id})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Clocks:
    """What `jetson_clocks --show` says; clocks in MHz as least, largest and present."""

    locked: bool
    """Whether the GPU, and every processor, is held at one clock."""
    governor: str | None
    gpu_mhz: list[float] | None
    emc_mhz: list[float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolAnswer:
    """Exit code and output of a command."""

    code: int
    text: str
    """Standard output and standard error together."""

    @property
    def last_line(self) -> str:
        return next((line.strip() for line in reversed(self.text.splitlines()) if line.strip()), "no answer")


def find_tool(name: str, path: str | None = None) -> str | None:
    """Where the command is on `path`, by default `PATH` and /usr/sbin, which `sudo` may leave out."""
    if path is None:
        path = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/sbin", "/usr/bin")))
    return shutil.which(name, path=path)


def run_tool(
    tool: str, *arguments: str, answer: str = "", timeout_s: float = 60, hold: Sequence[int] = ()
) -> ToolAnswer:
    """Run a command to its end, in a session of its own, so that Ctrl-C does not end it half-way.

    `answer` is what it reads from standard input. After `timeout_s` it is killed, and its code is -9. It holds the
    descriptors `hold` open as long as it runs, even when this process is killed meanwhile.
    """
    try:
        with subprocess.Popen(
            [tool, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(hold),
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                text, _ = process.communicate(answer, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                text = f"no end within {timeout_s:.0f} s"
            return ToolAnswer(code=process.wait(), text=text)
    except OSError as error:
        return ToolAnswer(code=127, text=error.strerror or str(error))


def parse_modes(text: str) -> list[PowerMode]:
    """The power modes in `nvpmodel.conf` or in the answer of `nvpmodel -p --verbose`, in order of their number."""
    names = {int(number): name for number, name in _MODE.findall(text)}
    return [PowerMode(id=number, name=name) for number, name in sorted(names.items())]


def parse_mode(text: str) -> PowerMode | None:
    """The answer of `nvpmodel -q`: `NV Power Mode: MAXN` and its number on the next line; None for another answer."""
    name = re.search(r"^NV Power Mode:\s*(\S+)", text, re.MULTILINE)
    number = re.search(r"^(\d+)\s*$", text, re.MULTILINE)
    return PowerMode(id=int(number.group(1)), name=name.group(1) if name else None) if number else None


def parse_clocks(text: str) -> Clocks | None:
    """The answer of `jetson_clocks --show`; None for another answer, such as its refusal to run for a user."""
    mhz = {}
    for name, *clocks in _CLOCKS.findall(text):
        mhz[name] = [int(clock) / (1e3 if name.startswith("cpu") else 1e6) for clock in clocks]
    if not mhz:
        return None
    governors = set(_GOVERNOR.findall(text))
    return Clocks(
        locked=all(least == largest for name, (least, largest, _) in mhz.items() if name != "EMC"),
        governor=governors.pop() if len(governors) == 1 else None,
        gpu_mhz=mhz.get("GPU"),
        emc_mhz=mhz.get("EMC"),
    )


def modes_of(root: Path = ROOT) -> list[PowerMode]:
    """The power modes in the board's `nvpmodel.conf`; none where it cannot be read."""
    return parse_modes(read_text(root / CONF) or "")


def saved_mode(root: Path = ROOT) -> PowerMode | None:
    """The power mode from the files alone, without running a command; None where they do not tell."""
    match = re.search(r"pmode:(\d+)", read_text(root / STATUS) or "")
    if match is None:
        return None
    number = int(match.group(1))
    names = {mode.id: mode.name for mode in modes_of(root)}
    return PowerMode(id=number, name=names.get(number))


def describe_power(root: Path = ROOT, *, path: str | None = None) -> dict[str, Any]:
    """The power mode, as recorded in results; what cannot be read is None, with its reason.

    `/sys`, `/etc` and `/var` are looked for in `root`. For the file system's own root, or with `path`, where they are looked up
    then, `nvpmodel -q` and `jetson_clocks --show` are asked too.

    Returns:
        `nvpmodel`: `{"id", "name"}`; `jetson_clocks`: `{"locked", "governor", "gpu_mhz", "emc_mhz"}`, the clocks as
        least, largest and present; `cpu_governor`; `reasons` by name of what is None.
    """
    reasons: dict[str, str] = {}
    ask = root == ROOT or path is not None
    nvpmodel, jetson_clocks = (find_tool(name, path) if ask else None for name in ("nvpmodel", "jetson_clocks"))
    mode = (parse_mode(run_tool(nvpmodel, "-q").text) if nvpmodel else None) or saved_mode(root)
    if mode is None:
        reasons["nvpmodel"] = "nvpmodel does not tell" if nvpmodel else "no nvpmodel here, which only a Jetson has"
    clocks = None
    if jetson_clocks is None:
        reasons["jetson_clocks"] = "no jetson_clocks here, which only a Jetson has"
    else:
        text = run_tool(jetson_clocks, "--show").text
        clocks = parse_clocks(text)
        if clocks is None:
            line = next((line.strip() for line in text.splitlines() if line.strip()), "no answer")
            reasons["jetson_clocks"] = f"jetson_clocks --show: {line}"
    governor = cpu_governor(root)
    if governor is None:
        reasons["cpu_governor"] = "this kernel has no frequency governor, as in most virtual machines"
    return {
        "nvpmodel": None if mode is None else asdict(mode),
        "jetson_clocks": None if clocks is None else asdict(clocks),
        "cpu_governor": governor,
        "reasons": reasons,
    }
