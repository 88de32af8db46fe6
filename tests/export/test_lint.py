"""What is refused is what NVIDIA's parser refuses; what is added, and what is guessed without a parser, is shown here."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rtx_engine import Parsed, library

from alexnet_edge.errors import UserError
from alexnet_edge.export.engines.parser import ParserAnswer, parse
from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint
from alexnet_edge.export.lint import OPERATORS, TARGETS, TYPES, Finding, lint
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.load import load_checkpoint

WEIGHT = np.arange(-54, 54, dtype=np.int8).reshape(4, 3, 3, 3)
SCALES = np.full(4, 0.01, np.float32)
ZEROS = np.zeros(4, np.int8)
SCALE, ZERO = np.float32(0.1), np.int8(0)

Find = Callable[..., tuple[Finding, ...]]
Parse = Callable[[onnx.ModelProto | Path], Parsed]


def model(
    nodes: Sequence[Any],
    constants: Mapping[str, Any] | None = None,
    *,
    x: Any = (TensorProto.FLOAT, [1, 3, 8, 8]),
    y: Any = (TensorProto.FLOAT, None),
    opset: int = 17,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", *y)],
        [
            value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
            for name, value in (constants or {}).items()
        ],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 19 else 10)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """`node("Add", "x k", "y")` is named after its first output."""
    names = outputs.split()
    return helper.make_node(kind, inputs.split(), names, name=names[0], **attributes)


def quantised_conv(
    *,
    x_scale: Any = SCALE,
    x_zero: Any = ZERO,
    weight: Any = WEIGHT,
    w_scale: Any = SCALES,
    w_zero: Any = ZEROS,
    axis: int = 0,
    bias: str = "float",
    between: bool = False,
) -> onnx.ModelProto:
    """x, quantised and dequantised, through one INT8 convolution and its Relu: what TensorRT likes, unless told else."""
    constants = {
        "xs": np.asarray(x_scale),
        "xz": np.asarray(x_zero),
        "w": weight,
        "ws": np.asarray(w_scale),
        "wz": np.asarray(w_zero),
    }
    per_channel = {"axis": 1} if np.ndim(x_scale) else {}
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq", **per_channel),
        node("DequantizeLinear", "xq xs xz", "xd", **per_channel),
        node("DequantizeLinear", "w ws wz", "wd", **({"axis": axis} if np.ndim(w_scale) else {})),
    ]
    if bias == "int32":
        constants |= {"b": np.arange(4, dtype=np.int32), "bs": SCALES, "bz": np.zeros(4, np.int32)}
        nodes.append(node("DequantizeLinear", "b bs bz", "bd", axis=0))
    else:
        constants["bd"] = np.zeros(4, np.float32)
    nodes.append(node("Conv", "xd wd bd", "conv"))
    if between:
        constants["cs"] = np.float32(0.1)
        nodes += [node("QuantizeLinear", "conv cs xz", "cq"), node("DequantizeLinear", "cq cs xz", "cd")]
    nodes.append(node("Relu", "cd" if between else "conv", "y"))
    return model(nodes, constants)


def written(folder: Path, built: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(built.SerializeToString())
    return path


def no_parser(*_: Any) -> None:
    """Where none is installed."""


def guessed(path: Path, target: str = "tensorrt") -> tuple[Finding, ...]:
    report = lint(path, target, ask=no_parser)
    assert report.parser is None
    return report.findings


def compare(findings: Sequence[Finding], expected: str) -> None:
    """Check that the findings, in their order, are the lines of `expected`: severity, node, words of the problem."""
    rows = [line.split(" ", 2) for line in expected.splitlines()]
    assert [[finding.severity, finding.node] for finding in findings] == [row[:2] for row in rows], findings
    for finding, row in zip(findings, rows, strict=True):
        assert row[2] in finding.problem


@pytest.fixture
def find(tmp_path: Path) -> Find:
    """The findings where there is no parser: what is added to its answer, and the guess."""

    def guess(built: onnx.ModelProto, target: str = "tensorrt") -> tuple[Finding, ...]:
        return guessed(written(tmp_path, built), target)

    return guess


@pytest.fixture(scope="module")
def rtx() -> Any:
    return library()


@pytest.fixture
def parsed(rtx: Any, tmp_path: Path) -> Parse:
    def parse(built: onnx.ModelProto | Path) -> Parsed:
        return Parsed(built if isinstance(built, Path) else written(tmp_path, built))

    return parse


def blocks(axis: int, scales: tuple[int, ...]) -> onnx.ModelProto:
    """A Gemm of 64 outputs and 128 inputs with INT4 weights in blocks of 32."""
    weight = helper.make_tensor("w", TensorProto.INT4, [64, 128], [1] * (64 * 128))
    nodes = [node("DequantizeLinear", "w ws", "wd", axis=axis, block_size=32), node("Gemm", "x wd", "y", transB=1)]
    return model(
        nodes, {"w": weight, "ws": np.full(scales, 0.1, np.float32)}, x=(TensorProto.FLOAT, [1, 128]), opset=21
    )


def single(kind: str, **attributes: Any) -> onnx.ModelProto:
    return model([node(kind, "x", "y", **attributes)])


def branches() -> onnx.ModelProto:
    """An If with an unknown operator in its second branch."""
    parts = [
        helper.make_graph(
            [node(kind, "x", name)], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )
        for kind, name in (("Relu", "a"), ("Frobnicate", "b"))
    ]
    return model([node("If", "c", "y", then_branch=parts[0], else_branch=parts[1])], {"c": np.array(False)})


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "int32-bias": (quantised_conv(bias="int32"), "bd DequantizeLinear; Int32; QuantizeBias=False"),
    "activation-zero-point": (quantised_conv(x_zero=np.int8(3)), "xq QuantizeLinear; zero point; symmetrically"),
    "weight-zero-point": (
        quantised_conv(w_zero=np.array([0, 0, 1, 0], np.int8)),
        "wd DequantizeLinear; zero point; symmetrically",
    ),
    "uint8-weights": (
        quantised_conv(weight=WEIGHT.view(np.uint8), w_zero=ZEROS.view(np.uint8)),
        "wd DequantizeLinear; UINT8; QInt8",
    ),
    "scale-of-zero": (quantised_conv(x_scale=np.float32(0)), "xq QuantizeLinear; positive; calibrate"),
    "scale-not-a-number": (quantised_conv(x_scale=np.float32(np.nan)), "xq QuantizeLinear; positive; calibrate"),
    "one-negative-scale": (
        quantised_conv(w_scale=np.array([1, 1, -1, 1], np.float32)),
        "wd DequantizeLinear; positive; calibrate",
    ),
    "too-few-scales": (
        quantised_conv(w_scale=SCALES[:3], w_zero=ZEROS[:3]),
        "wd DequantizeLinear; number of scales = 3; axis",
    ),
    "blocks-along-the-other-axis": (
        blocks(0, (64, 4)),
        "wd DequantizeLinear; only the quantization axis may be blocked; axis",
    ),
    "int16": (
        model(
            [node("Cast", "k", "kf", to=TensorProto.FLOAT), node("Mul", "x kf", "y")], {"k": np.array([1], np.int16)}
        ),
        "k ; (INT16); type",
    ),
    "strings": (
        model([node("Identity", "x", "y")], x=(TensorProto.STRING, ["N"]), y=(TensorProto.STRING, ["N"])),
        "x ; (STRING); use FLOAT",
    ),
    "dynamic-quantisation": (
        model([node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "y")]),
        "q DynamicQuantizeLinear; no importer for DynamicQuantizeLinear; QDQ format",
    ),
    "no-such-operator": (single("Frobnicate"), "y Frobnicate; Plugin not found; other operators"),
    "fused-by-a-runtime": (
        model(
            [node("FusedConv", "x w", "y", domain="com.microsoft", activation="Relu")],
            {"w": WEIGHT.astype(np.float32)},
            domains=["com.microsoft"],
        ),
        "y FusedConv; Plugin not found; other operators",
    ),
    "pooling-indices": (
        model([node("MaxPool", "x", "y i", kernel_shape=[2, 2]), node("Identity", "i", "j")]),
        "y MaxPool; more than 1 output; remove the outputs",
    ),
    "input-from-nowhere": (model([node("Add", "x gone", "y")]), "y Add; not registered; export it again"),
    "no-inputs": (model([node("Conv", "", "y")]), "y Conv; does not say why; change that setting"),
    "without-a-name": (
        model([helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Frobnicate", ["r"], ["y"])]),
        "y Frobnicate; Plugin not found; other operators",
    ),
    "inside-a-branch": (branches(), "b Frobnicate; Plugin not found; other operators"),
    "in-circles": (
        model([node("Identity", "b", "a"), node("Identity", "a", "b"), node("Gemm", "x a", "y")]),
        "model.onnx ; topologically; export it again",
    ),
}
"""The model; the node with its operator, words of the problem, words of the fix."""

NOT_GUESSED = {
    "too-few-scales",
    "blocks-along-the-other-axis",
    "input-from-nowhere",
    "in-circles",
    "pooling-indices",
    "no-inputs",
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_the_parser_refuses_is_an_error_with_its_node_and_the_fix(
    fault: str, rtx: Any, tmp_path: Path, parsed: Parse
) -> None:
    built, expected = REFUSED[fault]
    place, words, fix = expected.split("; ")
    path = written(tmp_path, built)
    report = lint(path, "rtx")
    assert report.parser == f"TensorRT-RTX {rtx.__version__}"
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert [f"{finding.node} {finding.operator}" for finding in errors] == [place]
    assert words in errors[0].problem
    assert fix in errors[0].fix
    assert "\n" not in errors[0].problem
    assert not parsed(built).accepted
    assert any(finding.severity == "error" for finding in guessed(path, "rtx")) == (fault not in NOT_GUESSED)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "clean",
    [
        quantised_conv(),
        model([node("Conv", "x w", "c"), node("Relu", "c", "y")], {"w": WEIGHT.astype(np.float32)}),
        single("LRN", size=5),
    ],
    ids=["int8", "fp32", "lrn"],
)
def test_a_clean_graph_has_no_errors_and_is_parsed(
    clean: onnx.ModelProto, target: str, find: Find, parsed: Parse
) -> None:
    findings = find(clean, target)
    if target == "dla":  # a free batch, and Q/DQ pairs on the GPU, are worth a word there
        assert {finding.severity for finding in findings} <= {"warning"}
    else:
        assert findings == ()
    result = parsed(clean)
    assert result.accepted, result.reasons


def test_int4_blocks_along_the_inputs_are_clean(find: Find, parsed: Parse) -> None:
    built = blocks(1, (64, 4))
    assert find(built, "tensorrt-10") == ()
    assert parsed(built).accepted


QUANTISED = [node("QuantizeLinear", "x s z", "xq"), node("DequantizeLinear", "xq s z", "xd")]
WIDE = [
    node("Cast", "x", "wide", to=TensorProto.DOUBLE),
    node("Mul", "wide k", "m"),
    node("Cast", "m", "y", to=TensorProto.FLOAT),
]
HALF = {"x": (TensorProto.FLOAT16, [1, 3, 8, 8]), "y": (TensorProto.FLOAT16, None)}

ACCEPTED: dict[str, tuple[onnx.ModelProto, str]] = {
    "uint8": (quantised_conv(x_zero=np.uint8(0)), "warning xq quantises to UINT8;"),
    "uint8-by-default": (
        model([node("QuantizeLinear", "x s", "xq"), node("DequantizeLinear", "xq s", "y")], {"s": np.float32(0.1)}),
        "warning xq quantises to UINT8 (no zero point is given)",
    ),
    "float64": (model(WIDE, {"k": np.array(2.0)}), "warning k float64"),
    "per-channel-activation": (
        quantised_conv(x_scale=np.full(3, 0.1, np.float32), x_zero=np.zeros(3, np.int8)),
        "warning xq a scale per channel",
    ),
    "per-tensor-weight": (
        quantised_conv(w_scale=np.float32(0.01), w_zero=np.int8(0)),
        "warning conv one scale for all of the weights",
    ),
    "before-relu": (quantised_conv(between=True), "warning cq between a layer and its Relu"),
    "weight-axis": (quantised_conv(w_scale=SCALES[:3], w_zero=ZEROS[:3], axis=1), "warning conv along axis 1, not 0"),
    "quantised-lrn": (
        model([*QUANTISED, node("LRN", "xd", "y", size=5)], {"s": np.float32(1), "z": ZERO}),
        "warning y squares the rounding error",
    ),
    "fp16-lrn": (model([node("LRN", "x", "y", size=5)], **HALF), "warning y overflows above 255"),
    "domain": (
        model([node("Gelu", "x", "y", domain="com.microsoft")], domains=["com.microsoft"]),
        "warning y read as ONNX's operator of that name",
    ),
}
"""The model, and what is found."""
BUILT_AS = {
    "uint8": ("QUANTIZE", "INT8"),
    "uint8-by-default": ("QUANTIZE", "INT8"),
    "float64": ("ELEMENTWISE", "FLOAT"),
}
"""A kind of layer in TensorRT's network, and its type there."""


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_built_otherwise_slow_or_less_accurate_is_a_warning(name: str, find: Find, parsed: Parse) -> None:
    built, expected = ACCEPTED[name]
    compare(find(built), expected)
    result = parsed(built)
    assert result.accepted
    if name in BUILT_AS:
        assert result.types(BUILT_AS[name][0]) == [BUILT_AS[name][1]]


