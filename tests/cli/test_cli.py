"""The command line: every mistake is one line and exit code 2, every result can be read by a program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import command_names
from PIL import Image

from alexnet_edge import __version__
from alexnet_edge.artifact import load_artifact
from alexnet_edge.cli import app, main
from alexnet_edge.errors import install_command
from alexnet_edge.files import sha256_file
from alexnet_edge.network.checkpoint import save_checkpoint
from alexnet_edge.network.load import load_checkpoint

MakeCheckpoint = Callable[..., Path]
Exported = dict[tuple[str, str], Path]


class InProcess:
    """Runs the command line in this process, in an empty folder: what it prints and its exit code are the process's own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    def refuses(self, *arguments: str | Path) -> str:
        """The one line of a command that ends with exit code 2 and prints no result."""
        code, out, err = self(*arguments)
        assert code == 2, out + err
        assert out == ""
        (line,) = err.strip().splitlines()
        assert line.startswith("alexnet-edge: ")
        assert "Traceback" not in line
        return line

    def text(self, *arguments: str | Path) -> str:
        """What a command prints that must succeed without a word on standard error."""
        code, out, err = self(*arguments)
        assert (code, err) == (0, ""), err
        return out

    def json(self, *arguments: str | Path) -> Any:
        """The same as JSON."""
        return json.loads(self.text(*arguments, "--json"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NO_COLOR", "1")
    return InProcess(capsys)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: MakeCheckpoint) -> Path:
    return tiny_checkpoint()


@pytest.fixture
def photo(image_folder: Path) -> Path:
    return image_folder / "val" / "red" / "0.jpg"


@pytest.fixture
def paths(model: Path, image_folder: Path, photo: Path) -> dict[str, Path]:
    return {"model": model, "images": image_folder / "val", "photo": photo}


@pytest.fixture
def truncated_jpeg(photo: Path, tmp_path: Path) -> Path:
    path = tmp_path / "cut.jpg"
    path.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("export --checkpoint nothing.safetensors", "no such checkpoint: nothing.safetensors"),
        ("export", "no checkpoint"),
        ("evaluate --images synthetic", "no checkpoint"),
        ("predict a.jpg", "no checkpoint"),
        ("bench", "no checkpoint"),
        ("check", "no artifacts in: artifacts/"),
        ("check nothing.onnx", "no such artifact: nothing.onnx"),
        ("predict a.jpg --artifact nothing.onnx", "no such artifact: nothing.onnx"),
        ("evaluate nothing.pt2 --images synthetic", "no such artifact: nothing.pt2"),
        (
            "export --format tflite",
            "--format has no such choice: tflite; choose one of all, torchscript, pt2, onnx, openvino, trt",
        ),
        ("export --fp16 --int8", "an artifact has one precision: --fp16 --int8"),
        ("export --format trt --runtime jetson", "--runtime has no such choice: jetson"),
        ("export --method average", "--method has no such choice: average; choose one of entropy, minmax, percentile"),
        ("export --min-batch 4 --opt-batch 2", "batches must satisfy 1 <= min <= opt <= max: 4, 2, 16"),
        ("export --max-batch 0", "batches must satisfy 1 <= min <= opt <= max: 1, 1, 0"),
        ("export --bf16 --fp8 --int4-fc", "an artifact has one precision: --bf16 --fp8 --int4-fc"),
        ("export --format onnx --dla-core 0", "this option is for TensorRT engines only: --dla-core"),
        ("export --format pt2 --refit", "this option is for TensorRT engines only: --refit"),
        ("export --pool dla-local-dram", "a memory pool is NAME=MIB: dla-local-dram"),
        ("export --pool vram=1", "no such memory pool: vram"),
        ("export --workspace 0", "the size of workspace must be 1 MiB or more: 0"),
        ("export --format onnx --fp16 --method minmax", "only INT8 and FP8 are calibrated: --method"),
        ("export --format pt2 --calibration-table t", "only INT8 and FP8 are calibrated: --calibration-table"),
        ("export --format onnx --fp8 --calibration-table t", "a calibration table is for INT8: t"),
        (
            "export --format onnx --int8 --calibration-table t --table-for ten",
            "a TensorRT version is written as 10.3.0: ten",
        ),
        ("export --calibrator best", "--calibrator has no such choice: best"),
        ("export --timing-cache-mode require", "timing cache mode require needs a timing cache"),
        ("export --gpu-fallback", "GPU fallback is for layers that a DLA cannot run"),
        ("export --dla-core 0 --max-batch 4", "a DLA runs one fixed batch: min 1, max 4"),
        ("export --compute-capability ada", "a GPU architecture is written as `sm89`: ada"),
        ("export --checkpoint a --onnx b", "an export has one source: --checkpoint --onnx"),
        ("export --onnx nothing.onnx", "no such artifact: nothing.onnx"),
        ("inspect --for tensorrt", "no file to lint"),
        ("inspect --for tensorrt nothing.onnx", "nothing.onnx"),
        ("inspect --for tpu nothing.onnx", "--for has no such choice: tpu"),
        ("doctor --require wings", "--require has no such choice: wings"),
        ("bench --batch 0", "batches must be 1 or more"),
        ("bench --device tpu", "--device has no such choice: tpu"),
        ("train --device tpu", "--device has no such choice: tpu"),
        ("train --freeze most", "--freeze has no such choice: most; choose one of none, features"),
        ("train --data nowhere", "nowhere"),
        ("train --arch vgg", "no such architecture: vgg"),
        ("inspect --arch vgg", "no such architecture: vgg; choose one of one-tower, two-tower, torchvision, notebook"),
        ("inspect --classes 0", "a network needs at least one class: 0"),
        ("inspect --batch 0", "batch must be 1 or more: 0"),
        ("inspect --batch many", "--batch"),
        ("inspect nothing.onnx", "no such artifact: nothing.onnx"),
        ("inspect nothing.safetensors", "no such checkpoint: nothing.safetensors"),
        ("report", "reports/bench.json"),
        ("predict", "no image named"),
        ("exprot", "no such command: exprot; did you mean export?"),
        ("deploy rolback", "--artifact is missing"),
        ("export --formt trt", "no such option: --formt; did you mean --format?"),
        ("export --format tensort", "--format has no such choice: tensort"),
        ("export --format opnvino", "did you mean openvino? choose one of all, "),
        ("export --out", "--out needs a value"),
        ("export --limit few", "--limit takes a whole number: few"),
        ("export --int8=best", "--int8 takes no such value: best; write --int8 or --int8 auto"),
        ("export --format trt --int8=auto", "--int8 auto writes one format: --format trt"),
        ("compare a.json", "NEW is missing"),
        ("compare a b c", "compare does not take so many words: c"),
        ("export --format triton", "--format triton is a command of its own now; write: alexnet-edge triton"),
        ("check --bisect", "--bisect is a command of its own now; write: alexnet-edge bisect"),
        ("bench --loader", "--loader is a command of its own now; write: alexnet-edge bench loader"),
        ("deploy board --rollback", "write: alexnet-edge deploy rollback DEVICE"),
        ("deploy --artifact a.onnx", "name one device"),
    ],
)
def test_mistakes_without_any_file(cli: InProcess, arguments: str, expected: str) -> None:
    line = cli.refuses(*arguments.split())
    assert expected.lower() in line.lower()
    assert "; " in line, "what to do instead is missing"
    assert not list(Path().rglob("*")), "a mistake leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("export --checkpoint {model}", "records no val data to take images to prove the answers on from"),
        ("export --checkpoint {model} --images {images}/none", "none"),
        ("export --checkpoint {model} --images {images} --format onnx --int8", "records no train data"),
        ("export --checkpoint {model} --images {images} --format torchscript --fp16", "written in fp32 only: fp16"),
        ("export --checkpoint {model} --images {images} --format onnx --threads 0", "threads must be 1 or more: 0"),
        ("export --checkpoint {model} --images {images} --format onnx --on-bad-image ask", "has no such choice: ask"),
        ("export --checkpoint {model} --images {images} --format onnx --limit 0", "0"),
        (
            "export --checkpoint {model} --images {images} --format onnx --int8 --calibration random "
            "--calibration-images 0",
            "the number of images must be 1 or more: 0",
        ),
        ("export --checkpoint {model} --images {images} --format onnx --out {photo}/a", "part of the path is a file"),
        ("evaluate {model}", "it records no validation data"),
        ("evaluate {model} --images {images}/none", "none"),
        ("evaluate {model} --images {images} --device tpu", "--device has no such choice: tpu"),
        ("evaluate {model} --images {images} --threads 0", "threads must be 1 or more: 0"),
        ("evaluate {model} --images synthetic", "not among the network's 4 classes"),
        ("evaluate {photo} --images {images}", "no manifest"),
        ("predict {photo} --artifact {model} --top 0", "must be 1 or more: 0"),
        ("predict {photo} --artifact {model} --threads 0", "threads must be 1 or more: 0"),
        ("predict {photo} --artifact {model} --on-bad-image ask", "--on-bad-image has no such choice: ask"),
        ("predict nothing.jpg --artifact {model}", "no such image: nothing.jpg"),
        ("predict {photo} --artifact {photo}", "no manifest"),
        ("bench {model} --batch 0", "batches must be 1 or more"),
        ("bench {model} --threads 0", "threads must be 1 or more: 0"),
        ("bench {model} --device tpu", "--device has no such choice: tpu"),
        ("bench {model} --rounds 0", "rounds must be 1 or more: 0"),
        ("bench {model} --batch 1,x", "--batch takes whole numbers: x"),
        ("bench {model} --batch ,", "--batch names no number"),
        ("bench {model} --threads 2,1,2", "a number of threads is named twice: 2"),
        ("bench {model} --format tflite", "--format has no such choice: tflite"),
        ("bench {model} --precision int3", "--precision has no such choice: int3"),
        ("bench {model} --format onnx,trt", "nothing to measure is of that format and precision: onnx, trt"),
        ("bench {model} --pin 0,4095", "this process may not run on these processors: 4095"),
        ("bench {model} --like trtexec-9", "--like has no such choice: trtexec-9"),
        ("bench {model} --like trtexec-10", "trtexec-10 measures a GPU, and this runs on the processor"),
        ("bench {model} --scenario stress", "--scenario has no such choice: stress"),
        ("bench {model} --scenario offline --latency-bound-ms 5", "--latency-bound-ms belongs to the server scenario"),
        ("bench {model} --scenario-seconds 5", "--scenario-seconds belongs to a scenario"),
        ("bench {model} --scenario all --scenario-seconds -1", "seconds must be positive: -1.0"),
        ("bench {model} --power-mode 15W", "governor"),
        ("bench {model} --tegrastats {photo}", "0.jpg"),
        ("compare nothing.json {model}", "nothing.json"),
        ("compare {photo} {photo}", "0.jpg"),
        ("compare a b --max-slowdown fast", "--max-slowdown must be a share of 0 or more: fast"),
        ("compare a b --match onnx", "--match takes two labels: onnx"),
        ("inspect {model} --arch one-tower", "the file says its own architecture"),
        ("inspect {photo}", "no manifest"),
        ("report {photo}", "0.jpg"),
    ],
)
def test_mistakes_with_files(cli: InProcess, paths: dict[str, Path], arguments: str, expected: str) -> None:
    quiet = ["--quiet"] if arguments.startswith(("export", "bench")) else []
    code, out, err = cli(*[part.format(**paths) for part in arguments.split()], *quiet)
    assert code == 2, out + err
    (line,) = err.strip().splitlines()
    assert expected in line
    assert not [path for path in Path().rglob("*") if path.is_file()], "a mistake leaves nothing behind"


