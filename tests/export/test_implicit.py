"""Calibration tables in TensorRT's format, and the calibrators that feed its builder."""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeCheckpoint
from narrow_network import NARROW_NAMES

from alexnet_edge.errors import ArtifactError, UserError
from alexnet_edge.export.engines.calibrators import (
    calibration_key,
    calibration_table,
    make_calibrator,
    read_calibration_table,
    table_header,
)
from alexnet_edge.export.graphs.onnx import layer_inputs, onnx_from_checkpoint
from alexnet_edge.images.preprocess import FloatArray, preset
from alexnet_edge.network.layers import ARCHITECTURES, LAYER_NAMES, Architecture, architecture
from alexnet_edge.network.load import load_checkpoint

AMAX = {name: 1.5 + index for index, name in enumerate(LAYER_NAMES)}
OUTPUTS = {"conv1": 11.0, "conv2": 12.0, "fc8": 13.0}
RECORDED = Path(__file__).parents[1] / "data" / "trtexec" / "sampleINT8-7.0.table"


def written(arch: Architecture, amax: Mapping[str, float] = AMAX, *, for_dla: bool = False) -> str:
    """A table of TensorRT 8.6.1."""
    return calibration_table(arch, amax, OUTPUTS, header=table_header("8.6.1"), for_dla=for_dla)


def test_tensorrts_own_table_is_read() -> None:
    ranges = read_calibration_table(RECORDED.read_text(encoding="utf-8"))
    assert list(ranges) == ["data", "conv1", "pool1", "conv2", "pool2", "ip1", "ip2", "prob"]
    assert ranges["data"] == pytest.approx(0.9963, rel=1e-3)  # images between 0 and 1
    assert ranges["prob"] == pytest.approx(1.0, rel=1e-3)
    assert ranges["conv1"] == ranges["pool1"]  # max pooling keeps the range