def left_out() -> onnx.ModelProto:
    """A second convolution, in floating point."""
    built = quantised_conv()
    built.graph.initializer.append(numpy_helper.from_array(np.ones((2, 4, 1, 1), np.float32), "w2"))
    built.graph.node[-1].output[0] = "r"
    built.graph.node.append(node("Conv", "r w2", "y"))
    return built


def matrix(axis: int) -> onnx.ModelProto:
    """A quantised MatMul with a scale for each row or column."""
    constants = {"s": SCALE, "z": ZERO, "w": np.ones((8, 4), np.int8), "ws": np.ones((8, 4)[axis], np.float32)}
    return model(
        [*QUANTISED, node("DequantizeLinear", "w ws", "wd", axis=axis), node("MatMul", "xd wd", "y")], constants
    )


def fixed(kind: str, shape: Sequence[Any], *weight: int, **attributes: Any) -> onnx.ModelProto:
    """One node over an input of that shape, and a weight of ones."""
    constants = {"w": np.ones(weight, np.float32)} if weight else {}
    return model(
        [node(kind, " ".join(["x", *constants]), "y", **attributes)], constants, x=(TensorProto.FLOAT, list(shape))
    )


def reshaped(shape: Sequence[int], batch: Any, *further: Any) -> onnx.ModelProto:
    nodes = [node("Reshape", "x shape", "r" if further else "y"), *further]
    return model(nodes, {"shape": np.array(shape, np.int64)}, x=(TensorProto.FLOAT, [batch, 3, 8, 8]))