def test_folders_without_images(cli: InProcess, model: Path) -> None:
    for name in ("empty", "texts"):
        Path(name).mkdir()
    Path("texts/a.txt").write_text("no image")
    for name in ("empty", "texts"):
        for arguments in (
            ["predict", name, "--artifact", model],
            ["evaluate", model, "--images", name],
            ["export", "--checkpoint", model, "--images", name],
        ):
            assert "no images in the folder" in cli.refuses(*arguments)


def test_not_an_image(cli: InProcess, model: Path) -> None:
    Path("a.jpg").write_bytes(b"these are words")
    assert "not an image that PIL can read: a.jpg" in cli.refuses("predict", "a.jpg", "--artifact", model)


def test_truncated_jpeg_fails_or_is_skipped(cli: InProcess, model: Path, photo: Path, truncated_jpeg: Path) -> None:
    line = cli.refuses("predict", photo, truncated_jpeg, "--artifact", model)
    assert "image cannot be decoded" in line
    assert str(truncated_jpeg) in line
    skip = ["predict", photo, truncated_jpeg, "--artifact", model, "--on-bad-image", "skip"]
    found = cli.json(*skip)
    assert [entry["image"] for entry in found["predictions"]] == [str(photo)]
    assert len(found["skipped"]) == 1
    out = cli.text(*skip)
    assert "1 images skipped:" in out
    assert str(truncated_jpeg) in out


