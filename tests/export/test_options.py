"""What an engine's builder may be told, and which builder takes what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alexnet_edge.artifact import Precision
from alexnet_edge.errors import MissingComponentError, UserError
from alexnet_edge.export.engines import features
from alexnet_edge.export.engines.features import (
    PRESENT,
    Features,
    at_least,
    capabilities,
    check,
    graph_precision,
    support_table,
)
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


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is no Jetson, without GPU and with 64 GiB, whatever the tests run on."""
    monkeypatch.setattr(features, "gpu_info", lambda: None)
    monkeypatch.setattr(features, "l4t_release", lambda: None)
    monkeypatch.setattr("alexnet_edge.export.engines.options.machine_memory_bytes", lambda: 64 << 30)


# --- options alone --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
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
def test_what_cannot_be_is_refused_in_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        EngineOptions(**given)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


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
    ("options", "said"),
    [
        (EngineOptions(workspace=2048), "the workspace is larger than the memory of the GPU (1024 MiB): 2048 MiB"),
        (EngineOptions(pool=("tactic-dram=2048",)), "the tactic-dram is larger than the memory of the GPU"),
        (EngineOptions(memory_cap=4096, workspace=1), "the memory cap is larger than the memory of the GPU"),
    ],
)
def test_more_memory_than_the_gpu_has(options: EngineOptions, said: str) -> None:
    with pytest.raises(UserError) as refused:
        require_memory(options, 1 << 30)
    assert said in str(refused.value)


def test_without_a_gpu_the_machines_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"memory of this machine \(65536 MiB\): 65537 MiB"):
        require_memory(EngineOptions(workspace=65537))
    require_memory(EngineOptions(workspace=65536))
    monkeypatch.setattr("alexnet_edge.export.engines.options.machine_memory_bytes", lambda: None)
    require_memory(EngineOptions(workspace=65537))  # unknown memory refuses nothing


# --- what a release has ---------------------------------------------------------------------------------------------------


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
    options = EngineOptions(calibrator=calibrator)
    assert graph_precision(precision, Features.of_version(version), options) == graph


# --- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "precision", "given", "said"),
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
    ],
)
def test_what_a_release_lacks_is_refused(version: str, precision: Precision, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        check(EngineOptions(**given), precision, Features.of_version(version), "tensorrt")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("version", "precision", "given"),
    [
        ("8.6.1", "int8", {"calibrator": "entropy2"}),
        ("8.6.1", "fp16", {"dla_core": 1, "max_batch": 1, "pool": ("dla-local-dram=64",)}),
        ("10.3.0", "int8", {"dla_core": 0, "max_batch": 1, "calibrator": "table"}),
        ("11.4.1", "int8", {"dla_core": 0, "max_batch": 1}),
        ("10.13.3", "fp8", {"weight_streaming": True, "refit": True}),
    ],
)
def test_what_a_release_has_is_taken(version: str, precision: Precision, given: dict[str, Any]) -> None:
    assert check(EngineOptions(**given), precision, Features.of_version(version), "tensorrt").warnings == ()


