"""A TensorRT engine built by `trtexec`, NVIDIA's own program: for boards whose Python has no TensorRT bindings.

It builds what `tensorrt.py` builds through Python: the same graph for the same version, the same typing, the same proof.
`trtexec --help` says which options a version has; one that it lacks is refused, never left out.

Source: TensorRT documentation, "trtexec"; the recorded helps and logs in tests/data/trtexec.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from alexnet_edge.artifact import INPUT, LayerPrecision
from alexnet_edge.errors import ArtifactError, MissingComponentError, UserError, needs
from alexnet_edge.export.engines.features import SWITCHES, EngineSpec, Features
from alexnet_edge.export.engines.inspector import UNPACKED, inspected_precisions
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.engines.tensorrt import BY_GRAPH, NOT_TOLD, BuiltEngine, accept, filled, prove_size
from alexnet_edge.export.precision import onnx_precisions
from alexnet_edge.files import sync_and_replace
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.nvidia.libraries import find_trtexec
from alexnet_edge.progress import Reporter

POOLS = {
    "workspace": "workspace",
    "dla-managed-sram": "dlaSRAM",
    "dla-local-dram": "dlaLocalDRAM",
    "dla-global-dram": "dlaGlobalDRAM",
    "tactic-shared-memory": "tacticSharedMem",
}
"""What `--memPoolSize` calls the memory pools; it has no name for TACTIC_DRAM."""
COMPATIBILITY = {"ampere-plus": "ampere+", "same-compute-capability": "sameComputeCapability"}
"""What `--hardwareCompatibilityLevel` calls its levels."""
RUN_ONCE = ("--iterations=1", "--warmUp=0", "--duration=0")
"""The least that trtexec runs an engine, to set its shape."""
STOP_SECONDS = 10.0
"""How long a stopped trtexec has to end before it is killed."""
HELP_SECONDS = 120.0

_BANNER = re.compile(r"&&&& RUNNING TensorRT\.trtexec \[TensorRT v(?P<version>[\d.]+)\]")
_OPTION = re.compile(r"^  (--\w+)(?:=\S+)?(?:, (--\w+))?(?:\s|$)", re.MULTILINE)
_LINE = re.compile(r"^(?:\[[\d/]+-[\d:]+\] )?\[(?P<level>[VIWEF])\] (?P<text>.*)$")
_IN_FP32 = ("LRN", "Softmax")
"""ONNX operators that stay in FP32 in every precision: squares and exponentials overflow FP16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trtexec:
    """An installed `trtexec`, as its own help describes it."""

    path: Path
    version: str
    """TensorRT's version, `10.3.0`."""
    options: frozenset[str]
    """Every option its help lists, as `--fp16`."""

    @property
    def features(self) -> Features:
        """What TensorRT of this version is expected to have; says which graph to give it."""
        return Features.of_version(self.version)

    def option(self, name: str, purpose: str, value: object = None) -> str:
        """`--name` or `--name=value`.

        Raises:
            UserError: when this version has no such option, with what it is for.
        """
        if name not in self.options:
            raise UserError(
                f"trtexec of TensorRT {self.version} has no {name}, which {purpose} needs", fix="leave that option out"
            )
        return name if value is None else f"{name}={value}"


