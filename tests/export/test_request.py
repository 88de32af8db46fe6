"""A request is refused where it is made, without a file or a machine; what is left is resolved for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alexnet_edge.errors import UserError
from alexnet_edge.export import request as module
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.graphs.targets import TARGETS, Target
from alexnet_edge.export.request import CalibrationOptions, CorrectionOptions, ExportRequest, SearchOptions, resolve
from alexnet_edge.export.triton import TritonOptions

TABLE = Path("a.table")


@pytest.fixture(autouse=True)
def no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine must not be looked at while a request is made."""

    def looked() -> Target:
        raise AssertionError("a request looked at the machine")

    monkeypatch.setattr(module, "this_machine_or_none", looked)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "tflite"}, "--format has no such choice: tflite; choose one of all, torchscript"),
        ({"target": "cpu-mips"}, "--target has no such choice: cpu-mips"),
        ({"fp16": True, "int8": True}, "an artifact has one precision: --fp16 --int8"),
        ({"threads": 0}, "threads must be 1 or more: 0"),
        ({"checkpoint": Path("a"), "onnx": Path("b")}, "one source: --checkpoint --onnx"),
        ({"recommended": True, "fp16": True}, "--recommended chooses format and precision itself: --fp16"),
        ({"recommended": True, "format": "onnx"}, "--recommended chooses format and precision itself: --format"),
        ({"auto": True, "format": "onnx"}, "`auto` is for --int8"),
        ({"auto": True, "int8": True}, "--int8 auto writes one format: --format all"),
        ({"int8": True, "search": SearchOptions(max_drop=1)}, "for --int8 auto: --max-drop"),
        ({"target": "cpu-avx2", "format": "onnx", "fp16": True}, "nothing is lowered for cpu-avx2"),
        ({"target": "cuda", "format": "trt"}, "--target cuda has no form of --format trt"),
        ({"target": "cpu-avx2", "format": "trt"}, "--target cpu-avx2 has no form of --format trt"),
        ({"target": "cpu-avx2", "format": "pt2"}, "has no form of --format pt2"),
        ({"target": "cuda", "format": "openvino"}, "has no form of --format openvino"),
        ({"recommended": True, "int8": True}, "--recommended chooses format and precision itself: --int8"),
        ({"format": "onnx", "engine": EngineOptions(refit=True)}, "for TensorRT engines only: --refit"),
        ({"format": "pt2", "runtime": "rtx"}, "for TensorRT engines only: --runtime"),
        ({"triton": TritonOptions(), "engine": EngineOptions(opt_batch=2)}, "for TensorRT engines only: --opt-batch"),
        ({"int8": True, "triton": TritonOptions(artifact=Path("a"))}, "the artifact is served as it is: --int8"),
        ({"triton": TritonOptions(artifact=Path("a")), "limit": 3}, "the artifact is served as it is: --limit"),
        ({"format": "onnx", "calibration": CalibrationOptions(method="mse")}, "only INT8 and FP8 are calibrated"),
        (
            {"format": "onnx", "fp8": True, "calibration": CalibrationOptions(calibration_table=TABLE)},
            "a calibration table is for INT8: a.table",
        ),
        (
            {
                "format": "onnx",
                "int8": True,
                "calibration": CalibrationOptions(calibration_table=TABLE),
                "corrections": CorrectionOptions(equalise=True),
            },
            "use the table for the network as it is: --equalise",
        ),
        (
            {"format": "onnx", "int8": True, "calibration": CalibrationOptions(table_for="10.3.0")},
            "for a calibration table: --table-for",
        ),
        ({"fp16": True, "corrections": CorrectionOptions(correct_bias=True)}, "corrections are for INT8"),
        (
            {
                "format": "trt",
                "int8": True,
                "engine": EngineOptions(calibrator="table"),
                "corrections": CorrectionOptions(equalise=True),
            },
            "corrections need the ranges that this export calibrates: --calibrator",
        ),
    ],
)
def test_what_contradicts_itself(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        ExportRequest(**fields)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "; " in str(refused.value), "what to do instead is missing"


@pytest.mark.parametrize(
    ("fields", "artifacts"),
    [
        ({"format": "trt", "fp16": True, "engine": EngineOptions(refit=True)}, [("trt", "fp16")]),
        ({"triton": TritonOptions(), "int8": True, "engine": EngineOptions(max_batch=4)}, [("onnx", "int8")]),
        ({"format": "onnx", "int8": True, "auto": True, "search": SearchOptions(max_drop=1)}, [("onnx", "mixed")]),
        ({"recommended": True, "target": "cuda"}, [("onnx", "fp16")]),
        ({"recommended": True, "calibration": CalibrationOptions(method="mse")}, [("openvino", "int8-int4-fc")]),
        (
            {"target": "cpu-avx2", "corrections": CorrectionOptions(equalise=True)},
            [(name, kind) for name in ("onnx", "openvino") for kind in ("fp32", "int8", "int8-int4-fc")],
        ),
    ],
)
def test_what_is_written(
    fields: dict[str, Any], artifacts: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ExportRequest(**fields)
    monkeypatch.setattr(module, "this_machine_or_none", lambda: TARGETS["cpu-avx2"])
    monkeypatch.setattr(module, "this_machine", lambda: TARGETS["cpu-avx2"])
    monkeypatch.setattr(module, "check_engines", lambda *_: None)
    assert list(resolve(request).artifacts) == artifacts


def test_a_server_gets_the_portable_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(ExportRequest(triton=TritonOptions(), int8=True)).target is None
    monkeypatch.setattr(module, "this_machine_or_none", lambda: TARGETS["cpu-arm64"])
    job = resolve(ExportRequest(format="onnx", int8=True))
    assert job.target is TARGETS["cpu-arm64"]
    assert not job.lower_fp32, "a target that is not named leaves FP32 portable"
    assert resolve(ExportRequest(format="onnx", target="cpu-avx2")).lower_fp32