def test_tensorrt_writes_no_leading_zeros_and_names_with_colons() -> None:
    text = "TRT-100300-EntropyCalibration2\ninput_1:0: 3c010a14\n(Unnamed Layer* 64) [Shuffle]_output: 0\n"
    ranges = read_calibration_table(text)
    assert ranges["input_1:0"] == pytest.approx(1.0, rel=1e-3)
    assert ranges["(Unnamed Layer* 64) [Shuffle]_output"] == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the first line is not like TRT-8601"),
        ("not a table\ninput: 3c010a14\n", "the first line is not like TRT-8601"),
        ("TRT-8601-EntropyCalibration2\n", "names no tensor"),
        ("TRT-8601-EntropyCalibration2\ninput 3c010a14\n", "line 2"),
        ("TRT-8601-EntropyCalibration2\ninput: 3c010a14\nconv1: 3c01\nconv1: 3c01\n", "line 4"),
        ("TRT-8601-EntropyCalibration2\ninput: 3c010a14ff\n", "line 2"),
        ("TRT-8601-EntropyCalibration2\ninput: 7fc00000\n", "line 2"),  # not a number
        ("TRT-8601-EntropyCalibration2\ninput: bc010a14\n", "line 2"),  # negative
        ("TRT-8601-EntropyCalibration2\n: 3c010a14\n", "line 2"),
    ],
)
def test_a_damaged_table_is_one_line(text: str, problem: str) -> None:
    with pytest.raises(ArtifactError, match=problem) as caught:
        read_calibration_table(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_table_keeps_the_range_of_every_layers_input(name: str) -> None:
    arch = architecture(name)
    table = read_calibration_table(written(arch))
    ranges = {layer: table[tensor] for layer, tensor in layer_inputs(arch).items()}
    assert ranges == pytest.approx(AMAX, rel=1e-6)


@pytest.mark.parametrize(("version", "number"), [("8.6.1", "8601"), ("10.3.0", "100300"), ("10.16.1.11", "101601")])
def test_the_header_names_tensorrts_version(version: str, number: str) -> None:
    assert table_header(version) == f"TRT-{number}-EntropyCalibration2"


def test_the_scale_has_the_bits_that_the_qdq_graph_has() -> None:
    line = written(architecture("one-tower")).splitlines()[1]
    assert line == f"input: {struct.pack('>f', np.float32(AMAX['conv1'] / 127)).hex()}"


def test_a_range_goes_back_to_the_layer_that_made_it_but_not_through_normalisation() -> None:
    table = written(architecture("one-tower"))
    tensors = [line.partition(":")[0] for line in table.splitlines()[1:]]
    assert tensors == [
        "input",
        *("conv1/lrn", "conv1/pool"),
        *("conv2/lrn", "conv2/pool"),
        *("conv3", "conv3/relu"),
        *("conv4", "conv4/relu"),
        *("conv5", "conv5/relu", "conv5/pool", "flatten"),
        *("fc6", "fc6/relu"),
        *("fc7", "fc7/relu"),
        *("conv1", "conv1/relu", "conv2", "conv2/relu", "logits"),  # these have ranges of their own
    ]
    ranges = read_calibration_table(table)
    assert ranges["conv1/relu"] == pytest.approx(OUTPUTS["conv1"], rel=1e-6)
    assert ranges["logits"] == pytest.approx(OUTPUTS["fc8"], rel=1e-6)


@pytest.mark.parametrize("name", NARROW_NAMES)
@pytest.mark.parametrize("for_dla", [False, True])
def test_every_tensor_of_the_graph_has_a_range(tiny_checkpoint: MakeCheckpoint, name: str, for_dla: bool) -> None:
    """But what a softmax gives: it is no layer's."""
    model = onnx_from_checkpoint(load_checkpoint(tiny_checkpoint(name)), for_dla=1 if for_dla else None)
    tensors = {"input"} | {tensor for node in model.graph.node for tensor in node.output}
    table = read_calibration_table(written(architecture(name), for_dla=for_dla))
    assert set(table) == tensors - {"probabilities"}


def test_without_normalisation_pooling_shares_the_range_of_the_layer() -> None:
    ranges = read_calibration_table(written(architecture("torchvision")))
    assert ranges["conv1"] == ranges["conv1/relu"] == ranges["conv1/pool"] == pytest.approx(AMAX["conv2"], rel=1e-6)


@pytest.mark.parametrize("value", [None, 0.0, -1.0, float("nan"), float("inf")])
def test_a_layer_without_a_range_is_refused(value: float | None) -> None:
    amax = {name: largest for name, largest in AMAX.items() if name != "fc7"}
    if value is not None:
        amax["fc7"] = value
    with pytest.raises(UserError, match="no calibrated range for a layer: fc7"):
        written(architecture("one-tower"), amax)


def test_the_key_changes_with_everything_the_table_depends_on() -> None:
    plain = ("weights", preset("imagenet-227"), "images", "entropy2", "8.6.1")
    others = [
        ("other", *plain[1:]),
        (plain[0], preset("imagenet-224"), *plain[2:]),
        (*plain[:2], "other", *plain[3:]),
        (*plain[:3], "minmax", plain[4]),
        (*plain[:4], "10.3.0"),
    ]
    keys = {calibration_key(*arguments) for arguments in [plain, *others]}
    assert len(keys) == 6
    assert calibration_key(*plain) in keys


class FakeTensorRT:
    """The calibrator classes as the bindings have them: a base constructor that must be called."""

    __version__ = "10.3.0"

    class IInt8EntropyCalibrator2:
        def __init__(self) -> None:
            self.constructed = True

    class IInt8MinMaxCalibrator(IInt8EntropyCalibrator2):
        pass


class Memory:
    """Stands in for GPU memory."""

    def __init__(self) -> None:
        self.uploads: list[FloatArray] = []

    def upload(self, array: FloatArray) -> int:
        assert array.flags.c_contiguous
        assert array.dtype == np.float32
        self.uploads.append(array.copy())
        return 0x7F000000


def images(*sizes: int) -> list[FloatArray]:
    """Batches of these sizes; each image's pixels are its number."""
    numbers = np.arange(sum(sizes), dtype=np.float32)[:, None, None, None]
    return np.split(np.broadcast_to(numbers, (sum(sizes), 3, 4, 4)), np.cumsum(sizes)[:-1])


def calibrator(batches: Any, memory: Memory, *, cache: Path | None = None, method: Any = "entropy2") -> Any:
    return make_calibrator(FakeTensorRT, method, batches, batch=2, cache=cache, memory=memory)


@pytest.mark.parametrize("method", ["entropy2", "minmax"])
def test_a_calibrator_is_tensorrts_and_constructed_by_it(method: str) -> None:
    feeding = calibrator(images(2), Memory(), method=method)
    base = {"entropy2": FakeTensorRT.IInt8EntropyCalibrator2, "minmax": FakeTensorRT.IInt8MinMaxCalibrator}[method]
    assert isinstance(feeding, base)
    assert feeding.constructed
    assert feeding.get_batch_size() == 2


def test_images_are_fed_once_each_in_full_batches(caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory()
    feeding = calibrator(images(3, 1, 3), memory)
    with caplog.at_level(logging.WARNING):
        answers = [feeding.get_batch(["input"]) for _ in range(4)]
    assert answers == [[0x7F000000]] * 3 + [None]
    assert [upload[:, 0, 0, 0].tolist() for upload in memory.uploads] == [[0, 1], [2, 3], [4, 5]]
    assert feeding.images == 6
    assert feeding.error is None
    assert "the last 1 calibration images do not fill a batch of 2" in caplog.text


@pytest.mark.parametrize(
    ("count", "name", "problem"),
    [
        (1, "input", "fewer calibration images than a batch of 2"),
        (2, "data", "the network to calibrate has other inputs"),
    ],
)
def test_what_cannot_be_calibrated_is_not_fed(count: int, name: str, problem: str) -> None:
    memory = Memory()
    feeding = calibrator(images(count), memory)
    assert feeding.get_batch([name]) is None
    assert problem in str(feeding.error)
    assert not memory.uploads


def test_what_goes_wrong_inside_is_kept_for_the_caller() -> None:
    def broken() -> Any:
        yield images(2)[0]
        raise OSError("the disk is gone")

    feeding = calibrator(broken(), Memory())
    assert feeding.get_batch(["input"]) is not None
    assert feeding.get_batch(["input"]) is None
    assert str(feeding.error) == "the disk is gone"


def test_the_cache_is_read_back_as_tensorrt_wrote_it(tmp_path: Path) -> None:
    cache = tmp_path / "calibration" / "key.table"
    feeding = calibrator(images(2), Memory(), cache=cache)
    assert feeding.read_calibration_cache() is None
    feeding.write_calibration_cache(memoryview(RECORDED.read_bytes()))
    assert feeding.error is None
    assert calibrator(images(2), Memory(), cache=cache).read_calibration_cache() == RECORDED.read_bytes()


def test_a_damaged_cache_is_calibrated_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "key.table"
    cache.write_bytes(RECORDED.read_bytes()[:-3] + b"!\n")
    with caplog.at_level(logging.WARNING):
        assert calibrator(images(2), Memory(), cache=cache).read_calibration_cache() is None
    assert "calibrating again" in caplog.text


def test_a_cache_that_cannot_be_written_is_kept_for_the_caller(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    feeding = calibrator(images(2), Memory(), cache=tmp_path / "file" / "key.table")
    feeding.write_calibration_cache(b"TRT-8601-EntropyCalibration2\ninput: 3c010a14\n")
    assert "cannot write" in str(feeding.error)
