"""A deploy to an aarch64 board, emulated: everything that a device without TensorRT does, done by programs of that architecture.

`make test-board` runs it. Nothing here looks at a time, other than whether it is marked.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from emulated_board import HOST, Board, check_here, emulated_board, give, wheelhouse

from alexnet_edge.artifact import decode_manifest
from alexnet_edge.deploy.wheel import write_wheel
from alexnet_edge.environment import EMULATED_FIGURES
from alexnet_edge.images.datasets import ImageSet, batches, open_images
from alexnet_edge.images.preprocess import preset
from alexnet_edge.network.checkpoint import CheckpointInfo, save_checkpoint
from alexnet_edge.network.layers import architecture
from alexnet_edge.network.load import read_caffe_filters
from alexnet_edge.network.model import AlexNet, initialise
from alexnet_edge.training.rescale import rescale

pytestmark = [pytest.mark.board, pytest.mark.slow, pytest.mark.timeout(900)]

FITTED = 40
"""Images per class that fc8 is fitted to."""
GOLDEN = 10
"""An image takes the board a second or more."""
ONLY_FOR_FORMATS = ("onnx", "ml_dtypes", "protobuf", "flatbuffers")
"""Beginnings of the wheels that a base install does not have."""


def edge(folder: Path, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `alexnet-edge` as its users do, and show what it says; it must end with this exit code."""
    start = time.monotonic()
    done = Cli(folder)(*map(str, words), timeout=600)
    shown = f"{done.stderr}{done.stdout}({time.monotonic() - start:.0f} s)"
    print(f"\n$ alexnet-edge {' '.join(map(str, words))}\n{shown}", flush=True)
    assert done.returncode == code, done.stderr
    return done


