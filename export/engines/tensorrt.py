"""An engine built through the Python bindings of TensorRT (8.6 to 11) or TensorRT-RTX, and the proof of its precision.

TensorRT builds on the GPU that the engine is for, and is asked afterwards what it built: the engine inspector. TensorRT-RTX
builds anywhere and leaves the choice of kernels to the machine that loads the engine; there the evidence is the parsed,
strongly typed network, in which the builder has no freedom, and the engine's size.

Source: TensorRT documentation, "Python API", "Strongly typed networks", "Controlling computational precision" (weak typing,
to 10.11), "Timing cache", "Working with DLA"; TensorRT-RTX documentation, "CPU-only AOT".
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from alexnet_edge.artifact import INPUT, LayerPrecision, Precision
from alexnet_edge.errors import ArtifactError, MissingComponentError, PrecisionError, UserError
from alexnet_edge.export.engines.features import (
    LEVELS,
    SWITCHES,
    WEAK_FLAGS,
    EngineSpec,
    Features,
    pool_member,
)
from alexnet_edge.export.engines.inspector import UNPACKED, inspected_precisions
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.precision import network_precisions, onnx_precisions, require_precision
from alexnet_edge.files import staged, writing
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.nvidia.cuda import gpu_info
from alexnet_edge.nvidia.libraries import NAMES, Library, library_calls, load_library, make_logger, platform_name
from alexnet_edge.progress import QuietReporter, Reporter

SIZE_SLACK = 0.15
"""How far an engine's size may be from that of its weights, as a share: biases, scales, kernels' code and padding."""
FIXED_SLACK_BYTES = 8 << 20
"""And as a number, for each GPU architecture that it is built for."""

_BUILDERS: dict[Library, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}
_WEIGHTED = {"CONVOLUTION", "MATRIX_MULTIPLY", "FULLY_CONNECTED"}
_IN_FP32 = {"LRN", "SOFTMAX"}
"""Layer types that stay in FP32 in every precision: squares and exponentials overflow FP16."""
_MEMBERS = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngine:
    """What the builder answered."""

    layers: tuple[LayerPrecision, ...]
    version: str
    """Of the library that built it, and that must load it."""
    build: dict[str, Any] = field(default_factory=dict)
    """What the manifest keeps: builder, platform, options, proof and accepted differences."""
    messages: tuple[str, ...] = ()
    """Warnings and errors of the builder and the parser."""


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    spec: EngineSpec,
    *,
    weight_bytes: int,
    size: int,
    calibrator: Any = None,
    reporter: Reporter | None = None,
    trt: ModuleType | None = None,
    logger: Any = None,
) -> BuiltEngine:
    """Build `engine_path` from an ONNX file of this package.

    Args:
        onnx_path: the graph, in the precision `spec.graph`.
        engine_path: where the engine goes, exactly the bytes that the builder returns; an older file there is kept until
            the new one is proved.
        spec: the engine asked for, with the library that builds it; its precision is proved layer by layer.
        weight_bytes: what the weights take in that precision, for the proof by size.
        size: height and width of the input, in pixels.
        calibrator: TensorRT's calibrator object; with `options.calibrator`, and only then.
        reporter: where progress goes; `update` only, inside the caller's piece of work.
        trt: the imported library; by default that of `spec`.
        logger: an instance of `trt.ILogger` that takes the library's messages; by default they are kept for the manifest.

    Raises:
        MissingComponentError: when the library or its GPU is not here.
        UserError: for an option that it refuses, and a timing cache that cannot be read.
        ArtifactError: when its parser or builder refuses the graph, with its reason.
        PrecisionError: when a layer is not as asked, and `options.allow_fallback` does not accept that.
        OutputError: when the engine or the timing cache cannot be written.
        KeyboardInterrupt: on Ctrl-C, once the builder has stopped; nothing is left behind.
    """
    options, precision, features = spec.options, spec.precision, spec.features
    assert spec.runtime != "trtexec", "it has no Python bindings"
    runtime: Library = spec.runtime
    library = load_library(runtime) if trt is None else trt
    assert (calibrator is None) == (options.calibrator is None), "a calibrator goes with the option that names it"
    messages: list[str] = []
    log: list[str] = []
    build = _Build(
        trt=library,
        runtime=runtime,
        name=f"{NAMES[runtime]} {features.version}",
        spec=spec,
        size=size,
        calibrator=calibrator,
        logger=make_logger(library, messages, log=log) if logger is None else logger,
        log=log,
        reporter=reporter or QuietReporter(),
    )
    with library_calls():  # it also lets go of the network and its weights when the build fails
        plan, timings = build.run(onnx_path)
        layers = build.proved(plan, onnx_path)
    if spec.strong or any(_BY_GRAPH in layer.evidence for layer in layers):
        copies = max(1, len(spec.capabilities))
        build.proof.append(prove_size(int(plan.nbytes), precision, weight_bytes, options, copies=copies))
    fallback = accept(layers, options, f"{NAMES[runtime]} {precision} engine")
    with staged(engine_path) as temporary:
        temporary.write_bytes(plan)
    written = _save_timings(options, timings)
    gpu = gpu_info() if runtime == "tensorrt" else None
    told = tuple(dict.fromkeys(messages))
    return BuiltEngine(
        layers=layers,
        version=features.version,
        build={
            "builder": _BUILDERS[runtime],
            "version": features.version,
            "typing": features.typing,
            "platform": platform_name(),
            "sm": gpu.sm if gpu is not None else None,
            "compute_capabilities": list(spec.capabilities),
            **options.record(),
            "proof": "; ".join(build.proof),
            "fallback": fallback,
            "not_on_dla": build.not_on_dla,
            "warnings": list(spec.warnings),
            "messages": list(told),
            "timing_cache": written,
        },
        messages=told,
    )


_BY_NETWORK = "strongly typed network"
_BY_GRAPH = "element types in the ONNX graph"


@dataclass(kw_only=True, slots=True)
class _Build:
    """One build: the library's objects and what was learnt on the way."""

    trt: Any
    runtime: Library
    name: str
    """The library and its version, for messages."""
    spec: EngineSpec
    size: int
    calibrator: Any
    logger: Any
    log: list[str]
    """What the library said, as `[E] why`."""
    reporter: Reporter
    batch: int | None = None
    """The graph's own batch; None where it is free."""
    typed: tuple[LayerPrecision, ...] = ()
    """What the parsed network says of each layer, where it is strongly typed."""
    not_on_dla: list[str] = field(default_factory=list)
    """Layers that the library says a DLA cannot run."""
    proof: list[str] = field(default_factory=list)
    """What the precision was read from."""

    @property
    def features(self) -> Features:
        return self.spec.features

    @property
    def precision(self) -> Precision:
        return self.spec.precision

    @property
    def options(self) -> EngineOptions:
        return self.spec.options

    @property
    def strong(self) -> bool:
        return self.spec.strong

    def run(self, onnx_path: Path) -> tuple[Any, Any]:
        """The finished plan (an `IHostMemory`), and the timing cache to save or None."""
        builder = self._builder()
        network, parser = self._parsed(builder, onnx_path)
        if self.strong:
            self.typed = network_precisions(network, self.precision)
            if not self.options.allow_fallback:
                require_precision(self.typed, f"the network that {self.name} read")
        config = self._config(builder, network)
        plan = self._built(builder, network, config, onnx_path)
        del parser  # the network reads the weights from its memory
        cached = self.runtime != "rtx" and self.options.timing_cache is not None
        return plan, config.get_timing_cache() if cached else None

    # --- the network ----------------------------------------------------------------------------------------------------

    def _builder(self) -> Any:
        try:
            return self.trt.Builder(self.logger)
        except (RuntimeError, TypeError) as error:  # the binding's answer to a driver or GPU it cannot use
            raise MissingComponentError(
                f"{self.name} cannot start its builder ({self._reason(str(error))})", fix="see `alexnet-edge doctor`"
            ) from error

    def _parsed(self, builder: Any, onnx_path: Path) -> tuple[Any, Any]:
        if not onnx_path.is_file():
            raise ArtifactError("no such ONNX file", value=onnx_path, fix="export it again")
        network = builder.create_network(self.features.network_flags(self.trt))
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(onnx_path)):
            reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
            raise ArtifactError(
                f"{self.name} cannot read the graph ({reasons or self._reason()})",
                value=onnx_path,
                fix="export it again",
            )
        if network.num_inputs != 1:  # an empty file, too, is a graph: one without nodes
            raise ArtifactError(
                f"the graph has {network.num_inputs} inputs, not one", value=onnx_path, fix="export it again"
            )
        batch = int(network.get_input(0).shape[0])
        self.batch = batch if batch > 0 else None
        low, _, high = self.options.batches
        if self.batch is not None and not low == high == self.batch:
            raise UserError(
                "the graph has a fixed batch, and other batches were asked for",
                value=f"{self.batch}, not {low} to {high}",
                fix=f"give --min-batch, --opt-batch and --max-batch {self.batch}",
            )
        return network, parser

    # --- what the builder is told ---------------------------------------------------------------------------------------

    def _config(self, builder: Any, network: Any) -> Any:
        config = builder.create_builder_config()
        said = len(self.log)
        config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED  # so that the inspector tells types
        self._set_flags(config)
        self._set_memory(config)
        if self.options.optimization_level is not None:
            config.builder_optimization_level = self.options.optimization_level
        if self.options.hardware_compatibility != "none" and self.runtime != "rtx":  # which ignores it, with a warning
            level = LEVELS[self.options.hardware_compatibility]
            config.hardware_compatibility_level = getattr(self.trt.HardwareCompatibilityLevel, level)
        self._set_capabilities(config)
        self._set_shapes(builder, config)
        if not self.strong:
            self._set_types(config, network)
        self._set_dla(builder, config, network)  # last: what a DLA can run depends on the types allowed
        refused = [line for line in self.log[said:] if line.startswith(("[E]", "[F]"))]
        if refused:  # the setters return nothing: what they refuse they only log
            raise UserError(
                f"{self.name} does not take an option ({_said(refused[0])})", fix="leave it out or change its value"
            )
        self._set_timings(config)
        return config

    def _set_flags(self, config: Any) -> None:
        flags = self.trt.BuilderFlag
        options = self.options
        if options.tf32:
            config.set_flag(flags.TF32)
        else:
            config.clear_flag(flags.TF32)
        for switch in SWITCHES:
            if getattr(options, switch.option):
                for name in switch.flags:
                    config.set_flag(getattr(flags, name))
        if options.timing_cache_mode == "require":
            config.set_flag(flags.ERROR_ON_TIMING_CACHE_MISS)

    def _set_memory(self, config: Any) -> None:
        for pool, mebibytes in self.options.pool_limits().items():
            config.set_memory_pool_limit(getattr(self.trt.MemoryPoolType, pool_member(pool)), mebibytes << 20)
        if self.options.memory_cap is not None:
            config.max_aux_streams = 0

    def _set_capabilities(self, config: Any) -> None:
        names = self.spec.capabilities
        if not names:
            return
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            if not config.set_compute_capability(getattr(self.trt.ComputeCapability, name.upper()), index):
                raise UserError(f"{self.name} does not build for this GPU architecture", value=name, fix="leave it out")

    def _set_shapes(self, builder: Any, config: Any) -> None:
        if self.batch is not None:
            return
        batches = self.options.batches
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *[(batch, 3, self.size, self.size) for batch in batches])
        if config.add_optimization_profile(profile) < 0:
            raise ArtifactError(
                f"{self.name} does not take these batches ({self._reason()})",
                value=batches,
                fix="export the graph again",
            )
        if self.calibrator is not None and self.features.has("IBuilderConfig.set_calibration_profile"):
            batch = int(self.calibrator.get_batch_size())
            calibration = builder.create_optimization_profile()
            calibration.set_shape(INPUT, *[(batch, 3, self.size, self.size)] * 3)
            config.set_calibration_profile(calibration)

    def _set_dla(self, builder: Any, config: Any, network: Any) -> None:
        core = self.options.dla_core
        if core is None:
            return
        cores = int(builder.num_DLA_cores)
        if core >= cores:
            raise UserError(
                f"this machine has {cores} DLA cores for {self.name}" if cores else f"{self.name} finds no DLA here",
                value=core,
                fix="give a smaller number" if cores else "leave --dla-core out",
            )
        config.default_device_type = self.trt.DeviceType.DLA
        config.DLA_core = core
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        self.not_on_dla = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
        weighted = [name for name in LAYER_NAMES if name in self.not_on_dla]
        if weighted and not self.options.gpu_fallback:
            raise UserError(
                "the DLA cannot run every layer",
                value=", ".join(weighted),
                fix="add --gpu-fallback, or leave --dla-core out",
            )

    def _set_types(self, config: Any, network: Any) -> None:
        """Weak typing: allow the types, and demand them of the layers whose precision is not in the graph.

        Local response normalisation and softmax are held in FP32, but not on a DLA, which has no FP32: there they stay in
        FP16 unless they may go to the GPU.
        """
        flags = list(WEAK_FLAGS[self.precision])
        if self.precision == "int8" and self.options.dla_core is not None:
            flags.append("FP16")  # what the DLA has no INT8 for
        for flag in flags:
            config.set_flag(getattr(self.trt.BuilderFlag, flag))
        lowered = self.spec.graph != self.precision
        if self.calibrator is not None:
            config.int8_calibrator = self.calibrator
        if not lowered and "FP16" not in flags:
            return
        types = self.trt.DataType
        on_dla_only = self.options.dla_core is not None and not self.options.gpu_fallback
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            kind = str(layer.type.name)
            if lowered and kind in _WEIGHTED and layer.name in LAYER_NAMES:
                layer.precision = getattr(types, _MEMBERS[self.precision])
            elif kind in _IN_FP32 and not on_dla_only:
                layer.precision = types.FLOAT
                layer.set_output_type(0, types.FLOAT)
        constraints = "PREFER" if self.options.allow_fallback else "OBEY"
        config.set_flag(getattr(self.trt.BuilderFlag, f"{constraints}_PRECISION_CONSTRAINTS"))

    def _set_timings(self, config: Any) -> None:
        """Attach the timing cache; TensorRT answers a damaged one with an empty one and a message."""
        path, mode = self.options.timing_cache, self.options.timing_cache_mode
        if path is None or self.runtime == "rtx":
            return
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
        said = len(self.log)
        cache = config.create_timing_cache(content)
        taken = cache is not None and config.set_timing_cache(cache, False)
        told = [line for line in self.log[said:] if not line.startswith("[I]")]
        if not taken or (content and told):
            reason = _said(told[0]) if told else "it is damaged, or of another TensorRT or GPU"
            raise UserError(
                f"{self.name} does not take the timing cache ({reason})",
                value=path,
                fix="delete it, or name another file",
            )

    # --- building -------------------------------------------------------------------------------------------------------

    def _built(self, builder: Any, network: Any, config: Any, onnx_path: Path) -> Any:
        """The plan, built in a thread of its own so that Ctrl-C reaches this one while C++ works.

        The builder stops at its next step. TensorRT 8 has no steps and is waited for; a second Ctrl-C goes on without it,
        and then Python waits for it when it ends: to end under a running build would crash.
        """
        stop, begun, done = threading.Event(), threading.Lock(), threading.Event()
        monitor = None
        if self.features.has("IProgressMonitor"):
            monitor = _make_monitor(self.trt, self.reporter, stop)
            config.progress_monitor = monitor
        outcome: dict[str, Any] = {}

        def work() -> None:
            if not begun.acquire(blocking=False):
                return
            try:
                outcome["plan"] = builder.build_serialized_network(network, config)
            except BaseException as error:  # noqa: BLE001  # raised again below, in the thread that asked
                outcome["error"] = error
            finally:
                done.set()

        try:
            threading.Thread(target=work, name="engine build").start()
            done.wait()
        except BaseException:
            stop.set()
            if not begun.acquire(blocking=False):  # else the thread has not come so far, and now will not
                if monitor is None:
                    self.reporter.note(f"{self.name} cannot be stopped: waiting for the end of its build")
                done.wait()
            raise
        for failed in (getattr(monitor, "error", None), getattr(self.calibrator, "error", None), outcome.get("error")):
            if isinstance(failed, BaseException):
                raise failed
        if outcome["plan"] is None:
            raise ArtifactError(
                f"{self.name} could not build the engine ({self._reason()})", value=onnx_path, fix=self._advice()
            )
        return outcome["plan"]

    def _advice(self) -> str:
        said = " ".join(self.log).lower()
        if "out of memory" in said or "outofmemory" in said or "insufficient memory" in said:
            return "bound its memory with --memory-cap, or close other programs"
        if self.options.dla_core is not None and not self.options.gpu_fallback:
            return "add --gpu-fallback for what the DLA cannot run"
        if self.options.timing_cache_mode == "require":
            return "a kernel may not be in the timing cache: build once with mode update"
        if not self.strong and self.precision != "fp32" and not self.options.allow_fallback:
            return "try another precision, or accept others with --allow-fallback"
        return "try another precision"

    def _reason(self, otherwise: str = "") -> str:
        """Why something failed: the first error that the library logged; those after it are consequences."""
        for marks in (("[E]", "[F]"), ("[W]",)):
            for line in self.log:
                if line.startswith(marks):
                    return _said(line)
        return " ".join(otherwise.split()) or "it gives no reason"

    # --- proving --------------------------------------------------------------------------------------------------------

    def proved(self, plan: Any, onnx_path: Path) -> tuple[LayerPrecision, ...]:
        """What each layer was built in: from the finished engine, or, with TensorRT-RTX, from the network it was built of."""
        if self.runtime == "rtx":
            self.proof.append(f"types in the parsed, {_BY_NETWORK}")
            return self.typed
        self.proof.append("engine inspector")
        layers = self._inspected(plan)
        if all(layer.built not in ("unknown", "missing") for layer in layers):
            return layers
        if self.strong:
            self.proof.append(f"where it does not tell, types in the parsed, {_BY_NETWORK}")
            return tuple(map(_filled, layers, self.typed))
        quantised = self.spec.graph == self.precision
        if quantised and not self.options.stripped and any(UNPACKED in layer.evidence for layer in layers):
            self.proof.append(f"where weights are unpacked inside a kernel, {_BY_GRAPH}")
            graph = onnx_precisions(onnx_path, self.precision)
            pairs = zip(layers, graph, strict=True)
            return tuple(_filled(layer, typed) if UNPACKED in layer.evidence else layer for layer, typed in pairs)
        return layers

    def _inspected(self, plan: Any) -> tuple[LayerPrecision, ...]:
        runtime = self.trt.Runtime(self.logger)
        if self.options.dla_core is not None:
            runtime.DLA_core = self.options.dla_core
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ArtifactError(
                f"{self.name} cannot load the engine it has built ({self._reason()})", fix="try other options"
            )
        inspector = engine.create_engine_inspector()
        form = self.trt.LayerInformationFormat.JSON
        layers = inspected_precisions(inspector.get_engine_information(form), self.precision, log=self.log)
        if self.batch is None and any(layer.built == "unknown" for layer in layers):
            context = (
                engine.create_execution_context()
            )  # TensorRT 8 tells a dynamic layer's format for a given shape only
            if context is not None:
                context.set_input_shape(INPUT, (self.options.opt_batch, 3, self.size, self.size))
                inspector.execution_context = context
                text = inspector.get_engine_information(form)
                layers = inspected_precisions(text, self.precision, log=self.log)
        return layers