@pytest.mark.parametrize(
    ("precision", "given", "said"),
    [
        ("fp16", {"dla_core": 0, "max_batch": 1}, "is for desktop GPUs and would ignore a DLA"),
        (
            "fp16",
            {"compute_capability": ("sm87",)},
            "does not build for this GPU architecture: sm87; choose from sm75",
        ),
        ("fp8", {"compute_capability": ("sm89", "sm86")}, "fp8 needs a GPU architecture from sm89 on: sm86"),
        ("fp32", {"compute_capability": ("sm75",)}, "fp32 needs a GPU architecture from sm80 on: sm75"),
        ("fp16", {"timing_cache": CACHE, "timing_cache_mode": "require"}, "has no timing cache"),
    ],
)
def test_what_rtx_lacks_is_refused(precision: Precision, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        check(EngineOptions(**given), precision, RTX, "rtx")
    assert said in str(refused.value)


def test_what_rtx_ignores_is_told() -> None:
    options = EngineOptions(timing_cache=CACHE, hardware_compatibility="ampere-plus")
    told = check(options, "fp16", RTX, "rtx").warnings
    assert len(told) == 2
    assert "timing.cache is neither read nor written" in told[0]
    assert "ignores hardware compatibility" in told[1]


def test_fp8_is_built_for_the_gpus_that_have_it() -> None:
    assert capabilities(EngineOptions(), "fp8", RTX) == ("sm89", "sm120", "sm121")
    assert check(EngineOptions(), "fp8", RTX, "rtx").warnings == (
        "fp8 runs on no older GPU: built for sm89, sm120, sm121 only",
    )
    assert capabilities(EngineOptions(), "bf16", RTX) == ()
    assert capabilities(EngineOptions(compute_capability=("sm120",)), "fp8", RTX) == ("sm120",)


# --- this machine ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"refit": True}, {"stripped": True}])
def test_rtx_refits_only_with_a_gpu(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> None:
    with pytest.raises(MissingComponentError, match="only with a GPU"):
        check(EngineOptions(**given), "fp16", RTX, "rtx")
    monkeypatch.setattr(features, "gpu_info", lambda: ADA)
    assert check(EngineOptions(**given), "fp16", RTX, "rtx").warnings == ()


def test_fp8_is_refused_on_orin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "gpu_info", lambda: ORIN)
    with pytest.raises(UserError, match="fp8 needs a GPU architecture from sm89 on: Orin is sm87"):
        check(EngineOptions(), "fp8", Features.of_version("10.13.3"), "tensorrt")
    assert check(EngineOptions(), "bf16", Features.of_version("10.13.3"), "tensorrt").warnings == ()


def test_the_gpus_memory_bounds_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "gpu_info", lambda: ORIN)
    with pytest.raises(UserError, match=r"larger than the memory of the GPU \(8192 MiB\): 8193 MiB"):
        check(EngineOptions(workspace=8193), "fp16", Features.of_version("10.3.0"), "tensorrt")


def test_hardware_compatibility_is_refused_on_a_jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    options = EngineOptions(hardware_compatibility="ampere-plus")
    assert check(options, "fp16", Features.of_version("10.3.0"), "tensorrt").warnings == ()
    monkeypatch.setattr(features, "l4t_release", lambda: "36.4.3")
    with pytest.raises(UserError, match="does not apply to a Jetson"):
        check(options, "fp16", Features.of_version("10.3.0"), "tensorrt")


# --- the table for the documentation --------------------------------------------------------------------------------------


def test_the_support_table_is_whole() -> None:
    table = support_table()
    columns = [*features.TABLE_VERSIONS, "RTX"]
    assert all(list(row) == columns for row in table.values())
    assert {cell for row in table.values() for cell in row.values()} <= {"yes", "no", "ignored", "with a GPU"}


@pytest.mark.parametrize(
    ("row", "cells"),
    [
        ("bf16", "no yes yes yes yes yes yes yes yes"),
        ("int4-fc", "no no yes yes yes yes yes yes yes"),
        ("int8 (calibrator)", "yes yes yes yes yes no no no no"),
        ("DLA, fp16", "yes yes yes no no no no yes no"),
        ("DLA, int8 (Q/DQ)", "no no no no no no no yes no"),
        ("timing cache", "yes yes yes yes yes yes yes yes ignored"),
        ("hardware compatibility same-compute-capability", "no no no no yes yes yes yes ignored"),
        ("compute capability", "no no no no no no no no yes"),
    ],
)
def test_rows_of_the_support_table(row: str, cells: str) -> None:
    assert " ".join(support_table()[row].values()) == cells


def test_the_support_table_does_not_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = support_table()
    monkeypatch.setattr(features, "gpu_info", lambda: ORIN)
    monkeypatch.setattr(features, "l4t_release", lambda: "36.4.3")
    assert support_table() == before
    assert support_table()["refit"]["RTX"] == "with a GPU"


@pytest.mark.parametrize(("precision", "warned"), [("fp32", False), ("fp16", True), ("int8", True)])
def test_tf32_without_a_layer_to_use_it_is_warned_of(precision: Precision, warned: bool) -> None:
    warnings = check(EngineOptions(tf32=True), precision, Features.of_version("10.3.0"), "tensorrt").warnings
    assert any("TF32 is for layers in FP32" in line for line in warnings) == warned