FREE, FIXES = "warning x free dimensions (0)", "warning y fixes the batch at 1"
IMAGE = [1, 3, 8, 8]


@pytest.mark.parametrize(
    ("built", "target", "expected"),
    [
        (
            model([node("Mul", "x k", "y")], {"k": np.float16([1, np.inf, 2])}, x=(TensorProto.FLOAT16, [1, 3])),
            "tensorrt",
            "warning k 1 values are infinite",
        ),
        (left_out(), "tensorrt", "warning y stays in floating point"),
        (
            reshaped([1, 3, 2, 4, 8], 1, node("AveragePool", "r", "y", kernel_shape=[2, 2, 2])),
            "tensorrt",
            "warning y it pools in 5 dimensions",  # so shapes follow from small constants
        ),
        (matrix(0), "tensorrt", "warning y the output channels"),  # are the columns
        (matrix(1), "tensorrt", ""),
        (fixed("Relu", IMAGE), "rtx", ""),
        (fixed("Relu", ["N", 3, 8, 8]), "rtx", FREE),
        (fixed("Relu", ["N", 3, "H", "W"]), "rtx", "warning x free dimensions (0, 2, 3)"),
        (reshaped([1, 192], "N"), "tensorrt", f"{FREE}\n{FIXES}"),
        (reshaped([1, -1], "N"), "tensorrt", f"{FREE}\n{FIXES}"),
        (reshaped([1, 192], 1), "tensorrt", ""),
        (reshaped([-1, 192], "N"), "tensorrt", FREE),
        (reshaped([0, -1], "N"), "tensorrt", FREE),
        (reshaped([1, -1, 64], "N"), "tensorrt", FREE),
        *((single("Gelu"), target, expected) for target, expected in (
            ("tensorrt-8.6", "error y the operator Gelu"),
            ("tensorrt", "warning y the operator Gelu"),
            ("tensorrt-10", ""),
            ("tensorrt-11", ""),
        )),
        *((model([node("Relu", "x", "y")], opset=opset), target, expected) for opset, target, expected in (
            (17, "tensorrt-8.6", ""),
            (18, "tensorrt-8.6", "warning model.onnx operator set"),
            (18, "tensorrt", "warning model.onnx operator set"),
            (20, "tensorrt-10", ""),
            (21, "tensorrt-10", "warning model.onnx operator set"),
            (25, "tensorrt-11", ""),
            (26, "tensorrt-11", "warning model.onnx operator set"),
            (26, "rtx", "warning model.onnx operator set"),
            (9, "tensorrt", ""),
            (8, "tensorrt", "warning model.onnx operator set"),
        )),
    ],
)  # fmt: skip
def test_what_is_found_without_a_parser(built: onnx.ModelProto, target: str, expected: str, find: Find) -> None:
    compare(find(built, target), expected)


