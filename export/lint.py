"""What in an ONNX file TensorRT's parser refuses, and what it takes and makes slow or wrong.

A finding is an `error` where the parser refuses the graph or builds something else than the graph says, and a `warning`
where it is slower, less accurate, or read by some versions of the target only. No TensorRT is needed; the tests compare
the errors with the parser of TensorRT-RTX, which is TensorRT's own.

Sources: onnx-tensorrt `docs/operators.md` (8.5, 10.0 and 10.15) and `docs/Changelog.md` (8.6 to 10.15), TensorRT 11 "ONNX
Opset Guide", TensorRT "Working with Quantized Types", TensorRT "DLA Supported Layers and Restrictions".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alexnet_edge.errors import UserError, needs

with needs("export"):
    import onnx
    from onnx import TensorProto, numpy_helper

Severity = Literal["error", "warning"]
Version = tuple[int, int]

TARGETS: dict[str, tuple[Version, Version]] = {
    "tensorrt": ((8, 6), (11, 4)),
    "tensorrt-8.6": ((8, 6), (8, 6)),
    "tensorrt-10": ((10, 0), (10, 16)),
    "tensorrt-11": ((11, 0), (11, 4)),
    "dla": ((8, 6), (11, 4)),
    "rtx": ((11, 0), (11, 4)),
}
"""The oldest and the newest TensorRT of each target. TensorRT-RTX 1.7 has the parser of TensorRT 11."""

OPSETS: dict[Version, int] = {(8, 6): 17, (10, 0): 20, (10, 15): 24, (11, 0): 25}
"""Newest operator set that each version documents, from that version on."""

OLDEST_OPSET = 9

TYPES_SINCE: dict[str, Version] = {"BFLOAT16": (9, 0), "FLOAT8E4M3FN": (9, 0), "INT4": (10, 0), "FLOAT4E2M1": (10, 8)}
"""First version whose ONNX parser reads each newer element type."""

TYPES = frozenset(("FLOAT", "FLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "INT64", "BOOL")) | frozenset(TYPES_SINCE)
"""Every element type that some version reads."""

TYPES_OPSET = {"FLOAT8E4M3FN": 19, "INT4": 21, "BFLOAT16": 22, "FLOAT4E2M1": 23}
"""Operator set that brings each type into the operators of this network; a parser that reads the type reads that set."""

OPERATORS_SINCE: dict[str, Version] = {
    "Attention": (10, 14),
    "BlackmanWindow": (10, 4),
    "CastLike": (10, 0),
    "CausalConvWithState": (11, 0),
    "DeformConv": (10, 1),
    "Gelu": (10, 0),
    "HammingWindow": (10, 4),
    "HannWindow": (10, 4),
    "Hardmax": (9, 2),
    "LinearAttention": (11, 0),
    "Mish": (10, 0),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "STFT": (10, 5),
    "Swish": (11, 0),
    "TensorScatter": (10, 15),
}
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

DLA_MOST = 8192
"""Largest size of a dimension, the batch aside, on a DLA."""
DLA_MOST_BATCH = 4096
DLA_MOST_KERNEL = 32
DLA_MOST_STRIDE = 8
DLA_LRN_SIZES = (3, 5, 7, 9)

MOST_BYTES = 2**31 - 1
"""What a Protocol Buffers message may hold; a larger file cannot be parsed."""

DEFAULT_DOMAINS = ("", "ai.onnx")
TENSORRT_PREFIX = "TRT_"
"""Custom operators that the parser knows by name, as `TRT_FP8QuantizeLinear`, begin with it."""

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_TRANSPARENT = ("Reshape", "Flatten", "Transpose", "Identity", "Squeeze", "Unsqueeze")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that TensorRT refuses, or makes slow or wrong."""

    severity: Severity
    """`error`: refused, or built as something else; `warning`: slower, less accurate, or not in every version."""
    node: str
    """Name of the node, the tensor or the file that it is about."""
    problem: str
    """What is wrong, and what TensorRT does with it."""
    fix: str
    """What to do instead."""


