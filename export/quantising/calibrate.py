"""Calibration: how large the values at the input of each layer get on real images.

One pass over the images collects a histogram of magnitudes per layer; a method then chooses from it the largest magnitude
that INT8 shall represent (`amax`; the scale is `amax / 127`, larger values saturate). Histograms are cached by content:
weights, preprocessing and images; so a change of any of them cannot meet a stale table, and comparing methods costs nothing.

Letters: N batch, C channels, H height, W width, B histogram bins.

Sources: S. Migacz, "8-bit Inference with TensorRT" (GTC 2017) for `entropy`; the histogram whose range doubles when a value
falls outside is the one of TensorRT's and PyTorch's observers.
"""

from __future__ import annotations

import logging
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from alexnet_edge import records
from alexnet_edge.artifact import INPUT
from alexnet_edge.errors import ImageError, OutputError, UserError, needs
from alexnet_edge.files import MALFORMED, sha256_json, staged
from alexnet_edge.images.datasets import ImageSet, OnBadImage, batches
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.progress import QuietReporter, Reporter
from alexnet_edge.records import NEWER

if TYPE_CHECKING:
    import onnx

Method = Literal["entropy", "minmax", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("entropy", "minmax", "percentile", "mse")

BINS = 2048
"""Histogram bins, as in TensorRT's entropy calibration."""
LEVELS = 128
"""Magnitudes that symmetric INT8 can tell apart, zero included."""
PERCENTILE = 99.99
"""Share of the values, in percent, that `percentile` represents without saturation."""
BATCH = 16
"""Images per inference of the collecting pass; it does not change the result."""
_OUTPUT = "/output"
_VERSION = 1  # raise when the collected histograms would differ for the same inputs

_log = logging.getLogger(__name__)

Counts = npt.NDArray[np.int64]


@dataclass(slots=True)
class Histogram:
    """Counts of the magnitudes of one tensor, in `BINS` equal bins from 0 to `top`."""

    top: float = 0.0
    largest: float = 0.0
    counts: Counts = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: FloatArray) -> None:
        """Count the magnitudes of `values` (any shape); the range doubles until it holds the largest.

        Raises:
            UserError: when a value is not finite.
        """
        magnitudes = np.abs(values).ravel()
        largest = float(magnitudes.max(initial=0.0))
        if not np.isfinite(largest):
            raise UserError(
                "the network gives values that are not finite on a calibration image", fix="check the model"
            )
        if largest == 0.0:
            self.counts[0] += magnitudes.size
            return
        self.largest = max(self.largest, largest)
        if self.top == 0.0:
            self.top = largest
        while largest > self.top:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
            self.top *= 2
        per_value = BINS / self.top
        tiny = per_value > float(np.finfo(np.float32).max)  # values near the smallest there are
        wide = np.float64 if tiny else np.float32
        index = np.minimum((magnitudes * wide(per_value)).astype(np.int32), BINS - 1)
        self.counts += np.bincount(index, minlength=BINS)

    def saturated(self, amax: float) -> float:
        """Share of the counted values above `amax`, from 0 to 1, to the resolution of a bin."""
        total = int(self.counts.sum())
        if total == 0 or self.top == 0.0:
            return 0.0
        first = min(BINS, int(np.ceil(amax / self.top * BINS)))
        return float(self.counts[first:].sum()) / total


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The chosen magnitudes and where they come from."""

    amax: Mapping[str, float]
    """Largest represented magnitude at the input of each layer, by layer name."""
    saturated: Mapping[str, float]
    """Share of the calibration values above it, from 0 to 1."""
    method: Method
    num_images: int
    images_sha256: str
    """Of the ordered list of images and their contents."""
    source: Mapping[str, Any]
    """Where the images came from, as `ImageSet.source`."""
    skipped: tuple[str, ...] = ()
    """Images that could not be read, with the reason."""
    cached: bool = field(default=False, metadata=NEWER)
    """Whether the histograms came from the cache."""
    output_amax: Mapping[str, float] = field(default_factory=dict, metadata=NEWER)
    """Largest represented magnitude at the output of the layers whose output no layer takes as it is, by layer name: those
    before a local response normalisation, and the last. Only TensorRT's calibration tables need them."""

    @property
    def table_sha256(self) -> str:
        """Of the magnitudes: two artifacts with the same table were quantised alike."""
        return sha256_json(dict(self.amax))

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "num_images": self.num_images,
            "images_sha256": self.images_sha256,
            "source": dict(self.source),
            "skipped": list(self.skipped),
            "amax": dict(self.amax),
            "saturated": dict(self.saturated),
            **({"output_amax": dict(self.output_amax)} if self.output_amax else {}),
            "table_sha256": self.table_sha256,
        }


