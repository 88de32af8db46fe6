"""The table of builders in docs/tensorrt.md is the answer of the code; running this file prints it anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alexnet_edge.errors import MissingComponentError, UserError
from alexnet_edge.export.engines import features
from alexnet_edge.export.engines.features import Features, check
from alexnet_edge.export.engines.options import EngineOptions

DOCUMENT = Path(__file__).parents[2] / "docs" / "tensorrt.md"
BEGIN, END = "<!-- support table: begin -->\n", "<!-- support table: end -->\n"
VERSIONS = ("8.6", "10.0", "10.3", "10.8", "10.9", "10.12", "11.0", "11.4.1")
"""TensorRT releases in which something changes."""
RTX = Features(
    version="1.7",
    typing="strong",
    members=Features.of_version("11.0").members | {"IBuilderConfig.set_compute_capability"},
    compute_capabilities=("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
)
CACHE = Path("timing.cache")
DLA = {"dla_core": 0, "max_batch": 1}
ROWS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{precision: (precision, {}) for precision in ("fp32", "fp16", "bf16")},
    "int8 (Q/DQ)": ("int8", {}),
    "int8 (calibrator)": ("int8", {"calibrator": "entropy2"}),
    "fp8": ("fp8", {}),
    "int4-fc": ("int4-fc", {}),
    "DLA, fp16": ("fp16", DLA),
    "DLA, int8 (Q/DQ)": ("int8", DLA),
    "DLA, int8 (calibrator)": ("int8", {**DLA, "calibrator": "entropy2"}),
    "workspace": ("fp16", {"workspace": 1}),
    "pool tactic-shared-memory": ("fp16", {"pool": ("tactic-shared-memory=1",)}),
    "optimization level": ("fp16", {"optimization_level": 3}),
    "timing cache": ("fp16", {"timing_cache": CACHE}),
    "timing cache, require": ("fp16", {"timing_cache": CACHE, "timing_cache_mode": "require"}),
    "sparsity": ("fp16", {"sparsity": True}),
    "version compatible": ("fp16", {"version_compatible": True}),
    "hardware compatibility ampere-plus": ("fp16", {"hardware_compatibility": "ampere-plus"}),
    "hardware compatibility same-compute-capability": (
        "fp16",
        {"hardware_compatibility": "same-compute-capability"},
    ),
    "refit": ("fp16", {"refit": True}),
    "stripped": ("fp16", {"stripped": True}),
    "weight streaming": ("fp16", {"weight_streaming": True}),
    "memory cap": ("fp16", {"memory_cap": 1024}),
    "compute capability": ("fp16", {"compute_capability": ("sm89",)}),
}


def cell(precision: Any, options: dict[str, Any], version: str | None) -> str:
    """What a release, or TensorRT-RTX, answers: `yes` says that it takes the option, not that every GPU or board does."""
    try:
        if version is None:
            warnings = check(EngineOptions(**options), precision, RTX, "rtx").warnings
        else:
            warnings = check(EngineOptions(**options), precision, Features.of_version(version), "tensorrt").warnings
    except MissingComponentError:
        return "with a GPU"
    except UserError:
        return "no"
    return "ignored" if any(word in " ".join(warnings) for word in ("ignores", "neither read")) else "yes"


def support_table() -> str:
    """Which builder takes which precision and option, as a table in Markdown; on a machine without GPU that is no Jetson."""
    lines = [["TensorRT", *VERSIONS, "TensorRT-RTX"], ["---"] * (2 + len(VERSIONS))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "gpu_info", lambda: None)
        patch.setattr(features, "l4t_release", lambda: None)
        for name, (precision, options) in ROWS.items():
            lines.append([name, *(cell(precision, options, version) for version in (*VERSIONS, None))])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_table_of_builders_is_that_of_the_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    between = text.partition(BEGIN)[2].partition(END)[0]
    assert between.strip("\n").splitlines() == support_table().splitlines()


if __name__ == "__main__":
    print(support_table(), end="")
