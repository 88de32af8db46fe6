"""What an engine's builder is told, whichever builder it is.

Only what needs no library is checked here; what a version of TensorRT lacks is refused by `alexnet_edge.export.engines.features`.

Source: TensorRT Python API, `IBuilderConfig`, `BuilderFlag`, `MemoryPoolType`, `HardwareCompatibilityLevel`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alexnet_edge.environment import memory_bytes as machine_memory_bytes
from alexnet_edge.errors import UserError
from alexnet_edge.export.fields import changed_fields, require_choices
from alexnet_edge.files import staged, writing
from alexnet_edge.records import to_builtins

TimingCacheMode = Literal["update", "load", "require"]
HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
CalibratorMethod = Literal["entropy2", "minmax", "table"]

POOLS = ("workspace", "dla-managed-sram", "dla-local-dram", "dla-global-dram", "tactic-dram", "tactic-shared-memory")
"""The builder's memory pools: the members of `MemoryPoolType` in this package's spelling."""
MOST_WORKSPACE_OF_CAP = 0.5
"""Share of `memory_cap` that the workspace may take: it comes out of the memory kernels are tried in."""
MAX_BATCH = 16
"""The largest batch of an engine by default."""
RECORDED = {
    "compute_capability": "compute_capabilities",
    "workspace": "workspace_mib",
    "pool": "pools",
    "memory_cap": "memory_cap_mib",
}
"""Names in a manifest of the options that are called otherwise there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """Options of the engine's builder; the defaults are its own, except that FP32 means FP32 (no TF32)."""

    min_batch: int | None = None
    """Smallest batch [1; with --dla-core --opt-batch]."""
    opt_batch: int = 1
    """Batch to tune for; with --dla-core the only one."""
    max_batch: int | None = None
    """Largest batch [16; with --dla-core --opt-batch]."""
    compute_capability: tuple[str, ...] = ()
    """A GPU architecture, as sm89; may be repeated (rtx) [all that the precision runs on]."""
    workspace: int | None = None
    """Scratch memory that the builder may give to layers, MiB [all of the GPU's]."""
    pool: tuple[str, ...] = ()
    """Another memory pool, as dla-local-dram=512 (MiB); may be repeated."""
    memory_cap: int | None = None
    """Build within so much memory, MiB, as on boards of 4 to 8 GB."""
    optimization_level: int | None = None
    """0 (quick build) to 5 (quick engine) [3]."""
    timing_cache: Path | None = None
    """File with the builder's timings, for one TensorRT version and one GPU."""
    timing_cache_mode: TimingCacheMode = "update"
    """update, load (never write), or require (a miss is an error)."""
    tf32: bool = False
    """Let FP32 layers compute in TF32."""
    sparsity: bool = False
    """Use kernels for 2:4 sparse weights."""
    dla_core: int | None = None
    """Place the layers on this DLA core."""
    gpu_fallback: bool = False
    """Let layers that a DLA cannot run go to the GPU."""
    calibrator: CalibratorMethod | None = None
    """For --int8 without Q/DQ, as a DLA needs: one of TensorRT's, or table for our own ranges."""
    version_compatible: bool = False
    """Let later TensorRT versions run the engine."""
    hardware_compatibility: HardwareCompatibility = "none"
    """Other GPUs that may run the engine."""
    refit: bool = False
    """Let the weights be replaced later."""
    stripped: bool = False
    """Leave the weights out of the engine."""
    weight_streaming: bool = False
    """Let weights stay in host memory."""
    allow_fallback: bool = False
    """Accept layers in another precision than asked, or not on the DLA, and record them."""

    def __post_init__(self) -> None:
        require_choices(self)
        low, best, high = self.batches
        if not 1 <= low <= best <= high:
            raise UserError(
                "batches must satisfy 1 <= min <= opt <= max",
                value=f"{low}, {best}, {high}",
                fix="change --min-batch, --opt-batch or --max-batch",
            )
        for name in self.compute_capability:
            if not re.fullmatch(r"sm\d{2,3}", name):
                raise UserError("a GPU architecture is written as `sm89`", value=name, fix="correct it")
        level = self.optimization_level
        if level is not None and not 0 <= level <= 5:
            raise UserError("the optimization level is 0 to 5", value=level, fix="leave it out for the builder's own")
        if self.timing_cache is None and self.timing_cache_mode != "update":
            raise UserError(
                f"timing cache mode {self.timing_cache_mode} needs a timing cache",
                fix="name its file with --timing-cache",
            )
        self._check_dla(low, high)
        self._check_memory()

    def _check_dla(self, low: int, high: int) -> None:
        if self.dla_core is None:
            if self.gpu_fallback:
                raise UserError(
                    "GPU fallback is for layers that a DLA cannot run", fix="add --dla-core, or leave it out"
                )
            return
        if self.dla_core < 0:
            raise UserError("a DLA core is numbered from 0", value=self.dla_core, fix="give 0 or 1")
        if low != high:
            raise UserError(
                "a DLA runs one fixed batch",
                value=f"min {low}, max {high}",
                fix="give --min-batch, --opt-batch and --max-batch the same number",
            )
        if self.hardware_compatibility != "none":
            raise UserError("hardware compatibility does not apply to a DLA", fix="leave one of them out")

    def _check_memory(self) -> None:
        pools, cap = self.pools, self.memory_cap
        for name in pools:
            if name not in POOLS:
                raise UserError("no such memory pool", value=name, fix=f"choose from {', '.join(POOLS)}")
        for name, size in {**pools, "workspace": self.workspace, "memory cap": cap}.items():
            if size is not None and size < 1:
                raise UserError(f"the size of {name} must be 1 MiB or more", value=size, fix="give a positive number")
        for name, size in pools.items():
            if name.startswith("dla-") and self.dla_core is None:
                raise UserError("this memory pool is a DLA's", value=name, fix="add --dla-core, or leave it out")
            if name != "workspace" and size & (size - 1):
                raise UserError(
                    f"the size of {name} must be a power of two", value=size, fix="give 1, 2, 4, 8, ... MiB"
                )
        workspace = self.pool_limits().get("workspace")
        if cap is not None and workspace is not None and workspace > cap:
            raise UserError(
                "the workspace is larger than the memory cap",
                value=f"{workspace} and {cap} MiB",
                fix="give a smaller workspace, or only the cap",
            )
        if self.workspace is not None and "workspace" in pools:
            raise UserError(
                "the workspace is bounded twice",
                value=f"{self.workspace} and {pools['workspace']} MiB",
                fix="give one of them",
            )

    @property
    def dla_only(self) -> bool:
        """Whether every layer must run on the DLA, which has no FP32."""
        return self.dla_core is not None and not self.gpu_fallback

    @property
    def batches(self) -> tuple[int, int, int]:
        """The smallest batch, the one tuned for, and the largest."""
        low, high = (1, MAX_BATCH) if self.dla_core is None else (self.opt_batch, self.opt_batch)
        return (
            low if self.min_batch is None else self.min_batch,
            self.opt_batch,
            high if self.max_batch is None else self.max_batch,
        )

    def require_batch(self, batch: int | None) -> None:
        """Refuse a graph with a fixed batch where other batches are asked for; None is a free one.

        Raises:
            UserError: naming both.
        """
        low, _, high = self.batches
        if batch is not None and not low == high == batch:
            raise UserError(
                "the graph has a fixed batch, and other batches were asked for",
                value=f"{batch}, not {low} to {high}",
                fix=f"give --min-batch, --opt-batch and --max-batch {batch}",
            )

    @property
    def pools(self) -> dict[str, int]:
        """The bounds in `pool`, in MiB by name.

        Raises:
            UserError: for one that is not written as `NAME=MIB`.
        """
        pools = {}
        for entry in self.pool:
            name, equals, size = entry.partition("=")
            if not equals or not size.isdecimal():
                raise UserError("a memory pool is NAME=MIB", value=entry, fix="for example --pool dla-local-dram=512")
            pools[name] = int(size)
        return pools

    def changed(self) -> dict[str, Any]:
        """Every option that is not at its default, as JSON values: what a manifest records."""
        low, best, high = self.batches
        batches = {"min_batch": (low, 1), "opt_batch": (best, 1), "max_batch": (high, MAX_BATCH)}
        values: dict[str, Any] = {name: batch for name, (batch, default) in batches.items() if batch != default}
        for name in changed_fields(self):
            if name not in batches:
                value = self.pools if name == "pool" else getattr(self, name)
                values[RECORDED.get(name, name)] = list(value) if isinstance(value, tuple) else to_builtins(value)
        return values

    def record(self) -> dict[str, Any]:
        """For the manifest: what a session must know of the build, and every option that is not at its default."""
        names = ("version_compatible", "hardware_compatibility", "refit", "stripped", "weight_streaming", "dla_core")
        return {**{name: getattr(self, name) for name in names}, "options": self.changed()}

    def timing_cache_record(self) -> dict[str, Any] | None:
        """For the manifest: which timing cache the builder used, and how."""
        if self.timing_cache is None:
            return None
        return {"file": str(self.timing_cache), "mode": self.timing_cache_mode}

    def known_timings(self) -> bytes:
        """The content of the timing cache; empty where mode update is to make it.

        Raises:
            UserError: when it cannot be read, and when there is none and the mode needs one.
        """
        path, mode = self.timing_cache, self.timing_cache_mode
        assert path is not None
        content = b""
        if path.is_file():
            try:
                content = path.read_bytes()
            except OSError as error:
                raise UserError(
                    f"the timing cache cannot be read ({error.strerror})", value=path, fix="check its permissions"
                ) from error
        elif path.exists() or mode != "update":
            raise UserError(
                f"no such timing cache, and mode {mode} needs one", value=path, fix="make it with mode update"
            )
        if not content and mode != "update":
            raise UserError("the timing cache is empty", value=path, fix="make it with mode update")
        return content

    def save_timings(self, content: Any) -> None:
        """Write the timing cache (anything that has a buffer) in mode update."""
        if self.timing_cache is not None and self.timing_cache_mode == "update":
            with writing(self.timing_cache), staged(self.timing_cache) as temporary:
                temporary.write_bytes(content)

    def pool_limits(self) -> dict[str, int]:
        """Every bounded memory pool, in MiB, by its name in `POOLS`, those that `memory_cap` bounds included.

        The cap bounds TACTIC_DRAM (the memory kernels are tried in; on a Jetson that includes all that TensorRT holds at
        that point, the weights too), and WORKSPACE to `MOST_WORKSPACE_OF_CAP` of it, unless they are given by themselves.
        The finished
        plan, the engine loaded to prove it, CUDA's own context and Python are not bounded. TensorRT-RTX takes powers of two
        only for every pool but the workspace, so the cap's share is rounded down to one.
        """
        limits = self.pools
        if self.workspace is not None:
            limits["workspace"] = self.workspace
        if self.memory_cap is not None:
            limits.setdefault("workspace", max(1, int(self.memory_cap * MOST_WORKSPACE_OF_CAP)))
            limits.setdefault("tactic-dram", 1 << self.memory_cap.bit_length() - 1)
        return limits


def require_memory(options: EngineOptions, gpu_memory_bytes: int | None = None) -> None:
    """Refuse a memory bound that is more than there is: the builder would take it as no bound.

    `gpu_memory_bytes` is the memory of the GPU that the engine is built on; None without one, where the machine's counts.

    Raises:
        UserError: when the workspace, TACTIC_DRAM or the cap is larger than the memory.
    """
    whose = "the GPU" if gpu_memory_bytes is not None else "this machine"
    memory = gpu_memory_bytes if gpu_memory_bytes is not None else machine_memory_bytes()
    limits = options.pool_limits()
    bounds = {"memory cap": options.memory_cap}  # first: the pools may follow from it
    bounds |= {name: limits.get(name) for name in ("workspace", "tactic-dram")}
    for name, size in bounds.items():
        if memory is not None and size is not None and size << 20 > memory:
            raise UserError(
                f"the {name} is larger than the memory of {whose} ({memory >> 20} MiB)",
                value=f"{size} MiB",
                fix="give a smaller number",
            )
