"""An engine built through the Python bindings of TensorRT (8.6 to 11) or TensorRT-RTX, and the proof of its precision.

TensorRT builds on the GPU that the engine is for, and its engine inspector tells what was built. TensorRT-RTX builds anywhere
and leaves the choice of kernels to the machine that loads the engine; there the proof is the parsed, strongly typed network,
in which the builder has no freedom, and the engine's size.

Source: TensorRT documentation, "Python API", "Strongly typed networks", "Controlling computational precision" (weak typing,
to 10.11), "Timing cache", "Working with DLA"; TensorRT-RTX documentation, "CPU-only AOT".
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alexnet_edge.artifact import INPUT, LayerPrecision, Precision
from alexnet_edge.errors import ArtifactError, MissingComponentError, PrecisionError, UserError
from alexnet_edge.export.engines.features import LEVELS, SWITCHES, EngineSpec, pool_member
from alexnet_edge.export.engines.inspector import UNPACKED, inspected_precisions
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.precision import network_precisions, onnx_precisions, require_precision
from alexnet_edge.files import staged
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.nvidia.cuda import gpu_info
from alexnet_edge.nvidia.libraries import NAMES, library_calls, load_library, make_logger, platform_name
from alexnet_edge.progress import Reporter

SIZE_SLACK = 0.15
"""How far an engine's size may be from that of its weights, as a share: biases, scales, kernels' code and padding."""
FIXED_SLACK_BYTES = 8 << 20
"""And as a number, for each GPU architecture that it is built for."""
NOT_TOLD = ("unknown", "missing")
"""What the inspector answers of a layer whose type it does not tell."""
BY_GRAPH = "element types in the ONNX graph"
_BY_NETWORK = "strongly typed network"
_WEIGHTED = {"CONVOLUTION", "MATRIX_MULTIPLY", "FULLY_CONNECTED"}
_IN_FP32 = {"LRN", "SOFTMAX"}
"""Layer types that stay in FP32 in every precision: squares and exponentials overflow FP16."""
_MEMBERS = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngine:
    """What the builder answered."""

    layers: tuple[LayerPrecision, ...]
    build: dict[str, Any]
    """What the manifest keeps: builder, platform, options, proof, accepted differences, the library's warnings and errors."""

    @classmethod
    def of(
        cls, spec: EngineSpec, layers: tuple[LayerPrecision, ...], builder: str, messages: Sequence[str], **more: Any
    ) -> BuiltEngine:
        """What every builder records, and `more`; of `messages` each once."""
        build = {
            "builder": builder,
            "version": spec.features.version,
            "typing": spec.features.typing,
            "platform": platform_name(),
            "compute_capabilities": list(spec.capabilities),
            **spec.options.record(),
            "warnings": list(spec.warnings),
            "messages": list(dict.fromkeys(messages)),
            **more,
        }
        return cls(layers=layers, build=build)


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    spec: EngineSpec,
    *,
    weight_bytes: int,
    size: int,
    calibrator: Any,
    reporter: Reporter,
) -> BuiltEngine:
    """Build `engine_path` from an ONNX file of this package.

    Args:
        onnx_path: the graph, in the precision `spec.graph`.
        engine_path: where the engine goes, exactly the bytes that the builder returns; an older file is kept until the new
            one is proved.
        spec: the engine, with the library that builds it; its precision is proved layer by layer.
        weight_bytes: what the weights take in that precision, for the proof by size.
        size: height and width of the input, in pixels.
        calibrator: TensorRT's calibrator object with `options.calibrator`, else None.
        reporter: where progress goes; `update` only, inside the caller's piece of work.

    Raises:
        MissingComponentError: when the library or its GPU is missing.
        UserError: for an option that it refuses, and a timing cache that cannot be read.
        ArtifactError: when its parser or builder refuses the graph, with its reason.
        PrecisionError: when a layer is not as asked, and `options.allow_fallback` does not accept that.
        OutputError: when the engine or the timing cache cannot be written.
        KeyboardInterrupt: on Ctrl-C, once the builder has stopped; nothing is left behind.
    """
    options, precision = spec.options, spec.precision
    assert spec.runtime != "trtexec", "it has no Python bindings"
    assert (calibrator is None) == (options.calibrator is None), "a calibrator goes with the option that names it"
    trt = load_library(spec.runtime)
    build = _Build(trt=trt, spec=spec, size=size, calibrator=calibrator, reporter=reporter)
    with library_calls():  # it also lets go of the network and its weights when the build fails
        plan, timings = build.run(onnx_path)
        layers = build.proved(plan, onnx_path)
    if spec.strong or any(BY_GRAPH in layer.evidence for layer in layers):
        copies = max(1, len(spec.capabilities))
        build.proof.append(prove_size(int(plan.nbytes), precision, weight_bytes, options, copies=copies))
    fallback = accept(layers, options, f"{NAMES[spec.runtime]} {precision} engine")
    with staged(engine_path) as temporary:
        temporary.write_bytes(plan)
    gpu = gpu_info() if spec.runtime == "tensorrt" else None
    return BuiltEngine.of(
        spec,
        layers,
        "tensorrt" if spec.runtime == "tensorrt" else "tensorrt-rtx",
        build.messages,
        sm=gpu.sm if gpu is not None else None,
        proof="; ".join(build.proof),
        fallback=fallback,
        not_on_dla=build.not_on_dla,
        timing_cache=_save_timings(options, timings),
    )