def _error(node: str, *, problem: str, fix: str) -> Finding:
    return Finding(severity="error", node=node, problem=problem, fix=fix)


def _warning(node: str, *, problem: str, fix: str) -> Finding:
    return Finding(severity="warning", node=node, problem=problem, fix=fix)


def lint(path: Path, target: str = "tensorrt") -> tuple[Finding, ...]:
    """Look through an ONNX file for what `target` refuses, or makes slow or wrong; errors come first.

    Args:
        path: any ONNX file, not only one of this package.
        target: one of `TARGETS`. `tensorrt` is every version from 8.6 on: what only some of them read is a warning.
            `dla` adds the limits of a Jetson's deep learning accelerator.

    Raises:
        UserError: when `path` is no ONNX file, or `target` is none of `TARGETS`.
        MissingComponentError: when the onnx package is not installed.
    """
    if target not in TARGETS:
        raise UserError("no such target", value=target, fix=f"choose from {', '.join(TARGETS)}")
    if not path.is_file():
        raise UserError("no such ONNX file", value=path, fix="give the path of an .onnx file")
    if path.stat().st_size > MOST_BYTES:
        return (
            _error(
                path.name,
                problem=f"the file has {path.stat().st_size / 2**30:.1f} GiB; no parser reads a message of 2 GiB or more",
                fix="save it with its weights as external data",
            ),
        )
    graph = _Graph.of(_load(path), path, target)
    found = [finding for rule in _RULES for finding in rule(graph)]
    return tuple(sorted(dict.fromkeys(found), key=lambda finding: finding.severity))  # stable: the graph's order


def _load(path: Path) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except DecodeError as error:
        raise _not_onnx(path) from error
    except OSError as error:
        raise UserError(
            f"cannot read the file, {error.strerror or error}", value=path, fix="check its rights"
        ) from error
    if not model.opset_import or not model.HasField("graph"):
        raise _not_onnx(path)  # an empty or foreign file may decode to nothing
    return model


def _not_onnx(path: Path) -> UserError:
    return UserError("not an ONNX file, or a damaged one", value=path, fix="export it again")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Graph:
    """The model, indexed: who writes and who reads each tensor, its element type and shape."""

    model: Any
    folder: Path
    file: str
    target: str
    nodes: list[Any]
    """Of the main graph, and of the branches and bodies inside it."""
    constants: dict[str, Any]
    """Initialisers and the values of `Constant` nodes, by tensor name."""
    writers: dict[str, Any] = field(default_factory=dict)
    readers: dict[str, list[Any]] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: onnx.ModelProto, path: Path, target: str) -> _Graph:
        graphs = list(_graphs(model.graph))
        graph = cls(
            model=model,
            folder=path.parent,
            file=path.name,
            target=target,
            nodes=[node for part in graphs for node in part.node],
            constants={tensor.name: tensor for part in graphs for tensor in part.initializer},
        )
        for node in graph.nodes:
            for name in node.output:
                graph.writers[name] = node
            for name in node.input:
                graph.readers.setdefault(name, []).append(node)
            value = _attribute(node, "value")
            if node.op_type == "Constant" and value is not None:
                graph.constants[node.output[0]] = value
        for info in _with_shapes(model):
            tensor = info.type.tensor_type
            graph.types[info.name] = tensor.elem_type
            if tensor.HasField("shape"):
                sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
                graph.shapes[info.name] = tuple(sizes)
        for name, value in graph.constants.items():
            graph.types[name] = value.data_type
            graph.shapes[name] = tuple(value.dims)
        return graph

    @property
    def oldest(self) -> Version:
        return TARGETS[self.target][0]

    @property
    def newest(self) -> Version:
        return TARGETS[self.target][1]

    def value(self, name: str) -> np.ndarray[Any, Any] | None:
        """A constant's value; None where it is none, or its data is not at hand."""
        constant = self.constants.get(name)
        if constant is None:
            return None
        try:
            return np.asarray(numpy_helper.to_array(constant, str(self.folder)))
        except (
            OSError,
            ValueError,
            TypeError,
            onnx.checker.ValidationError,
        ):  # data missing, cut short, of no NumPy type
            return None

    def size(self, name: str) -> int:
        """How many elements a tensor has; 0 where that is not known."""
        return math.prod(size or 0 for size in self.shapes.get(name, (0,)))

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a constant, also after quantise, dequantise and reshaping nodes."""
        for _ in range(len(self.nodes) + 1):  # a damaged graph may go in circles
            if name in self.constants:
                return True
            writer = self.writers.get(name)
            if writer is None or writer.op_type not in (*_QDQ, "Cast", *_TRANSPARENT):
                return False
            name = _input(writer, 0)
        return False

    def since(self, node: str, what: str, first: Version, fix: str) -> Iterator[Finding]:
        """A finding where the target has versions before `first`."""
        if first > self.oldest:
            all_versions = first > self.newest
            yield Finding(
                severity="error" if all_versions else "warning",
                node=node,
                problem=f"{what} is read from TensorRT {first[0]}.{first[1]} on",
                fix=fix if all_versions else f"{fix}, or build with TensorRT {first[0]}.{first[1]} or newer",
            )


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph and every branch and body inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in _GRAPH_ATTRIBUTES else ():
                yield from _graphs(inner)


_GRAPH_ATTRIBUTES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _with_shapes(model: onnx.ModelProto) -> list[Any]:
    """Inputs, outputs and inner tensors with the types and shapes that follow from the inputs'.

    Large weights are left out of the copy that is inferred on: only their sizes count.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):  # a newer operator set, a broken graph
        inferred = model.graph
    return [*inferred.value_info, *inferred.input, *inferred.output]


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    light.graph.name = graph.name
    for name in ("node", "input", "output", "value_info"):
        getattr(light.graph, name).extend(getattr(graph, name))
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= 1024:
            light.graph.initializer.append(tensor)
        else:
            light.graph.initializer.add(
                name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, data_location=TensorProto.EXTERNAL
            )
    return light


