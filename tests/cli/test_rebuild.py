"""The command that makes an artifact again, as the command line adds it to an error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from command_line import options_of
from tensorrt_library import MANIFEST

from alexnet_edge.cli.rebuild import rebuild_command, with_rebuild_command
from alexnet_edge.errors import ArtifactError, UserError

RECORDED = {
    **{"max_batch": 8, "workspace_mib": 512, "pools": {"dla-local-dram": 64}, "dla_core": 0, "gpu_fallback": True},
    **{"calibrator": "entropy2", "stripped": True, "timing_cache": "cache.bin", "compute_capabilities": ["sm89"]},
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "--int8 --runtime tensorrt"),
        ({"precision": "fp32"}, "--runtime tensorrt"),
        ({"precision": "mixed", "format": "onnx"}, "--int8 auto"),
        ({"build": {"options": None}}, "--int8 --runtime tensorrt"),
        ({"precision": "int4-fc", "runtime": "tensorrt-rtx"}, "--int4-fc --runtime rtx"),
        ({"build": {"builder": "trtexec"}}, "--int8 --runtime trtexec"),
        (
            {"build": {"options": RECORDED}},
            "--int8 --runtime tensorrt --max-batch 8 --workspace 512 --pool dla-local-dram=64 --dla-core 0 --gpu-fallback "
            "--calibrator entropy2",
        ),
    ],
)
def test_rebuild_command(change: dict[str, Any], expected: str) -> None:
    manifest = replace(MANIFEST, **change)
    command = f"alexnet-edge export --format {manifest.format} {expected} --checkpoint model.safetensors"
    assert rebuild_command(manifest) == command


def test_rebuild_command_on_a_board_names_the_onnx_source() -> None:
    board = replace(MANIFEST, precision="fp16", checkpoint="my models/alexnet_fp32.onnx")
    assert rebuild_command(board).endswith(
        "--fp16 --runtime tensorrt --onnx 'my models/alexnet_fp32.onnx' --images FOLDER"
    )
    int8 = replace(board, precision="int8", calibration={"method": "entropy"})
    assert rebuild_command(int8).endswith("--images FOLDER --calibration FOLDER")


def test_rebuild_command_has_options_of_the_command_line() -> None:
    """Every option that a build can record, in the command line's own spelling."""
    from alexnet_edge.export.engines.options import EngineOptions

    switches = ("tf32", "sparsity", "version_compatible", "refit", "weight_streaming", "allow_fallback")
    values: dict[str, Any] = {
        "min_batch": 2,
        "opt_batch": 3,
        "max_batch": 4,
        "workspace": 1,
        "optimization_level": 1,
        "memory_cap": 64,
    }
    values |= {"hardware_compatibility": "ampere-plus", "pool": ("tactic-dram=64",), "calibrator": "minmax"}
    options = EngineOptions(**dict.fromkeys(switches, True), **values).changed()
    words = rebuild_command(replace(MANIFEST, build={"options": options})).split()
    flags = [word for word in words if word.startswith("--")]
    assert set(flags) <= options_of("export")
    assert len(flags) == len(options) + 4


def test_an_error_that_carries_a_manifest_gets_the_command() -> None:
    error = ArtifactError("cut short", value="a.engine", fix="rebuild it", manifest=MANIFEST)
    assert with_rebuild_command(error) == f"cut short: a.engine; rebuild it: {rebuild_command(MANIFEST)}"
    trusted = ArtifactError("cut short", fix="get another", manifest=replace(MANIFEST, build={"trusted": True}))
    assert with_rebuild_command(trusted) == "cut short; get another"
    assert with_rebuild_command(UserError("no", fix="yes")) == "no; yes"