def fitted_checkpoint(filters: Path, images: ImageSet, path: Path) -> None:
    """A network that knows these images: trained filters, drawn fc6 and fc7, and fc8 fitted by ridge regression.

    It takes seconds where training takes minutes, and answers these images far from a tie, so that a proof on ten of them
    does not hang on one.
    """
    arch = architecture("two-tower", len(images.classes))
    model = AlexNet(arch)
    initialise(model, "kaiming", seed=0)
    trained = {name: torch.from_numpy(value) for name, value in read_caffe_filters(filters, arch).items()}
    model.load_state_dict(trained, strict=False)
    model.eval()
    info = CheckpointInfo(architecture=arch.name, classes=images.classes, preprocessing=preset("caffe-227"))
    read = list(batches(images, info.preprocessing, batch=25))
    with torch.inference_mode():
        pool5_NF = torch.cat([model.features(torch.from_numpy(batch.x_NCHW)) for batch in read])
    rescale(model, model.classifier, pool5_NF, ("fc6", "fc7"))
    with torch.inference_mode():
        fc6_NF = model.after6(model.fc6(model.before6(pool5_NF)))
        fc7_NF = model.after7(model.fc7(model.before7(fc6_NF))).double().numpy()
    labels_N, num_classes = np.concatenate([batch.labels_N for batch in read]), len(images.classes)
    mean_F, target_NK = fc7_NF.mean(axis=0), 8 * (np.eye(num_classes)[labels_N] - 1 / num_classes)
    centred_NF = fc7_NF - mean_F
    kernel_NN = centred_NF @ centred_NF.T
    ridge_NN = kernel_NN + 0.1 * np.trace(kernel_NN) / len(images) * np.eye(len(images))
    weight_FK = centred_NF.T @ np.linalg.solve(ridge_NN, target_NK)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    weights |= {"fc8.weight": weight_FK.T.astype(np.float32), "fc8.bias": (-mean_F @ weight_FK).astype(np.float32)}
    save_checkpoint(path, weights, info)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: FP32 and INT8 ONNX files of a network in `artifacts`, and images of its classes in `images`.

    The folder of artifacts may be given by ALEXNET_EDGE_BOARD_ARTIFACTS: of the flowers network, say, then proved on images
    that it was not trained on.
    """
    check_here()
    folder, data = tmp_path_factory.mktemp("work"), Path(os.environ["ALEXNET_EDGE_DATA"])
    if artifacts := os.environ.get("ALEXNET_EDGE_BOARD_ARTIFACTS"):
        (folder / "artifacts").symlink_to(Path(artifacts).resolve())
        (folder / "images").symlink_to(data / "flowers/val")
        return folder
    for kind in sorted((data / "flowers/train").iterdir()):
        (folder / "images" / kind.name).mkdir(parents=True)
        for image in sorted(kind.iterdir())[:FITTED]:
            (folder / "images" / kind.name / image.name).symlink_to(image.resolve())
    images = open_images(folder / "images", classes=sorted(kind.name for kind in (folder / "images").iterdir()))
    fitted_checkpoint(data / "bvlc_alexnet_conv_filters.npz", images, folder / "model.safetensors")
    export = ("export", "--checkpoint", "model.safetensors", "--format", "onnx", "--images", "images", "--limit", "50")
    edge(folder, *export)
    edge(folder, *export, "--int8", "--calibration", data / "flowers/val", "--calibration-images", "64")
    return folder


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with emulated_board(tmp_path_factory.mktemp("board")) as emulated:
        yield emulated


@pytest.fixture(scope="module")
def first(work: Path, board: Board) -> dict[str, Any]:
    """The first deploy: INT8 built on the board of the FP32 file, proved, measured and switched to."""
    words = ("deploy", HOST, "--ssh-config", board.ssh_config, "--silence-seconds", "600", "--wheelhouse", wheelhouse())
    golden = ("--images", "images", "--limit", GOLDEN)
    bench = ("--bench-seconds", "1", "--rounds", "1", "--percentile", "50", "--no-cold", "--no-roofline")
    edge(work, *words, *golden, *bench, "--artifact", "artifacts/alexnet_fp32.onnx", "--int8")
    state = json.loads(edge(work, "deploy", "status", HOST, "--ssh-config", board.ssh_config, "--json").stdout)[HOST]
    (release,) = state["releases"]
    assert state["current"] == release["id"]
    return dict(release)


def test_the_package_alone(board: Board, tmp_path: Path) -> None:
    """The base install's wheels, unpacked: it imports and helps, and knows what it runs on."""
    base = board.home / "base"
    for wheel in [*wheelhouse().glob("*.whl"), write_wheel(tmp_path)]:
        if not wheel.name.startswith(ONLY_FOR_FORMATS):
            zipfile.ZipFile(wheel).extractall(base)
    give(base)
    program = (
        "import json, sys, alexnet_edge; assert 'numpy' not in sys.modules; "
        "from alexnet_edge.environment import describe; print(json.dumps(describe()))"
    )
    answer = board.run(f'PYTHONPATH=base python3 -c "{program}"')
    assert answer.returncode == 0, answer.stderr
    about = json.loads(answer.stdout)
    print(about)
    assert about["machine"] == "aarch64"
    assert "asimddp" in about["cpu_features"]
    assert "avx2" not in about["cpu_features"]
    assert about["emulated"].startswith("qemu-aarch64")
    assert about["cpu"].startswith("emulated aarch64, on ")
    assert not {"onnx", "onnxruntime"} & about["versions"].keys()
    help_of = board.run("PYTHONPATH=base python3 -m alexnet_edge predict --help")
    assert help_of.returncode == 0, help_of.stderr
    assert "--artifact" in help_of.stdout


def test_a_file_for_another_processor_is_refused_before_anything_is_copied(work: Path, board: Board) -> None:
    target = json.loads((work / "artifacts/alexnet_int8.onnx.json").read_text())["build"].get("target")
    if target is None:
        pytest.skip("INT8 exported on this processor is the portable graph, which every processor takes")
    refused = edge(
        work,
        *("deploy", HOST, "--ssh-config", board.ssh_config, "--root", "other", "--bench-seconds", "0"),
        *("--artifact", "artifacts/alexnet_int8.onnx", "--images", "images", "--limit", GOLDEN),
        code=2,
    )
    assert f"lowered for {target['name']} and its processor" in refused.stderr
    assert "nothing was copied" in refused.stderr
    assert not (board.home / "other").exists()