def _filled(layer: LayerPrecision, other: LayerPrecision) -> LayerPrecision:
    """What the engine does not tell of a layer, from what it was built of."""
    if layer.built not in ("unknown", "missing"):
        return layer
    return replace(layer, built=other.built, evidence=other.evidence)


def _said(line: str) -> str:
    """A line of the log without its severity."""
    return line[4:] if line[:1] == "[" else line


def _make_monitor(trt: Any, reporter: Reporter, stop: threading.Event) -> Any:
    """A progress monitor that shows the builder's phases and ends the build when `stop` is set."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the library is known at run time only
        """Called from C++, from several of its threads at a time: nothing may be raised here."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self._steps: dict[str, int] = {}
            self._done = 0
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                with self._lock:
                    self._done += 1
                    reporter.update(self._done, f"{phase_name} {step + 1}/{self._steps.get(phase_name, '?')}")
            except BaseException as error:  # noqa: BLE001  # it would end the process from inside C++
                self.error = error
            return not stop.is_set() and self.error is None

    return Monitor()


def accept(layers: Sequence[LayerPrecision], options: EngineOptions, what: str) -> list[str]:
    """Refuse an engine that is not as asked, unless that is accepted.

    Returns:
        The accepted differences, a sentence each.

    Raises:
        PrecisionError: naming each layer that is not in the precision, or not on the DLA, as asked.
    """
    if not options.allow_fallback:
        require_precision(layers, what)
    fallback = [f"{layer.name} is {layer.built}, not {layer.requested}" for layer in layers if not layer.holds]
    on_gpu = []
    if options.dla_core is not None:
        on_gpu = [f"{layer.name} runs on the GPU, not on the DLA" for layer in layers if layer.placement == "GPU"]
    if on_gpu and not (options.gpu_fallback or options.allow_fallback):
        raise PrecisionError(f"{what}: {', '.join(on_gpu)}")
    return fallback + on_gpu


