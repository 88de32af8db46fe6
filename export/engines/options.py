"""What an engine's builder is told, whichever builder it is.

Only what needs no library is checked here; what a version of TensorRT lacks is refused by `alexnet_edge.export.engines.features`.

Source: TensorRT Python API, `IBuilderConfig`, `BuilderFlag`, `MemoryPoolType`, `HardwareCompatibilityLevel`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from alexnet_edge.environment import memory_bytes as machine_memory_bytes
from alexnet_edge.errors import UserError

TimingCacheMode = Literal["update", "load", "require"]
HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
CalibratorMethod = Literal["entropy2", "minmax", "table"]

POOLS = (
    "workspace",
    "dla-managed-sram",
    "dla-local-dram",
    "dla-global-dram",
    "tactic-dram",
    "tactic-shared-memory",
)
"""The builder's memory pools: the members of `MemoryPoolType` in this package's spelling."""
MOST_WORKSPACE_OF_CAP = 0.5
"""Share of `memory_cap_mib` that the workspace may take: it comes out of the memory kernels are tried in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """What the builder is told; the defaults are its own, except that FP32 means FP32 (no TF32)."""

    min_batch: int = 1
    """The smallest batch the engine takes."""
    opt_batch: int = 1
    """The batch the engine is tuned for."""
    max_batch: int = 16
    """The largest batch the engine takes; with `dla_core` all three are the same."""
    compute_capabilities: tuple[str, ...] = ()
    """GPU architectures to build for, as `sm89`; TensorRT-RTX only, empty for all that the precision runs on."""
    workspace_mib: int | None = None
    """Bound on the scratch memory of one layer, in MiB; None for the builder's own (all of the GPU's memory)."""
    pools: Mapping[str, int] = field(default_factory=dict)
    """Bounds of other memory pools in MiB, by name as `dla-local-dram`: see `POOLS`."""
    optimization_level: int | None = None
    """0 (fastest build) to 5 (most kernels tried); None for the builder's own, 3."""
    timing_cache: Path | None = None
    """File with the measured times of kernels, reused and extended; it holds for one TensorRT version and one GPU."""
    timing_cache_mode: TimingCacheMode = "update"
    """`update` reads it and writes it back, `load` only reads it, `require` also makes a kernel not in it an error."""
    tf32: bool = False
    """Let FP32 layers compute with 10-bit mantissas (TF32). Off, because FP32 was asked for; the builder's own is on."""
    sparsity: bool = False
    """Use 2:4 structured-sparse kernels where the weights have that pattern."""
    dla_core: int | None = None
    """Run on this deep learning accelerator of a Jetson; None for the GPU. The batch is then fixed."""
    gpu_fallback: bool = False
    """With `dla_core`: layers that the DLA cannot run go to the GPU; without it they are an error."""
    version_compatible: bool = False
    """Make an engine that later TensorRT versions load too, within the majors that NVIDIA documents. The lean runtime is left
    out of the file: an engine that carries code is never loaded by this package."""
    hardware_compatibility: HardwareCompatibility = "none"
    """GPUs the engine runs on besides this one. Not on a Jetson."""
    refit: bool = False
    """Keep the engine's weights exchangeable."""
    stripped: bool = False
    """Leave the weights out of the file; they are put in by refitting on the device."""
    weight_streaming: bool = False
    """Let weights stay in host memory and be streamed to the GPU; strongly typed engines only."""
    memory_cap_mib: int | None = None
    """For boards with 4 to 8 GB, where processor and GPU share the memory. It bounds two pools, unless they are given by
    themselves: TACTIC_DRAM to the cap (the memory kernels are tried in; on a Jetson that includes all that TensorRT holds
    at that point, the weights too), and WORKSPACE (the scratch memory of one layer) to `MOST_WORKSPACE_OF_CAP` of it. And
    it turns the auxiliary streams off, each of which has activations of its own. Not bounded are the finished plan, the
    engine loaded to prove it, CUDA's own context, and Python. `trtexec` has no name for TACTIC_DRAM and bounds the rest."""
    allow_fallback: bool = False
    """Accept layers that were not built in the precision, or not on the DLA, as asked; each is recorded."""
    calibrator: CalibratorMethod | None = None
    """INT8 without Q/DQ pairs, from the FP32 graph (weak typing only): by TensorRT's calibrator on images (`entropy2`,
    `minmax`), or with this package's ranges (`table`). None for explicit Q/DQ pairs."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise UserError(
                "batches must satisfy 1 <= min <= opt <= max",
                value=f"{self.min_batch}, {self.opt_batch}, {self.max_batch}",
                fix="change --min-batch, --opt-batch or --max-batch",
            )
        for name in self.compute_capabilities:
            if not re.fullmatch(r"sm\d{2,3}", name):
                raise UserError("a GPU architecture is written as `sm89`", value=name, fix="correct it")
        self._check_memory()
        self._check_choices()
        self._check_combinations()

    def _check_memory(self) -> None:
        for name in self.pools:
            if name not in POOLS:
                raise UserError("no such memory pool", value=name, fix=f"choose from {', '.join(POOLS)}")
        sizes = {**self.pools, "workspace": self.workspace_mib, "memory cap": self.memory_cap_mib}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise UserError(f"the size of {name} must be 1 MiB or more", value=size, fix="give a positive number")
        for name in ("dla-managed-sram", "dla-local-dram", "dla-global-dram"):
            size = self.pools.get(name)
            if size is None:
                continue
            if self.dla_core is None:
                raise UserError("this memory pool is a DLA's", value=name, fix="add --dla-core, or leave it out")
        for name, size in self.pools.items():
            if name != "workspace" and size & (size - 1):
                raise UserError(
                    f"the size of {name} must be a power of two", value=size, fix="give 1, 2, 4, 8, ... MiB"
                )
        cap, workspace = self.memory_cap_mib, self.pool_limits().get("workspace")
        if cap is not None and workspace is not None and workspace > cap:
            raise UserError(
                "the workspace is larger than the memory cap",
                value=f"{workspace} and {cap} MiB",
                fix="give a smaller workspace, or only the cap",
            )
        if self.workspace_mib is not None and "workspace" in self.pools:
            raise UserError(
                "the workspace is bounded twice",
                value=f"{self.workspace_mib} and {self.pools['workspace']} MiB",
                fix="give one of them",
            )

    def _check_choices(self) -> None:
        choices = {
            "timing cache mode": (self.timing_cache_mode, get_args(TimingCacheMode)),
            "hardware compatibility": (self.hardware_compatibility, get_args(HardwareCompatibility)),
            "calibrator": (self.calibrator, (None, *get_args(CalibratorMethod))),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                names = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise UserError(f"no such {name}", value=value, fix=f"choose from {names}")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UserError(
                "the optimization level is 0 to 5",
                value=self.optimization_level,
                fix="leave it out for the builder's own",
            )
        if self.dla_core is not None and self.dla_core < 0:
            raise UserError("a DLA core is numbered from 0", value=self.dla_core, fix="give 0 or 1")

    def _check_combinations(self) -> None:
        if self.timing_cache is None and self.timing_cache_mode != "update":
            raise UserError(
                f"timing cache mode {self.timing_cache_mode} needs a timing cache",
                fix="name its file with --timing-cache",
            )
        if self.gpu_fallback and self.dla_core is None:
            raise UserError("GPU fallback is for layers that a DLA cannot run", fix="add --dla-core, or leave it out")
        if self.dla_core is not None and self.min_batch != self.max_batch:
            raise UserError(
                "a DLA runs one fixed batch",
                value=f"min {self.min_batch}, max {self.max_batch}",
                fix="give --min-batch, --opt-batch and --max-batch the same number",
            )
        if self.dla_core is not None and self.hardware_compatibility != "none":
            raise UserError("hardware compatibility does not apply to a DLA", fix="leave one of them out")

    def changed(self) -> dict[str, Any]:
        """Every option that is not at its default, as JSON values: what a manifest records."""
        plain = EngineOptions()
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: _plain(value) for name, value in values.items() if value != getattr(plain, name)}

    def record(self) -> dict[str, Any]:
        """For the manifest: what a session must know of the build, and every option that is not at its default."""
        told = (
            "version_compatible",
            "hardware_compatibility",
            "refit",
            "stripped",
            "weight_streaming",
            "dla_core",
        )
        return {**{name: getattr(self, name) for name in told}, "options": self.changed()}

    def pool_limits(self) -> dict[str, int]:
        """Every bounded memory pool, in MiB, by its name in `POOLS`; what `memory_cap_mib` stands for is spelt out.

        TensorRT-RTX takes powers of two only for every pool but the workspace, so the cap's share is rounded down to one.
        """
        limits = dict(self.pools)
        if self.workspace_mib is not None:
            limits["workspace"] = self.workspace_mib
        if self.memory_cap_mib is not None:
            limits.setdefault("workspace", max(1, int(self.memory_cap_mib * MOST_WORKSPACE_OF_CAP)))
            limits.setdefault("tactic-dram", 1 << self.memory_cap_mib.bit_length() - 1)
        return limits


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def require_memory(options: EngineOptions, gpu_memory_bytes: int | None = None) -> None:
    """Refuse a memory bound that is more than there is: the builder would take it as no bound.

    Args:
        options: what the builder is told.
        gpu_memory_bytes: memory of the GPU that the engine is built on; None without one, where the machine's counts.

    Raises:
        UserError: when the workspace, TACTIC_DRAM or the cap is larger than the memory.
    """
    memory = gpu_memory_bytes if gpu_memory_bytes is not None else machine_memory_bytes()
    if memory is None:
        return
    limits = options.pool_limits()
    asked = {"memory cap": options.memory_cap_mib}  # first: the pools may follow from it
    asked |= {name: limits.get(name) for name in ("workspace", "tactic-dram")}
    whose = "the GPU" if gpu_memory_bytes is not None else "this machine"
    for name, size in asked.items():
        if size is not None and size << 20 > memory:
            raise UserError(
                f"the {name} is larger than the memory of {whose} ({memory >> 20} MiB)",
                value=f"{size} MiB",
                fix="give a smaller number",
            )