def test_built_proved_and_marked(work: Path, first: dict[str, Any]) -> None:
    build, bench = first["steps"]["build"], first["steps"]["bench"]
    assert build["built_here"]
    assert build["layers"] == "8 of 8 int8"
    assert build["parity"]["verdict"] == "passed"
    assert build["parity"]["images"] == GOLDEN
    assert build["parity"]["max_abs_error"] > 0.001, "INT8 that differs by nothing is not INT8"
    assert build["emulated"].startswith("qemu-aarch64")
    assert bench["verdict"] == "INVALID"
    assert bench["reasons"][0] == f"emulated: {build['emulated']}"
    folder = work / "reports/deploy" / HOST / first["id"]
    manifest = decode_manifest((folder / "manifest.json").read_bytes())
    assert manifest.build["target"]["name"] == "cpu-arm64"
    assert manifest.environment["machine"] == "aarch64"
    assert manifest.environment["emulated"] == build["emulated"]
    results = json.loads((folder / "bench.json").read_text())
    assert results["environment"]["emulated"] == build["emulated"]
    (entry,) = results["subjects"][0]["batches"]
    assert (entry["verdict"], entry["reasons"][0]) == ("INVALID", f"emulated: {build['emulated']}")
    for name in ("bench.html", "bench.md"):
        text = (folder / name).read_text()
        assert EMULATED_FIGURES in text, name
        assert "INVALID" in text, name
    assert "pip install" in (folder / "log.txt").read_text()


def test_its_times_are_not_compared_with_measured_ones(work: Path, first: dict[str, Any]) -> None:
    emulated = work / "reports/deploy" / HOST / first["id"] / "bench.json"
    edge(
        work,
        *("bench", "artifacts/alexnet_int8.onnx", "--images", "images", "--batch", "1", "--seconds", "0.3"),
        *("--rounds", "1", "--percentile", "50", "--no-cold", "--no-roofline", "--out", "reports/here.json"),
    )
    for pair in ((emulated, "reports/here.json"), ("reports/here.json", emulated)):
        for force in ((), ("--force",)):
            refused = edge(work, "compare", *pair, *force, code=2)
            assert "emulated (qemu-aarch64" in refused.stderr
            assert "the other was measured on a machine" in refused.stderr


def test_another_release_and_back(work: Path, board: Board, first: dict[str, Any]) -> None:
    ssh = (HOST, "--ssh-config", board.ssh_config)
    words = ("--silence-seconds", "600", "--wheelhouse", wheelhouse(), "--images", "images", "--limit", GOLDEN)
    order = ("--artifact", "artifacts/alexnet_fp32.onnx", "--int8-int4-fc", "--bench-seconds", "0")
    second = edge(work, "deploy", *ssh, *words, *order)
    assert "environment on the device: the one that is there" in second.stderr
    assert f"{HOST}: {EMULATED_FIGURES}" in second.stdout
    current = board.root / "home/edge/alexnet-edge/current"
    served = current.readlink().name
    assert served.startswith("onnx-int8-int4-fc-")
    shown = edge(work, "deploy", "status", *ssh).stdout
    rows = {line.split()[1]: line.split()[2:] for line in shown.splitlines() if line.startswith(HOST)}
    assert rows[served][0] == "serves"
    assert rows[first["id"]][:2] == ["served", "before"]
    assert "emulated" in rows[first["id"]]
    assert not {"VALID", "INVALID"} & set(rows[first["id"]])
    back = edge(work, "deploy", "rollback", *ssh).stdout
    assert f"{first['id']} serves now, {served} until now" in back
    assert current.readlink().name == first["id"]
    image = next((work / "images/roses").iterdir())
    (board.home / "photo.jpg").write_bytes(image.read_bytes())
    give(board.home / "photo.jpg")
    answer = board.run("cd alexnet-edge/current && ./alexnet-edge predict ~/photo.jpg --artifact artifact --json")
    assert answer.returncode == 0, answer.stderr
    guesses = json.loads(answer.stdout)["predictions"][0]["guesses"]
    here = edge(work, "predict", image, "--artifact", "artifacts/alexnet_fp32.onnx", "--json").stdout
    expected = json.loads(here)["predictions"][0]["guesses"]
    assert guesses[0]["name"] == expected[0]["name"]
    assert guesses[0]["probability"] == pytest.approx(expected[0]["probability"], abs=0.1)