def prove_size(size: int, precision: Precision, expected: int, options: EngineOptions, *, copies: int = 1) -> str:
    """The size of the plan as a second witness, where the first is what it was built of.

    Returns:
        What was compared, or why it was not.

    Raises:
        PrecisionError: when the size is not that of the weights in the precision asked for.
    """
    why = {
        "the weights are not in the file": options.stripped,
        "sparse weights are stored compressed": options.sparsity,
        "a DLA's compiler packs its weights": options.dla_core is not None,
        "other precisions were accepted": options.allow_fallback,
    }
    for reason, exempt in why.items():
        if exempt:
            return f"size not compared: {reason}"
    if abs(size - expected) > expected * SIZE_SLACK + FIXED_SLACK_BYTES * copies:
        raise PrecisionError(
            f"the engine has {size:,} bytes where the weights in {precision} take {expected:,}: "
            "it was not built in the precision asked for"
        )
    return f"size: {size:,} bytes for {expected:,} of weights"


def _save_timings(options: EngineOptions, timings: Any) -> dict[str, Any] | None:
    """Write the timing cache back; what the manifest says of it."""
    if options.timing_cache is None or timings is None:
        return None
    record = {"file": str(options.timing_cache), "mode": options.timing_cache_mode}
    if options.timing_cache_mode != "update":
        return record
    content = timings.serialize()
    with writing(options.timing_cache), staged(options.timing_cache) as temporary:
        temporary.write_bytes(content)
    return {**record, "bytes": int(content.nbytes)}