def traced_lrn(folder: Path) -> Path:
    """PyTorch's LocalResponseNorm as its tracing exporter writes it."""
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.LocalResponseNorm(5))
    path = folder / "traced.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter calls itself old
        torch.onnx.export(network.eval(), (torch.zeros(1, 3, 8, 8),), str(path), dynamo=False, opset_version=17)
    return path


def test_a_traced_local_response_norm_is_recognised(tmp_path: Path) -> None:
    path = traced_lrn(tmp_path)
    for target, severity in (("tensorrt", "warning"), ("dla", "error")):
        (finding,) = [finding for finding in guessed(path, target) if "traced LocalResponseNorm" in finding.problem]
        assert (finding.severity, finding.operator) == (severity, "AveragePool")
        assert "LRN operator" in finding.fix


def test_the_parser_does_not_check_the_operator_set(parsed: Parse) -> None:
    assert parsed(model([node("Relu", "x", "y")], opset=99)).accepted


@pytest.mark.parametrize(
    ("kind", "opset", "severities"),
    [
        ("BFLOAT16", 22, {"tensorrt-8.6": "error", "tensorrt": "warning", "tensorrt-10": "", "dla": "error"}),
        ("INT4", 21, {"tensorrt-8.6": "error", "tensorrt": "warning", "tensorrt-10": "", "rtx": ""}),
        ("FLOAT8E4M3FN", 19, {"tensorrt-8.6": "error", "tensorrt": "warning", "tensorrt-10": "", "tensorrt-11": ""}),
        ("FLOAT4E2M1", 23, {"tensorrt-8.6": "error", "tensorrt-10": "warning", "tensorrt-11": ""}),
        ("UINT4", 21, {"tensorrt-8.6": "error", "tensorrt": "error", "tensorrt-11": "error"}),
    ],
)
def test_types_are_held_against_the_version(kind: str, opset: int, severities: dict[str, str], find: Find) -> None:
    weight = helper.make_tensor("w", getattr(TensorProto, kind), [4, 4], [1] * 16)
    dequantise = node("Cast", "w", "wd", to=TensorProto.FLOAT)
    if kind != "BFLOAT16":
        dequantise = node("DequantizeLinear", "w s", "wd", axis=1)
    constants = {"w": weight} | ({} if kind == "BFLOAT16" else {"s": np.ones(4, np.float32)})
    built = model([dequantise, node("MatMul", "x wd", "y")], constants, x=(TensorProto.FLOAT, [1, 4]), opset=opset)
    for target, severity in severities.items():
        about = [finding.severity for finding in find(built, target) if kind in finding.problem]
        assert set(about) - {"warning"} == {severity} - {"warning", ""}, target
        assert bool(about) == bool(severity), target
    if kind in TYPES:  # the operator set that brings the type is not held against it
        assert not any("operator set" in finding.problem for finding in find(built, "tensorrt-10"))