def _input(node: Any, index: int) -> str:
    """Name of an input; empty where it is left out."""
    return str(node.input[index]) if len(node.input) > index else ""


def _label(node: Any) -> str:
    return str(node.name or (node.output[0] if node.output else node.op_type))


def _attribute(node: Any, name: str, default: Any = None) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _type_name(element: int) -> str:
    try:
        return str(TensorProto.DataType.Name(element))
    except ValueError:
        return f"type {element}"


# --- the file -------------------------------------------------------------------------------------------------------------


def _file(graph: _Graph) -> Iterator[Finding]:
    """The operator set, an empty graph, and data that is not there."""
    opset = next((entry.version for entry in graph.model.opset_import if entry.domain in DEFAULT_DOMAINS), None)
    if opset is not None:
        documented = max(newest for version, newest in OPSETS.items() if version <= graph.oldest)
        carried = [TYPES_OPSET[name] for name in map(_type_name, set(graph.types.values())) if name in TYPES_OPSET]
        if opset > max([documented, *carried]):
            yield _warning(
                graph.file,
                problem=f"operator set {opset} is newer than the {documented} that TensorRT {_version(graph.oldest)} "
                "documents; the parser does not check it, and reads operators that changed since as they were",
                fix=f"export with operator set {max([documented, *carried])} or older",
            )
        if opset < OLDEST_OPSET:
            yield _warning(
                graph.file,
                problem=f"operator set {opset} is older than the {OLDEST_OPSET} that TensorRT documents",
                fix=f"export with operator set {OLDEST_OPSET} or newer",
            )
    if not graph.model.graph.node or not graph.model.graph.output:
        yield _error(
            graph.file,
            problem="the graph has no nodes or no outputs: there is no network to build",
            fix="export it again",
        )
    missing: dict[str, list[str]] = {}
    for tensor in graph.constants.values():
        if tensor.data_location == TensorProto.EXTERNAL and (why := _external_fault(tensor, graph.folder)):
            missing.setdefault(why, []).append(tensor.name)
    for why, names in missing.items():
        yield _error(
            names[0],
            problem=f"external data {why}" + (f" ({len(names)} tensors)" if len(names) > 1 else ""),
            fix="put the data file beside the model, or export with the weights inside",
        )


