"""The network as PyTorch's own deployable files: frozen TorchScript, and a `torch.export` program.

Letters: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from alexnet_edge.artifact import Format, LayerPrecision, Precision
from alexnet_edge.errors import needs
from alexnet_edge.export.precision import layer_rows
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.sessions.torchscript import quiet_jit

with needs("train"):
    import torch

EXAMPLE_BATCH = 2
"""Batch of the example input: `torch.export` takes a 0 or 1 for a constant."""


def example_input(checkpoint: Checkpoint) -> torch.Tensor:
    """The one example input used for tracing: zeros `(2, 3, S, S)`, float32."""
    size = checkpoint.info.preprocessing.crop
    return torch.zeros(EXAMPLE_BATCH, 3, size, size)


def write_torchscript(checkpoint: Checkpoint, path: Path) -> None:
    """Trace, freeze and save the network, FP32, any batch. Frozen: the weights are constants of the graph."""
    with quiet_jit(), torch.no_grad():
        traced = torch.jit.trace(checkpoint.model(), example_input(checkpoint))  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced.eval())
        stream = BytesIO()
        torch.jit.save(frozen, stream)
    path.write_bytes(stream.getbuffer())  # torch's own writer aborts the process when the disk is full


def write_pt2(checkpoint: Checkpoint, path: Path) -> None:
    """Export and save the network as a `torch.export` program, FP32, any batch."""
    program = torch.export.export(
        checkpoint.model(), (example_input(checkpoint),), dynamic_shapes=({0: torch.export.Dim("N", min=1)},)
    )
    stream = BytesIO()
    torch.export.save(program, stream)
    path.write_bytes(stream.getbuffer())


def torchscript_precisions(path: Path, requested: Precision) -> tuple[LayerPrecision, ...]:
    """The precision of each layer of a saved TorchScript file: the type of the weight its operator was frozen with."""
    with quiet_jit():
        module: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    operators = [node for node in module.graph.nodes() if node.kind() in {"aten::_convolution", "aten::linear"}]
    weights = [list(node.inputs())[1].node() for node in operators]
    types = [node.t("value").dtype if node.kind() == "prim::Constant" else None for node in weights]
    return _rows(dict(zip(LAYER_NAMES, types, strict=True)), requested, "weight constants of the frozen graph")


def pt2_precisions(path: Path, requested: Precision) -> tuple[LayerPrecision, ...]:
    """The precision of each layer of a saved `torch.export` program: the type of its weight in the state dict."""
    state = torch.export.load(path).state_dict
    types = {name: state[f"{name}.weight"].dtype if f"{name}.weight" in state else None for name in LAYER_NAMES}
    return _rows(types, requested, "state dict of the exported program")


def _rows(types: Mapping[str, torch.dtype | None], requested: Precision, evidence: str) -> tuple[LayerPrecision, ...]:
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8"}
    built = {name: names.get(dtype, str(dtype)) for name, dtype in types.items() if dtype is not None}
    return layer_rows(dict.fromkeys(LAYER_NAMES, requested), built, evidence)


FORMATS: dict[
    Format, tuple[Callable[[Checkpoint, Path], None], Callable[[Path, Precision], tuple[LayerPrecision, ...]]]
] = {"torchscript": (write_torchscript, torchscript_precisions), "pt2": (write_pt2, pt2_precisions)}
"""What writes each format, and what reads the precisions of a written file back."""
