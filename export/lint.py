"""What TensorRT refuses in an ONNX file, and what it builds slow or wrong.

NVIDIA's own parser says what is refused; where none can be asked, a table of operators and types guesses. Added is what
no parser knows: the limits of other versions and of a DLA, batches, and layers that are built slow or inaccurate.

Sources: onnx-tensorrt `docs/operators.md` (8.5, 10.0 and 10.15) and `docs/Changelog.md` (8.6 to 10.15), TensorRT 11 "ONNX
Opset Guide", TensorRT "Working with Quantized Types", TensorRT "DLA Supported Layers and Restrictions".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alexnet_edge.errors import UserError, needs
from alexnet_edge.export.engines.parser import RTX_VERSION, ParserAnswer, Refusal, Version, ask_parser
from alexnet_edge.export.graphs.index import QDQ, IndexedGraph, all_graphs, attribute, input_name, type_name
from alexnet_edge.nvidia.libraries import Library

with needs("export"):
    from onnx import TensorProto

Severity = Literal["error", "warning"]

TARGETS: dict[str, tuple[Version, Version]] = {
    "tensorrt": ((8, 6), (11, 4)),
    "tensorrt-8.6": ((8, 6), (8, 6)),
    "tensorrt-10": ((10, 0), (10, 16)),
    "tensorrt-11": ((11, 0), (11, 4)),
    "dla": ((8, 6), (11, 4)),
    "rtx": (RTX_VERSION, (11, 4)),
}
"""The oldest and the newest TensorRT of each target."""

OPSETS: dict[Version, int] = {(8, 6): 17, (10, 0): 20, (10, 15): 24, (11, 0): 25}
"""Newest operator set that each version documents, from that version on."""

OLDEST_OPSET = 9

TYPES_SINCE: dict[str, Version] = {"BFLOAT16": (9, 0), "FLOAT8E4M3FN": (9, 0), "INT4": (10, 0), "FLOAT4E2M1": (10, 8)}
"""First version whose ONNX parser reads each newer element type."""

TYPES = frozenset(("FLOAT", "FLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "INT64", "BOOL")) | frozenset(TYPES_SINCE)
"""Every element type that some version reads."""

TYPES_OPSET = {"FLOAT8E4M3FN": 19, "INT4": 21, "BFLOAT16": 22, "FLOAT4E2M1": 23}
"""Operator set that brings each type into the operators of this network; a parser that reads the type reads that set."""

_SINCE: dict[Version, str] = {
    (9, 2): "Hardmax",
    (10, 0): "CastLike Gelu Mish",
    (10, 1): "DeformConv",
    (10, 4): "BlackmanWindow HammingWindow HannWindow",
    (10, 5): "STFT",
    (10, 14): "Attention",
    (10, 15): "RMSNormalization RotaryEmbedding TensorScatter",
    (11, 0): "CausalConvWithState LinearAttention Swish",
}
OPERATORS_SINCE = {name: version for version, names in _SINCE.items() for name in names.split()}
"""First version that is known to read each operator which TensorRT 8.6 does not."""

_OPERATORS = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal
Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Identity If
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop
LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not
OneHot Or PRelu Pad Pow QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round Scan Scatter ScatterElements ScatterND Selu Shape
Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_OPERATORS.split()) | frozenset(OPERATORS_SINCE)
"""Every operator of the default domain that some version reads."""

_DLA_OPERATORS = """
Add AveragePool BatchNormalization Clip Concat Constant Conv ConvTranspose Div Dropout Equal Flatten GlobalAveragePool
GlobalMaxPool Greater Identity LRN LeakyRelu Less Max MaxPool Min Mul PRelu Pow ReduceMax Relu Reshape Resize Sigmoid
Slice Softmax Sub Tanh Transpose
"""
DLA_OPERATORS = frozenset(_DLA_OPERATORS.split())
"""Operators that become layers a DLA has; their own limits are checked apart."""

MOST_BYTES = 2**31 - 1
"""What a Protocol Buffers message may hold; a larger file cannot be parsed."""

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that TensorRT refuses, or makes slow or wrong."""

    severity: Severity
    """`error`: refused; `warning`: slow, inaccurate, or not in every version."""
    node: str
    """Name of the node, the tensor or the file that it is about."""
    operator: str = ""
    """Of the node; empty for a tensor or a file."""
    problem: str
    """What is wrong, and what TensorRT does with it."""
    fix: str
    """What to do instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LintReport:
    """What a target has against an ONNX file."""

    parser: str | None
    """The parser that was asked, as `TensorRT-RTX 1.7.1`; None where none could be, so that the errors are a guess."""
    findings: tuple[Finding, ...]
    """Errors first. Those about nodes that a parser refuses are the parser's own."""