def test_the_table_of_types_is_the_parser_s(rtx: Any, parsed: Parse) -> None:
    for kind, value in TensorProto.DataType.items():
        if kind in ("UNDEFINED", "STRING"):
            continue
        constant = helper.make_tensor("k", value, [2], [1, 1])
        built = model(
            [node("DequantizeLinear", "k s", "y")]
            if kind.startswith(("INT4", "FLOAT4", "FLOAT8"))
            else [node("Cast", "k", "y", to=TensorProto.FLOAT)],
            {"k": constant, "s": np.ones((), np.float32)},
            opset=23,
        )
        assert parsed(built).accepted == (kind in TYPES), kind


def test_the_table_of_operators_is_the_parser_s(rtx: Any, parsed: Parse) -> None:
    supports = parsed(single("Relu")).parser.supports_operator
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    read = {name for name in known | OPERATORS if supports(name)}
    assert read - OPERATORS == set()
    assert OPERATORS - read == {"DeformConv"}  # a plugin, which TensorRT-RTX does not bring


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (fixed("Relu", ["N", 3, 8, 8]), "warning x the batch must be one number"),
        (fixed("Relu", [1, 3, "H", 8]), "error x free dimensions"),
        (fixed("Relu", [5000, 3, 8, 8]), "error x batches of up to 4096"),
        (fixed("LRN", [1, 8, 8, 8], size=4), "error y a window of 4"),
        (fixed("Conv", [1, 1, 64, 64], 1, 1, 33, 33), "error y a kernel of 33"),
        (fixed("Conv", [1, 1, 64, 64], 1, 1, 3, 3, strides=[9, 9]), "error y a stride of 9"),
        (fixed("Erf", IMAGE), "warning y Erf is no layer of a DLA"),
        (fixed("Relu", [1, 9000, 1, 1]), "error y an input dimension of 9000"),
    ],
)
def test_limits_of_the_dla(built: onnx.ModelProto, expected: str, find: Find) -> None:
    compare(find(built, "dla"), expected)
    assert not any("DLA" in finding.problem for finding in find(built, "tensorrt-10"))


