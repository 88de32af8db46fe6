"""What an engine's builder may be told, and which builder takes what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alexnet_edge.artifact import Precision
from alexnet_edge.errors import MissingComponentError, UserError
from alexnet_edge.export.engines import features
from alexnet_edge.export.engines.features import PRESENT, EngineSpec, Features, at_least, check
from alexnet_edge.export.engines.options import POOLS, EngineOptions, require_memory
from alexnet_edge.nvidia.cuda import GpuInfo

CACHE = Path("timing.cache")
ORIN = GpuInfo(name="Orin", sm="sm87", memory_bytes=8 << 30, driver_version="12.6", integrated=True)
ADA = GpuInfo(name="RTX 4090", sm="sm89", memory_bytes=24 << 30, driver_version="13.0", integrated=False)
RTX = Features(
    version="1.7.1",
    typing="strong",
    members=Features.of_version("11.0").members,
    compute_capabilities=("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
)


def of(version: str, precision: Precision, **options: Any) -> EngineSpec:
    """What TensorRT `version`, or TensorRT-RTX as `rtx`, is asked for, checked."""
    if version == "rtx":
        return check(EngineOptions(**options), precision, RTX, "rtx")
    return check(EngineOptions(**options), precision, Features.of_version(version), "tensorrt")


def refused(text: str, call: Callable[[], Any]) -> None:
    """The call ends in one line with this text."""
    with pytest.raises(UserError) as error:
        call()
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is no Jetson, without GPU and with 64 GiB, whatever the tests run on."""
    monkeypatch.setattr(features, "gpu_info", lambda: None)
    monkeypatch.setattr(features, "l4t_release", lambda: None)
    monkeypatch.setattr("alexnet_edge.export.engines.options.machine_memory_bytes", lambda: 64 << 30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_batch": 0}, "1 <= min <= opt <= max: 0, 1, 16"),
        ({"min_batch": 4, "opt_batch": 2}, "1 <= min <= opt <= max: 4, 2, 16"),
        ({"opt_batch": 32}, "1 <= min <= opt <= max: 1, 32, 16"),
        ({"compute_capability": ("8.9",)}, "written as `sm89`: 8.9"),
        ({"workspace": 0}, "size of workspace must be 1 MiB or more: 0"),
        ({"memory_cap": -1}, "size of memory cap must be 1 MiB or more: -1"),
        ({"pool": ("vram=64",)}, "no such memory pool: vram; choose from workspace,"),
        ({"pool": ("tactic-dram=0",)}, "size of tactic-dram must be 1 MiB or more"),
        ({"pool": ("tactic-dram=100",)}, "size of tactic-dram must be a power of two: 100"),
        ({"pool": ("workspace=64",), "workspace": 32}, "bounded twice: 32 and 64 MiB"),
        ({"pool": ("dla-local-dram=64",)}, "is a DLA's: dla-local-dram"),
        ({"pool": ("dla-local-dram=48",), "dla_core": 0, "max_batch": 1}, "power of two: 48"),
        ({"workspace": 2048, "memory_cap": 1024}, "larger than the memory cap: 2048 and 1024 MiB"),
        ({"optimization_level": 6}, "0 to 5: 6"),
        ({"timing_cache_mode": "require"}, "mode require needs a timing cache"),
        (
            {"timing_cache_mode": "write", "timing_cache": CACHE},
            "--timing-cache-mode has no such choice: write; choose one of update",
        ),
        ({"hardware_compatibility": "all"}, "--hardware-compatibility has no such choice: all"),
        (
            {"calibrator": "percentile"},
            "--calibrator has no such choice: percentile; choose one of entropy2, minmax, table",
        ),
        ({"dla_core": -1, "max_batch": 1}, "numbered from 0: -1"),
        ({"dla_core": 0, "max_batch": 4}, "one fixed batch: min 1, max 4"),
        ({"dla_core": 0, "max_batch": 1, "hardware_compatibility": "ampere-plus"}, "does not apply to a DLA"),
        ({"gpu_fallback": True}, "add --dla-core"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    refused(message, lambda: EngineOptions(**options))


def test_only_what_is_not_the_default_is_recorded() -> None:
    assert EngineOptions().changed() == {}
    options = EngineOptions(max_batch=8, timing_cache=CACHE, pool=("tactic-dram=64",), compute_capability=("sm89",))
    assert options.changed() == {
        "max_batch": 8,
        "timing_cache": "timing.cache",
        "pools": {"tactic-dram": 64},
        "compute_capabilities": ["sm89"],
    }
    assert json.loads(json.dumps(options.changed())) == options.changed()


def test_a_memory_cap_bounds_workspace_and_tactics() -> None:
    assert EngineOptions().pool_limits() == {}
    assert EngineOptions(memory_cap=1024).pool_limits() == {"workspace": 512, "tactic-dram": 1024}
    assert EngineOptions(memory_cap=3000).pool_limits() == {"workspace": 1500, "tactic-dram": 2048}
    assert EngineOptions(memory_cap=1).pool_limits() == {"workspace": 1, "tactic-dram": 1}


def test_a_memory_cap_leaves_what_is_given_by_itself() -> None:
    given = EngineOptions(memory_cap=1024, workspace=100, pool=("tactic-dram=512",))
    assert given.pool_limits() == {"workspace": 100, "tactic-dram": 512}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workspace": 2048}, "the workspace is larger than the memory of the GPU (1024 MiB): 2048 MiB"),
        ({"pool": ("tactic-dram=2048",)}, "the tactic-dram is larger than the memory of the GPU"),
        ({"memory_cap": 4096, "workspace": 1}, "the memory cap is larger than the memory of the GPU"),
    ],
)
def test_more_memory_than_the_gpu_has(options: dict[str, Any], message: str) -> None:
    refused(message, lambda: require_memory(EngineOptions(**options), 1 << 30))