def lint(
    path: Path,
    target: str = "tensorrt",
    *,
    ask: Callable[[Path, Sequence[Library], Version], ParserAnswer | None] = ask_parser,
) -> LintReport:
    """Look through an ONNX file for what `target` refuses, or makes slow or wrong.

    Args:
        path: any ONNX file, not only one of this package.
        target: one of `TARGETS`. `tensorrt` is every version from 8.6 on: what only some of them read is a warning.
            `dla` adds the limits of a Jetson's deep learning accelerator.
        ask: who asks the parser; None as its answer makes the errors a guess.

    Raises:
        UserError: when `path` is no ONNX file, or `target` is none of `TARGETS`.
        MissingComponentError: when the onnx package is not installed.
    """
    if target not in TARGETS:
        raise UserError("no such target", value=target, fix=f"choose from {', '.join(TARGETS)}")
    if not path.is_file():
        raise UserError("no such ONNX file", value=path, fix="give the path of an .onnx file")
    if path.stat().st_size > MOST_BYTES:
        problem = f"the file has {path.stat().st_size / 2**30:.1f} GiB; no parser reads a message of 2 GiB or more"
        finding = _at(path.name, problem, "save it with its weights as external data", "error")
        return LintReport(parser=None, findings=(finding,))
    graph = IndexedGraph.read(path)
    answer = ask(path, ("rtx", "tensorrt") if target == "rtx" else ("tensorrt", "rtx"), TARGETS[target][0])
    findings = list(_guess(graph)) if answer is None else [_refused(graph, refusal) for refusal in answer.refusals]
    findings += [finding for rule in _RULES for finding in rule(graph, target)]
    return LintReport(
        parser=None if answer is None else answer.parser,
        findings=tuple(sorted(dict.fromkeys(findings), key=lambda finding: finding.severity)),  # errors first
    )


def _at(node: Any, problem: str, fix: str, severity: Severity = "warning") -> Finding:
    """A finding about a node, or about the tensor or file of that name."""
    if isinstance(node, str):
        return Finding(severity=severity, node=node, problem=problem, fix=fix)
    name = str(node.name or (node.output[0] if node.output else node.op_type))
    return Finding(severity=severity, node=name, operator=str(node.op_type), problem=problem, fix=fix)


_NO_OPERATOR = "write it with other operators, or as a plugin of that name"
_STATIC_QDQ = "quantise statically in the QDQ format"
_TO_INT8 = "quantise symmetrically to INT8 (onnxruntime: QuantType.QInt8, ActivationSymmetric, WeightSymmetric)"
_OTHERWISE = "change that setting of the node, or write it with other operators"
_TYPES = "use FLOAT, FLOAT16, BFLOAT16, INT8, INT4 or FLOAT8E4M3FN"

