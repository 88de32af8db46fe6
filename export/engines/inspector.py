"""What precision each layer has in a built engine, read from the engine inspector.

The inspector's JSON is also what `trtexec --exportLayerInfo` writes. Its form changed with the versions: TensorRT 8 writes
a format and no metadata (`"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"`), or nothing where the
shape is dynamic; TensorRT 10 writes a type (`"Half"`) and the ONNX nodes behind each kernel; TensorRT 11 writes type and
format apart and the constants that each kernel reads, so the type of the weights too.

Source: TensorRT documentation, "Engine Inspector" and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"; the
recorded files in tests/data/inspector.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from alexnet_edge.artifact import LayerPrecision, Precision, layer_types
from alexnet_edge.errors import ArtifactError
from alexnet_edge.files import MALFORMED
from alexnet_edge.network.layers import LAYER_NAMES

Placement = Literal["GPU", "DLA", ""]

_TYPES = (
    ("bf16", re.compile(r"\bbf(?:loat)?16\b", re.IGNORECASE)),
    ("fp8", re.compile(r"\bfp8|\bfloat8|\be4m3", re.IGNORECASE)),
    ("fp4", re.compile(r"\bfp4|\be2m1", re.IGNORECASE)),
    ("fp16", re.compile(r"\bhalf\b|\bfp16\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\bfloat\b|\bfp32\b", re.IGNORECASE)),
    ("int8", re.compile(r"\bint8\b", re.IGNORECASE)),
    ("int4", re.compile(r"\bint4\b", re.IGNORECASE)),
)
"""How the inspector of one version or another writes an element type, alone or inside a format's description."""

_MOVERS = frozenset({"reformat", "noop", "constant", "shuffle", "shape_call", "custom_layer", "identity"})
"""Layer types that move data for another layer; they may carry its name and never compute it."""
UNPACKED = "weights unpacked inside the kernel from a type that is not told"
"""What `evidence` ends in where quantised weights reach the kernel and their type can only be told by their size."""
_FOREIGN = re.compile(r"\{ForeignNode\[(?P<first>.+?)(?:\.\.\.(?P<last>.+?))?\]\}")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_LOG_NODE = re.compile(r"\[(?P<device>Dla|Gpu)Layer\] (?P<nodes>.+)")
_AFTER = ("/relu", "/lrn", "/pool")
"""Nodes that follow the layer they are named after; the others that bear its name come before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectedLayer:
    """What the inspector says of one network layer."""

    built: str
    """Element type it computes in; `mixed`, `missing` where no kernel bears its name, `unknown` where none is told."""
    evidence: str
    placement: Placement = ""
    kernel: str = ""
    """The engine's layer it was fused into."""


def inspected_precisions(
    information: str, precision: Precision, *, log: Iterable[str] = ()
) -> tuple[LayerPrecision, ...]:
    """The precision of each of the eight layers in an engine, beside the one asked for.

    `information` is the inspector's JSON, or the file that `trtexec --exportLayerInfo` wrote; `[DlaLayer]` and `[GpuLayer]`
    lines of the builder's log say where each layer was placed. `built` is `missing` where no kernel bears the layer's name,
    and `unknown` where the inspector tells no type: the engine was built without detailed profiling verbosity, or TensorRT 8
    fused a whole region of dynamic shape into one node.

    Raises:
        ArtifactError: when the text is not the inspector's JSON.
    """
    layers, asked = inspect_layers(information, LAYER_NAMES, log=log), layer_types(precision)
    return tuple(LayerPrecision(name=name, requested=asked[name], **asdict(layer)) for name, layer in layers.items())


def inspect_layers(information: str, names: Sequence[str], *, log: Iterable[str] = ()) -> dict[str, InspectedLayer]:
    """What the inspector says of the network layers `names`, which are in the order of the network.

    Raises:
        ArtifactError: when the text is not the inspector's JSON.
    """
    try:
        entries = list(json.loads(information)["Layers"])
    except MALFORMED as error:
        raise ArtifactError(
            f"the engine inspector's answer cannot be read ({type(error).__name__})", fix="build the engine again"
        ) from error
    if entries and all(isinstance(entry, str) for entry in entries):
        return {name: _from_names(name, names, entries) for name in names}
    kernels = [_Kernel.from_json(entry, names) for entry in entries if isinstance(entry, Mapping)]
    moved = any(re.search(r" (?:to|from) nvm$", kernel.name) for kernel in kernels)  # copies that only a DLA needs
    places = placements(log, names)
    return {name: _from_kernels(name, kernels, places.get(name, ""), dla_copies=moved) for name in names}