def probe() -> Trtexec:
    """Ask the `trtexec` that `find_trtexec` finds for its version and options.

    Raises:
        MissingComponentError: when there is none, or it does not run.
    """
    path = find_trtexec()
    if path is None:
        raise MissingComponentError(
            "trtexec is not here", fix="install TensorRT's libnvinfer-bin package, or set TRTEXEC to its path"
        )
    try:
        answer = subprocess.run(
            [str(path), "--help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=HELP_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = "it does not answer" if isinstance(error, subprocess.TimeoutExpired) else error.strerror
        raise MissingComponentError(f"trtexec does not run ({reason})", value=path, fix="check the path") from error
    text = answer.stdout.decode(errors="replace")
    banner = _BANNER.search(text)
    options = frozenset(name for names in _OPTION.findall(text) for name in names if name)
    if banner is None or "--saveEngine" not in options:
        raise MissingComponentError(
            f"this is no trtexec that can be used ({_reason(text.splitlines()) or 'it prints no help'})",
            value=path,
            fix="set TRTEXEC to another one",
        )
    return Trtexec(path=path, version=version_of(banner["version"]), options=options)


def version_of(banner: str) -> str:
    """`8.6.1` for `8601`, `10.3.0` for `100300`: two digits each for minor and patch from TensorRT 10 on."""
    if "." in banner:
        return banner
    number = int(banner)
    if number < 10000:
        return f"{number // 1000}.{number // 100 % 10}.{number % 100}"
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def build_with_trtexec(
    onnx_path: Path,
    engine_path: Path,
    spec: EngineSpec,
    *,
    weight_bytes: int,
    calibration_table: Path | None,
    reporter: Reporter,
) -> BuiltEngine:
    """Build `engine_path` from an ONNX file of this package.

    Args:
        onnx_path: the graph, in the precision `spec.graph`.
        engine_path: where the engine goes; an older file is kept until the new one is proved.
        spec: the engine; its precision is proved layer by layer with the engine inspector.
        weight_bytes: what the weights take in that precision.
        calibration_table: INT8 ranges for an FP32 graph with `options.calibrator`, else None. Its header names this
            version: trtexec calibrates on random data in place of a table that is not its own, and is refused then.
        reporter: where progress goes; `update` only, inside the caller's piece of work.

    Raises:
        MissingComponentError: when trtexec is missing or does not run.
        UserError: for an option that this version lacks, or that trtexec cannot be given.
        ArtifactError: when trtexec cannot build the engine, with its first error.
        PrecisionError: when a layer is not as asked, and `options.allow_fallback` does not accept that.
        OSError: when the engine cannot be written.
        KeyboardInterrupt: on Ctrl-C, after trtexec was stopped; nothing is left behind.
    """
    options = spec.options
    assert (calibration_table is None) == (options.calibrator is None), "a table goes with the option that names it"
    parent = engine_path.parent.resolve()  # the finished engine is moved by a rename
    with tempfile.TemporaryDirectory(prefix=".trtexec-", dir=parent, ignore_cleanup_errors=True) as folder:
        job = _Job(probe(), onnx_path.resolve(), Path(folder), spec, calibration_table, reporter)
        arguments = job.arguments()
        log = job.run(arguments)
        if not job.engine.is_file() or not job.engine.stat().st_size:
            raise _failed(log)
        if calibration_table is not None and any("Calibrated batch" in line for line in log):
            raise ArtifactError(
                "trtexec did not take the calibration table and calibrated on random data",
                value=calibration_table,
                fix="use the Q/DQ graph: leave the calibrator out",
            )
        layers = job.inspected(log)
        fallback = accept(layers, options, f"trtexec {spec.precision} engine")
        proof = job.proof(layers, weight_bytes)
        if job.cache.is_file():
            options.save_timings(job.cache.read_bytes())
        sync_and_replace(job.engine, engine_path)
    return BuiltEngine.of(
        spec,
        layers,
        "trtexec",
        [*job.notes, *_serious(log)],
        sm=_sm(log),
        flags=[_without_folder(argument) for argument in arguments],
        proof=proof,
        fallback=fallback,
        timing_cache=options.timing_cache_record(),
    )


Argument = tuple[str, str] | tuple[str, str, object]
"""A trtexec option, what needs it, and its value."""


@dataclass(slots=True)
class _Job:
    """One build by trtexec: its arguments and its files."""

    trtexec: Trtexec
    onnx_path: Path
    folder: Path
    spec: EngineSpec
    table: Path | None
    reporter: Reporter
    shape: str | None = None
    """Of the input, as `input:1x3x227x227`; None where the graph has its own."""
    notes: list[str] = field(default_factory=list)
    """What trtexec could not be given, or could not tell."""

    @property
    def options(self) -> EngineOptions:
        return self.spec.options

    @property
    def engine(self) -> Path:
        return self.folder / "model.engine"

    @property
    def information(self) -> Path:
        return self.folder / "layers.json"

    @property
    def cache(self) -> Path:
        return self.folder / "timing.cache"

    def arguments(self) -> list[str]:
        """What trtexec is started with.

        Raises:
            UserError: for what this trtexec cannot be given.
        """
        with needs("export"):
            import onnx
        graph = onnx.load(str(self.onnx_path)).graph
        batch, *image = next(value for value in graph.input if value.name == INPUT).type.tensor_type.shape.dim
        in_fp32 = [node.name for node in graph.node if node.op_type in _IN_FP32]
        asked = [
            *self._proof(),
            *self._shapes(batch.dim_value, [extent.dim_value for extent in image]),
            *self._types(in_fp32),
            *self._memory(),
            *self._timing_cache(),
            *self._targets(),
        ]
        files = [f"--onnx={self.onnx_path}", f"--saveEngine={self.engine}"]
        return files + [self.trtexec.option(*argument) for argument in asked]

    def _proof(self) -> Iterator[Argument]:
        yield "--profilingVerbosity", "the proof of precision", "detailed"
        yield "--exportLayerInfo", "the proof of precision", self.information
        only_build = "--skipInference" if "--skipInference" in self.trtexec.options else "--buildOnly"
        yield only_build, "building without measuring"

    def _shapes(self, batch: int, image: Sequence[int]) -> Iterator[Argument]:
        self.options.require_batch(batch or None)
        if batch:  # trtexec refuses shapes for a graph that has its own
            return
        low, best, high = (f"{INPUT}:{size}x{'x'.join(map(str, image))}" for size in self.options.batches)
        for name, shape in (("--minShapes", low), ("--optShapes", best), ("--maxShapes", high)):
            yield name, "a range of batches", shape
        self.shape = best

    def _types(self, in_fp32: list[str]) -> Iterator[Argument]:
        """As `tensorrt.py`: weakly typed, allow the types, and demand them where they are not in the graph."""
        spec, precision = self.spec, self.spec.precision
        if not self.options.tf32:
            yield "--noTF32", "FP32 without TF32"
        if spec.strong:
            if spec.features.has(
                "BuilderFlag.FP16"
            ):  # TensorRT 11 knows nothing else: its --stronglyTyped does nothing
                yield "--stronglyTyped", "the types of the graph"
            return
        if self.table is not None:
            yield "--calib", "the calibrator", self.table
        for flag in spec.weak_flags:
            yield f"--{flag.lower()}", precision
        if not spec.constrained:
            return
        lowered = [f"{name}:{precision}" for name in LAYER_NAMES] if spec.lowered else []
        held = [] if self.options.dla_only else [f"{name}:fp32" for name in in_fp32]
        yield "--precisionConstraints", precision, "prefer" if self.options.allow_fallback else "obey"
        if lowered or held:
            yield "--layerPrecisions", precision, ",".join(lowered + held)
        if held:
            yield "--layerOutputTypes", precision, ",".join(held)

    def _memory(self) -> Iterator[Argument]:
        limits = self.options.pool_limits()
        if "tactic-dram" in self.options.pools:
            raise UserError("trtexec cannot bound the memory pool", value="tactic-dram", fix="leave it out")
        if limits.pop("tactic-dram", None):
            self.notes.append("trtexec cannot bound the memory that kernels are tried in; the cap bounds the rest")
        if limits:
            # A bare number is MiB in every version; `1024MiB` is read as 1024 bytes by TensorRT 10.
            sizes = ",".join(f"{POOLS[pool]}:{size}" for pool, size in limits.items())
            yield "--memPoolSize", "a bound on memory", sizes
        if self.options.memory_cap is not None:
            yield "--maxAuxStreams", "a cap on memory", 0
        if self.options.optimization_level is not None:
            yield "--builderOptimizationLevel", "the optimization level", self.options.optimization_level

    def _timing_cache(self) -> Iterator[Argument]:
        if self.options.timing_cache is None:
            return
        content = self.options.known_timings()
        if content:
            self.cache.write_bytes(content)  # trtexec writes it back, also when it is stopped half-way
        yield "--timingCacheFile", "the timing cache", self.cache
        if self.options.timing_cache_mode == "require":
            yield "--errorOnTimingCacheMiss", "a required timing cache"

    def _targets(self) -> Iterator[Argument]:
        options = self.options
        for switch in SWITCHES:
            for argument in switch.trtexec if getattr(options, switch.option) else ():
                name, _, value = argument.partition("=")
                yield name, switch.about, value or None
        if options.dla_core is not None:
            yield "--useDLACore", "a DLA", options.dla_core
        if options.hardware_compatibility != "none":
            level = COMPATIBILITY[options.hardware_compatibility]
            yield "--hardwareCompatibilityLevel", "hardware compatibility", level

    def run(self, arguments: Sequence[str]) -> list[str]:
        """Run trtexec to its end; returns its lines.

        Raises:
            MissingComponentError: when it cannot be started.
            ArtifactError: when it fails, with its first error.
        """
        binary = self.trtexec.path
        try:
            child = subprocess.Popen(
                [str(binary), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C comes here only, and whatever it starts can be stopped with it
            )
        except OSError as error:
            raise MissingComponentError(f"trtexec does not run ({error.strerror})", value=binary) from error
        lines: list[str] = []
        assert child.stdout is not None
        with child.stdout:
            try:
                for raw in child.stdout:
                    line = raw.decode(errors="replace").rstrip()
                    lines.append(line)
                    match = _LINE.match(line)
                    self.reporter.update(len(lines), match["text"][:60] if match else "")
                code = child.wait()
            except BaseException:
                _stop(child)
                raise
        if code < 0:
            raise ArtifactError(
                f"trtexec was ended by {signal.Signals(-code).name}",
                fix="if memory ran out, bound it with --memory-cap or close other programs",
            )
        if code != 0:
            raise _failed(lines)
        return lines

    def inspected(self, log: Sequence[str]) -> tuple[LayerPrecision, ...]:
        """What the engine inspector says, after the build and, where that leaves a layer unknown, after loading the engine.

        TensorRT 8 tells the formats of tensors of dynamic shape only once a shape is set, which trtexec does to run. A type
        that is not told is the ONNX graph's where the engine cannot differ from it, or its size would show.
        """
        layers = self._read_information(log)
        if any(layer.built == "unknown" for layer in layers) and self.shape is not None:
            self.information.unlink(missing_ok=True)
            load = (f"--loadEngine={self.engine}", f"--exportLayerInfo={self.information}", f"--shapes={self.shape}")
            try:
                self.run([*load, *RUN_ONCE])
                layers = self._read_information(log)
            except ArtifactError as error:
                self.notes.append(f"the engine could not be inspected with a shape: {error.problem}")
        if all(layer.built not in NOT_TOLD for layer in layers):
            return layers
        graph = {layer.name: layer for layer in onnx_precisions(self.onnx_path, self.spec.precision)}
        return tuple(self._completed(layer, graph[layer.name]) for layer in layers)

    def proof(self, layers: Sequence[LayerPrecision], weight_bytes: int) -> str:
        """What the types were read from; the size is a second witness where the inspector does not tell them."""
        proof = "engine inspector, through trtexec --exportLayerInfo"
        if all(BY_GRAPH not in layer.evidence for layer in layers):
            return proof
        size = prove_size(self.engine.stat().st_size, self.spec.precision, weight_bytes, self.options)
        return f"{proof}; where it does not tell, {BY_GRAPH}; {size}"

    def _read_information(self, log: Sequence[str]) -> tuple[LayerPrecision, ...]:
        exists = self.information.is_file()
        text = self.information.read_text(encoding="utf-8", errors="replace") if exists else ""
        return inspected_precisions(text, self.spec.precision, log=log)

    def _completed(self, layer: LayerPrecision, graph: LayerPrecision) -> LayerPrecision:
        strong = self.spec.strong
        if not strong and (UNPACKED not in layer.evidence or self.options.stripped):
            return layer
        why = "which a strongly typed engine keeps" if strong else UNPACKED
        return filled(layer, replace(graph, evidence=f"{BY_GRAPH}, {why}"))


def _failed(lines: Sequence[str]) -> ArtifactError:
    reason = _reason(lines) or "it gives no reason"
    return ArtifactError(f"trtexec could not build the engine ({reason})", fix="try another precision or option")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End trtexec and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=STOP_SECONDS)
            return


def _reason(lines: Sequence[str]) -> str:
    """The first error in trtexec's output: those after it are consequences."""
    for line in lines:
        match = _LINE.match(line)
        if (match and match["level"] in "EF") or line.startswith(("Cuda failure", "Could not load library")):
            return _text(match["text"] if match else line)
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("&&&&")), "")


def _serious(lines: Sequence[str]) -> list[str]:
    """Warnings and errors, in the order they came."""
    matches = (_LINE.match(line) for line in lines)
    return [_text(match["text"]) for match in matches if match and match["level"] in "WEF"]


def _text(text: str) -> str:
    return " ".join(text.removeprefix("[TRT] ").split())


def _sm(lines: Sequence[str]) -> str | None:
    """The GPU architecture the engine was built on, `sm87`."""
    for line in lines:
        match = re.search(r"Compute Capability: (\d+)\.(\d+)", line)
        if match:
            return f"sm{match[1]}{match[2]}"
    return None


def _without_folder(argument: str) -> str:
    """An argument as the manifest keeps it: with the names of files, not with temporary folders."""
    name, equals, value = argument.partition("=")
    return f"{name}={Path(value).name}" if equals and value.startswith("/") else argument