_FIXES: tuple[tuple[str, str], ...] = (
    (r"^(QLinear\w+|ConvInteger|MatMulInteger|DynamicQuantizeLinear):", _STATIC_QDQ),
    (r"^DequantizeLinear: .*Int32", "leave biases in floating point (onnxruntime: QuantizeBias=False)"),
    (r"zero point|[Qq]uantizeLinear: .*UINT8", _TO_INT8),
    (r"Scale coefficients", "calibrate with images that reach every layer; give channels of zeros a positive scale"),
    (r"number of scales|Scale dim", "quantise again with the axis that the scales belong to"),
    (r"import initializer", "put its external data beside the model, whole; or store it in a type that TensorRT reads"),
    (r"not registered|topologically", "export it again: the graph is broken"),
    (r"more than 1 output|one output", "remove the outputs after the first"),
    (r"constant|initializer", "store that input as a constant in the file"),
    (r"plugin|no importer", _NO_OPERATOR),
    (r"\b[Tt]ypes?\b", _TYPES),
    (r"^: the parser (crashed|failed|gave)", "export it another way: a build would end like this"),
)
"""What helps against a refusal, by `operator: reason`; the first that matches."""


def _refused(graph: IndexedGraph, refusal: Refusal) -> Finding:
    """A refusal of the parser, with the node by name and the fix."""
    operator, problem = refusal.operator, refusal.reason
    if problem == "false":
        problem = f"the parser has no importer for {operator}"
    elif problem.startswith("Invalid Node"):  # all that it says
        problem = f"the parser finds this {operator} invalid, and does not say why"
    problem = problem.replace("mode than 1 outputs", "more than 1 output").replace("ONNX date type", "ONNX data type")
    node = refusal.node
    if not node and operator:
        parts = [part.node for part in all_graphs(graph.model.graph)] + [part.node for part in graph.model.functions]
        places = [part[refusal.index] for part in parts if 0 <= refusal.index < len(part)]
        node = next((_at(place, "", "").node for place in places if place.op_type == operator), operator)
    elif not node:  # about the file: name the tensor that stopped it
        _, stopped, name = problem.partition("Failed to import initializer: ")
        unread = [name] if stopped else [name for name in graph.inputs if graph.types.get(name) not in TYPES]
        node = unread[0] if unread and ("type" in problem or stopped) else graph.path.name
        problem += f" ({graph.types[node]})" if node in graph.types else ""
    if "lugin" in problem and operator in OPERATORS:
        fix = "TensorRT brings a plugin for it: ask where TensorRT is installed; TensorRT-RTX has none"
    else:
        text = f"{operator}: {problem}"
        fix = next((fix for pattern, fix in _FIXES if re.search(pattern, text)), _OTHERWISE)
    return Finding(severity="error", node=node, operator=operator, problem=problem, fix=fix)


def _guess(graph: IndexedGraph) -> Iterator[Finding]:
    """What every parser is known to refuse: types, operators, and quantisation that is not symmetric INT8."""
    for name in (*graph.inputs, *graph.constants):
        if graph.types.get(name) not in TYPES:
            yield _at(name, f"no TensorRT reads the type {graph.types.get(name)}", _TYPES, "error")
    functions = {(function.domain, function.name) for function in graph.model.functions}
    for node in graph.every_node:
        kind = node.op_type
        if (node.domain, kind) not in functions and kind not in OPERATORS and not kind.startswith("TRT_"):
            fix = _STATIC_QDQ if re.match(r"QLinear|ConvInteger|MatMulInteger|DynamicQ", kind) else _NO_OPERATOR
            yield _at(node, f"no TensorRT reads the operator {kind}", fix, "error")
        if kind in QDQ:
            yield from _guess_quantised(graph, node)
    for name, tensor in graph.constants.items():
        file = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if tensor.data_location == TensorProto.EXTERNAL and not (graph.path.parent / file).is_file():
            yield _at(name, f"external data {file} is missing", "put the data file beside the model", "error")


def _guess_quantised(graph: IndexedGraph, node: Any) -> Iterator[Finding]:
    weight = graph.types.get(input_name(node, 0)) if input_name(node, 0) in graph.constants else None
    if node.op_type == "DequantizeLinear" and weight in ("INT32", "UINT8"):
        yield _at(node, f"TensorRT has no dequantisation of {weight}", _TO_INT8, "error")
    zero, scale = graph.value(input_name(node, 2)), graph.value(input_name(node, 1))
    if zero is not None and zero.astype(np.float64).any():
        yield _at(node, f"the zero point {input_name(node, 2)} is not 0; TensorRT refuses it", _TO_INT8, "error")
    if scale is not None and not (scale.astype(np.float64) > 0).all():
        problem = f"the scale {input_name(node, 1)} is not positive everywhere; TensorRT refuses it"
        yield _at(node, problem, "calibrate with images that reach every layer", "error")


