"""How far each layer is from what the machine can do: the roofline, layer by layer.

A layer's floor is the time that it cannot go below on this machine: the bytes that must cross memory at least once at the
peak read bandwidth, or its multiply-adds at the peak of the type it is computed in, whichever takes longer. Its share is
floor / measured: 1 is as fast as the machine allows. A layer is its weights' product with everything around it that has
its name, and with what follows up to the next layer: activation, local response normalisation, pooling, quantisation,
changes of memory layout.

Peaks and latencies are measured in the same rounds, for machines whose speed changes: the share round by round compares each
round's median latency with the median rates of that round.

Nothing is measured here: peaks come from `bench.peaks`, times of nodes from `Session.node_times`.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore architectures",
CACM 52(4), 2009.

Letters: C channels, H height, W width.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alexnet_edge.artifact import LayerPrecision
from alexnet_edge.bench.machine.peaks import Peaks
from alexnet_edge.network.layers import Architecture, LayerSpec, layer_costs
from alexnet_edge.network.quantize import INT4_BLOCK
from alexnet_edge.proof.stats import bootstrap_ratios
from alexnet_edge.sessions.base import NodeTime

_STORED_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5}
"""Of one weight."""
_PASSED_BYTES = {**_STORED_BYTES, "int4": 2.0}
"""Of one element at a layer's input; INT4 is for weights only, the input stays FP16."""
_BIAS_BYTES = {"fp32": 4, "int8": 4, "fp16": 2, "bf16": 2, "fp8": 2, "int4": 2}
"""Of one bias: what is not quantised is FP32 beside INT8, and FP16 beside FP8 and INT4."""
_FLOAT32_BYTES = 4
"""Of one element of the network's own input and output, in every precision."""

_ELEMENTS = {
    name: element
    for element, names in {
        "fp32": ("float", "float32", "f32"),
        "tf32": ("tf32",),
        "fp16": ("float16", "half", "c10::half", "f16"),
        "bf16": ("bfloat16", "c10::bfloat16"),
        "int8": ("int8", "uint8", "i8", "u8"),
    }.items()
    for name in names
}
"""How runtimes write the element types that a product is computed in."""
_INSPECTED = ("tensorrt", "openvino")
"""Beginnings of the runtimes whose layers' built precision is read from what they compiled, so is what they compute in."""
_STORES_AS_ASKED = "openvino"
"""Its export refuses weights stored in another type than requested; what is built is the type its kernels compute in."""
_MULTIPLIES = re.compile(r"conv(?!er)|gemm|matmul|(?<!quantize)linear|fullyconnected|innerproduct|addmm", re.IGNORECASE)
"""Kinds of nodes that multiply by weights."""
_CONSTANT = re.compile(r"\.weight|\.bias|_bias|/bias")
"""After a layer's name: what prepares its weights, at any time before they are used."""
_MAX_OTHER_CPUS = 0.25
"""Processors kept busy by others while the peaks were measured that are not worth a note."""
_MAX_DIFFERENCE = 0.2
"""Largest relative difference of the nodes' sum from the median latency that is not worth a note."""
_NO_PROFILE = "the runtime has no profile that tells layers apart"
_NOTHING_ALONE = "no node of the runtime's profile belongs to one layer alone"


