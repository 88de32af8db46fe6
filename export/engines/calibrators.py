"""INT8 by TensorRT's own calibration ("implicit quantisation"), for the versions that still have it: 8.6 to 10.16.

`calibration_table` writes the ranges of this package's calibration in TensorRT's table format, which `trtexec --calib` reads.

Letters: N batch, C channels, H height, W width.

Source: TensorRT samples, sampleINT8, "Calibration file" (each line a tensor and, in hexadecimal, the bits of its float32
scale, which is the largest magnitude divided by 127); Python API of `IInt8EntropyCalibrator2`.
"""

from __future__ import annotations

import logging
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from alexnet_edge import records
from alexnet_edge.artifact import INPUT
from alexnet_edge.errors import ArtifactError, UserError
from alexnet_edge.files import sha256_json, write_text
from alexnet_edge.images.preprocess import FloatArray, Preprocessing
from alexnet_edge.network.layers import Architecture
from alexnet_edge.network.quantize import INT8_MAX

CalibratorMethod = Literal["entropy2", "minmax"]

CALIBRATORS = {"entropy2": "IInt8EntropyCalibrator2", "minmax": "IInt8MinMaxCalibrator"}
"""TensorRT's class for each method."""
HEADER = re.compile(r"TRT-\d+-\w+")
"""First line of a table: TensorRT's version and the algorithm; TensorRT reads a table of its own version only."""

_log = logging.getLogger(__name__)


class DeviceMemory(Protocol):
    """Where calibration batches are put for TensorRT to read."""

    def upload(self, array: FloatArray) -> int:
        """Copy a contiguous array to the GPU; returns its device address, valid until the next call."""


class _Feed:
    """What TensorRT calls from C++ while it builds an engine, where nothing may be raised: an error is kept instead."""

    def __init__(
        self, full_batches: Iterator[FloatArray], batch: int, cache: Path | None, memory: DeviceMemory
    ) -> None:
        self.error: BaseException | None = None
        self.images = 0
        """How many were used."""
        self._full_batches = full_batches
        self._batch = batch
        self._cache = cache
        self._memory = memory

    def get_batch_size(self) -> int:
        return self._batch

    def get_batch(self, names: Any) -> list[int] | None:
        try:
            if list(names) != [INPUT]:
                raise UserError("the network to calibrate has other inputs", value=list(names), fix="export it again")
            x_NCHW = next(self._full_batches, None)
            if x_NCHW is None:
                if not self.images:
                    raise UserError(
                        f"fewer calibration images than a batch of {self._batch}",
                        fix="give more images or a smaller batch",
                    )
                return None
            address = int(self._memory.upload(x_NCHW))
            self.images += len(x_NCHW)
        except BaseException as error:  # noqa: BLE001  # see the class
            self.error = error
            return None
        return [address]

    def read_calibration_cache(self) -> bytes | None:
        if self._cache is None or not self._cache.is_file():
            return None
        try:
            text = self._cache.read_text(encoding="utf-8")
            read_calibration_table(text)
        except (ArtifactError, OSError, UnicodeError) as error:
            _log.warning("calibrating again: %s: %s", self._cache, error)
            return None
        return text.encode()

    def write_calibration_cache(self, table: Any) -> None:
        try:
            if self._cache is not None:
                write_text(self._cache, bytes(table).decode())
        except BaseException as error:  # noqa: BLE001  # see the class
            self.error = error


def make_calibrator(
    trt: Any,
    method: CalibratorMethod,
    x_NCHW_batches: Iterable[FloatArray],
    *,
    batch: int,
    cache: Path | None,
    memory: DeviceMemory,
) -> Any:
    """A calibrator that feeds preprocessed images to TensorRT's builder.

    Args:
        trt: the `tensorrt` module, 8.6 to 10.16.
        method: `entropy2` or `minmax`.
        x_NCHW_batches: float32 images as the network takes them, in batches of any size.
        batch: images per calibration batch. TensorRT wants full batches: images left over at the end are not used.
        cache: TensorRT's table, read when it is there and written when calibration is done; name it by
            `calibration_key`, so that it cannot be that of other weights or images. None for no cache.
        memory: copies a batch to the GPU.

    Returns:
        An instance of TensorRT's calibrator class. What goes wrong inside it stops the calibration and is kept in the
        attribute `error` for the caller to raise. `images` counts those used.
    """
    base: Any = getattr(trt, CALIBRATORS[method])

    class Calibrator(_Feed, base):  # type: ignore[misc]  # the class is TensorRT's, known at run time only
        def __init__(self) -> None:
            base.__init__(self)
            _Feed.__init__(self, _full_batches(x_NCHW_batches, batch), batch, cache, memory)

    return Calibrator()


def _full_batches(x_NCHW_batches: Iterable[FloatArray], batch: int) -> Iterator[FloatArray]:
    """The same images in batches of exactly `batch`, each contiguous."""
    waiting: list[FloatArray] = []
    for x_NCHW in x_NCHW_batches:
        for image in x_NCHW:
            waiting.append(image)
            if len(waiting) == batch:
                yield np.ascontiguousarray(np.stack(waiting), dtype=np.float32)
                waiting = []
    if waiting:
        _log.warning("the last %d calibration images do not fill a batch of %d and are not used", len(waiting), batch)