@dataclass(kw_only=True, slots=True)
class _Build:
    """One build: the library's objects and what was learnt on the way."""

    trt: Any
    spec: EngineSpec
    size: int
    calibrator: Any
    reporter: Reporter
    logger: Any = field(init=False)
    log: list[str] = field(default_factory=list)
    """What the library logged, as `[E] why`."""
    messages: list[str] = field(default_factory=list)
    """Its warnings and errors, without the severity."""
    batch: int | None = None
    """The graph's own batch; None where it is free."""
    typed: tuple[LayerPrecision, ...] = ()
    """What the parsed network says of each layer, where it is strongly typed."""
    not_on_dla: list[str] = field(default_factory=list)
    """Layers that the library says a DLA cannot run."""
    proof: list[str] = field(default_factory=list)
    """What the precision was read from."""

    def __post_init__(self) -> None:
        self.logger = make_logger(self.trt, self.messages, log=self.log)

    @property
    def options(self) -> EngineOptions:
        return self.spec.options

    @property
    def name(self) -> str:
        return self.spec.builder_name

    def run(self, onnx_path: Path) -> tuple[Any, Any]:
        """The finished plan (an `IHostMemory`), and the timing cache to save or None."""
        try:
            builder = self.trt.Builder(self.logger)
        except (RuntimeError, TypeError) as error:  # the binding's answer to a driver or GPU it cannot use
            raise MissingComponentError(
                f"{self.name} cannot start its builder ({self._reason(str(error))})", fix="see `alexnet-edge doctor`"
            ) from error
        network, parser = self._parsed(builder, onnx_path)
        if self.spec.strong:
            self.typed = network_precisions(network, self.spec.precision)
            if not self.options.allow_fallback:
                require_precision(self.typed, f"the network that {self.name} read")
        config = self._config(builder, network)
        plan = self._built(builder, network, config, onnx_path)
        del parser  # the network reads the weights from its memory
        cached = self.spec.runtime != "rtx" and self.options.timing_cache is not None
        return plan, config.get_timing_cache() if cached else None

    def _parsed(self, builder: Any, onnx_path: Path) -> tuple[Any, Any]:
        network = builder.create_network(self.spec.features.network_flags(self.trt))
        parser = self.trt.OnnxParser(network, self.logger)
        problem = ""
        if not onnx_path.is_file():
            problem = "no such ONNX file"
        elif not parser.parse_from_file(str(onnx_path)):
            reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
            problem = f"{self.name} cannot read the graph ({reasons or self._reason()})"
        elif network.num_inputs != 1:  # an empty file, too, is a graph: one without nodes
            problem = f"the graph has {network.num_inputs} inputs, not one"
        if problem:
            raise ArtifactError(problem, value=onnx_path, fix="export it again")
        batch = int(network.get_input(0).shape[0])
        self.batch = batch if batch > 0 else None
        self.options.require_batch(self.batch)
        return network, parser

    def _config(self, builder: Any, network: Any) -> Any:
        config = builder.create_builder_config()
        logged = len(self.log)
        config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED  # so that the inspector tells types
        self._set_options(config)
        self._set_shapes(builder, config)
        if not self.spec.strong:
            self._set_types(config, network)
        self._set_dla(builder, config, network)  # last: what a DLA can run depends on the types allowed
        refused = [line for line in self.log[logged:] if line.startswith(("[E]", "[F]"))]
        if refused:  # the setters return nothing: what they refuse they only log
            raise UserError(
                f"{self.name} does not take an option ({refused[0][4:]})", fix="leave it out or change its value"
            )
        self._set_timings(config)
        return config

    def _set_options(self, config: Any) -> None:
        options, flags = self.options, self.trt.BuilderFlag
        (config.set_flag if options.tf32 else config.clear_flag)(flags.TF32)
        chosen = [flag for switch in SWITCHES if getattr(options, switch.option) for flag in switch.flags]
        if options.timing_cache_mode == "require":
            chosen.append("ERROR_ON_TIMING_CACHE_MISS")
        for flag in chosen:
            config.set_flag(getattr(flags, flag))
        for pool, mebibytes in options.pool_limits().items():
            config.set_memory_pool_limit(getattr(self.trt.MemoryPoolType, pool_member(pool)), mebibytes << 20)
        if options.memory_cap is not None:
            config.max_aux_streams = 0
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.hardware_compatibility != "none" and self.spec.runtime != "rtx":  # which ignores it, with a warning
            level = LEVELS[options.hardware_compatibility]
            config.hardware_compatibility_level = getattr(self.trt.HardwareCompatibilityLevel, level)
        if self.spec.capabilities:
            config.num_compute_capabilities = len(self.spec.capabilities)
        for index, name in enumerate(self.spec.capabilities):
            if not config.set_compute_capability(getattr(self.trt.ComputeCapability, name.upper()), index):
                raise UserError(f"{self.name} does not build for this GPU architecture", value=name, fix="leave it out")

    def _set_shapes(self, builder: Any, config: Any) -> None:
        if self.batch is not None:
            return

        def profile_of(batches: Sequence[int]) -> Any:
            profile = builder.create_optimization_profile()
            profile.set_shape(INPUT, *[(batch, 3, self.size, self.size) for batch in batches])
            return profile

        if config.add_optimization_profile(profile_of(self.options.batches)) < 0:
            raise ArtifactError(
                f"{self.name} does not take these batches ({self._reason()})",
                value=self.options.batches,
                fix="export the graph again",
            )
        if self.calibrator is not None:
            config.set_calibration_profile(profile_of([int(self.calibrator.get_batch_size())] * 3))

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
        types, flags = self.trt.DataType, self.trt.BuilderFlag
        for flag in self.spec.weak_flags:
            config.set_flag(getattr(flags, flag))
        if self.calibrator is not None:
            config.int8_calibrator = self.calibrator
        if not self.spec.constrained:
            return
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            kind = str(layer.type.name)
            if self.spec.lowered and kind in _WEIGHTED and layer.name in LAYER_NAMES:
                layer.precision = getattr(types, _MEMBERS[self.spec.precision])
            elif kind in _IN_FP32 and not self.options.dla_only:
                layer.precision = types.FLOAT
                layer.set_output_type(0, types.FLOAT)
        constraints = "PREFER" if self.options.allow_fallback else "OBEY"
        config.set_flag(getattr(flags, f"{constraints}_PRECISION_CONSTRAINTS"))

    def _set_timings(self, config: Any) -> None:
        """Attach the timing cache; TensorRT answers a damaged one with an empty one and a message."""
        if self.options.timing_cache is None or self.spec.runtime == "rtx":
            return
        content = self.options.known_timings()
        logged = len(self.log)
        cache = config.create_timing_cache(content)
        accepted = cache is not None and config.set_timing_cache(cache, False)
        complaints = [line for line in self.log[logged:] if not line.startswith("[I]")]
        if not accepted or (content and complaints):
            reason = complaints[0][4:] if complaints else "it is damaged, or of another TensorRT or GPU"
            raise UserError(
                f"{self.name} does not take the timing cache ({reason})",
                value=self.options.timing_cache,
                fix="delete it, or name another file",
            )

    def _built(self, builder: Any, network: Any, config: Any, onnx_path: Path) -> Any:
        """The plan, built in a thread of its own so that Ctrl-C reaches this one while C++ works.

        The builder stops at its next step. TensorRT 8 has no steps and is waited for; a second Ctrl-C goes on without it,
        and then Python waits for it when it ends: to end under a running build would crash.
        """
        stop, begun, done = threading.Event(), threading.Lock(), threading.Event()
        monitor = None
        if self.spec.features.has("IProgressMonitor"):
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
        log = " ".join(self.log).lower()
        if "out of memory" in log or "outofmemory" in log or "insufficient memory" in log:
            return "bound its memory with --memory-cap, or close other programs"
        if self.options.dla_only:
            return "add --gpu-fallback for what the DLA cannot run"
        if self.options.timing_cache_mode == "require":
            return "a kernel may not be in the timing cache: build once with mode update"
        if not self.spec.strong and self.spec.precision != "fp32" and not self.options.allow_fallback:
            return "try another precision, or accept others with --allow-fallback"
        return "try another precision"

    def _reason(self, otherwise: str = "") -> str:
        """Why something failed: the first error that the library logged; those after it are consequences."""
        for marks in (("[E]", "[F]"), ("[W]",)):
            for line in self.log:
                if line.startswith(marks):
                    return line[4:]
        return " ".join(otherwise.split()) or "it gives no reason"

    def proved(self, plan: Any, onnx_path: Path) -> tuple[LayerPrecision, ...]:
        """What each layer was built in: from the finished engine, or, with TensorRT-RTX, from the network it was built of."""
        if self.spec.runtime == "rtx":
            self.proof.append(f"types in the parsed, {_BY_NETWORK}")
            return self.typed
        self.proof.append("engine inspector")
        layers = self._inspected(plan)
        if all(layer.built not in NOT_TOLD for layer in layers):
            return layers
        if self.spec.strong:
            self.proof.append(f"where it does not tell, types in the parsed, {_BY_NETWORK}")
            return tuple(map(filled, layers, self.typed))
        if not self.spec.lowered and not self.options.stripped and any(UNPACKED in layer.evidence for layer in layers):
            self.proof.append(f"where weights are unpacked inside a kernel, {BY_GRAPH}")
            pairs = zip(layers, onnx_precisions(onnx_path, self.spec.precision), strict=True)
            return tuple(filled(layer, typed) if UNPACKED in layer.evidence else layer for layer, typed in pairs)
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

        def inspected() -> tuple[LayerPrecision, ...]:
            text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
            return inspected_precisions(text, self.spec.precision, log=self.log)

        layers = inspected()
        if self.batch is None and any(layer.built == "unknown" for layer in layers):
            context = engine.create_execution_context()
            if context is not None:  # TensorRT 8 tells a dynamic layer's format only for a shape that is set
                context.set_input_shape(INPUT, (self.options.opt_batch, 3, self.size, self.size))
                inspector.execution_context = context
                layers = inspected()
        return layers


def filled(layer: LayerPrecision, other: LayerPrecision) -> LayerPrecision:
    """What the engine does not tell of a layer, from what it was built of."""
    return replace(layer, built=other.built, evidence=other.evidence) if layer.built in NOT_TOLD else layer


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
    if timings is None:
        return None
    if options.timing_cache_mode != "update":
        return options.timing_cache_record()
    content = timings.serialize()
    options.save_timings(content)
    return {**(options.timing_cache_record() or {}), "bytes": int(content.nbytes)}
