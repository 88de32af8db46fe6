"""An FP32 ONNX artifact as the source of further exports: the checkpoint's weights, or one line that says why not."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from alexnet_edge.artifact import Manifest, Precision, TensorSpec, commit, manifest_path
from alexnet_edge.errors import ArtifactError, CheckpointError
from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_onnx
from alexnet_edge.export.graphs.source import checkpoint_from_onnx
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import ARCHITECTURES
from alexnet_edge.network.load import load_checkpoint

MakeCheckpoint = Callable[..., Path]


def manifest_of(checkpoint: Checkpoint, precision: Precision = "fp32") -> Manifest:
    info = checkpoint.info
    return Manifest(
        format="onnx",
        runtime="onnxruntime",
        precision=precision,
        architecture=info.architecture,
        classes=info.classes,
        head=info.arch.head,
        preprocessing=info.preprocessing,
        input=TensorSpec(name="input", dtype="float32", shape=(3, 227, 227)),
        output=TensorSpec(name=info.arch.head, dtype="float32", shape=(len(info.classes),)),
        checkpoint=str(checkpoint.path),
        checkpoint_sha256=checkpoint.sha256,
    )


@functools.cache
def without_fc(path: Path) -> onnx.ModelProto:
    """The graph of a checkpoint without the initialisers of fc6 to fc8."""
    model = onnx_from_checkpoint(load_checkpoint(path))
    kept = [entry for entry in model.graph.initializer if entry.name.startswith("conv")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def exported(
    checkpoint: Checkpoint, folder: Path, change: Callable[[onnx.ModelProto], Any] | None = None, *, whole: bool = False
) -> Path:
    """An artifact whose manifest belongs to it, whatever `change` did to the graph.

    What is wrong with the first layers is found before fc6, whose weights are two thirds of the file: only a `whole` one has
    those of fc6 to fc8.
    """
    model = onnx.ModelProto()
    model.CopyFrom(onnx_from_checkpoint(checkpoint) if whole else without_fc(checkpoint.path))
    if change is not None:
        change(model)
    temporary = folder / "building.onnx"
    onnx.save_model(model, str(temporary))
    return commit(temporary, folder / "alexnet_fp32.onnx", manifest_of(checkpoint)).path


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        checkpoint_from_onnx(path)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    assert "; " in text
    return text


def node_of(model: onnx.ModelProto, name: str) -> Any:
    return next(node for node in model.graph.node if node.name == name)


def initialiser(model: onnx.ModelProto, name: str) -> Any:
    return next(entry for entry in model.graph.initializer if entry.name == name)


@pytest.mark.parametrize("name", ["narrow-two-tower", "narrow-notebook"])
def test_the_weights_come_back_bit_for_bit(tiny_checkpoint: MakeCheckpoint, tmp_path: Path, name: str) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint(name))
    path = exported(checkpoint, tmp_path, whole=True)
    again = checkpoint_from_onnx(path)
    assert again.path == path
    assert again.sha256 == checkpoint.sha256, "what is derived from it belongs to the checkpoint"
    assert again.info.arch == checkpoint.info.arch
    assert again.info.classes == checkpoint.info.classes
    assert again.info.preprocessing == checkpoint.info.preprocessing
    assert again.weights.keys() == checkpoint.weights.keys()
    assert all(again.weights[key].tobytes() == value.tobytes() for key, value in checkpoint.weights.items())


def test_it_needs_no_torch(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = exported(checkpoint, tmp_path, whole=True)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['safetensors'] = sys.modules['onnxruntime'] = None\n"
        "from pathlib import Path\n"
        "from alexnet_edge.export.graphs.source import checkpoint_from_onnx\n"
        f"print(len(checkpoint_from_onnx(Path({str(path)!r})).weights))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "16"), result.stderr


def test_a_file_that_is_cut_short_or_has_no_manifest(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = exported(checkpoint, tmp_path)
    (tmp_path / "half").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    half = commit(tmp_path / "half", tmp_path / "half.onnx", manifest_of(checkpoint)).path
    assert "not a readable ONNX file" in refused(half)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    assert "does not match its manifest" in refused(path)
    manifest_path(path).unlink()
    assert "no manifest" in refused(path)


def test_another_precision(checkpoint: Checkpoint, tmp_path: Path) -> None:
    temporary = tmp_path / "building.onnx"
    write_onnx(onnx_from_checkpoint(checkpoint, precision="fp16"), temporary)
    path = commit(temporary, tmp_path / "a.onnx", manifest_of(checkpoint, "fp16")).path
    assert "only an FP32 ONNX file holds the checkpoint's weights, this is onnx fp16" in refused(path)
    path = commit(path, tmp_path / "b.onnx", manifest_of(checkpoint, "fp32")).path
    assert "conv1 reads input/fp16, conv1.weight, conv1.bias, not input, conv1.weight, conv1.bias" in refused(path)


def set_strides(model: onnx.ModelProto) -> None:
    next(entry for entry in node_of(model, "conv4").attribute if entry.name == "strides").ints[:] = [2, 2]


def shorten(model: onnx.ModelProto) -> None:
    entry = initialiser(model, "conv2.weight")
    entry.raw_data = entry.raw_data[:-8]


def halve(model: onnx.ModelProto) -> None:
    entry = initialiser(model, "conv5.weight")
    entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry).astype(np.float16), entry.name))


def reshape(model: onnx.ModelProto) -> None:
    initialiser(model, "conv4.weight").dims[:] = [4, 8, 3, 3]


def skip_pool(model: onnx.ModelProto) -> None:
    node_of(model, "conv3").input[0] = "conv2/lrn"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda model: setattr(node_of(model, "conv3"), "name", "something"), "conv3 is missing"),
        (set_strides, "conv4 has strides [2, 2], not [1, 1]"),
        (lambda model: setattr(node_of(model, "fc6"), "op_type", "MatMul"), "fc6 is MatMul, not Gemm"),
        (
            lambda model: node_of(model, "conv5").input.pop(),
            "conv5 reads conv4/relu, conv5.weight, not conv4/relu, conv5.weight, conv5.bias",
        ),
        (skip_pool, "conv3 reads conv2/lrn, conv3.weight, conv3.bias, not conv2/pool, conv3.weight, conv3.bias"),
        (reshape, "conv4.weight is [4, 8, 3, 3], not [8, 4, 3, 3]"),
        (lambda model: model.graph.initializer.remove(initialiser(model, "conv4.bias")), "conv4.bias is missing"),
        (shorten, "conv2.weight cannot be read"),
        (
            lambda model: node_of(model, "fc6").attribute.append(helper.make_attribute("alpha", 2.0)),
            "fc6 has alpha 2.0, not None",
        ),
        (halve, "conv5.weight is FLOAT16, not FLOAT"),
    ],
)
def test_another_network(
    checkpoint: Checkpoint, tmp_path: Path, change: Callable[[onnx.ModelProto], Any], fault: str
) -> None:
    assert f"not narrow-two-tower with 4 classes ({fault}" in refused(exported(checkpoint, tmp_path, change))


def test_the_manifest_of_another_architecture(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = exported(checkpoint, tmp_path)
    other = replace(manifest_of(checkpoint), architecture="narrow")
    path = commit(path, tmp_path / "b.onnx", other).path
    assert "not narrow with 4 classes (conv2 has group 2, not 1)" in refused(path)
    path = commit(path, tmp_path / "c.onnx", replace(other, architecture="vgg")).path
    assert "unknown architecture (vgg)" in refused(path)
    assert "vgg" not in ARCHITECTURES


def test_an_operator_set_of_the_future(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def newer(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = onnx.defs.onnx_opset_version() + 1

    text = refused(exported(checkpoint, tmp_path, newer))
    assert f"its operator set is {onnx.defs.onnx_opset_version() + 1}, this onnx package {onnx.__version__}" in text
    assert "install a newer onnx package" in text


def test_weights_that_are_not_finite(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def spoiled(model: onnx.ModelProto) -> None:
        entry = initialiser(model, "conv1.bias")
        entry.CopyFrom(numpy_helper.from_array(np.full(8, np.nan, np.float32), entry.name))

    with pytest.raises(CheckpointError, match=r"conv1\.bias holds values that are not finite"):
        checkpoint_from_onnx(exported(checkpoint, tmp_path, spoiled, whole=True))