_Notes = dict[str, list[str]]
"""Notes for readers of the figures: each once, with the names of the layers that it holds for, or none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWork:
    """What one layer must move and multiply."""

    name: str
    bytes: int
    """Weights as they are stored, with scales and bias; input; output: each once."""
    multiply_adds: int
    precision: str
    """Type the weights are stored in; where that is not known, the requested one."""
    computed_in: str
    """Element type of its products; `unknown` where the runtime does not tell."""

    def floors_ns(self, peaks: Peaks) -> tuple[float, float | None]:
        """The least time for its bytes and for its multiply-adds; None for these where no peak of their type was measured.

        Of an unknown type the highest peak there is counts, which still bounds from below.
        """
        speeds = peaks.multiply_adds_per_s
        if self.computed_in == "unknown":
            peak = max((peak for peak in speeds.values() if peak is not None), default=None)
        else:
            peak = speeds.get(self.computed_in)
        compute_ns = None if peak is None else self.multiply_adds / peak * 1e9
        return self.bytes / peaks.read_bytes_per_s * 1e9, compute_ns


def roofline(
    *,
    architecture: Architecture,
    layers: Sequence[LayerPrecision],
    batch: int,
    peaks: Peaks,
    nodes: Sequence[NodeTime] | None,
    p50_ns: float,
    runtime: str = "",
    rounds: Sequence[tuple[Peaks, Sequence[int]]] = (),
) -> dict[str, Any]:
    """The roofline of one subject at one batch, as it stands in the results.

    Args:
        architecture: the network, with its number of classes.
        layers: precision of each of the eight layers; empty for a checkpoint, which is FP32.
        batch: images per inference.
        peaks: of the device and number of threads it ran with.
        nodes: the runtime's own profile, in the order the nodes run; None where it has none.
        p50_ns: median latency of an inference, measured without the profiler.
        runtime: as in the manifest; decides whether `layers` names the type that is computed in.
        rounds: rates, median ones, and latencies in nanoseconds of each round in which both were measured.

    Raises:
        UserError: when `batch` is not positive.
    """
    notes: _Notes = defaultdict(list)
    stored = _stored(layers, architecture, runtime, notes)
    owned = _Owners(nodes or (), [spec.name for spec in architecture.layers], notes)
    computed_in = {name: owned.computed_in.get(name) or _by_build(layers, name, runtime) for name in stored}
    work = list(_work(architecture, stored, computed_in, batch))
    rooflines = [_layer(layer, peaks, owned.measured_ns.get(layer.name), notes) for layer in work]
    floor_ns = sum(layer["floor_ns"] for layer in rooflines)
    timed = [layer for layer in rooflines if layer["above_ns"] is not None]
    nodes_ns = None if nodes is None else sum(node.ns for node in nodes)
    fits = None if nodes_ns is None else abs(nodes_ns / p50_ns - 1) <= _MAX_DIFFERENCE
    if nodes_ns is not None and not fits:
        notes[f"the profiled nodes add up to {_ms(nodes_ns)}, the median latency is {_ms(p50_ns)}"] = []
    if peaks.other_cpus is not None and peaks.other_cpus > _MAX_OTHER_CPUS:
        busy = f"other processes kept {peaks.other_cpus:.1f} processors busy while the peaks were measured"
        notes[f"{busy}: they may be higher, and the floors lower"] = []
    return {
        "batch": batch,
        "floor_ns": floor_ns,
        "p50_ns": p50_ns,
        "share": floor_ns / p50_ns,
        "by_round": _round_by_round(work, rounds) if rounds else None,
        "layers": rooflines,
        "nodes_ns": nodes_ns,
        "profile_fits": fits,
        "other_ns": None if nodes is None else owned.other_ns,
        "worst": max(timed, key=lambda layer: layer["above_ns"])["name"] if timed else None,
        "unavailable": "" if timed else _NO_PROFILE if nodes is None else _NOTHING_ALONE,
        "notes": [f"{', '.join(names)}: {text}" if names else text for text, names in notes.items()],
        "nodes": [{**asdict(node), "layer": layer} for node, layer in zip(nodes or (), owned.layers, strict=True)],
    }


def _round_by_round(work: Sequence[LayerWork], rounds: Sequence[tuple[Peaks, Sequence[int]]]) -> dict[str, Any]:
    """The share of the floor, each round's latencies against the rates of the same round."""
    floors_ns = [sum(_floor_ns(*layer.floors_ns(peaks)) for layer in work) for peaks, _ in rounds]
    pairs = [([floor], samples_ns) for floor, (_, samples_ns) in zip(floors_ns, rounds, strict=True)]
    share, interval = bootstrap_ratios(pairs)
    return {"share": share, "interval": list(interval), "floors_ns": floors_ns}


def _floor_ns(memory_ns: float, compute_ns: float | None) -> float:
    return max(memory_ns, compute_ns or 0.0)