def calibration_key(
    checkpoint_sha256: str, preprocessing: Preprocessing, images_sha256: str, method: str, trt_version: str
) -> str:
    """Name of a calibration table by all that it depends on: weights, preprocessing, images, method and TensorRT."""
    parts = {"checkpoint": checkpoint_sha256, "images": images_sha256, "method": method, "tensorrt": trt_version}
    return sha256_json({**parts, "preprocessing": records.to_builtins(preprocessing)})


def calibration_table(
    arch: Architecture,
    amax: Mapping[str, float],
    output_amax: Mapping[str, float],
    *,
    header: str,
    for_dla: bool = False,
) -> str:
    """The ranges of a Q/DQ graph as a TensorRT calibration table for the FP32 graph.

    A layer's range is written for its input and for the tensors before it that share it: flattening, max pooling and
    ReLU keep the range, so it goes back to the layer that produced them. Local response normalisation does not, so the
    layers before it have a range of their own, and so has the last: TensorRT wants one for every tensor that a layer in
    INT8 reads or writes.

    Args:
        arch: the network.
        amax: largest magnitude at the input of each of the eight layers, by layer name.
        output_amax: largest magnitude at the outputs that no layer takes as they are, see `Calibration.output_amax`.
        header: version and algorithm, see `table_header`; TensorRT ignores a table whose header is not its own, and
            calibrates again.
        for_dla: whether the graph is in the form that a DLA takes, where the flattening comes last.

    Raises:
        UserError: when a layer has no range, or not a positive one.
    """
    lines = [header]
    entries = [(name, amax.get(name), tensors) for name, tensors in _shared_tensors(arch, for_dla).items()]
    entries += [(name, output_amax.get(name), tensors) for name, tensors in _own_tensors(arch, for_dla).items()]
    for name, largest, tensors in entries:
        if largest is None or not math.isfinite(largest) or largest <= 0:
            raise UserError("no calibrated range for a layer", value=name, fix="calibrate again with more images")
        bits = struct.pack(">f", np.float32(largest / INT8_MAX)).hex()
        lines += [f"{tensor}: {bits}" for tensor in tensors]
    return "\n".join(lines) + "\n"


def table_header(version: str) -> str:
    """First line of a table that TensorRT `version` takes: `TRT-100300-EntropyCalibration2` for `10.3.0`."""
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    number = major * 1000 + minor * 100 + patch if major < 10 else major * 10000 + minor * 100 + patch
    return f"TRT-{number}-EntropyCalibration2"


def _own_tensors(arch: Architecture, for_dla: bool) -> dict[str, list[str]]:
    """The tensors that leave a layer and that no layer's input shares, in order."""
    own = {spec.name: [spec.name, *([f"{spec.name}/relu"] if spec.relu else [])] for spec in arch.layers if spec.lrn}
    last = arch.layers[-1].name
    flattened = ["flatten"] if arch.head == "probabilities" else ["logits"]
    if for_dla:
        own[last] = [last, *flattened]
    else:
        own[last] = [last] if arch.head == "probabilities" else flattened
    return own


def _shared_tensors(arch: Architecture, for_dla: bool) -> dict[str, list[str]]:
    """The tensors of the FP32 graph that have the range of each layer's input, in order; the last is that input."""
    shared: dict[str, list[str]] = {}
    chain = [INPUT]
    for spec in arch.layers:
        if spec.name == "fc6" and not for_dla:
            chain.append("flatten")
        shared[spec.name] = chain
        chain = [spec.name]
        if spec.relu:
            chain.append(f"{spec.name}/relu")
        if spec.lrn:
            chain = [f"{spec.name}/lrn"]
        if spec.pool:
            chain.append(f"{spec.name}/pool")
    return shared


def read_calibration_table(text: str) -> dict[str, float]:
    """Largest magnitude of each tensor in a TensorRT calibration table.

    Raises:
        ArtifactError: when it is not such a table, with the first bad line.
    """
    header, *lines = text.splitlines() or ["empty"]
    if HEADER.fullmatch(header.strip()) is None:
        raise ArtifactError(
            "not a TensorRT calibration table: the first line is not like TRT-8601-EntropyCalibration2",
            value=_shown(header),
            fix="calibrate again",
        )
    ranges: dict[str, float] = {}
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        tensor, _, digits = map(str.strip, line.rpartition(":"))
        scale = _scale(digits)
        if not tensor or scale is None or tensor in ranges:
            raise ArtifactError(
                f"damaged TensorRT calibration table, line {number}", value=_shown(line), fix="calibrate again"
            )
        ranges[tensor] = scale * INT8_MAX
    if not ranges:
        raise ArtifactError("the TensorRT calibration table names no tensor", fix="calibrate again")
    return ranges


def _scale(digits: str) -> float | None:
    """The float32 whose bits are `digits`; TensorRT writes no leading zeros. None for what is no scale."""
    if re.fullmatch(r"[0-9a-fA-F]{1,8}", digits) is None:
        return None
    (scale,) = struct.unpack(">f", bytes.fromhex(digits.zfill(8)))
    return float(scale) if math.isfinite(scale) and scale >= 0 else None


def _shown(line: str) -> str:
    return line if len(line) <= 60 else f"{line[:57]}..."