def _versions(graph: IndexedGraph, target: str) -> Iterator[Finding]:
    """Operator set, types and operators that some version of the target does not read."""
    opset = next((entry.version for entry in graph.model.opset_import if entry.domain in ("", "ai.onnx")), OLDEST_OPSET)
    documented = max(newest for version, newest in OPSETS.items() if version <= TARGETS[target][0])
    readable = max([documented, *(TYPES_OPSET.get(name, 0) for name in graph.types.values())])
    if opset > readable:
        yield _at(
            graph.path.name,
            f"operator set {opset} is newer than the {documented} that TensorRT {_dotted(TARGETS[target][0])} documents; the "
            "parser does not check it, and reads operators that changed since as they were",
            f"export with operator set {readable} or older",
        )
    if opset < OLDEST_OPSET:
        problem = f"operator set {opset} is older than the {OLDEST_OPSET} that TensorRT documents"
        yield _at(graph.path.name, problem, f"export with operator set {OLDEST_OPSET} or newer")
    first: dict[str, Any] = {}
    for name in (*graph.inputs, *graph.constants):
        first.setdefault(graph.types.get(name, ""), name)
    for function in graph.model.functions:
        yield from _since(target, function.name, "a local function", (9, 0))
    for node in graph.every_node:
        if node.op_type == "Cast":
            first.setdefault(type_name(attribute(node, "to", 0)), node)
        if node.domain not in ("", "ai.onnx", *(function.domain for function in graph.model.functions)):
            if node.op_type in OPERATORS:
                problem = f"{node.op_type} of the domain {node.domain} is read as ONNX's operator of that name"
                yield _at(node, problem, "export before a runtime's own optimisations, with ONNX operators only")
        elif node.op_type in OPERATORS_SINCE:
            yield from _since(target, node, f"the operator {node.op_type}", OPERATORS_SINCE[node.op_type])
    for kind in sorted(first.keys() & TYPES_SINCE.keys()):
        yield from _since(target, first[kind], f"the type {kind}", TYPES_SINCE[kind])
        if target == "dla":
            problem = f"a DLA computes in FP16 and INT8 only, not {kind}"
            yield _at(first[kind], problem, "export in fp16 or int8", "error")
    if "DOUBLE" in first:
        problem = "TensorRT has no float64: it computes in float32 and clamps what is larger"
        yield _at(first["DOUBLE"], problem, "export in float32")


def _since(target: str, place: Any, subject: str, version: Version) -> Iterator[Finding]:
    """A finding where the target has versions before `version`."""
    if version > TARGETS[target][0]:
        severity: Severity = "error" if version > TARGETS[target][1] else "warning"
        newer = f"build with TensorRT {_dotted(version)} or newer, or export without it"
        yield _at(place, f"{subject} is read from TensorRT {_dotted(version)} on", newer, severity)


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _batch(graph: IndexedGraph, target: str) -> Iterator[Finding]:
    """Free dimensions, which need a profile, and nodes that fix a batch which the input leaves free."""
    free = {name: [size is None for size in graph.shapes.get(name, ())] for name in graph.inputs}
    for name in (name for name, sizes in free.items() if any(sizes) and target != "dla"):  # which has none at all
        places = ", ".join(str(index) for index, size in enumerate(free[name]) if size)
        yield _at(
            name,
            f"free dimensions ({places}): without an optimisation profile the builder refuses the network, and trtexec "
            "builds for 1",
            "give --min-batch, --opt-batch and --max-batch to export, or --minShapes, --optShapes and --maxShapes to trtexec",
        )
    if not any(sizes[:1] == [True] for sizes in free.values()):
        return
    for node in graph.nodes:
        shape = graph.value(input_name(node, 1)) if node.op_type == "Reshape" else None
        sizes = [] if shape is None else shape.astype(int).reshape(-1).tolist()
        from_free = graph.shapes.get(input_name(node, 0), (0,))[:1] == (None,)
        if from_free and sizes and sizes[0] > 0 and (-1 not in sizes or sizes[1:] == [-1]):
            yield _at(
                node,
                f"it fixes the batch at {sizes[0]}, which the input leaves free: the builder only logs that other batches "
                "will fail",
                "write -1 for the batch in the shape of this Reshape, or give the input a fixed batch",
            )