POOLS = ("averagepool", "lppool", "maxpool")
"""Their 47 models take longer to make than the other 1,837."""


def operator_models(*, every: bool) -> dict[str, onnx.ModelProto]:
    """The models of ONNX's operator tests by name: all, or every eighth of those that are made quickly."""
    from onnx.backend.test.case import node as package

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry in pkgutil.iter_modules(package.__path__):
            if every or entry.name not in POOLS:
                importlib.import_module(f"{package.__name__}.{entry.name}")
        cases = package.collect_testcases() if every else package._NodeTestCases  # the first also makes the slow ones
    return {case.name: case.model for case in cases[:: 1 if every else 8] if case.model is not None}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"])
def test_the_verdict_on_onnx_s_operator_models_is_the_parser_s(every: bool, rtx: Any, tmp_path: Path) -> None:
    models = operator_models(every=every)
    assert len(models) >= (1884 if every else 200)

    def ask(path: Path, *_: Any) -> ParserAnswer:
        return ParserAnswer(parser="TensorRT-RTX", refusals=parse(rtx, path))

    verdicts: dict[str, tuple[bool, bool, bool]] = {}
    for name, built in models.items():
        path = written(tmp_path, built)
        accepted = Parsed(path).accepted
        errors = [
            not any(finding.severity == "error" for finding in lint(path, target, ask=ask).findings)
            for target in ("rtx", "tensorrt")
        ]
        verdicts[name] = (accepted, *errors)
    assert {name: verdict for name, verdict in verdicts.items() if len(set(verdict)) > 1} == {}
    assert {accepted for accepted, *_ in verdicts.values()} == {True, False}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a model\n" * 40,
        b"\x00" * 64,
        b"PK\x03\x04" + b"\x00" * 60,
        b"{}",
        quantised_conv().SerializeToString()[:-200],
        single("Relu").SerializeToString().replace(b"Relu", b"Re\xffu"),
    ],
    ids=["empty", "text", "zeros", "zip", "json", "cut short", "a name that is no text"],
)
def test_a_file_that_is_no_onnx_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not an ONNX file, or a damaged one"):
        lint(path)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("gone.onnx", "tensorrt", "no such ONNX file"),
        (".", "tensorrt", "no such ONNX file"),
        ("model.onnx", "tensorrt-7", r"no such target: tensorrt-7.*tensorrt-8\.6"),
    ],
)
def test_what_cannot_be_looked_through(name: str, target: str, message: str, tmp_path: Path) -> None:
    written(tmp_path, single("Relu"))
    with pytest.raises(UserError, match=message):
        lint(tmp_path / name, target)


