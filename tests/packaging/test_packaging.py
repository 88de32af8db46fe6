"""What is built and installed: one name in site-packages, whole, and usable with the base dependencies only."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from alexnet_edge import __version__

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**environment, "NO_COLOR": "1", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if check:
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is made from, links kept, so that nothing is written into the repository."""
    copy = tmp_path_factory.mktemp("source") / "alexnet-edge"
    copy.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("alexnet_edge", "export", "bench"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel built from it."""
    out = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=source)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith(".dist-info/RECORD")}


def test_the_wheel_has_one_top_level_name_and_is_whole(wheel: Path) -> None:
    packed = content(wheel)
    assert wheel.name == f"alexnet_edge-{__version__}-py3-none-any.whl"
    assert {name.split("/")[0] for name in packed} == {"alexnet_edge", f"alexnet_edge-{__version__}.dist-info"}
    expected = {"alexnet_edge/py.typed"}
    for folder in ("alexnet_edge", "export", "bench"):
        prefix = folder if folder == "alexnet_edge" else f"alexnet_edge/{folder}"
        for path in (path for pattern in ("**/*.py", "**/*.html.j2") for path in (ROOT / folder).glob(pattern)):
            name = f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}"
            expected.add(name)
            assert packed.get(name) == path.read_bytes(), name
    assert {name for name in packed if ".dist-info/" not in name} == expected
    assert any(name.startswith("alexnet_edge/bench/") and name.endswith(".html.j2") for name in packed)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in packed)


def test_the_sdist_builds_the_wheel_that_the_sources_do(built: Path, source: Path, wheel: Path, tmp_path: Path) -> None:
    """`built` made the wheel from the sdist; here it is made from the sources themselves."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive.getmembers() if member.issym() or member.islnk()]
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, cwd=source)
    (direct,) = tmp_path.glob("*.whl")
    assert content(direct) == content(wheel)


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel and its base dependencies: what a device has."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder)
    pip = (sys.executable, "-m", "pip", "--python", folder)  # an environment with its own takes half as long again
    install = run(*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=folder, check=False)
    if install.returncode and "Could not find a version" in install.stderr and os.environ.get("CI") != "true":
        pytest.skip("the package index cannot be reached")
    assert install.returncode == 0, install.stderr
    return folder / "bin"


def test_the_three_import_from_the_wheel(device: Path, tmp_path: Path) -> None:
    code = "import alexnet_edge as a, alexnet_edge.export as e, alexnet_edge.bench as b; print(a.__file__, e.__file__, b.__file__)"
    found = run(device / "python", "-c", code, cwd=tmp_path).stdout.split()
    assert len(found) == 3
    assert all("site-packages" in name for name in found)
    run(device / "python", "-c", code, cwd=ROOT)  # there the working folder comes first, and its links must do as well


HELP = """
import json
from contextlib import redirect_stdout
from io import StringIO
from alexnet_edge.cli import app, main

texts = {}
for name in (name for name in app if not name.startswith("-")):
    with redirect_stdout(StringIO()) as text:
        try:
            main([name, "--help"])
        except SystemExit as end:
            assert end.code == 0, name
    texts[name] = text.getvalue()
print(json.dumps(texts))
"""


def test_help_needs_the_base_only(device: Path, tmp_path: Path) -> None:
    """One process for all commands: nothing that one of them could bring along for the next is installed here."""
    top = run(device / "alexnet-edge", "--help", cwd=tmp_path).stdout
    texts = json.loads(run(device / "python", "-c", HELP, cwd=tmp_path).stdout)
    assert {"train", "evaluate", "export", "bench", "predict", "inspect", "doctor", "demo"} <= set(texts)
    assert "--help" in top
    for name, text in texts.items():
        assert re.search(rf"\b{name}\b", top)
        assert f"Usage: alexnet-edge {name}" in text
        assert "--quiet" in text or "--json" in text or "--out" in text


def test_the_base_inspects_and_diagnoses(device: Path, tmp_path: Path) -> None:
    table = run(device / "alexnet-edge", "inspect", "--arch", "two-tower", cwd=tmp_path).stdout
    assert "60,965,224" in table
    advice = run(device / "alexnet-edge", "doctor", cwd=tmp_path).stdout
    assert "alexnet-edge[train]" in advice


def test_what_an_installation_takes(
    wheel: Path, device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints the size of the wheel and of everything installed. TensorRT, numpy and pillow can be the system's."""
    code = (
        "import json; from importlib import metadata\n"
        "def size(entry): return sum(path.locate().stat().st_size for path in entry.files if path.locate().is_file())\n"
        "print(json.dumps({entry.name.lower(): size(entry) for entry in metadata.distributions()}))"
    )
    installed = json.loads(run(device / "python", "-I", "-c", code, cwd=tmp_path).stdout)
    assert not {"torch", "onnx", "onnxruntime", "tensorrt", "safetensors", "scipy"} & installed.keys()
    total, system = sum(installed.values()), installed["numpy"] + installed["pillow"]
    with capsys.disabled():
        largest = sorted(installed.items(), key=lambda entry: -entry[1])
        print(
            f"\nwheel: {wheel.stat().st_size / 1e6:.2f} MB; installed: {total / 1e6:.1f} MB, "
            f"without numpy and pillow {(total - system) / 1e6:.1f} MB, byte code included "
            f"({', '.join(f'{name} {size / 1e6:.1f}' for name, size in largest)})"
        )
    assert installed["alexnet-edge"] > wheel.stat().st_size > 0
    assert total - system < 60e6


IMPORTS = {
    "alexnet_edge": ("msgspec", "numpy", "PIL", "rich", "cyclopts"),
    "alexnet_edge.cli": ("msgspec", "numpy", "PIL", "rich"),
    "alexnet_edge.predict": ("rich", "cyclopts"),
}
"""What is imported, and the light libraries that it does without; the heavy ones none imports."""
HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "tensorrt", "cuda", "scipy", "plotly", "cv2")


@pytest.mark.parametrize("module", IMPORTS)
def test_how_long_importing_takes(
    module: str, device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints the median of fresh processes. What keeps it short is asserted, here, where the heavy libraries are installed."""
    timed = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    seconds = [float(run(device / "python", "-I", "-c", timed, cwd=tmp_path).stdout) for _ in range(5)]
    with capsys.disabled():
        print(f"\nimport {module}: {statistics.median(seconds) * 1e3:.0f} ms, median of {len(seconds)} fresh processes")
    listed = f"import sys; import {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    imported = set(run(sys.executable, "-c", listed, cwd=ROOT).stdout.split())
    assert "alexnet_edge" in imported
    assert imported & {*HEAVY, *IMPORTS[module]} == set()


@pytest.mark.parametrize("arguments", [["train", "--data", "synthetic"], ["demo"]])
def test_a_missing_extra_is_one_line(device: Path, tmp_path: Path, arguments: list[str]) -> None:
    result = run(device / "alexnet-edge", *arguments, cwd=tmp_path, check=False)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert "pip install 'alexnet-edge[train]'" in line or "pip install 'alexnet-edge[all]'" in line
    assert not list(tmp_path.iterdir()), "nothing may be left behind"