def _layer(work: LayerWork, peaks: Peaks, measured_ns: float | None, notes: _Notes) -> dict[str, Any]:
    """One layer: its work, how long that takes at least, and how long it took."""
    memory_ns, compute_ns = work.floors_ns(peaks)
    floor_ns = _floor_ns(memory_ns, compute_ns)
    share = None if not measured_ns else floor_ns / measured_ns
    if compute_ns is None:
        notes[f"no peak of {work.computed_in} was measured: the floor is the memory's alone"].append(work.name)
    if share is not None and share > 1:
        underestimated = "faster than the floor: the peak was underestimated, or data came from a cache"
        notes[underestimated].append(f"{work.name} ({_percent(share)})")
    stored, computed_in = work.precision, work.computed_in
    if computed_in not in ("unknown", "tf32", stored) and (stored, computed_in) != ("int4", "fp16"):
        notes[f"stored in {stored}, computed in {computed_in}"].append(work.name)
    return {
        **asdict(work),
        "memory_floor_ns": memory_ns,
        "compute_floor_ns": compute_ns,
        "floor_ns": floor_ns,
        "bound": "compute" if compute_ns is not None and compute_ns > memory_ns else "memory",  # the longer of the two
        "measured_ns": measured_ns,
        "share": share,
        "above_ns": None if share is None or measured_ns is None else measured_ns - floor_ns,
    }


def _stored(
    layers: Sequence[LayerPrecision], architecture: Architecture, runtime: str, notes: _Notes
) -> dict[str, str]:
    """Type that each layer's weights are stored in; the requested one where it is not known what was built."""
    if not layers:
        return {spec.name: "fp32" for spec in architecture.layers}
    if runtime == _STORES_AS_ASKED:
        return {layer.name: layer.requested for layer in layers}
    types = {layer.name: layer.built if layer.built in _STORED_BYTES else layer.requested for layer in layers}
    for layer in layers:
        if types[layer.name] != layer.built:
            notes[f"built precision is {layer.built}: counted as {layer.requested}, as asked for"].append(layer.name)
    return types


def _work(
    architecture: Architecture, stored: Mapping[str, str], computed_in: Mapping[str, str], batch: int
) -> Iterable[LayerWork]:
    """Each layer's, with the bytes that must cross memory at least once."""
    costs = layer_costs(architecture, batch=batch)
    shape: tuple[int, ...] = (3, architecture.input_size, architecture.input_size)
    passed = [_PASSED_BYTES[stored[spec.name]] for spec in architecture.layers]
    for spec, cost, in_bytes, out_bytes in zip(
        architecture.layers, costs, [_FLOAT32_BYTES, *passed[1:]], [*passed[1:], _FLOAT32_BYTES], strict=True
    ):
        activations = batch * (math.prod(shape) * in_bytes + math.prod(cost.passed_on_shape) * out_bytes)
        yield LayerWork(
            name=spec.name,
            bytes=int(_weight_bytes(spec, stored[spec.name]) + activations),
            multiply_adds=cost.multiply_adds,
            precision=stored[spec.name],
            computed_in=computed_in[spec.name],
        )
        shape = cost.passed_on_shape