def _accuracy(graph: IndexedGraph, target: str) -> Iterator[Finding]:
    for name, tensor in graph.constants.items():
        value = graph.value(name) if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) else None
        if value is not None and not np.isfinite(value).all():
            problem = f"{int((~np.isfinite(value)).sum())} values are infinite or not a number: so may the answers be"
            yield _at(name, problem, "check the weights; in FP16 nothing may exceed 65504")
    quantised = any(node.op_type in _WEIGHTED and graph.dequantised(node, 0) for node in graph.nodes)
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            yield from _quantised(graph, node)
        elif node.op_type in _WEIGHTED:
            yield from _weight(graph, node, quantised)
        elif node.op_type == "LRN" and graph.dequantised(node, 0):
            problem = "it squares the rounding error of its quantised input, and TensorRT has no INT8 kernel for it"
            yield _at(node, problem, "leave LRN out of quantisation")
        elif node.op_type == "LRN" and graph.types.get(input_name(node, 0)) == "FLOAT16":
            problem = "local response normalisation in FP16 squares its input, which overflows above 255"
            yield _at(node, problem, "cast to float32 before it and back behind it")
        elif node.op_type == "AveragePool" and len(graph.shapes.get(input_name(node, 0), ())) == 5:
            yield _at(
                node,
                "it pools in 5 dimensions, as a traced LocalResponseNorm does: several versions refuse it, others are "
                "slow, a DLA has no such layer",
                "write ONNX's LRN operator, as `alexnet-edge export` does, or pool in 4 dimensions",
                "error" if target == "dla" else "warning",
            )


def _quantised(graph: IndexedGraph, node: Any) -> Iterator[Finding]:
    """The type and the scales of an activation, and a pair before a Relu."""
    zero = input_name(node, 2)
    kind = graph.types.get(zero) if zero else type_name(attribute(node, "output_dtype", TensorProto.UINT8))
    if kind in ("UINT8", "UNDEFINED"):
        problem = "it quantises to UINT8" + ("" if zero else " (no zero point is given)")
        yield _at(node, f"{problem}; TensorRT takes INT8, so that the upper half of the range is cut off", _TO_INT8)
    if graph.is_constant(input_name(node, 0)):
        return
    if graph.size(input_name(node, 1)) > 1 and not attribute(node, "block_size", 0):
        problem = "an activation has a scale per channel; TensorRT then does not compute the next layer in INT8"
        yield _at(node, problem, "use one scale for the tensor")
    layer = graph.writers.get(input_name(node, 0))
    behind = [after for pair in graph.readers_of(node) for after in graph.readers_of(pair)]
    if layer is not None and layer.op_type in _WEIGHTED and any(after.op_type == "Relu" for after in behind):
        problem = "a quantise/dequantise pair stands between a layer and its Relu, and keeps TensorRT from fusing them"
        yield _at(node, problem, "quantise behind the Relu, at the input of the next layer")