@pytest.mark.parametrize("keep", [0, 5, 1000, 100_000])
def test_truncated_checkpoint(cli: InProcess, model: Path, keep: int) -> None:
    with model.open("rb") as source:
        Path("cut.safetensors").write_bytes(source.read(keep))
    for arguments in (
        ["export", "--checkpoint", "cut.safetensors", "--images", "synthetic"],
        ["evaluate", "cut.safetensors", "--images", "synthetic"],
        ["inspect", "cut.safetensors"],
    ):
        assert "cut.safetensors" in cli.refuses(*arguments)


@pytest.mark.slow
def test_checkpoint_of_another_architecture(
    cli: InProcess, exported: Exported, tiny_checkpoint: MakeCheckpoint, photo: Path
) -> None:
    line = cli.refuses(
        "check", exported["onnx", "fp16"], "--checkpoint", tiny_checkpoint("narrow-torchvision"), "--images", photo
    )
    assert "the checkpoint is of another network than" in line
    assert "(narrow-two-tower, 4 classes)" in line


def test_checkpoint_of_another_class_count(cli: InProcess, exported: Exported, model: Path, photo: Path) -> None:
    loaded = load_checkpoint(model)
    weights = {**loaded.weights}
    for name in ("fc8.weight", "fc8.bias"):
        weights[name] = np.concatenate([weights[name], weights[name][:1]])
    save_checkpoint(Path("five.safetensors"), weights, replace(loaded.info, classes=(*loaded.info.classes, "white")))
    line = cli.refuses("check", exported["onnx", "fp16"], "--checkpoint", "five.safetensors", "--images", photo)
    assert "the checkpoint is of another network than" in line
    assert "five.safetensors" in line