def decode_calibration(text: str | bytes) -> Calibration:
    """The calibration that `to_json` described, as where the images are not at hand; a manifest's has an audit, too.

    Raises:
        RecordError: when it is damaged or the table was changed; the message begins with the path of what is wrong.
    """
    value = records.parse(text)
    table_sha256 = None
    if isinstance(value, dict):
        table_sha256 = value.pop("table_sha256", None)
        value.pop("audit", None)
    calibration = records.convert(Calibration, value)
    if set(calibration.amax) != set(LAYER_NAMES) or min(calibration.amax.values()) <= 0:
        raise records.RecordError("amax: expected one positive magnitude for each layer")
    if calibration.table_sha256 != table_sha256:
        raise records.RecordError("table_sha256: not that of the magnitudes")
    return calibration


@dataclass(frozen=True, kw_only=True, slots=True)
class Collecting:
    """How images go through the FP32 network."""

    threads: int | None = None
    """Processor threads [all]."""
    on_bad_image: OnBadImage = "fail"
    reporter: Reporter = field(default_factory=QuietReporter)


QUIETLY = Collecting()


def calibrate(
    checkpoint: Checkpoint,
    images: ImageSet,
    *,
    method: Method = "entropy",
    cache: Path | None = None,
    outputs: bool = False,
    how: Collecting = QUIETLY,
) -> Calibration:
    """Choose the magnitudes that INT8 represents, from real images through the checkpoint's preprocessing.

    Args:
        checkpoint, images: the network and what it is calibrated on.
        method: `entropy` (least KL divergence), `minmax` (nothing saturates), `percentile` (99.99 %) or `mse` (least squared
            error of the represented values).
        cache: folder for the histograms; None keeps none, and one that cannot be written is only warned of.
        outputs: also choose `Calibration.output_amax`.
        how: of the collecting pass.

    Raises:
        UserError: when there is no such method.
        DataError: when no image could be used.
        ImageError: when an image cannot be read and `on_bad_image` is `fail`.
        MissingComponentError: when onnx or ONNX Runtime is not installed.
    """
    if method not in METHODS:
        raise UserError("no such calibration method", value=method, fix=f"choose one of {', '.join(METHODS)}")
    from alexnet_edge.export.graphs.onnx import layer_inputs, layer_outputs

    arch, images_sha256 = checkpoint.info.arch, images.content_hash()
    behind = layer_outputs(arch) if outputs else {}
    taps = {**layer_inputs(arch), **{f"{name}{_OUTPUT}": tensor for name, tensor in behind.items()}}
    path = None if cache is None else cache / f"{_key(checkpoint, images_sha256, outputs)}.npz"
    cached = None if path is None else _read_cache(path, list(taps))
    skipped: list[ImageError] = []
    if cached is None:
        histograms, used = {name: Histogram() for name in taps}, 0
        for values in observed(checkpoint, images, taps, "calibrating", how, skipped):
            for name, tensor in values.items():
                histograms[name].add(tensor)
            used += len(tensor)
        if path is not None and not skipped:
            _write_cache(path, histograms, used)
    else:
        histograms, used = cached
    chosen = {name: choose_amax(histogram, method) for name, histogram in histograms.items()}
    amax = {name: chosen[name] for name in LAYER_NAMES}
    return Calibration(
        amax=amax,
        saturated={name: histograms[name].saturated(value) for name, value in amax.items()},
        method=method,
        num_images=used,
        images_sha256=images_sha256,
        source=images.source,
        skipped=tuple(str(error) for error in skipped),
        cached=cached is not None,
        output_amax={name: chosen[f"{name}{_OUTPUT}"] for name in behind},
    )


def _key(checkpoint: Checkpoint, images_sha256: str, outputs: bool) -> str:
    """Names what the histograms depend on."""
    return sha256_json(
        {
            "version": _VERSION,
            "bins": BINS,
            "checkpoint": checkpoint.sha256,
            "preprocessing": records.to_builtins(checkpoint.info.preprocessing),
            "images": images_sha256,
            **({"outputs": True} if outputs else {}),
        }
    )


def choose_amax(histogram: Histogram, method: Method) -> float:
    """The magnitude that INT8 shall represent; 1.0 for a tensor that is always zero."""
    if histogram.largest == 0.0:
        return 1.0
    if method == "minmax":
        return histogram.largest
    width = histogram.top / BINS
    if method == "percentile":
        share = np.cumsum(histogram.counts) / histogram.counts.sum()
        bins = int(np.searchsorted(share, PERCENTILE / 100)) + 1
    elif method == "mse":
        bins = _least_squares(histogram.counts)
    else:
        bins = _least_divergence(histogram.counts)
    return min(histogram.largest, bins * width)


