"""Files of other machines (`tests/data/power/*.tree`), grown into a folder; and stand-ins for NVIDIA's commands.

A tree is a text of lines `path = value`; the same path again is a file's next line.
"""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "power"

NVPMODEL = """#!/bin/sh
# keeps the mode in a file; modes in `reboot` ask for a reboot, as the real one does
cd "$(dirname "$0")/../state" || exit 1
name() { case "$1" in 0) echo MAXN;; 1) echo 15W;; 2) echo 30W;; 3) echo 7W;; esac; }
case "$1" in
-q) echo "NV Power Mode: $(name "$(cat mode)")"; cat mode;;
-p) for id in 0 1 2 3; do echo "POWER_MODEL: ID=$id NAME=$(name $id)"; done;;
-m)
  echo "-m $2" >> calls
  sleep "$(cat pause)"
  if [ "$2" = "$(cat slow)" ]; then sleep 0.8; fi
  if [ "$2" = "$(cat refused)" ]; then echo "NVPM ERROR: failed to set power mode!"; exit 255; fi
  if grep -qx "$2" reboot; then
    echo "NVPM WARN: Golden image context is already created"
    echo "NVPM WARN: Reboot required for changing to this power mode: $2"
    echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
    read -r answer
    case "$answer" in YES|yes) echo "NVPM WARN: rebooting"; echo rebooted > mode; exit 0;; esac
    echo "NVPM ERROR: optMask is 1, no request for power mode"
    exit 255
  fi
  echo "$2" > mode.new && mv mode.new mode
  echo free > clocks.new && mv clocks.new clocks;;
esac
"""

JETSON_CLOCKS = """#!/bin/sh
cd "$(dirname "$0")/../state" || exit 1
echo "clocks $1" >> calls
sleep "$(cat pause)"
case "$1" in
--show) cat "$(cat show)";;
--store) if [ -e "$2" ]; then echo "File $2 already exists. Can I overwrite it? Y/N:"; read -r answer; exit 1; fi
  cp clocks "$2";;
--restore) cp "$2" clocks.new && mv clocks.new clocks;;
"") echo locked > clocks.new && mv clocks.new clocks;;
esac
"""

TEGRASTATS = """#!/bin/sh
# prints the lines of a recorded log again and again
[ "$1" = --interval ] || exit 2
while :; do
  while IFS= read -r line; do echo "$line"; sleep 0.01; done < "$(dirname "$0")/../state/tegrastats.log"
done
"""


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
        texts = {"nvpmodel": NVPMODEL, "jetson_clocks": JETSON_CLOCKS, "tegrastats": TEGRASTATS}
        for name in only:
            (commands / name).write_text(texts[name], encoding="utf-8")
            (commands / name).chmod(0o755)
        self.path = str(commands)
        start = {
            "mode": "2",
            "clocks": "as before",
            "pause": "0",
            "reboot": "3",
            "refused": "none",
            "slow": "none",
            "calls": "",
        }
        for name, value in start.items():
            self.set(name, value)

    def set(self, name: str, value: str) -> None:
        (self._state / name).write_text(f"{value}\n" if value else "", encoding="utf-8")

    def get(self, name: str) -> str:
        return (self._state / name).read_text(encoding="utf-8").strip()

    @property
    def now(self) -> tuple[str, str]:
        """Power mode, and clocks."""
        return self.get("mode"), self.get("clocks")
