"""A manifest with every field filled in."""

from __future__ import annotations

from alexnet_edge.artifact import LayerPrecision, Manifest, TensorSpec
from alexnet_edge.images.preprocess import preset

MANIFEST = Manifest(
    format="onnx",
    runtime="onnxruntime",
    precision="int8",
    architecture="two-tower",
    classes=("daisy", "Löwenzahn"),
    head="logits",
    preprocessing=preset("caffe-227"),
    input=TensorSpec(name="input", dtype="float32", shape=(3, 227, 227), min_batch=1, max_batch=16),
    output=TensorSpec(name="logits", dtype="float32", shape=(2,)),
    checkpoint="runs/a/model.safetensors",
    checkpoint_sha256="ab" * 32,
    sources={"fp32.onnx": "cd" * 32},
    layers=(LayerPrecision(name="conv1", requested="int8", built="int8", evidence="QuantizeLinear"),),
    calibration={"method": "entropy", "images": 500},
    build={"options": ["a"]},
    build_seconds=1.5,
    environment={"cpu": None},
    parity={"passed": True},
)