def _least_divergence(counts: Counts) -> int:
    """How many bins to keep so that 128 levels lose least information, after Migacz.

    For each candidate the kept part, with everything beyond it added to its last bin, is compared with itself after
    merging to 128 levels and spreading each level's mass over the bins that were not empty.
    """
    counts = counts.copy()
    counts[0] = counts[1]  # exact zeros (ReLU) need no range and would hide the rest
    last = int(np.max(np.nonzero(counts)[0], initial=0)) + 1

    def divergence(bins: int) -> float:
        kept = counts[:bins].astype(np.float64)
        reference = kept.copy()
        reference[-1] += counts[bins:].sum()
        level = np.minimum((np.arange(bins) * (LEVELS / bins)).astype(np.int64), LEVELS - 1)
        filled = kept > 0
        mass = np.bincount(level, weights=kept, minlength=LEVELS)
        share = np.bincount(level, weights=filled, minlength=LEVELS)
        merged = np.where(filled, mass[level] / np.maximum(share[level], 1), 0.0)
        return _divergence(reference, merged) if merged.any() else math.inf  # nothing would be left

    return min(range(LEVELS, last + 1), key=divergence, default=last)


def _least_squares(counts: Counts) -> int:
    """How many bins to keep so that rounding to the steps and saturation together have the least squared error.

    Each value counts as the middle of its bin. In units of a bin the step is `bins / 127`. What is lost inside a bin is the
    same for every candidate, and below 127 bins the steps would be finer than the bins.
    """
    last = int(np.max(np.nonzero(counts)[0], initial=0)) + 1
    filled = np.flatnonzero(counts[:last])
    middles, weights = filled + 0.5, counts[filled].astype(np.float64)

    def squared_error(bins: int) -> float:
        step = bins / (LEVELS - 1)
        error = middles - step * np.minimum(np.rint(middles / step), LEVELS - 1)
        return float(weights @ (error * error))

    return min(range(min(LEVELS, last), last + 1), key=squared_error)


def _divergence(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """KL divergence of the two histograms, in nats; where q is empty and p is not, q counts as one in a million."""
    p, q = p / p.sum(), q / q.sum()
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-6))))


def observed(
    checkpoint: Checkpoint,
    images: ImageSet,
    taps: Mapping[str, str],
    title: str,
    how: Collecting,
    skipped: list[ImageError] | None = None,
) -> Iterator[dict[str, FloatArray]]:
    """Tensors inside the FP32 network, batch after batch of the images.

    `taps` names the tensors of the FP32 graph by what they are called in what comes out; `skipped` receives the error of each
    image left out; the progress has the `title`.

    Raises:
        DataError: when no image could be used.
        ImageError: when an image cannot be read and `on_bad_image` is `fail`.
        MissingComponentError: when onnx or ONNX Runtime is not installed.
    """
    from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint

    model = onnx_from_checkpoint(checkpoint)
    known = {value.name: value for value in model.graph.value_info}
    answers = {value.name for value in model.graph.output}
    model.graph.output.extend(known[name] for name in taps.values() if name not in {INPUT, *answers})
    session = onnx_session(model, how.threads)
    outputs = [output.name for output in session.get_outputs()]
    used = 0
    how.reporter.start(title, len(images))
    for batch in batches(
        images, checkpoint.info.preprocessing, batch=BATCH, on_bad_image=how.on_bad_image, bad=skipped
    ):
        values = dict(zip(outputs, session.run(outputs, {INPUT: batch.x_NCHW}), strict=True))
        values[INPUT] = batch.x_NCHW
        yield {name: values[tensor] for name, tensor in taps.items()}
        used += len(batch.x_NCHW)
        how.reporter.update(used)
    how.reporter.finish(f"{used} images")


def onnx_session(model: onnx.ModelProto, threads: int | None) -> Any:
    """A session of ONNX Runtime on the processor, without its warnings.

    Raises:
        MissingComponentError: when ONNX Runtime is not installed.
    """
    from alexnet_edge.environment import usable_cpus

    with needs("onnx"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _read_cache(path: Path, names: Sequence[str]) -> tuple[dict[str, Histogram], int] | None:
    """The cached histograms, or None when there are none or they are damaged (they are then collected again)."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            used = int(archive["num_images"])
            tops, largest, counts = archive["top"], archive["largest"], archive["counts"]
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error, *MALFORMED):
        return None  # zipfile has no one error for a damaged file
    rows = len(names)
    if used == 0 or counts.shape != (rows, BINS) or tops.shape != (rows,) or largest.shape != (rows,):
        return None
    return {
        name: Histogram(top=float(tops[index]), largest=float(largest[index]), counts=counts[index].astype(np.int64))
        for index, name in enumerate(names)
    }, used


def _write_cache(path: Path, histograms: Mapping[str, Histogram], used: int) -> None:
    ordered = list(histograms.values())
    try:
        with staged(path) as temporary, temporary.open("wb") as stream:
            np.savez(
                stream,
                num_images=np.int64(used),
                top=np.array([entry.top for entry in ordered]),
                largest=np.array([entry.largest for entry in ordered]),
                counts=np.stack([entry.counts for entry in ordered]),
            )
    except OutputError as error:  # the work is done: it will only take as long again next time
        _log.warning("the calibration is not kept for the next time: %s", error)