def placements(log: Iterable[str], names: Sequence[str] = LAYER_NAMES) -> dict[str, Placement]:
    """Where the builder's log says that each layer was placed; layers that it does not name are left out."""
    placed: dict[str, Placement] = {}
    for match in filter(None, map(_LOG_NODE.search, log)):
        text = match["nodes"].strip()
        nodes = text if text.startswith("{") else text.partition(": ")[2] or text
        device: Placement = "DLA" if match["device"] == "Dla" else "GPU"
        placed |= dict.fromkeys(_named(nodes, "", names), device)
    return placed


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kernel:
    """One layer of the engine."""

    name: str
    kind: str
    """The inspector's `LayerType`: `CaskConvolution`, `gemm`, `kgen`, ..."""
    tactic: str
    layers: frozenset[str]
    """The network layers it computes."""
    region: bool
    """A whole region of the network in one node, seen only from outside."""
    inputs: tuple[str, ...]
    """Types of its inputs, as they are written."""
    weights: str
    """Type of its weights, as it is written; empty where it is not told."""
    dequantised: frozenset[str]
    """Layers whose quantised weights are unpacked inside this kernel."""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], names: Sequence[str]) -> _Kernel:
        name, metadata = str(entry.get("Name", "")), str(entry.get("Metadata", ""))
        nodes = set(_ONNX_NODE.findall(metadata))
        return cls(
            name=name,
            kind=str(entry.get("LayerType", "")),
            tactic=str(entry.get("TacticName", "")),
            layers=_named(name, metadata, names),
            region=_FOREIGN.search(name) is not None,
            inputs=tuple(_written_type(tensor) for tensor in _tensors(entry, "Inputs")),
            weights=_weights(entry),
            dequantised=frozenset(layer for layer in names if f"{layer}.weight_dq" in nodes),
        )

    @property
    def rank(self) -> int:
        """How sure it is that this kernel multiplies the layer's weights, the surest 0."""
        if self.weights:
            return 0
        if re.search(r"gemm|conv|matmul|matrix|correlation|fprop|fusion", f"{self.kind} {self.tactic}", re.IGNORECASE):
            return 1
        return 2 if self.region else 3


def _from_names(name: str, names: Sequence[str], entries: Sequence[str]) -> InspectedLayer:
    """From an engine built with the default profiling verbosity: names only."""
    kernel = next((entry for entry in entries if name in _named(entry, "", names)), None)
    if kernel is None:
        return InspectedLayer(built="missing", evidence="no kernel of the engine bears its name")
    return InspectedLayer(built="unknown", evidence="the engine tells layer names only", kernel=kernel)


def _from_kernels(name: str, kernels: Sequence[_Kernel], placed: Placement, *, dla_copies: bool) -> InspectedLayer:
    mine = [kernel for kernel in kernels if name in kernel.layers and kernel.kind.lower() not in _MOVERS]
    if not mine:
        return InspectedLayer(built="missing", evidence="no kernel of the engine bears its name", placement=placed)
    kernel = min(mine, key=lambda kernel: kernel.rank)  # of several, the first: bias and cast come after
    built, evidence = _type(name, kernel)
    return InspectedLayer(
        built=built,
        evidence=evidence,
        placement=placed or _placement(kernel, dla_copies=dla_copies),
        kernel=kernel.name,
    )


