"""A TensorRT engine built by `trtexec`, NVIDIA's own program: for boards whose Python has no TensorRT bindings.

It builds what `tensorrt.py` builds through Python: the same graph for the same version, the same typing, the same proof.
`trtexec --help` says which options a version has; one that it lacks is refused, never left out.

Source: TensorRT documentation, "trtexec"; the recorded helps and logs in tests/data/trtexec.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from alexnet_edge.artifact import INPUT, LayerPrecision, Precision
from alexnet_edge.errors import ArtifactError, MissingComponentError, UserError, needs
from alexnet_edge.export.engines.calibrators import HEADER, read_calibration_table, table_header
from alexnet_edge.export.engines.features import SWITCHES, WEAK_FLAGS, EngineSpec, Features
from alexnet_edge.export.engines.inspector import UNPACKED, inspected_precisions
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.engines.tensorrt import BuiltEngine, accept, prove_size
from alexnet_edge.export.precision import onnx_precisions
from alexnet_edge.files import staged, sync_and_replace, writing
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.nvidia.libraries import find_trtexec, platform_name
from alexnet_edge.progress import QuietReporter, Reporter

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
_BY_GRAPH = "element types in the ONNX graph"
_UNTOLD = ("unknown", "missing")
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
    help: str

    @property
    def features(self) -> Features:
        """What TensorRT of this version is expected to have; says which graph to give it."""
        return Features.of_version(self.version)

    def option(self, name: str, what: str, value: object = None) -> str:
        """`--name` or `--name=value`.

        Raises:
            UserError: when this version has no such option; `what` says what it is for.
        """
        if name not in self.options:
            raise UserError(
                f"trtexec of TensorRT {self.version} has no {name}, which {what} needs", fix="leave that option out"
            )
        return name if value is None else f"{name}={value}"


def probe(binary: Path | None = None) -> Trtexec:
    """Ask `trtexec` for its version and options.

    Args:
        binary: the program; by default the one that `find_trtexec` finds.

    Raises:
        MissingComponentError: when it is not here, or does not run.
    """
    path = binary if binary is not None else find_trtexec()
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
    return Trtexec(path=path, version=version_of(banner["version"]), options=options, help=text)


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
    calibration_table: Path | None = None,
    binary: Path | None = None,
    reporter: Reporter | None = None,
) -> BuiltEngine:
    """Build `engine_path` from an ONNX file of this package.

    Args:
        onnx_path: the graph, in the precision `spec.graph`.
        engine_path: where the engine goes; an older file there is kept until the new one is proved.
        spec: the engine asked for; its precision is proved layer by layer with the engine inspector.
        weight_bytes: what the weights take in that precision.
        calibration_table: INT8 ranges for an FP32 graph; with `options.calibrator` only. Its header is rewritten for this
            version, because trtexec would calibrate on random data in place of a table that is not its own.
        binary: the program; by default the one that `find_trtexec` finds.
        reporter: where progress goes; `update` only, inside the caller's piece of work.

    Raises:
        MissingComponentError: when trtexec is not here or does not run.
        UserError: for an option that this version lacks, or that trtexec cannot be given.
        ArtifactError: when trtexec cannot build the engine, with its first error.
        PrecisionError: when a layer is not as asked, and `options.allow_fallback` does not accept that.
        OutputError: when the engine cannot be written.
        KeyboardInterrupt: on Ctrl-C, after trtexec was stopped; nothing is left behind.
    """
    trtexec = probe(binary)
    options, precision, strong = spec.options, spec.precision, spec.strong
    assert (calibration_table is None) == (options.calibrator is None), "a table goes with the option that names it"
    with _workspace(engine_path) as folder:
        job = _Job(trtexec=trtexec, onnx_path=onnx_path.resolve(), folder=folder, spec=spec)
        job.plan(calibration_table)
        log = _run(trtexec.path, job.arguments, reporter or QuietReporter())
        if not job.engine.is_file() or not job.engine.stat().st_size:
            raise _failed(log)
        if calibration_table is not None and any("Calibrated batch" in line for line in log):
            raise ArtifactError(
                "trtexec did not take the calibration table and calibrated on random data",
                value=calibration_table,
                fix="use the Q/DQ graph: leave the calibrator out",
            )
        layers = _inspect(job, log, reporter or QuietReporter(), strong=strong)
        fallback = accept(layers, options, f"trtexec {precision} engine")
        proof = "engine inspector, through trtexec --exportLayerInfo"
        if any(_BY_GRAPH in layer.evidence for layer in layers):
            size = prove_size(job.engine.stat().st_size, precision, weight_bytes, options)
            proof += f"; where it does not tell, {_BY_GRAPH}; {size}"
        if options.timing_cache is not None and options.timing_cache_mode == "update" and job.cache.is_file():
            with staged(options.timing_cache) as temporary:
                shutil.copyfile(job.cache, temporary)
        with writing(engine_path):
            sync_and_replace(job.engine, engine_path)
    messages = tuple(dict.fromkeys([*job.notes, *_serious(log)]))
    return BuiltEngine(
        layers=layers,
        version=trtexec.version,
        build={
            "builder": "trtexec",
            "version": trtexec.version,
            "typing": "strong" if strong else "weak",
            "platform": platform_name(),
            "sm": _sm(log),
            "compute_capabilities": [],
            **options.record(),
            "flags": [_without_folder(argument) for argument in job.arguments],
            "proof": proof,
            "fallback": fallback,
            "warnings": list(spec.warnings),
            "messages": list(messages),
            "timing_cache": {"file": str(options.timing_cache), "mode": options.timing_cache_mode}
            if options.timing_cache is not None
            else None,
        },
        messages=messages,
    )


@dataclass(slots=True)
class _Job:
    """One run of trtexec: its arguments and its files."""

    trtexec: Trtexec
    onnx_path: Path
    folder: Path
    spec: EngineSpec
    arguments: list[str] = field(default_factory=list)
    shape: str | None = None
    """Of the input, as `input:1x3x227x227`; None where the graph has its own."""
    notes: list[str] = field(default_factory=list)
    """What trtexec could not be told, or could not tell."""

    @property
    def precision(self) -> Precision:
        return self.spec.precision

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

    def plan(self, calibration_table: Path | None) -> None:
        """Fill in the arguments.

        Raises:
            UserError: for what this trtexec cannot be told.
        """
        self.arguments += [f"--onnx={self.onnx_path}", f"--saveEngine={self.engine}"]
        self._add("--profilingVerbosity", "the proof of precision", "detailed")
        self._add("--exportLayerInfo", "the proof of precision", self.information)
        only_build = "--skipInference" if "--skipInference" in self.trtexec.options else "--buildOnly"
        self._add(only_build, "building without measuring")
        graph = _read_graph(self.onnx_path)
        self._shapes(graph)
        self._precision(graph, calibration_table)
        self._memory()
        self._timing_cache()
        self._targets()

    def _add(self, name: str, what: str, value: object = None) -> None:
        self.arguments.append(self.trtexec.option(name, what, value))

    def _shapes(self, graph: _Graph) -> None:
        low, best, high = self.options.batches
        if graph.batch is not None:  # trtexec refuses shapes for a graph that has its own
            if not low == high == graph.batch:
                raise UserError(
                    "the graph has a fixed batch, and other batches were asked for",
                    value=f"{graph.batch}, not {low} to {high}",
                    fix=f"give --min-batch, --opt-batch and --max-batch {graph.batch}",
                )
            return
        for name, batch in (
            ("--minShapes", low),
            ("--optShapes", best),
            ("--maxShapes", high),
        ):
            shape = f"{INPUT}:{batch}x{'x'.join(map(str, graph.image))}"
            self._add(name, "a range of batches", shape)
            if name == "--optShapes":
                self.shape = shape

    def _precision(self, graph: _Graph, calibration_table: Path | None) -> None:
        if not self.options.tf32:
            self._add("--noTF32", "FP32 without TF32")
        if self.spec.strong:
            if self.spec.features.has(
                "BuilderFlag.FP16"
            ):  # TensorRT 11 knows nothing else, and its --stronglyTyped does nothing
                self._add("--stronglyTyped", "the types of the graph")
            return
        if calibration_table is not None:
            self._add("--calib", "the calibrator", self._own_table(calibration_table))
        self._types(graph, lowered=self.spec.graph != self.precision)

    def _types(self, graph: _Graph, *, lowered: bool) -> None:
        """Weak typing, as `tensorrt.py` does it: allow the types, and demand them where they are not in the graph."""
        on_dla = self.options.dla_core is not None
        flags = list(WEAK_FLAGS[self.precision])
        if self.precision == "int8" and on_dla:
            flags.append("FP16")  # what the DLA has no INT8 for
        for flag in flags:
            self._add(f"--{flag.lower()}", self.precision)
        if not lowered and "FP16" not in flags:
            return
        asked = [f"{name}:{self.precision}" for name in LAYER_NAMES] if lowered else []
        in_fp32 = [f"{name}:fp32" for name in graph.in_fp32]
        if on_dla and not self.options.gpu_fallback:
            in_fp32 = []  # a DLA has no FP32
        self._add("--precisionConstraints", self.precision, "prefer" if self.options.allow_fallback else "obey")
        if asked or in_fp32:
            self._add("--layerPrecisions", self.precision, ",".join(asked + in_fp32))
        if in_fp32:
            self._add("--layerOutputTypes", self.precision, ",".join(in_fp32))

    def _own_table(self, table: Path) -> Path:
        """A copy of the table under the header that this trtexec takes: its calibrator is always EntropyCalibration2."""
        try:
            text = table.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ArtifactError("cannot read the calibration table", value=table, fix="calibrate again") from error
        read_calibration_table(text)
        own = self.folder / "calibration.table"
        own.write_text(HEADER.sub(table_header(self.trtexec.version), text, count=1), encoding="utf-8")
        return own

    def _memory(self) -> None:
        limits = self.options.pool_limits()
        if "tactic-dram" in limits:
            if "tactic-dram" in self.options.pools:
                raise UserError("trtexec cannot bound the memory pool", value="tactic-dram", fix="leave it out")
            del limits["tactic-dram"]
            self.notes.append("trtexec cannot bound the memory that kernels are tried in; the cap bounds the rest")
        if limits:
            named = {POOLS[pool]: size for pool, size in limits.items()}
            for pool in named:
                if f'"{pool}"' not in self.trtexec.help:
                    raise UserError(
                        f"trtexec of TensorRT {self.trtexec.version} has no memory pool", value=pool, fix="leave it out"
                    )
            # A bare number is MiB in every version; `1024MiB` is read as 1024 bytes by TensorRT 10.
            sizes = ",".join(f"{pool}:{size}" for pool, size in named.items())
            self._add("--memPoolSize", "a bound on memory", sizes)
        if self.options.memory_cap is not None:
            self._add("--maxAuxStreams", "a cap on memory", 0)
        if self.options.optimization_level is not None:
            self._add("--builderOptimizationLevel", "the optimization level", self.options.optimization_level)

    def _timing_cache(self) -> None:
        given, mode = self.options.timing_cache, self.options.timing_cache_mode
        if given is None:
            return
        if given.is_file():
            shutil.copyfile(given, self.cache)  # trtexec writes it back, also when it is stopped half-way
        elif mode != "update":
            raise UserError(
                f"no such timing cache, and mode {mode} needs one", value=given, fix="use the mode update to make it"
            )
        self._add("--timingCacheFile", "the timing cache", self.cache)
        if mode == "require":
            self._add("--errorOnTimingCacheMiss", "a required timing cache")

    def _targets(self) -> None:
        options = self.options
        for switch in SWITCHES:
            if getattr(options, switch.option):
                for argument in switch.trtexec:
                    name, _, value = argument.partition("=")
                    self._add(name, switch.about, value or None)
        if options.dla_core is not None:
            self._add("--useDLACore", "a DLA", options.dla_core)
        if options.hardware_compatibility != "none":
            level = COMPATIBILITY[options.hardware_compatibility]
            if f'"{level}"' not in self.trtexec.help:
                raise UserError(
                    f"trtexec of TensorRT {self.trtexec.version} has no such hardware compatibility",
                    value=options.hardware_compatibility,
                    fix="leave it out",
                )
            self._add("--hardwareCompatibilityLevel", "hardware compatibility", level)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Graph:
    """What the arguments need to know of the ONNX file."""

    image: tuple[int, ...]
    """`(3, H, W)`."""
    batch: int | None
    """None where the batch is free."""
    in_fp32: tuple[str, ...]
    """Nodes that stay in FP32."""


def _read_graph(path: Path) -> _Graph:
    with needs("export"):
        import onnx
    graph = onnx.load(str(path)).graph
    batch, *image = next(value for value in graph.input if value.name == INPUT).type.tensor_type.shape.dim
    return _Graph(
        image=tuple(int(extent.dim_value) for extent in image),
        batch=int(batch.dim_value) or None,
        in_fp32=tuple(node.name for node in graph.node if node.op_type in _IN_FP32),
    )


@contextmanager
def _workspace(engine_path: Path) -> Iterator[Path]:
    """A folder beside the engine for unfinished files, so that the finished one is moved by a rename."""
    with writing(engine_path):
        engine_path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".trtexec-", dir=engine_path.parent.resolve()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(binary: Path, arguments: Sequence[str], reporter: Reporter) -> list[str]:
    """Run trtexec to its end; returns its lines.

    Raises:
        MissingComponentError: when it cannot be started.
        ArtifactError: when it fails, with its first error.
    """
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
    try:
        assert child.stdout is not None
        for raw in child.stdout:
            line = raw.decode(errors="replace").rstrip()
            lines.append(line)
            match = _LINE.match(line)
            reporter.update(len(lines), match["text"][:60] if match else "")
        code = child.wait()
    except BaseException:
        _stop(child)
        raise
    finally:
        if child.stdout is not None:
            child.stdout.close()
    if code < 0:
        raise ArtifactError(
            f"trtexec was ended by {signal.Signals(-code).name}",
            fix="if memory ran out, bound it with --memory-cap or close other programs",
        )
    if code != 0:
        raise _failed(lines)
    return lines


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


def _inspect(job: _Job, log: Sequence[str], reporter: Reporter, *, strong: bool) -> tuple[LayerPrecision, ...]:
    """What the engine inspector says, after the build and, where that leaves a layer unknown, after loading the engine.

    TensorRT 8 tells the formats of tensors of dynamic shape only once a shape is set, which trtexec does to run.
    """
    layers = inspected_precisions(_text_of(job.information), job.precision, log=log)
    if any(layer.built == "unknown" for layer in layers) and job.shape is not None:
        job.information.unlink(missing_ok=True)
        arguments = [f"--loadEngine={job.engine}", f"--exportLayerInfo={job.information}", f"--shapes={job.shape}"]
        try:
            _run(job.trtexec.path, [*arguments, *RUN_ONCE], reporter)
            layers = inspected_precisions(_text_of(job.information), job.precision, log=log)
        except ArtifactError as error:
            job.notes.append(f"the engine could not be inspected with a shape: {error.problem}")
    if all(layer.built not in _UNTOLD for layer in layers):
        return layers
    graph = {layer.name: layer for layer in onnx_precisions(job.onnx_path, job.precision)}
    return tuple(_from_graph(layer, graph[layer.name], job.options, strong=strong) for layer in layers)


def _from_graph(
    layer: LayerPrecision, graph: LayerPrecision, options: EngineOptions, *, strong: bool
) -> LayerPrecision:
    """Fill in an untold type from the ONNX graph where the engine cannot differ from it, or its size would show."""
    unpacked = UNPACKED in layer.evidence and not options.stripped
    if layer.built not in _UNTOLD or not (strong or unpacked):
        return layer
    why = "which a strongly typed engine keeps" if strong else UNPACKED
    return replace(layer, built=graph.built, evidence=f"{_BY_GRAPH}, {why}")


def _text_of(information: Path) -> str:
    return information.read_text(encoding="utf-8", errors="replace") if information.is_file() else ""


def _without_folder(argument: str) -> str:
    """An argument as the manifest keeps it: with the names of files, not with temporary folders."""
    name, equals, value = argument.partition("=")
    return f"{name}={Path(value).name}" if equals and value.startswith("/") else argument
