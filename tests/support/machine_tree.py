"""Files of other machines (`tests/data/power/*.tree`), grown into a folder; and stand-ins for NVIDIA's commands
(`tests/data/power/commands`).

A tree is a text of lines `path = value`; the same path again is a file's next line.
"""

from __future__ import annotations

import shutil
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "power"


def grow(name: str, folder: Path) -> Path:
    """The root of machine `name`, made in `folder`."""
    files: dict[str, list[str]] = {}
    for line in (DATA / f"{name}.tree").read_text(encoding="utf-8").splitlines():
        path, _, value = line.partition(" = ")
        files.setdefault(path, []).append(value)
    root = folder / name
    for path, lines in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


class Tools:
    """Stand-ins for `nvpmodel`, `jetson_clocks` and `tegrastats` in a folder, which keep what they were told in files."""

    def __init__(self, folder: Path, *, only: tuple[str, ...] = ("nvpmodel", "jetson_clocks", "tegrastats")) -> None:
        self._state = folder / "state"
        self._state.mkdir(parents=True)
        commands = folder / "bin"
        commands.mkdir()
        for name in only:
            shutil.copy(DATA / "commands" / name, commands)
        self.path = str(commands)
        start = {"mode": "2", "clocks": "as before", "pause": "0", "reboot": "3", "refused": "none", "slow": "none"}
        for name, value in {**start, "calls": ""}.items():
            self.set(name, value)

    def set(self, name: str, value: str) -> None:
        (self._state / name).write_text(f"{value}\n" if value else "", encoding="utf-8")

    def get(self, name: str) -> str:
        return (self._state / name).read_text(encoding="utf-8").strip()

    @property
    def now(self) -> tuple[str, str]:
        """Power mode, and clocks."""
        return self.get("mode"), self.get("clocks")