def _weight(graph: IndexedGraph, node: Any, quantised: bool) -> Iterator[Finding]:
    """How the weight of a layer is quantised: per output channel, in the axis that TensorRT fuses."""
    writer = graph.dequantised(node, 1)
    if not graph.is_constant(input_name(node, 1)):
        return
    if quantised and not graph.dequantised(node, 0):
        problem = "the layer stays in floating point in a quantised network"
        yield _at(node, problem, "quantise it too, unless it was left out for its accuracy, or for a missing kernel")
    if writer is None:
        return
    if graph.size(input_name(writer, 1)) == 1:
        if graph.types.get(input_name(writer, 0)) == "INT8":
            problem = "one scale for all of the weights; it is set by the largest channel, and the others lose bits"
            yield _at(node, problem, "quantise weights per output channel (onnxruntime: per_channel=True)")
        return
    rank = len(graph.shapes.get(input_name(writer, 0), ()))
    output = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1 - attribute(node, "transB", 0)}.get(node.op_type, rank - 1)
    axis = attribute(writer, "axis", 1) % rank if rank else output
    if not attribute(writer, "block_size", 0) and axis != output:
        problem = f"the scales of the weights are along axis {axis}, not {output}, the output channels"
        yield _at(node, f"{problem}: no INT8 in TensorRT", f"quantise the weights along axis {output}")


_DLA_FIXES = dict.fromkeys(
    ("Gemm", "MatMul"), "write it as a convolution, as `export --dla-core` does"
) | dict.fromkeys(QDQ, "on JetPack 6 quantise with TensorRT's calibrator: `export --int8 --calibrator entropy2`")


def _dla(graph: IndexedGraph, target: str) -> Iterator[Finding]:
    if target != "dla":
        return
    for name in graph.inputs:
        batch, *others = graph.shapes.get(name) or (1,)
        if None in others:
            problem = "a DLA has no free dimensions, and this one has some besides the batch"
            yield _at(name, problem, "export with fixed sizes", "error")
        elif batch is None:
            fix = "export a fixed batch, or give --min-batch, --opt-batch and --max-batch one number"
            yield _at(name, "a DLA has no free dimensions: the batch must be one number", fix)
        elif batch > 4096:
            problem = f"a DLA takes batches of up to 4096, not {batch}"
            yield _at(name, problem, "export with a smaller batch", "error")
    elsewhere: dict[str, list[Any]] = {}
    for node in graph.nodes:
        for limit in _dla_limits(graph, node):
            fix = _DLA_FIXES.get(node.op_type, "change the layer, or let it run on the GPU with --gpu-fallback")
            yield _at(node, f"it has {limit} on a DLA", fix, "error")
        if node.op_type not in DLA_OPERATORS and not graph.is_constant(node.output[0] if node.output else ""):
            elsewhere.setdefault(node.op_type, []).append(node)
    for kind, nodes in elsewhere.items():
        count = f" ({len(nodes)} nodes)" if len(nodes) > 1 else ""
        problem = f"{kind}{count} is no layer of a DLA: it runs on the GPU with GPU fallback, and is refused without"
        yield _at(nodes[0], problem, _DLA_FIXES.get(kind, "write it with layers that a DLA has"))


def _dla_limits(graph: IndexedGraph, node: Any) -> Iterator[str]:
    """Sizes of what a layer reads, and of its window, that are over a DLA's limits."""
    weight = graph.shapes.get(input_name(node, 1), ()) if node.op_type == "Conv" else ()
    shape = next((graph.shapes.get(name, ()) for name in node.input if name and not graph.is_constant(name)), ())
    sizes = [
        ("an input dimension", shape[1:] if node.op_type != "Flatten" else (), 8192),
        ("a kernel", weight[2:], 32),
        ("a stride", attribute(node, "strides", ()) if weight else (), 8),
        ("a number of output channels", weight[:1], 8192),
    ]
    for subject, values, most in sizes:
        largest = max((size or 0 for size in values), default=0)
        if largest > most:
            yield f"{subject} of {largest}, where {most} is the most"
    if len(weight) > 4:
        yield "3 spatial dimensions, where 2 are the most"
    if node.op_type == "LRN" and attribute(node, "size") not in (3, 5, 7, 9):
        yield f"a window of {attribute(node, 'size')}, where 3, 5, 7 and 9 are allowed"


_RULES: Sequence[Callable[[IndexedGraph, str], Iterable[Finding]]] = (_versions, _batch, _accuracy, _dla)
