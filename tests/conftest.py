"""What every test may use: the real images, a checkpoint, a folder of images, the command line."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import known_networks
import numpy as np
import pytest
from cuda_machine import Machine
from narrow_network import CLASSES, write_checkpoint
from PIL import Image

from alexnet_edge.errors import ArtifactError, UserError
from alexnet_edge.network.layers import architecture
from alexnet_edge.nvidia import cuda

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 40, 40), "yellow": (220, 210, 40)}

QUICK = {
    *(f"test_{name}.py" for name in ("artifact", "environment", "errors", "files", "predict")),
    *(f"images/test_{name}.py" for name in ("augment", "data", "preprocess")),
    *(f"network/test_{name}.py" for name in ("layers", "quantize")),
    *(f"nvidia/test_{name}.py" for name in ("cuda", "nvidia")),
    *(f"sessions/test_{name}.py" for name in ("sessions", "tensorrt_session")),
    *(f"proof/test_{name}.py" for name in ("parity", "stats")),
    *(f"training/test_{name}.py" for name in ("log", "recipe", "rounding", "start")),
    *(f"export/test_{name}.py" for name in ("inspector", "onnx", "options", "request")),
    *(f"bench/test_{name}.py" for name in ("compare", "foreign", "power", "report", "roofline")),
    "deploy/test_deploy_parts.py",
    "cli/test_cli.py",
    "packaging/test_docs.py",
}
"""Files with most of the behaviour for little time: what `make quick` runs."""

MakeCheckpoint = Callable[..., Path]


os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(known_networks.__file__).parent), os.environ.get("PYTHONPATH")))
)  # processes that tests start know the narrow networks

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a background job has it, and hands it on to what tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--board", action="store_true", help="run what is marked board: minutes, root (make test-board)")
    parser.addoption(
        "--quick", action="store_true", help="run the files of QUICK only, without slow tests (make quick)"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --quick, files that are not of QUICK are not even imported."""
    if not config.getoption("--quick") or collection_path.suffix != ".py":
        return None
    return collection_path.relative_to(Path(__file__).parent).as_posix() not in QUICK or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked board is left out unless asked for. Files with the most slow tests come first: two processes that
    take whole files then end at about the same time."""
    unwanted = {"board": not config.getoption("--board"), "slow": config.getoption("--quick")}
    left_out = [item for item in items if any(unwanted.get(mark.name, False) for mark in item.iter_markers())]
    config.hook.pytest_deselected(items=left_out)
    kept = set(items) - set(left_out)
    items[:] = [item for item in items if item in kept]
    slow: dict[Path, int] = {}
    for item in items:
        slow[item.path] = slow.get(item.path, 0) + (item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: -slow[item.path])


def one_line(call: Callable[[], Any], kind: type[UserError] = ArtifactError) -> str:
    """The one line of the error, of exactly this class, that the call must end in."""
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a GPU, without a GPU: what stands for CUDA's runtime."""
    made = Machine()
    monkeypatch.setattr(cuda, "runtime_library", lambda: made)
    return made


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real images that ALEXNET_EDGE_DATA names: `flowers/`, `imagenet-samples/`, a filters file."""
    value = os.environ.get("ALEXNET_EDGE_DATA")
    if not value:
        pytest.skip("ALEXNET_EDGE_DATA is not set: no real images here")
    return Path(value)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """`tiny_checkpoint(arch)` is a checkpoint of that architecture with 4 classes, written once per run of the tests.

    The narrow ones have 1 MB, `two-tower` and the package's others 230 MB: for tests of their size alone. The weights are
    random, so the answers are of no use for accuracy figures. Do not change the file.
    """
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def make(arch: str = "narrow-two-tower") -> Path:
        path = shared / f"checkpoint-{arch}" / "model.safetensors"
        path.parent.mkdir(exist_ok=True)
        with (shared / f"checkpoint-{arch}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return path if path.exists() else write_checkpoint(path, architecture(arch))

    return make


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train/` (6) and `val/` (3) small JPEG images in each of four class folders; do not change it."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    for split, count in (("train", 6), ("val", 3)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                width, height = (48, 40) if index % 2 else (40, 56)
                pixels = rng.normal(COLOURS[name], 25, (height, width, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.jpg", quality=90)
    return root


class Cli:
    """Runs `alexnet-edge` as its users do: in a process of its own, without a terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Where the command runs unless `cwd` is given: an empty folder of this test."""

    def __call__(
        self, *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "alexnet_edge", *map(str, args)],
            cwd=cwd or self.folder,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def refuses(self, *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
        """The one line on standard error of a command that must end with exit code 2."""
        result = self(*args, cwd=cwd, env=env)
        lines = result.stderr.strip().splitlines()
        assert result.returncode == 2, f"exit code {result.returncode}: {result.stdout}{result.stderr}"
        assert len(lines) == 1, result.stderr
        return lines[0]


@pytest.fixture
def run_cli(tmp_path: Path) -> Cli:
    """`run_cli("inspect", "--arch", "two-tower")` runs the command; `run_cli.refuses(...)` expects one line and exit 2."""
    folder = tmp_path / "cli"
    folder.mkdir()
    return Cli(folder)


@pytest.fixture(scope="session")
def exported(
    tiny_checkpoint: MakeCheckpoint, image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """Every artifact that this machine can write of `tiny_checkpoint()`, by format and precision; they share
    one folder; do not change it."""
    from alexnet_edge.errors import MissingComponentError
    from alexnet_edge.export.exporter import Exporter
    from alexnet_edge.export.selection import every_artifact
    from alexnet_edge.export.settings import ExportSettings
    from alexnet_edge.images.datasets import open_images
    from alexnet_edge.network.load import load_checkpoint

    root = tmp_path_factory.mktemp("exported")
    exporter = Exporter(
        load_checkpoint(tiny_checkpoint()),
        ExportSettings(out=root / "artifacts", cache=root / "cache"),
        proof_images=open_images(image_folder / "val", classes=CLASSES),
        calibration_images=open_images(image_folder / "train"),
    )
    outcomes = list(exporter.export_all(every_artifact()))
    for outcome in outcomes:
        assert outcome.artifact is not None or isinstance(outcome.error, MissingComponentError), outcome.error
    return {(entry.format, entry.precision): entry.artifact.path for entry in outcomes if entry.artifact is not None}