def _type(layer: str, kernel: _Kernel) -> tuple[str, str]:
    """The type a kernel computes in, and what says so."""
    inputs = [text for text in kernel.inputs if _element(text)]
    operand = _element(inputs[0]) if inputs else ""
    stored = _element(kernel.weights)
    parts = {
        f"weights {kernel.weights}": bool(stored),
        f"input {inputs[0] if inputs else ''}": bool(inputs),
        "TF32 kernel": "tf32" in kernel.tactic.lower(),
        "at the border of a fused region": kernel.region,
    }
    evidence = "engine inspector: " + ", ".join(part for part, holds in parts.items() if holds)
    if stored == "int4" or (not stored and _element(" ".join(inputs[1:])) == "int4"):
        return "int4", evidence  # weight-only: the input stays in a floating-point type
    if not stored and layer in kernel.dequantised and operand in ("fp16", "bf16", "fp32"):
        return "unknown", f"{evidence}, {UNPACKED}"
    if stored and operand and stored != operand:
        return "mixed", evidence
    if stored or operand:
        return stored or operand, evidence
    computed = _tactic_type(kernel.tactic)
    if computed:
        return computed, f"engine inspector: kernel {kernel.tactic}"
    return "unknown", "the engine inspector tells no type"


def _tactic_type(tactic: str) -> str:
    """The type of the operands in a kernel's name: the first of `..._f16f32_...` or `..._i8i8_i8i32_f32_...`."""
    match = re.search(r"_(tf32|bf16|f16|f32|i8|e4m3)(?:tf32|bf16|f16|f32|i8|e4m3)_", tactic)
    known = {"f16": "fp16", "f32": "fp32", "tf32": "fp32", "bf16": "bf16", "i8": "int8", "e4m3": "fp8"}
    return known[match[1]] if match else ""


def _placement(kernel: _Kernel, *, dla_copies: bool) -> Placement:
    if "dla" in f"{kernel.kind} {' '.join(kernel.inputs)}".lower():
        return "DLA"
    if not kernel.region or "myelin" in kernel.kind.lower():
        return "GPU"
    return "DLA" if dla_copies else ""


def _named(name: str, metadata: str, names: Sequence[str]) -> frozenset[str]:
    """The network layers that an engine's layer computes, by its name and by the ONNX nodes in its metadata."""
    if name.startswith("Reformatting CopyNode"):
        return frozenset()
    layers = {node for node in _ONNX_NODE.findall(metadata) if node in names}
    for region in _FOREIGN.finditer(name):
        first, last = (_position(node, names) for node in (region["first"], region["last"] or region["first"]))
        layers |= {layer for index, layer in enumerate(names) if first <= index <= last}
    plain = re.sub(r" \[profile \d+\]", "", _FOREIGN.sub("", name))
    parts = re.split(r" \+ |\+|,|\|\||PWN\(|[(){}]", plain)
    return frozenset(layers | {re.sub(r"_myl\d+_\d+$", "", part.strip()) for part in parts} & set(names))


def _position(node: str, names: Sequence[str]) -> float:
    """Where a node stands among the layers: `conv2` at 1, `conv2/relu` after it, `conv2.weight` before it."""
    if node in names:
        return names.index(node)
    if node == "flatten" and "fc6" in names:
        return names.index("fc6") - 0.5
    for index, name in enumerate(names):
        if re.match(rf"{re.escape(name)}[./_]", node):
            return index + (0.5 if node[len(name) :].startswith(_AFTER) else -0.5)
    return -1 if node.startswith("input") else len(names)


def _tensors(entry: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = entry.get(key)
    return [tensor for tensor in value if isinstance(tensor, Mapping)] if isinstance(value, list) else []


def _written_type(tensor: Mapping[str, Any]) -> str:
    """A tensor's type as TensorRT 11 (`Datatype`) or an older one (`Format/Datatype`) writes it."""
    fields = {key.lower(): str(value) for key, value in tensor.items()}
    return fields.get("datatype") or fields.get("format/datatype") or fields.get("format") or ""


def _weights(entry: Mapping[str, Any]) -> str:
    """Type of a kernel's weights: told as such, or, by TensorRT 11, that of the largest constant it reads."""
    weights = entry.get("Weights")
    if isinstance(weights, Mapping):
        return str(weights.get("Type", ""))
    constants = [constant for constant in _tensors(entry, "Constants") if _extent(constant) > 1]
    return _written_type(max(constants, key=_extent)) if constants else ""


def _extent(tensor: Mapping[str, Any]) -> int:
    dimensions = tensor.get("Dimensions")
    return math.prod(map(int, dimensions)) if isinstance(dimensions, list) else 1


def _element(text: str) -> str:
    """The element type in a written type or format; empty for none of those a layer computes in."""
    return next((name for name, pattern in _TYPES if pattern.search(text)), "")