def test_without_a_gpu_the_machines_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"memory of this machine \(65536 MiB\): 65537 MiB"):
        require_memory(EngineOptions(workspace=65537))
    require_memory(EngineOptions(workspace=65536))
    monkeypatch.setattr("alexnet_edge.export.engines.options.machine_memory_bytes", lambda: None)
    require_memory(EngineOptions(workspace=65537))  # unknown memory refuses nothing


@pytest.mark.parametrize(
    ("version", "first", "answer"),
    [
        ("10.12.0.36", "10.12", True),
        ("10.9.0", "10.12", False),
        ("10.14.1.48.post1", "10.12", True),
        ("11.0", "11.0", True),
        ("8.6.1", "10.0", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, first: str, answer: bool) -> None:
    assert at_least(version, first) is answer


@pytest.mark.parametrize(
    ("version", "typing"),
    [("8.6.1", "weak"), ("10.3.0", "weak"), ("10.11.0.33", "weak"), ("10.12.0.36", "strong"), ("11.4.0.106", "strong")],
)
def test_typing_turns_strong_with_10_12(version: str, typing: str) -> None:
    assert Features.of_version(version).typing == typing


def test_the_installed_library_is_as_expected() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    found = Features.detect(trt)
    assert found.typing == "strong"
    assert found.members == Features.of_version("11.0").members | {"IBuilderConfig.set_compute_capability"}
    assert {"sm89", "sm120"} <= set(found.compute_capabilities)
    assert "sm87" not in found.compute_capabilities


def test_every_pool_is_a_known_member() -> None:
    assert {f"MemoryPoolType.{features.pool_member(pool)}" for pool in POOLS} <= set(PRESENT)


@pytest.mark.parametrize(
    ("version", "precision", "calibrator", "graph"),
    [
        ("8.6.1", "fp16", None, "fp32"),
        ("10.3.0", "bf16", None, "fp32"),
        ("10.3.0", "int8", None, "int8"),
        ("10.3.0", "int8", "entropy2", "fp32"),
        ("10.3.0", "fp8", None, "fp8"),
        ("10.3.0", "int4-fc", None, "int4-fc"),
        ("10.13.3", "fp16", None, "fp16"),
        ("11.4.0", "bf16", None, "bf16"),
    ],
)
def test_which_graph_a_builder_is_fed(version: str, precision: Precision, calibrator: Any, graph: str) -> None:
    assert of(version, precision, calibrator=calibrator).graph == graph


@pytest.mark.parametrize(
    ("version", "precision", "options", "message"),
    [
        ("8.6.1", "bf16", {}, "TensorRT 8.6.1 does not build this precision: bf16"),
        ("8.6.1", "fp8", {}, "does not build this precision: fp8"),
        ("10.0.1", "int4-fc", {}, "does not build this precision: int4-fc"),
        ("8.6.1", "fp16", {"stripped": True}, "lacks stripped plans; leave it out, or use TensorRT 10.0 or later"),
        ("8.6.1", "fp16", {"timing_cache": CACHE, "timing_cache_mode": "require"}, "lacks a required timing cache"),
        ("8.6.1", "fp16", {"pool": ("tactic-shared-memory=1",)}, "lacks memory pool tactic-shared-memory"),
        ("10.3.0", "fp16", {"hardware_compatibility": "same-compute-capability"}, "TensorRT 10.9 or later"),
        ("10.3.0", "fp16", {"weight_streaming": True}, "needs a strongly typed network"),
        ("10.3.0", "fp16", {"compute_capability": ("sm89",)}, "builds for the GPU it runs on: sm89"),
        ("10.3.0", "fp16", {"calibrator": "entropy2"}, "a calibrator is for INT8: fp16"),
        ("10.13.3", "int8", {"calibrator": "minmax"}, "a calibrator needs weak typing, and TensorRT 10.13.3"),
        ("11.0.0", "int8", {"calibrator": "table"}, "a calibrator needs weak typing"),
        ("10.3.0", "fp32", {"dla_core": 0, "max_batch": 1}, "a DLA computes in FP16 and INT8 only: fp32"),
        ("10.3.0", "int8", {"dla_core": 0, "max_batch": 1}, "ranges from a calibrator, not from Q/DQ pairs"),
        ("10.13.3", "fp16", {"dla_core": 0, "max_batch": 1}, "TensorRT 10.13.3 has no DLA"),
        ("11.0.0", "fp16", {"dla_core": 0, "max_batch": 1}, "use TensorRT up to 10.7, or 11.4.1 on AGX Orin"),
        ("rtx", "fp16", {"dla_core": 0, "max_batch": 1}, "is for desktop GPUs and would ignore a DLA"),
        (
            "rtx",
            "fp16",
            {"compute_capability": ("sm87",)},
            "does not build for this GPU architecture: sm87; choose from sm75",
        ),
        ("rtx", "fp8", {"compute_capability": ("sm89", "sm86")}, "fp8 needs a GPU architecture from sm89 on: sm86"),
        ("rtx", "fp32", {"compute_capability": ("sm75",)}, "fp32 needs a GPU architecture from sm80 on: sm75"),
        ("rtx", "fp16", {"timing_cache": CACHE, "timing_cache_mode": "require"}, "has no timing cache"),
    ],
)
def test_what_a_builder_lacks_is_refused(
    version: str, precision: Precision, options: dict[str, Any], message: str
) -> None:
    refused(message, lambda: of(version, precision, **options))


@pytest.mark.parametrize(
    ("version", "precision", "options"),
    [
        ("8.6.1", "int8", {"calibrator": "entropy2"}),
        ("8.6.1", "fp16", {"dla_core": 1, "max_batch": 1, "pool": ("dla-local-dram=64",)}),
        ("10.3.0", "int8", {"dla_core": 0, "max_batch": 1, "calibrator": "table"}),
        ("11.4.1", "int8", {"dla_core": 0, "max_batch": 1}),
        ("10.13.3", "fp8", {"weight_streaming": True, "refit": True}),
    ],
)
def test_what_a_release_has_is_accepted(version: str, precision: Precision, options: dict[str, Any]) -> None:
    assert of(version, precision, **options).warnings == ()


def test_what_rtx_ignores_is_a_warning() -> None:
    unread, ignored = of("rtx", "fp16", timing_cache=CACHE, hardware_compatibility="ampere-plus").warnings
    assert "timing.cache is neither read nor written" in unread
    assert "ignores hardware compatibility" in ignored


def test_fp8_is_built_for_the_gpus_that_have_it() -> None:
    assert of("rtx", "fp8").capabilities == ("sm89", "sm120", "sm121")
    assert of("rtx", "fp8").warnings == ("fp8 runs on no older GPU: built for sm89, sm120, sm121 only",)
    assert of("rtx", "bf16").capabilities == ()
    assert of("rtx", "fp8", compute_capability=("sm120",)).capabilities == ("sm120",)


@pytest.mark.parametrize("option", ["refit", "stripped"])
def test_rtx_refits_only_with_a_gpu(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    with pytest.raises(MissingComponentError, match="only with a GPU"):
        of("rtx", "fp16", **{option: True})
    monkeypatch.setattr(features, "gpu_info", lambda: ADA)
    assert of("rtx", "fp16", **{option: True}).warnings == ()


def test_orin_has_no_fp8_and_8_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "gpu_info", lambda: ORIN)
    refused("fp8 needs a GPU architecture from sm89 on: Orin is sm87", lambda: of("10.13.3", "fp8"))
    assert of("10.13.3", "bf16").warnings == ()
    message = "larger than the memory of the GPU (8192 MiB): 8193 MiB"
    refused(message, lambda: of("10.3.0", "fp16", workspace=8193))


def test_hardware_compatibility_is_refused_on_a_jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of("10.3.0", "fp16", hardware_compatibility="ampere-plus").warnings == ()
    monkeypatch.setattr(features, "l4t_release", lambda: "36.4.3")
    refused("does not apply to a Jetson", lambda: of("10.3.0", "fp16", hardware_compatibility="ampere-plus"))


@pytest.mark.parametrize(("precision", "warned"), [("fp32", False), ("fp16", True), ("int8", True)])
def test_tf32_without_a_layer_to_use_it_is_warned_of(precision: Precision, warned: bool) -> None:
    warnings = of("10.3.0", precision, tf32=True).warnings
    assert any("TF32 is for layers in FP32" in line for line in warnings) == warned