def _external_fault(tensor: Any, folder: Path) -> str | None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not location or Path(location).is_absolute() or ".." in Path(location).parts:
        return f"{location or 'without a location'} is not inside the model's folder"
    file = folder / location
    if not file.is_file():
        return f"{location} is missing"
    sizes = (entries.get("offset") or "0", entries.get("length") or "0")
    whole = all(size.isdigit() for size in sizes) and file.stat().st_size >= sum(map(int, sizes))
    return None if whole else f"{location} is cut short"


def _version(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _unused(graph: _Graph) -> Iterator[Finding]:
    read = {name for node in graph.nodes for name in node.input} | {entry.name for entry in graph.model.graph.output}
    known = set(graph.writers) | set(graph.constants) | {entry.name for entry in graph.model.graph.input}
    inner = {entry.name for part in _graphs(graph.model.graph) for entry in (*part.input, *part.output)}
    for node in graph.nodes:
        for name in node.input:
            if name and name not in known | inner:
                yield _error(_label(node), problem=f"its input {name} is written by no node", fix="export it again")
        if node.op_type != "Constant" and not any(name in read | inner for name in node.output):
            yield _warning(_label(node), problem="nothing reads its outputs", fix="remove the node")
    idle = [tensor for tensor in graph.model.graph.initializer if tensor.name not in read]
    if idle:
        bytes_ = sum(tensor.ByteSize() for tensor in idle)
        yield _warning(
            idle[0].name,
            problem=f"{len(idle)} weight tensors are not used; they take {bytes_:,} bytes",
            fix="remove them",
        )
    for entry in graph.model.graph.input:
        if entry.name not in read and entry.name not in graph.constants:
            yield _warning(
                entry.name,
                problem="the input is not used, and stays an input of the engine that must be given",
                fix="remove it",
            )


# --- types, operators, values ---------------------------------------------------------------------------------------------


def _types(graph: _Graph) -> Iterator[Finding]:
    first: dict[str, str] = {}
    stated = [(entry.name, entry.type.tensor_type.elem_type) for entry in graph.model.graph.input]
    stated += [(name, tensor.data_type) for name, tensor in graph.constants.items()]
    stated += [(_label(node), _attribute(node, "to", 0)) for node in graph.nodes if node.op_type == "Cast"]
    for name, element in stated:
        if element:
            first.setdefault(_type_name(element), name)
    for kind, name in first.items():
        if kind not in TYPES:
            yield _error(
                name,
                problem=f"no TensorRT reads the type {kind}",
                fix="use FLOAT, FLOAT16, BFLOAT16, INT8, INT4 or FLOAT8E4M3FN",
            )
        elif kind in TYPES_SINCE:
            yield from graph.since(name, f"the type {kind}", TYPES_SINCE[kind], "export in fp32, fp16 or int8")
            if graph.target == "dla":
                yield _error(
                    name, problem=f"a DLA computes in FP16 and INT8 only, not {kind}", fix="export in fp16 or int8"
                )
        elif kind == "DOUBLE":
            yield _warning(
                name,
                problem="TensorRT has no float64: it computes in float32 and clamps what is larger",
                fix="export in float32",
            )
    if graph.oldest < (9, 0):
        yield from _large_integers(graph)


def _large_integers(graph: _Graph) -> Iterator[Finding]:
    for name, tensor in graph.constants.items():
        if tensor.data_type == TensorProto.INT64:
            value = graph.value(name)
            # the largest and smallest are how exporters write "to the end", which clamping keeps
            if value is not None and np.any((np.abs(value.astype(np.float64)) > 2**31 - 1) & (np.abs(value) < 2**62)):
                yield _warning(
                    name,
                    problem="TensorRT before 9.0 has no int64: values beyond the range of int32 are clamped",
                    fix="use smaller values, or TensorRT 10 or newer",
                )


def _operators(graph: _Graph) -> Iterator[Finding]:
    functions = {(function.domain, function.name) for function in graph.model.functions}
    inside = [node for function in graph.model.functions for node in function.node]
    for node in [*graph.nodes, *inside]:
        kind = node.op_type
        if (node.domain, kind) in functions:
            yield from graph.since(_label(node), f"the local function {kind}", (9, 0), "inline the functions")
        elif node.domain in DEFAULT_DOMAINS:
            if kind not in OPERATORS:
                yield _error(
                    _label(node),
                    problem=f"no TensorRT reads the operator {kind}",
                    fix=_REPLACEMENTS.get(kind, "write it with other operators, or as a plugin of that name"),
                )
            elif kind in OPERATORS_SINCE:
                yield from graph.since(
                    _label(node), f"the operator {kind}", OPERATORS_SINCE[kind], "write it with others"
                )
        elif not kind.startswith(TENSORRT_PREFIX):
            known = kind in OPERATORS
            yield Finding(
                severity="warning" if known else "error",
                node=_label(node),
                problem=f"{kind} is of the domain {node.domain}: "
                + (
                    "read as ONNX's operator of that name"
                    if known
                    else "refused unless a plugin of that name is loaded"
                ),
                fix="export before a runtime's own optimisations, with ONNX operators only",
            )
        if kind == "MaxPool" and len(node.output) > 1 and node.output[1]:
            yield _error(
                _label(node),
                problem="TensorRT has no second output (the indices) for MaxPool",
                fix="remove the second output",
            )


_REPLACEMENTS = {
    "QLinearConv": "quantise in the QDQ format, not in QOperator",
    "QLinearMatMul": "quantise in the QDQ format, not in QOperator",
    "ConvInteger": "quantise statically in the QDQ format",
    "MatMulInteger": "quantise statically in the QDQ format",
    "DynamicQuantizeLinear": "quantise statically in the QDQ format",
}


def _values(graph: _Graph) -> Iterator[Finding]:
    """Weights that are not finite: mostly FP16 that overflowed in a conversion."""
    for name, tensor in graph.constants.items():
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            value = graph.value(name)
            if value is not None and not np.isfinite(value).all():
                if all(node.op_type in _QDQ for node in graph.readers.get(name, [])):
                    continue  # reported as a scale
                yield _error(
                    name,
                    problem=f"{int((~np.isfinite(value)).sum())} values are infinite or not a number: so will the answers be",
                    fix="check the weights; in FP16 nothing may exceed 65504",
                )


# --- quantisation ---------------------------------------------------------------------------------------------------------


def _quantisation(graph: _Graph) -> Iterator[Finding]:
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op_type in _QDQ and len(node.input) >= 2:
            yield from _elements(graph, node)
            for name in node.input[1:3]:
                if name and name not in seen:
                    seen.add(name)
                    yield from _scale(graph, node, name) if name == _input(node, 1) else _zero_point(graph, node, name)
            if node.op_type == "QuantizeLinear" and not graph.is_constant(_input(node, 0)):
                yield from _activation(graph, node)
    for node in graph.nodes:
        if node.op_type in _WEIGHTED and len(node.input) > 1:
            yield from _weight(graph, node)
        if node.op_type == "Relu":
            yield from _before_relu(graph, node)


def _elements(graph: _Graph, node: Any) -> Iterator[Finding]:
    """The type that is quantised to or from."""
    if node.op_type == "DequantizeLinear":
        element = graph.types.get(_input(node, 0)) if _input(node, 0) in graph.constants else None
        if element == TensorProto.INT32:
            yield _error(
                _label(node),
                problem="a bias is quantised to INT32; TensorRT has no INT32 dequantisation and refuses it",
                fix="leave biases in floating point (onnxruntime: QuantizeBias=False)",
            )
        elif element == TensorProto.UINT8:
            yield _error(
                _label(node),
                problem="weights are quantised to UINT8; TensorRT reads INT8",
                fix="quantise the weights symmetrically to INT8 (onnxruntime: QuantType.QInt8, WeightSymmetric)",
            )
        return
    asked = _attribute(node, "output_dtype", 0)
    zero = _input(node, 2)
    element = graph.types.get(zero) if zero else asked or TensorProto.UINT8  # ONNX's own default
    if element == TensorProto.UINT8:
        yield _error(
            _label(node),
            problem="it quantises to UINT8"
            + (" (no zero point is given)" if not zero else "")
            + "; TensorRT takes INT8, so that the upper half of the range is cut off",
            fix="quantise symmetrically to INT8 (onnxruntime: QuantType.QInt8, ActivationSymmetric)",
        )


def _scale(graph: _Graph, node: Any, name: str) -> Iterator[Finding]:
    value = graph.value(name)
    if value is not None and not (value.astype(np.float64) > 0).all():
        yield _error(
            _label(node),
            problem=f"the scale {name} is not positive everywhere; TensorRT refuses it",
            fix="calibrate with images that reach every layer; give channels of zeros a positive scale",
        )
    data, scale = graph.shapes.get(_input(node, 0), ()), graph.shapes.get(name, ())
    if not data or None in data or graph.size(name) <= 1:
        return
    axis = _attribute(node, "axis", 1) % len(data)
    block = _attribute(node, "block_size", 0)
    blocked = (
        tuple(-(-(size or 0) // block) if index == axis else size for index, size in enumerate(data)) if block else ()
    )
    if scale != (blocked or (data[axis],)):
        yield _error(
            _label(node),
            problem=f"a scale of shape {_shape(scale)} does not fit data of shape {_shape(data)} along axis {axis}"
            + (f" in blocks of {block}" if block else "")
            + "; TensorRT refuses it",
            fix="quantise again with the axis that the scales belong to",
        )


def _shape(sizes: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes)


def _zero_point(graph: _Graph, node: Any, name: str) -> Iterator[Finding]:
    value = graph.value(name)
    if value is not None and value.astype(np.float64).any():
        yield _error(
            _label(node),
            problem=f"the zero point {name} is not 0; TensorRT's quantisation is symmetric and refuses it",
            fix="quantise symmetrically (onnxruntime: ActivationSymmetric and WeightSymmetric)",
        )


def _activation(graph: _Graph, node: Any) -> Iterator[Finding]:
    if graph.size(_input(node, 1)) > 1 and not _attribute(node, "block_size", 0):
        yield _warning(
            _label(node),
            problem="an activation has a scale per channel; TensorRT quantises activations per tensor only, so the layer "
            "behind it is not computed in INT8",
            fix="use one scale for the tensor",
        )
    for reader in graph.readers.get(node.output[0], []):
        for after in graph.readers.get(reader.output[0], []) if reader.op_type == "DequantizeLinear" else ():
            if after.op_type == "LRN":
                yield _warning(
                    _label(after),
                    problem="the input of local response normalisation is quantised; it squares the rounding error, and "
                    "TensorRT has no INT8 kernel for it",
                    fix="leave LRN out of quantisation",
                )


def _weight(graph: _Graph, node: Any) -> Iterator[Finding]:
    """How the weight of a layer is quantised: per output channel, in the axis that TensorRT fuses."""
    writer = graph.writers.get(_input(node, 1))
    if writer is None or writer.op_type != "DequantizeLinear" or not graph.is_constant(_input(node, 1)):
        yield from _left_out(graph, node)
        return
    rank = len(graph.shapes.get(_input(writer, 0), ()))
    if graph.size(_input(writer, 1)) == 1:
        if graph.types.get(_input(writer, 0)) == TensorProto.INT8:
            yield _warning(
                _label(node),
                problem="one scale for all of the weights; it is set by the largest output channel, and the others lose bits",
                fix="quantise weights per output channel (onnxruntime: per_channel=True)",
            )
        return
    output = {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)
    if node.op_type == "Gemm":
        output = 0 if _attribute(node, "transB", 0) else 1
    axis = _attribute(writer, "axis", 1) % rank if rank else output
    if not _attribute(writer, "block_size", 0) and axis != output:
        yield _warning(
            _label(node),
            problem=f"the scales of the weights are along axis {axis}, not {output}, the output channels; TensorRT does not "
            "compute the layer in INT8",
            fix=f"quantise the weights along axis {output}",
        )


def _left_out(graph: _Graph, node: Any) -> Iterator[Finding]:
    """A layer in floating point in a network whose other activations are quantised."""
    quantised = any(
        other.op_type in _WEIGHTED and len(other.input) > 1 and _reads_quantised(graph, other) for other in graph.nodes
    )
    if quantised and graph.is_constant(_input(node, 1)) and not _reads_quantised(graph, node):
        yield _warning(
            _label(node),
            problem="the layer stays in floating point in a quantised network",
            fix="quantise it too, unless it was left out for its accuracy, or for a kernel that TensorRT has not",
        )


def _reads_quantised(graph: _Graph, node: Any) -> bool:
    writer = graph.writers.get(_input(node, 0))
    return writer is not None and writer.op_type == "DequantizeLinear"


def _before_relu(graph: _Graph, node: Any) -> Iterator[Finding]:
    writer = graph.writers.get(_input(node, 0))
    if writer is None or writer.op_type != "DequantizeLinear":
        return
    quantise = graph.writers.get(_input(writer, 0))
    if quantise is not None and quantise.op_type == "QuantizeLinear":
        layer = graph.writers.get(_input(quantise, 0))
        if layer is not None and layer.op_type in _WEIGHTED:
            yield _warning(
                _label(quantise),
                problem=f"a quantise/dequantise pair stands between {_label(layer)} and its Relu, and keeps TensorRT from "
                "fusing them",
                fix="quantise behind the Relu, at the input of the next layer",
            )


# --- local response normalisation -----------------------------------------------------------------------------------------


def _normalisation(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        half = graph.types.get(_input(node, 0)) == TensorProto.FLOAT16 if node.input else False
        if node.op_type == "LRN" and half:
            yield _warning(
                _label(node),
                problem="local response normalisation in FP16 squares its input, which overflows above 255",
                fix="cast to float32 before it and back behind it",
            )
        if node.op_type == "AveragePool" and len(graph.shapes.get(_input(node, 0), ())) == 5:
            square = _square_before(graph, node)
            problem = (
                "a traced LocalResponseNorm, decomposed around an AveragePool in 5 dimensions"
                if square
                else "an AveragePool in 5 dimensions"
            )
            yield Finding(
                severity="error" if graph.target == "dla" else "warning",
                node=_label(node),
                problem=problem
                + (
                    ": a DLA pools in 2 dimensions only"
                    if graph.target == "dla"
                    else ": several versions refuse it, others are slow"
                ),
                fix="write ONNX's LRN operator instead, as `alexnet-edge export` does"
                if square
                else "pool in 4 dimensions",
            )
            if square is not None and graph.types.get(_input(square, 0)) == TensorProto.FLOAT16:
                yield _warning(
                    _label(square),
                    problem="local response normalisation in FP16 squares its input, which overflows above 255",
                    fix="cast to float32 before it and back behind it",
                )


def _square_before(graph: _Graph, node: Any) -> Any:
    """The node that squares, behind reshaping and padding, what `node` averages; None where nothing does."""
    writer = graph.writers.get(_input(node, 0))
    for _ in graph.nodes:  # a damaged graph may go in circles
        if writer is None or writer.op_type not in ("Pad", "Cast", *_TRANSPARENT):
            break
        writer = graph.writers.get(_input(writer, 0))
    if writer is None:
        return None
    if writer.op_type == "Mul":
        return writer if _input(writer, 0) == _input(writer, 1) else None
    if writer.op_type == "Pow":
        exponent = graph.value(_input(writer, 1))
        return writer if exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2 else None
    return None


# --- DLA ------------------------------------------------------------------------------------------------------------------


def _dla(graph: _Graph) -> Iterator[Finding]:
    if graph.target != "dla":
        return
    yield from _dla_inputs(graph)
    for node in graph.nodes:
        yield from _dla_sizes(graph, node)
        yield from _dla_limits(graph, node)
    elsewhere: dict[str, list[Any]] = {}
    for node in graph.nodes:
        if node.op_type not in DLA_OPERATORS and not graph.is_constant(node.output[0] if node.output else ""):
            elsewhere.setdefault(node.op_type, []).append(node)
    for kind, nodes in elsewhere.items():
        count = f" ({len(nodes)} nodes)" if len(nodes) > 1 else ""
        yield _warning(
            _label(nodes[0]),
            problem=f"{kind}{count} is no layer of a DLA: it runs on the GPU with GPU fallback, and is refused without",
            fix=_DLA_REPLACEMENTS.get(kind, "write it with layers that a DLA has"),
        )


_DLA_REPLACEMENTS = {
    "Gemm": "write fully connected layers as convolutions, as `export --dla-core` does",
    "MatMul": "write fully connected layers as convolutions, as `export --dla-core` does",
    "QuantizeLinear": "on JetPack 6 quantise with TensorRT's calibrator: `export --int8 --calibrator entropy2`",
    "DequantizeLinear": "on JetPack 6 quantise with TensorRT's calibrator: `export --int8 --calibrator entropy2`",
}


def _dla_inputs(graph: _Graph) -> Iterator[Finding]:
    for entry in graph.model.graph.input:
        shape = graph.shapes.get(entry.name, ())
        if entry.name in graph.constants or not shape:
            continue
        if None in shape[1:]:
            yield _error(
                entry.name,
                problem="a DLA has no free dimensions, and this one has some besides the batch",
                fix="export with fixed sizes",
            )
        elif shape[0] is None:
            yield _warning(
                entry.name,
                problem="a DLA has no free dimensions: the batch must be one number",
                fix="export with a fixed batch, or give --min-batch, --opt-batch and --max-batch the same number",
            )
        elif shape[0] > DLA_MOST_BATCH:
            yield _error(
                entry.name,
                problem=f"a DLA takes batches of up to {DLA_MOST_BATCH}, not {shape[0]}",
                fix="export with a smaller batch",
            )


def _dla_sizes(graph: _Graph, node: Any) -> Iterator[Finding]:
    """Dimensions of what a layer reads: the layer that makes the large one is the fault's place, but not its fix."""
    shape = next((graph.shapes.get(name, ()) for name in node.input if name and not graph.is_constant(name)), ())
    largest = max((size for size in shape[1:] if size is not None), default=0)
    if largest > DLA_MOST and node.op_type != "Flatten":
        yield _error(
            _label(node),
            problem=f"its input has a dimension of {largest}; a DLA takes up to {DLA_MOST}",
            fix="write the layer as a convolution over its unflattened input (AlexNet's fc6: 256 channels, 6x6)"
            if node.op_type in ("Gemm", "MatMul")
            else "split the layer",
        )


def _dla_limits(graph: _Graph, node: Any) -> Iterator[Finding]:
    limits: list[str] = []
    if node.op_type == "Conv":
        weight = graph.shapes.get(_input(node, 1), ())
        kernel = [size for size in weight[2:] if size is not None]
        if max(kernel, default=1) > DLA_MOST_KERNEL:
            limits.append(f"a kernel of {max(kernel)}, where {DLA_MOST_KERNEL} is the most")
        strides = _attribute(node, "strides", [1])
        if max(strides) > DLA_MOST_STRIDE:
            limits.append(f"a stride of {max(strides)}, where {DLA_MOST_STRIDE} is the most")
        if weight and (weight[0] or 0) > DLA_MOST:
            limits.append(f"{weight[0]} output channels, where {DLA_MOST} is the most")
        if len(weight) > 4:
            limits.append("3 spatial dimensions, where 2 are the most")
    elif node.op_type == "LRN" and _attribute(node, "size") not in DLA_LRN_SIZES:
        limits.append(f"a window of {_attribute(node, 'size')}, where {', '.join(map(str, DLA_LRN_SIZES))} are allowed")
    for limit in limits:
        yield _error(
            _label(node),
            problem=f"it has {limit} on a DLA",
            fix="change the layer, or let it run on the GPU with --gpu-fallback",
        )


_RULES: Sequence[Callable[[_Graph], Iterable[Finding]]] = (
    _file,
    _types,
    _operators,
    _quantisation,
    _normalisation,
    _values,
    _unused,
    _dla,
)
