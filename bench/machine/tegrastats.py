"""What `tegrastats` prints, line by line: power of each rail, clocks, load, temperatures.

The line has no grammar that NVIDIA states; the fields differ by board and release (Jetson Linux Developer Guide,
tegrastats Utility). Read here: Orin and Thor, and the older boards that use the same forms::

    05-09-2026 18:42:06 RAM ... EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] ... cpu@52.562C ... VDD_GPU_SOC 2412mW/2412mW
    RAM ... GR3D_FREQ 63% cpu@48.312C ... VDD_IN 6526mW/6526mW            no clock of the GPU
    ... GR3D_FREQ @[314,314,314] ... gpu@35.906C/35.906C VDD_GPU 4925mW/4925mW/4925mW        Thor: no load of the GPU

Of `a/b` and `a/b/c` the first is the value now; the others are means and extremes since tegrastats began.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from alexnet_edge.bench.machine.state import COLDEST_C
from alexnet_edge.errors import UserError

_DATE = re.compile(r"^(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d) ")
_POWER = re.compile(r"\b([A-Za-z]\w*) (-?\d+)(?:mW(?:/-?\d+mW)*|/-?\d+)(?= |$)")  # Xavier NX with R32: 3902/3611
_TEMPERATURE = re.compile(r"\b([A-Za-z][A-Za-z0-9_]*)@(-?\d+(?:\.\d+)?)C\b")
_GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?")
_EMC = re.compile(r"\bEMC_FREQ (?:(\d+)%)?(?:@(\d+))?")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
FIRST_MARKS = ("RAM ", "CPU [")
"""What a line of tegrastats has, whatever the board."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TegrastatsLine:
    """One line; what it does not say is absent or None."""

    date: datetime | None = None
    """The board's own clock, to the second, in its own time zone."""
    watts: Mapping[str, float] = field(default_factory=dict)
    """By rail, as printed: a small negative value is a sensor's offset."""
    clocks_mhz: Mapping[str, float] = field(default_factory=dict)
    """`GPU`, `EMC` and `CPU`; of several GPCs or cores the fastest. A GPU that is switched off (0) is left out."""
    gpu_percent: int | None = None
    """Load of the GPU; Thor does not tell."""
    cpu_percent: int | None = None
    """Load of the busiest core."""
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    """By zone in lower case; a sensor that is switched off (-256) is left out."""


def parse_line(line: str) -> TegrastatsLine | None:
    """What one line says; None when it is not a line of tegrastats."""
    line = line.strip()
    if not all(mark in line for mark in FIRST_MARKS):
        return None
    date = _DATE.match(line)
    gpu, emc, cpu = _GPU.search(line), _EMC.search(line), _CPU.search(line)
    gpu_clocks = [int(clock) for clock in gpu.group(2).split(",") if clock] if gpu and gpu.group(2) else []
    cpu_clocks = [int(clock) for clock in re.findall(r"@(\d+)", cpu.group(1))] if cpu else []
    clocks = {
        "CPU": max(cpu_clocks, default=0),
        "GPU": max(gpu_clocks, default=0),
        "EMC": int(emc.group(2)) if emc and emc.group(2) else 0,
    }
    return TegrastatsLine(
        date=datetime.strptime(date.group(1), "%m-%d-%Y %H:%M:%S") if date else None,
        watts={name: int(mw) / 1e3 for name, mw in _POWER.findall(line)},
        clocks_mhz={name: float(clock) for name, clock in clocks.items() if clock > 0},
        gpu_percent=int(gpu.group(1)) if gpu and gpu.group(1) else None,
        cpu_percent=max((int(load) for load in re.findall(r"(\d+)%", cpu.group(1))), default=None) if cpu else None,
        temperatures_c={
            name.lower(): float(value) for name, value in _TEMPERATURE.findall(line) if float(value) > COLDEST_C
        },
    )


def read_log(path: Path) -> list[TegrastatsLine]:
    """The lines of a recorded log (`tegrastats --logfile FILE`); other lines in it are passed over.

    Raises:
        UserError: when it cannot be read or has no line of tegrastats.
    """
    fix = "record one: tegrastats --logfile FILE"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read the tegrastats log ({error.strerror})", value=path, fix=fix) from error
    lines = [parsed for line in text.splitlines() if (parsed := parse_line(line)) is not None]
    if not lines:
        raise UserError("no line of tegrastats in it", value=path, fix=fix)
    return lines