def test_artifact_whose_checkpoint_changed(cli: InProcess, exported: Exported, photo: Path, tmp_path: Path) -> None:
    path = exported["onnx", "fp16"]
    shutil.copy(path, "a.onnx")
    manifest = json.loads(path.with_name(f"{path.name}.json").read_text())
    Path("a.onnx.json").write_text(json.dumps({**manifest, "checkpoint_sha256": "00" * 32}))
    line = cli.refuses("check", "a.onnx", "--images", photo)
    assert "the checkpoint is not the one the artifact was exported from" in line


def test_damaged_artifact(cli: InProcess, exported: Exported, photo: Path) -> None:
    path = exported["onnx", "int8"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    Path("a.onnx").write_bytes(content)
    shutil.copy(path.with_name(f"{path.name}.json"), "a.onnx.json")
    for arguments in (
        ["inspect", "a.onnx"],
        ["predict", photo, "--artifact", "a.onnx"],
        ["check", "a.onnx", "--images", photo],
        ["bench", "a.onnx", "--images", photo],
    ):
        assert "the file does not match its manifest" in cli.refuses(*arguments)
    Path("a.onnx.json").write_text("{")
    assert "the manifest is damaged" in cli.refuses("inspect", "a.onnx")


def test_engines_do_not_run_here(cli: InProcess, exported: Exported, photo: Path) -> None:
    path = exported.get(("trt", "fp16"))
    if path is None:
        pytest.skip("tensorrt_rtx is not installed: there is no engine")
    assert "needs the NVIDIA GPU it was built for" in cli.refuses("predict", photo, "--artifact", path)
    code, out, err = cli("check", path)
    assert code == 2
    assert "not run" in out
    assert "needs the NVIDIA GPU" in err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}'])
def test_damaged_results(cli: InProcess, content: str) -> None:
    Path("bench.json").write_text(content)
    assert "bench.json" in cli.refuses("report", "bench.json")
    assert [path.name for path in Path().iterdir()] == ["bench.json"]


@pytest.mark.slow
def test_full_disk(cli: InProcess, tiny_checkpoint: MakeCheckpoint, image_folder: Path, tmp_path: Path) -> None:
    model = tiny_checkpoint("two-tower")  # larger than the disk
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root: a full disk cannot be made here")
    try:
        line = cli.refuses(
            "export", "--checkpoint", model, "--images", image_folder / "val", "--format", "onnx", "--out", disk, "-q"
        )
        assert "MB are free" in line
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