def run_inspect(path: Path, *arguments: str, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command itself; with the modules in `packages` before those that are installed."""
    environment = os.environ | ({} if packages is None else {"PYTHONPATH": str(packages)})
    command = [sys.executable, "-m", "alexnet_edge", "inspect", "--for", "rtx", *arguments, str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_command_names_the_parser(tmp_path: Path, rtx: Any) -> None:
    run = run_inspect(written(tmp_path, single("Frobnicate")), "--json")
    report = json.loads(run.stdout)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert report["parser"] == f"TensorRT-RTX {rtx.__version__}"
    (finding,) = report["findings"]
    assert (finding["severity"], finding["node"], finding["operator"]) == ("error", "y", "Frobnicate")


def test_the_command_says_that_it_guesses_without_a_parser(tmp_path: Path) -> None:
    for name in ("tensorrt_rtx", "tensorrt"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    run = run_inspect(written(tmp_path, single("Relu")), packages=tmp_path)
    assert run.returncode == 0
    assert "a guess, no parser of NVIDIA's can be asked here" in run.stdout


def test_a_file_beyond_protobuf_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as stream:
        stream.truncate(2**31)  # sparse: takes no room on the disk
    (finding,) = lint(path).findings
    assert (finding.severity, finding.node) == ("error", "large.onnx")
    assert "2.0 GiB" in finding.problem
    assert "external data" in finding.fix


def external(folder: Path) -> Path:
    built = model([node("Conv", "x w", "y")], {"w": np.ones((4, 3, 3, 3), np.float32)})
    path = folder / "model.onnx"
    onnx.save_model(built, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


@pytest.mark.parametrize("content", [None, b"short"], ids=["missing", "cut short"])
def test_external_data_is_read_where_it_is_there(tmp_path: Path, rtx: Any, content: bytes | None) -> None:
    path = external(tmp_path)
    assert lint(path, "rtx").findings == guessed(path) == ()
    (tmp_path / "weights.bin").unlink()
    if content is not None:
        (tmp_path / "weights.bin").write_bytes(content)
    (finding,) = lint(path, "rtx").findings
    assert (finding.severity, finding.node) == ("error", "w")
    assert "external data" in finding.fix
    assert bool(guessed(path)) == (content is None)


def test_external_data_outside_the_folder_is_not_opened(tmp_path: Path) -> None:
    built = onnx.load_model(str(external(tmp_path)), load_external_data=False)
    entries = built.graph.initializer[0].external_data
    next(entry for entry in entries if entry.key == "location").value = "../../etc/passwd"
    assert guessed(written(tmp_path, built))


def test_nodes_without_inputs_do_not_crash(find: Find) -> None:
    kinds = ("QuantizeLinear", "DequantizeLinear", "Conv", "Gemm", "LRN", "AveragePool", "Relu", "MaxPool")
    built = model([node(kind, "", f"y{index}") for index, kind in enumerate(kinds)] + [node("Relu", "x", "y")])
    for target in TARGETS:
        assert find(built, target)


def test_errors_come_first_and_once(find: Find) -> None:
    findings = find(quantised_conv(between=True, bias="int32", x_zero=np.int8(3)))
    assert [finding.severity for finding in findings] == sorted(finding.severity for finding in findings)
    assert len(set(findings)) == len(findings)
    assert {finding.severity for finding in findings} == {"error", "warning"}


@pytest.mark.parametrize("name", ["model.json", "model.onnxtxt"])
def test_the_end_of_the_name_does_not_matter(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, single("Relu")).rename(tmp_path / name)
    assert guessed(path) == ()


@pytest.fixture(scope="module")
def int8(checkpoint: Checkpoint) -> bytes:
    built = onnx_from_checkpoint(checkpoint, precision="int8", amax=dict.fromkeys(LAYER_NAMES, 4.0))
    return built.SerializeToString()


def besides_the_batch(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Without the warning that a free batch needs a profile: every graph of this package has one."""
    return tuple(finding for finding in findings if not finding.problem.startswith("free dimensions (0)"))


def by_name(graph: Any, name: str) -> Any:
    return next(entry for entry in graph.node if entry.name == name)


def test_the_real_int8_graph_is_clean(int8: bytes, tmp_path: Path, parsed: Parse) -> None:
    path = tmp_path / "int8.onnx"
    path.write_bytes(int8)
    for target in TARGETS:
        severities = {finding.severity for finding in besides_the_batch(guessed(path, target))}
        assert severities <= ({"warning", "error"} if target == "dla" else set()), target
    result = parsed(path)
    assert result.accepted, result.reasons
    assert result.types("QUANTIZE") == ["INT8"] * 8


def test_fc6_is_too_wide_for_a_dla_until_it_is_a_convolution(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint("two-tower"))
    path = written(tmp_path, onnx_from_checkpoint(checkpoint, precision="fp16"))
    wide = [finding for finding in guessed(path, "dla") if finding.severity == "error"]
    assert {finding.node for finding in wide} >= {"fc6"}
    assert all("9216" in finding.problem for finding in wide)
    rewritten = onnx_from_checkpoint(checkpoint, precision="fp16", for_dla=1)
    assert not [finding for finding in guessed(written(tmp_path, rewritten), "dla") if finding.severity == "error"]


def test_the_real_fp16_graph_is_clean_until_its_norm_is_fp16(checkpoint: Checkpoint, find: Find) -> None:
    built = onnx_from_checkpoint(checkpoint, precision="fp16")
    assert besides_the_batch(find(built)) == ()
    by_name(built.graph, "conv1/lrn").input[0] = "conv1/relu"
    built.graph.node.remove(by_name(built.graph, "conv1/lrn/fp32"))
    by_name(built.graph, "conv1/pool").input[0] = "conv1/lrn"
    built.graph.node.remove(by_name(built.graph, "conv1/lrn/fp16"))
    del built.graph.value_info[:]
    compare(besides_the_batch(find(built)), "warning conv1/lrn overflows above 255")


@pytest.mark.parametrize(("precision", "kind"), [("bf16", "BFLOAT16"), ("fp8", "FLOAT8E4M3FN"), ("int4-fc", "INT4")])
def test_the_newer_precisions_are_clean_where_their_type_is_read(
    checkpoint: Checkpoint, precision: Any, kind: str, tmp_path: Path
) -> None:
    amax = dict.fromkeys(LAYER_NAMES, 4.0) if precision == "fp8" else None
    path = written(tmp_path, onnx_from_checkpoint(checkpoint, precision=precision, amax=amax))
    left_out = ["conv1"] if precision == "fp8" else []  # its kernel is too large for FP8, see `layer_types`
    for target in ("tensorrt-10", "rtx"):
        findings = besides_the_batch(guessed(path, target))
        assert [(finding.node, finding.severity) for finding in findings] == [(name, "warning") for name in left_out]
    findings = besides_the_batch(guessed(path, "tensorrt-8.6"))
    (finding,) = (finding for finding in findings if finding.node not in left_out)
    assert finding.severity == "error"
    assert kind in finding.problem