def _weight_bytes(spec: LayerSpec, stored: str) -> float:
    """Weights, their scales and the bias, as `export.quantize` writes them."""
    scales = {"int8": 4 * spec.out_channels, "fp8": 2, "int4": 2 * (spec.weights // INT4_BLOCK)}.get(stored, 0)
    bias = _BIAS_BYTES[stored] * spec.out_channels if spec.bias else 0
    return spec.weights * _STORED_BYTES[stored] + scales + bias


def _by_build(layers: Sequence[LayerPrecision], name: str, runtime: str) -> str:
    """What a layer is computed in by its built precision, for a runtime whose own answer that precision is."""
    if not runtime.startswith(_INSPECTED):
        return "unknown"
    layer = next((layer for layer in layers if layer.name == name), None)
    if layer is None or layer.built not in _STORED_BYTES:
        return "unknown"
    if layer.built == "fp32" and "TF32" in layer.evidence:
        return "tf32"
    return "fp16" if layer.built == "int4" else layer.built


class _Owners:
    """Which layer each node is part of, and what follows from it."""

    layers: list[str | None]
    """By node."""
    measured_ns: dict[str, float]
    """Time of each layer that has a node of its own with its product."""
    computed_in: dict[str, str]
    """Type of each layer's product, where the runtime names it."""
    other_ns: float

    def __init__(self, nodes: Sequence[NodeTime], names: Sequence[str], notes: _Notes) -> None:
        self.layers, self.computed_in = [], {}
        shared: set[str] = set()
        multiplied: set[str] = set()
        last: str | None = None
        for node in nodes:
            kind, element = _kind_of(node.kind)
            layer, several, own = _named(node.name, names)
            multiplies = _MULTIPLIES.search(kind) is not None
            if several:
                shared.update(several)
                notes["in one node, so their times cannot be told apart"].append(", ".join(several))
                last = None
            elif layer is None:
                layer = last if kind and not multiplies else None
            elif not _CONSTANT.match(node.name.partition(layer)[2]):
                last = layer
            if layer is not None and (multiplies or (not kind and own)):
                multiplied.add(layer)
                if element:
                    self.computed_in.setdefault(layer, element)
            self.layers.append(layer)
        nodes_of = {
            name: [node for node, layer in zip(nodes, self.layers, strict=True) if layer == name] for name in names
        }
        for name in names:
            if nodes_of[name] and name not in multiplied | shared:
                notes["no node multiplies the weights under this name, so it is not timed"].append(name)
        self.measured_ns = {
            name: sum(node.ns for node in nodes_of[name]) for name in names if name in multiplied - shared
        }
        for name in self.measured_ns:
            _note_side_work(name, nodes_of[name], notes)
        self.other_ns = sum(
            node.ns for node, layer in zip(nodes, self.layers, strict=True) if layer not in self.measured_ns
        )


def _note_side_work(name: str, nodes: Sequence[NodeTime], notes: _Notes) -> None:
    """Note a layer that spends most of its time outside its product: its floor counts no other work."""
    beside = [node for node in nodes if _kind_of(node.kind)[0] and not _MULTIPLIES.search(_kind_of(node.kind)[0])]
    total_ns, beside_ns = (sum(node.ns for node in some) for some in (nodes, beside))
    if beside_ns > total_ns / 2:
        longest = max(beside, key=lambda node: node.ns)
        share, most = _percent(beside_ns / total_ns), f"{longest.name} ({_ms(longest.ns)})"
        notes[f"{share} of the time is beside the product, most of it in {most}"].append(name)


def _kind_of(kind: str) -> tuple[str, str]:
    """A node's kind and the type it computes in: `FusedConv(float)` is `FusedConv` in `fp32`."""
    match = re.fullmatch(r"(?P<kind>.*?)\((?P<element>[^)]*)\)", kind)
    return (match["kind"], _ELEMENTS.get(match["element"].lower(), "")) if match else (kind, "")


def _named(node: str, names: Sequence[str]) -> tuple[str | None, tuple[str, ...], bool]:
    """The layer that a node's name stands for; or the several layers whose products are in it; and whether one product is.

    A fused node has the names of all that is in it, as `conv1 + conv1/relu`. A layer's bare name stands for its product;
    without one, the node belongs to the first layer named, because the others prepare what follows.
    """
    mentions = [
        (match[0], node[match.end() :])
        for match in re.finditer(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, names))})(?![A-Za-z0-9])", node)
    ]
    places = sorted({names.index(name) for name, _ in mentions})
    if not places:
        return None, (), False
    if "..." in node and len(places) > 1:  # a region, named by its first and last node
        return None, tuple(names[places[0] : places[-1] + 1]), False
    own = [name for name in names if any(name == mentioned and _bare(after, names) for mentioned, after in mentions)]
    if len(own) > 1:
        return None, tuple(own), False
    return own[0] if own else names[places[0]], (), bool(own) and not node.startswith("Reformatting")


def _bare(after: str, names: Sequence[str]) -> bool:
    """Whether a layer's name ends where it was found, but for a compiler's mark or the next name."""
    return not after or after[0] not in "./_" or after.startswith(("_myl", *(f"_{name}" for name in names)))


def _ms(nanoseconds: float) -> str:
    milliseconds = nanoseconds / 1e6
    decimals = max(0, 1 - math.floor(math.log10(milliseconds))) if milliseconds > 0 else 0
    return f"{milliseconds:.{decimals}f} ms"


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")
