"""Artifacts of one matrix product, written in milliseconds, and settings that measure them quickly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from alexnet_edge.artifact import Artifact, LayerPrecision, Manifest, Precision, TensorSpec, commit
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.images.preprocess import preset
from alexnet_edge.network.layers import LAYER_NAMES

CLASSES = ("a", "b", "c", "d")
QUICK = MeasureSettings(
    batches=(1, 4),
    rounds=2,
    percentile=90,
    min_seconds=0.04,
    max_seconds=30,  # of a busy machine: the samples asked for take 4 s there
    min_warmup_seconds=0.01,
    max_warmup_seconds=0.3,
    cold=False,
)
PASSED = {
    "verdict": "passed",
    "reasons": [],
    "warnings": [],
    "figures": {
        "top1_agreement": 0.99,
        "top1_agreement_interval": [0.97, 0.997],
        "max_abs_error": 0.01,
        "num_labelled": 300,
        "reference_accuracy": 0.86,
        "candidate_accuracy": 0.85,
        "accuracy_change": -0.01,
    },
}


def eight_layers(precision: Precision) -> tuple[LayerPrecision, ...]:
    return tuple(
        LayerPrecision(name=name, requested=precision, built=precision, evidence="the graph") for name in LAYER_NAMES
    )


def write_artifact(
    path: Path, *, seed: int, precision: Precision = "fp32", checkpoint: str = "", parity: Any = PASSED, **changes: Any
) -> Artifact:
    """A real ONNX file, the images' mean colours times a matrix, with a manifest."""
    weights = np.random.default_rng(seed).normal(size=(3, len(CLASSES))).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "means",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 227, 227])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES)])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    manifest = Manifest(
        format="onnx",
        runtime="onnxruntime",
        precision=precision,
        architecture="one-tower",
        classes=CLASSES,
        head="logits",
        preprocessing=preset("imagenet-227"),
        input=TensorSpec(name="input", dtype="float32", shape=(3, 227, 227)),
        output=TensorSpec(name="logits", dtype="float32", shape=(len(CLASSES),)),
        checkpoint="nowhere/model.safetensors",
        checkpoint_sha256=checkpoint,
        parity=parity,
        layers=eight_layers(precision),
    )
    building = path.with_name(f"building-{path.name}")
    onnx.save(model, building)
    return commit(building, path, replace(manifest, **changes))
