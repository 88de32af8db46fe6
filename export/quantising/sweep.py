"""Which calibration suits a network: every method, on several numbers of images of several sets, judged by the answers.

One graph serves for all: its weights are rounded to INT8 beforehand, and the scales of the activations are inputs. So each
combination costs one pass over the proof images and nothing else.

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge.artifact import INPUT
from alexnet_edge.errors import DataError, UserError
from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint
from alexnet_edge.export.quantising.calibrate import METHODS, Calibration, Collecting, Method, calibrate, onnx_session
from alexnet_edge.images.datasets import ImageSet, IntArray, batches
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.quantize import quantize_weight
from alexnet_edge.progress import QuietReporter, Reporter
from alexnet_edge.proof.evaluate import labels_for
from alexnet_edge.proof.parity import ParityFigures, compare_outputs
from alexnet_edge.sessions import reference_session

COUNTS = (16, 64, 256, 512)
BATCH = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRow:
    """One calibration and what INT8 answers with it."""

    images: str
    """The calibration set."""
    num_images: int
    method: Method
    figures: ParityFigures
    worst_saturation: float
    """Largest share of saturated calibration values of a layer, 0 to 1."""
    worst_layer: str
    amax: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Every combination, in the order in which it was asked for."""

    num_proof_images: int
    rows: tuple[SweepRow, ...]

    @property
    def best(self) -> SweepRow:
        """The row with the most answers like the checkpoint's; of equal ones that with the least error."""
        return max(self.rows, key=lambda row: (row.figures.top1_agreement or 0.0, row.figures.sqnr_db or 0.0))


def sweep(
    checkpoint: Checkpoint,
    calibration_sets: Mapping[str, ImageSet],
    proof_images: ImageSet,
    *,
    methods: Sequence[Method] = METHODS,
    counts: Sequence[int] = COUNTS,
    cache: Path | None = None,
    threads: int | None = None,
    reporter: Reporter | None = None,
) -> Sweep:
    """Calibrate in every combination, and compare INT8's answers with the checkpoint's.

    Args:
        checkpoint: the network.
        calibration_sets: images to calibrate on, by the name they have in the table.
        proof_images: the images whose answers are compared; labelled ones also give accuracy.
        methods: how ranges are chosen.
        counts: numbers of images; one larger than a set stands for the whole set.
        cache, threads, reporter: as for `calibrate`.

    Raises:
        UserError: when there is no method, count or set, or no such method.
        DataError: when there is no image to prove the answers on.
        ImageError: when an image cannot be read.
        MissingComponentError: when onnx or ONNX Runtime is not installed.
    """
    reporter = reporter or QuietReporter()
    if not methods or not counts or not calibration_sets:
        raise UserError("a sweep needs methods, numbers of images and calibration images", fix="give at least one each")
    if len(proof_images) == 0:
        raise DataError("there is no image to compare the answers on", fix="give a folder with --images")
    x_NCHW = [batch.x_NCHW for batch in batches(proof_images, checkpoint.info.preprocessing, batch=BATCH)]
    reporter.start("reference answers", None)
    with reference_session(checkpoint, threads=threads) as session:
        reference_NK = np.concatenate([session.run(part) for part in x_NCHW])
    reporter.finish(f"{len(reference_NK)} images")
    labels_N: IntArray | None = None
    with suppress(DataError):  # answers are compared all the same
        labels_N = labels_for(checkpoint.info.classes, proof_images)
    how = Collecting(threads=threads, reporter=reporter)
    session_int8 = onnx_session(_graph(checkpoint), threads)
    rows = []
    figures: dict[str, ParityFigures] = {}
    for name, images, method in [
        (name, images.spread(count), method)
        for name, images in calibration_sets.items()
        for count in sorted({min(count, len(images)) for count in counts})
        for method in methods
    ]:
        ranges = calibrate(checkpoint, images, method=method, cache=cache, how=how)
        key = ranges.table_sha256
        if key not in figures:
            reporter.start(f"{name}, {len(images)} images, {method}", None)
            scales = {f"{layer}/input_scale": np.array(amax / 127, np.float32) for layer, amax in ranges.amax.items()}
            y_NK = np.concatenate([session_int8.run(None, {INPUT: part, **scales})[0] for part in x_NCHW])
            figures[key] = compare_outputs(reference_NK, y_NK, labels_N=labels_N)
            reporter.finish()
        rows.append(_row(name, ranges, figures[key]))
    return Sweep(rows=tuple(rows), num_proof_images=len(reference_NK))


def _row(name: str, ranges: Calibration, figures: ParityFigures) -> SweepRow:
    worst = max(ranges.saturated, key=lambda layer: ranges.saturated[layer])
    return SweepRow(
        images=name,
        num_images=ranges.num_images,
        method=ranges.method,
        figures=figures,
        worst_saturation=ranges.saturated[worst],
        worst_layer=worst,
        amax=dict(ranges.amax),
    )


def _graph(checkpoint: Checkpoint) -> Any:
    """The INT8 graph with its scales as inputs, and its weights rounded beforehand."""
    from onnx import TensorProto, helper, numpy_helper

    model = onnx_from_checkpoint(checkpoint, precision="int8", amax=dict.fromkeys(LAYER_NAMES, 1.0))
    graph = model.graph
    scales = {f"{layer}/input_scale" for layer in LAYER_NAMES}
    rounded = {f"{layer}.weight_dq": layer for layer in LAYER_NAMES}
    weights = tuple(f"{layer}.weight" for layer in LAYER_NAMES)
    kept = [entry for entry in graph.initializer if entry.name not in scales and not entry.name.startswith(weights)]
    for name, layer in rounded.items():
        weight = checkpoint.weights[f"{layer}.weight"]
        values, scale = quantize_weight(weight)
        exact = values.astype(np.float32) * scale.reshape(-1, *[1] * (weight.ndim - 1))
        kept.append(numpy_helper.from_array(exact, name))
    nodes = [node for node in graph.node if node.name not in rounded]
    for field, entries in (("initializer", kept), ("node", nodes)):
        graph.ClearField(field)
        getattr(graph, field).extend(entries)
    graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in sorted(scales))
    return model