BLOCKED = """
import importlib.abc, sys
names = set(sys.argv.pop(1).split(","))
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from alexnet_edge.cli import app, main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocked", "extra", "arguments"),
    [
        ("torch", "train", "export --checkpoint {model} --images {images} --format torchscript -q"),
        ("onnx", "export", "export --checkpoint {model} --images {images} --format onnx -q"),
        ("onnxruntime", "onnx", "export --checkpoint {model} --images {images} --format onnx -q"),
        ("tensorrt_rtx", "rtx", "export --checkpoint {model} --images {images} --format trt --fp16 -q"),
        ("torch", "train", "evaluate {model} --images {images}"),
        ("safetensors", "export", "inspect {model}"),
        ("onnxruntime", "onnx", "predict {photo} --artifact {onnx}"),
    ],
)
def test_a_missing_extra(
    tmp_path: Path, paths: dict[str, Path], exported: Exported, blocked: str, extra: str, arguments: str
) -> None:
    names = {**paths, "onnx": exported["onnx", "fp16"]}
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED, blocked, *[part.format(**names) for part in arguments.split()]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    (line,) = run.stderr.strip().splitlines()
    assert install_command(extra) in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arch", "parameters", "multiply_adds"),
    [
        ("one-tower", "62,378,344", "1,135,256,096"),
        ("two-tower", "60,965,224", None),
        ("torchvision", "61,100,840", None),
        ("notebook", None, None),
    ],
)
def test_inspect_an_architecture(cli: InProcess, arch: str, parameters: str | None, multiply_adds: str | None) -> None:
    out = cli.text("inspect", "--arch", arch)
    total = next(line for line in out.splitlines() if line.startswith("total"))
    for figure in (parameters, multiply_adds):
        assert figure is None or figure in total.split()
    value = cli.json("inspect", "--arch", arch, "--batch", "4")
    assert (value["architecture"], value["batch"]) == (arch, 4)
    assert [entry["name"] for entry in value["costs"]][::7] == ["conv1", "fc8"]
    assert f"{sum(entry['parameters'] for entry in value['costs']):,}" in total.split()


def test_inspect_a_checkpoint(cli: InProcess, model: Path) -> None:
    out = cli.text("inspect", model)
    assert f"sha256: {sha256_file(model)}" in out
    assert "classes: 4 (blue, green, red, yellow)" in out
    value = cli.json("inspect", model)
    assert value["classes"] == ["blue", "green", "red", "yellow"]
    assert value["costs"][-1]["output_shape"] == [4]


def test_inspect_an_artifact(cli: InProcess, exported: Exported) -> None:
    path = exported["onnx", "int8"]
    out = cli.text("inspect", path)
    assert "precision: int8" in out
    assert "conv1: asked int8, built int8" in out
    value = cli.json("inspect", path)
    assert value["sha256"] == sha256_file(path)
    assert {layer["built"] for layer in value["layers"]} == {"int8"}
    assert len(value["costs"]) == 8


def test_doctor(cli: InProcess) -> None:
    import torch

    assert torch.__version__ in cli.text("doctor")
    value = cli.json("doctor")
    assert value["environment"]["cpus"] >= 1
    assert {"PyTorch", "ONNX", "NVIDIA GPU"} <= {entry["name"] for entry in value["components"]}


def test_predict_gives_probabilities(cli: InProcess, exported: Exported, model: Path, image_folder: Path) -> None:
    best = []
    for source in (model, exported["onnx", "fp32"], exported["torchscript", "fp32"]):
        value = cli.json("predict", image_folder / "val", "--artifact", source)
        assert value["skipped"] == []
        assert len(value["predictions"]) == 12
        for entry in value["predictions"]:
            assert sum(guess["probability"] for guess in entry["guesses"]) == pytest.approx(1.0)
            assert {guess["name"] for guess in entry["guesses"]} == {"blue", "green", "red", "yellow"}
        best.append([entry["guesses"][0]["name"] for entry in value["predictions"]])
    assert best[0] == best[1] == best[2]
    out = cli.text("predict", image_folder / "val" / "red" / "0.jpg", "--artifact", model, "--top", "1")
    assert out.count(" %") == 1


def test_evaluate(cli: InProcess, exported: Exported, image_folder: Path) -> None:
    value = cli.json("evaluate", exported["onnx", "fp32"], "--images", image_folder)
    assert value["count"] == 12
    assert sum(entry["correct"] for entry in value["classes"]) == round(12 * value["top1"])
    assert cli.json("evaluate", exported["onnx", "fp32"], "--images", image_folder, "--limit", "4")["count"] == 4
    out = cli.text("evaluate", exported["onnx", "fp32"], "--images", image_folder)
    assert f"top-1 {value['top1']:.2%}" in out


@pytest.mark.slow
def test_export_then_check(run_cli: Any, model: Path, image_folder: Path) -> None:
    """As a user does it, in processes of their own."""
    done = run_cli(
        *("export", "--checkpoint", model, "--format", "onnx", "--fp16"),
        *("--images", image_folder / "val", "--limit", "4", "--json", "--quiet"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (outcome,) = json.loads(done.stdout)
    artifact = load_artifact(run_cli.folder / outcome["file"])
    assert outcome["file"] == "artifacts/alexnet_fp16.onnx"
    assert outcome["manifest"]["sha256"] == artifact.manifest.sha256
    assert outcome["manifest"]["parity"]["verdict"] == "passed"
    checked = run_cli("check", "--images", image_folder / "val", "--json")
    assert checked.returncode == 0, checked.stderr
    report = json.loads(checked.stdout)["artifacts/alexnet_fp16.onnx"]
    assert report["verdict"] == "passed"
    assert report["figures"]["num_images"] == 12


def test_check_fails_with_exit_code_1(cli: InProcess, exported: Exported, model: Path, photo: Path) -> None:
    loaded = load_checkpoint(model)
    weights = {**loaded.weights, "fc8.bias": loaded.weights["fc8.bias"][::-1] + np.float32(0.5)}
    save_checkpoint(Path("other.safetensors"), weights, loaded.info)
    code, out, err = cli("check", exported["onnx", "fp32"], "--checkpoint", "other.safetensors", "--images", photo)
    assert code == 1
    assert "failed" in out
    assert "max abs error" in out
    (line,) = err.strip().splitlines()
    assert "1 of 1 artifacts do not give the checkpoint's answers" in line


def test_a_photo_of_another_kind_is_still_predicted(cli: InProcess, model: Path) -> None:
    Image.new("L", (300, 20), 99).save("gray.png")
    Image.new("CMYK", (20, 300)).save("ink.jpg")
    value = cli.json("predict", "gray.png", "ink.jpg", "--artifact", model)
    assert [entry["image"] for entry in value["predictions"]] == ["gray.png", "ink.jpg"]


def test_version_and_help(cli: InProcess) -> None:
    assert cli("--version") == (0, f"{__version__}\n", "")
    assert "Usage: alexnet-edge" in cli.text()
    assert "--format" in cli.text("export", "--help")


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"], ["--help"], ["--version"]])
def test_a_reader_that_leaves_is_no_error(tmp_path: Path, arguments: list[str], unbuffered: str) -> None:
    """As in `alexnet-edge inspect | head -1`: the pipe is closed before the first write."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        run = subprocess.run(
            [sys.executable, "-m", "alexnet_edge", *arguments],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writing)
    assert run.stderr == ""
    assert run.returncode == 0


