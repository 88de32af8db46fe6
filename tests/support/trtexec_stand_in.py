"""A program that behaves as `trtexec` of one version: it has that version's real help, and refuses what that does not list."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_information import engine_8, engine_10, engine_11

from alexnet_edge.artifact import layer_types

DATA = Path(__file__).parents[1] / "data" / "trtexec"
VERSIONS = ("8.6", "10.6", "10.13", "11.0")
DIGITS = {"8.6": "8601", "10.6": "100600", "10.13": "101303", "11.0": "110000"}
INFORMATION = {"8.6": engine_8, "10.6": engine_10, "10.13": engine_10, "11.0": engine_11}
WEIGHTS = 4096
"""Bytes of the engines that the stand-in writes."""

STAND_IN = '''#!{python}
"""Stands in for trtexec {version}: parses like it, and writes what the test told it to."""
import json, os, re, shutil, sys, time
from pathlib import Path

help = Path({help!r}).read_text()
told = json.loads(Path({told!r}).read_text())
digits = {digits!r}
command = " ".join(["trtexec", *sys.argv[1:]])
say = lambda line: print(line, flush=True)
log = lambda level, text: say(f"[11/23/2026-12:00:00] [{{level}}] {{text}}")

def end(passed):
    say(f"&&&& {{'PASSED' if passed else 'FAILED'}} TensorRT.trtexec [TensorRT v{{digits}}] # {{command}}")
    sys.exit(0 if passed else 1)

arguments = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
if "--help" in arguments:
    say(help)
    sys.exit(0)
if "--loadEngine" not in arguments:
    Path({seen!r}).write_text(json.dumps(arguments))
say(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{{digits}}] # {{command}}")
known = set(re.findall(r"^  (--\\w+)", help, re.MULTILINE))
unknown = [name for name in arguments if name not in known]
if unknown:
    say(help)
    for name in unknown:
        log("E", f"Unknown option: {{name}} {{arguments[name]}}")
    end(False)
shapes = [name in arguments for name in ("--minShapes", "--optShapes", "--maxShapes")]
if any(shapes) and not all(shapes):
    log("E", "Must specify only --optShapes or all of --minShapes, --optShapes, --maxShapes")
    end(False)
if any(shapes) and told.get("static"):
    log("E", "Static model does not take explicit shapes since the shape of inference tensors will be determined by the model itself")
    end(False)
if "--loadEngine" in arguments:
    if not Path(arguments["--loadEngine"]).is_file() or "loaded" not in told:
        log("E", "Engine deserialization failed")
        end(False)
    Path(arguments["--exportLayerInfo"]).write_text(told["loaded"])
    end(True)
log("I", "Compute Capability: 8.7")
for level, text in told.get("log", []):
    log(level, text)
if told.get("pid"):
    Path(told["pid"]).write_text(str(os.getpid()))
time.sleep(told.get("sleep", 0))
for name in {{"--onnx", "--calib"}} & arguments.keys() if told.get("keep") else ():
    shutil.copyfile(arguments[name], Path(told["keep"]) / name[2:])
if told.get("fails"):
    end(False)
if "--calib" in arguments:
    header = Path(arguments["--calib"]).read_text().splitlines()[0]
    if header == f"TRT-{{digits}}-EntropyCalibration2":
        log("I", "[TRT] Reading Calibration Cache for calibrator: EntropyCalibration2")
    else:
        log("I", "[TRT] Starting Calibration.")
        log("I", "[TRT]   Calibrated batch 0 in 0.1 seconds.")
if "--timingCacheFile" in arguments:
    cache = Path(arguments["--timingCacheFile"])
    cache.write_bytes((cache.read_bytes() if cache.is_file() else b"") + b"+measured")
if "--layerPrecisions" in arguments:
    asked = dict(entry.rsplit(":", 1) for entry in arguments["--layerPrecisions"].split(","))
    for name, kind in asked.items():
        if kind != "fp32" and f"--{{kind}}" not in arguments:
            log("E", f"{{name}}: {{kind}} was not enabled")
            end(False)
information = told["information"] if arguments.get("--profilingVerbosity") == "detailed" else '{{"Layers": ["conv1"]}}'
Path(arguments["--exportLayerInfo"]).write_text(information)
Path(arguments["--saveEngine"]).write_bytes(b"e" * told["size"])
log("I", "Engine built in 2.84511 sec.")
end(True)
'''


@dataclass
class StandIn:
    """A program that behaves as `trtexec` of one version."""

    version: str
    path: Path
    told: Path
    seen: Path

    def tell(self, **values: Any) -> None:
        current = json.loads(self.told.read_text(encoding="utf-8"))
        self.told.write_text(json.dumps({**current, **values}), encoding="utf-8")

    def builds(self, types: Mapping[str, str]) -> None:
        """The engine will have these types."""
        self.tell(information=INFORMATION[self.version](types))

    def keeps(self, folder: Path) -> None:
        """Copies of what it is given go there, as `onnx` and `calib`: the originals are gone after the build."""
        folder.mkdir(exist_ok=True)
        self.tell(keep=str(folder))

    @property
    def arguments(self) -> dict[str, str]:
        """Those of the last build, by name."""
        value: dict[str, str] = json.loads(self.seen.read_text(encoding="utf-8"))
        return value


def write_stand_in(folder: Path, version: str) -> StandIn:
    """A stand-in in a folder of its own under `folder`; its engines are FP32 until it is told otherwise."""
    folder = folder / f"trtexec-{version}"
    folder.mkdir()
    program = StandIn(version, folder / "trtexec", folder / "told.json", folder / "seen.json")
    program.path.write_text(
        STAND_IN.format(
            python=sys.executable,
            version=version,
            help=str(DATA / f"help-{version}.txt"),
            told=str(program.told),
            seen=str(program.seen),
            digits=DIGITS[version],
        ),
        encoding="utf-8",
    )
    program.path.chmod(0o755)
    program.told.write_text(json.dumps({"size": WEIGHTS}), encoding="utf-8")
    program.builds(layer_types("fp32"))
    return program