def test_help_shows_hints_in_brackets_and_needs_no_heavy_library(run_cli: Any) -> None:
    assert "[the training data]" in run_cli("export", "--help").stdout
    code = (
        "import sys; from alexnet_edge.cli import _run\n"
        "assert not any([_run([*command.split(), '--help']) for command in sys.argv[1:]])\n"
        "print({'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules), file=sys.stderr)"
    )
    commands = [*command_names(), "bench loader", "deploy status", "deploy rollback"]
    run = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=True)
    assert run.stderr == "set()\n"
    assert run.stdout.count("Usage: ") == len(commands)


COMPLETIONS = {
    "bash": (
        ("--norc",),
        "source {script}; COMP_WORDS=(alexnet-edge expo); COMP_CWORD=1; _alexnet_edge; echo ${{COMPREPLY[@]}}",
        "export",
    ),
    "zsh": (
        ("-f",),
        "source {script}; fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; echo $_comps[alexnet-edge]",
        "_cyclopts_alexnet-edge",
    ),
    "fish": (("--no-config",), "source {script}; complete -C 'alexnet-edge export --bf'", "--bf16"),
}
"""Of each shell: its flags to read no configuration, what it runs, and the first word that it prints."""


@pytest.mark.slow
@pytest.mark.parametrize("shell", COMPLETIONS)
def test_completion_scripts_work(shell: Any, tmp_path: Path) -> None:
    flags, words, expected = COMPLETIONS[shell]
    script = tmp_path / "_cyclopts_alexnet-edge"  # the name that zsh looks for
    script.write_text(app.generate_completion(shell=shell))
    assert "export" in script.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = [shell, *flags, "-c", words.format(script=script, folder=tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split()[0] == expected
    assert run.stderr == ""
