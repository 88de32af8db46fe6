"""Engines built by the real TensorRT-RTX, which needs no GPU, and what is refused on the way.

TensorRT itself cannot run without its GPU: which calls are made on its releases is shown in test_contract.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import MakeCheckpoint
from narrow_network import write_checkpoint

from alexnet_edge.artifact import LayerPrecision, Precision, layer_types
from alexnet_edge.errors import ArtifactError, MissingComponentError, OutputError, PrecisionError, UserError
from alexnet_edge.export.engines import features, tensorrt
from alexnet_edge.export.engines.features import EngineSpec, Features, check
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.engines.tensorrt import BuiltEngine, accept, build_engine, prove_size
from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_onnx
from alexnet_edge.export.precision import weight_bytes
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.progress import QuietReporter

trt: Any = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8", "int4-fc")
RANGES = dict.fromkeys(LAYER_NAMES, 4.0)
SIZE = 227
ON_DLA: dict[str, Any] = {"dla_core": 0, "max_batch": 1}
MakeGraph = Callable[..., Path]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> MakeGraph:
    """`graph("int8")` is the narrow network's ONNX file in that precision; `batch=4` is its form for a DLA."""
    folder = tmp_path_factory.mktemp("graphs")
    narrow = load_checkpoint(write_checkpoint(folder / "narrow.safetensors"))

    def make(precision: Precision, *, batch: int | None = None) -> Path:
        path = folder / f"{precision}_{batch}.onnx"
        if not path.exists():
            amax = RANGES if precision in ("int8", "fp8") else None
            write_onnx(onnx_from_checkpoint(narrow, precision=precision, amax=amax, for_dla=batch), path)
        return path

    return make


def build(onnx_path: Path, engine_path: Path, precision: Precision = "fp16", **more: Any) -> BuiltEngine:
    """A build with TensorRT-RTX; options of the engine, `weight_bytes` and `reporter` by name."""
    weights, reporter = more.pop("weight_bytes", 1 << 20), more.pop("reporter", QuietReporter())
    runtime = more.pop("runtime", "rtx")
    spec = check(EngineOptions(**more), precision, Features.detect(trt), runtime)
    return build_engine(
        onnx_path, engine_path, spec, size=SIZE, weight_bytes=weights, calibrator=None, reporter=reporter
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_built_and_read_back(graph: MakeGraph, tmp_path: Path, precision: Precision) -> None:
    engine = tmp_path / "alexnet.engine"
    built = build(graph(precision), engine, precision)
    assert engine.stat().st_size > 100_000
    assert {layer.name: layer.built for layer in built.layers} == layer_types(precision)
    assert all(layer.holds for layer in built.layers)
    assert built.build["proof"].startswith("types in the parsed, strongly typed network; size: ")
    assert list(tmp_path.iterdir()) == [engine]


def test_the_record_of_a_build(graph: MakeGraph, tmp_path: Path) -> None:
    built = build(graph("fp16"), tmp_path / "alexnet.engine", max_batch=4, compute_capability=("sm89", "sm120"))
    record = dict(built.build)
    assert "strongly typed" in record.pop("proof")
    assert record.pop("platform").startswith("linux-")
    assert record == {
        "builder": "tensorrt-rtx",
        "version": trt.__version__,
        "typing": "strong",
        "sm": None,
        "compute_capabilities": ["sm89", "sm120"],
        "version_compatible": False,
        "hardware_compatibility": "none",
        "refit": False,
        "stripped": False,
        "weight_streaming": False,
        "dla_core": None,
        "options": {"max_batch": 4, "compute_capabilities": ["sm89", "sm120"]},
        "fallback": [],
        "not_on_dla": [],
        "warnings": [],
        "messages": [],
        "timing_cache": None,
    }


def test_an_engine_has_the_size_of_its_weights(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint("two-tower"))  # narrow, most of an engine is not weights
    expected = weight_bytes(checkpoint.info.arch, "int8")
    onnx_path = tmp_path / "int8.onnx"
    write_onnx(onnx_from_checkpoint(checkpoint, precision="int8", amax=RANGES), onnx_path)
    engine = tmp_path / "alexnet.engine"
    built = build(onnx_path, engine, "int8", weight_bytes=expected)
    assert abs(engine.stat().st_size - expected) < 0.05 * expected
    assert f"size: {engine.stat().st_size:,} bytes for {expected:,} of weights" in built.build["proof"]
    with pytest.raises(PrecisionError, match="where the weights in int8 take"):
        build(onnx_path, engine, "int8", weight_bytes=weight_bytes(checkpoint.info.arch, "fp16"))


@pytest.mark.parametrize(
    "options",
    [
        {"workspace": 64},
        {"pool": ("tactic-shared-memory=1",)},
        {"memory_cap": 3000},
        {"optimization_level": 0},
        {"sparsity": True},
        {"tf32": True},
        {"weight_streaming": True},
        {"version_compatible": True},
        {"min_batch": 2, "opt_batch": 4, "max_batch": 8},
    ],
    ids=" ".join,
)
def test_options_that_rtx_takes(graph: MakeGraph, tmp_path: Path, options: dict[str, Any]) -> None:
    built = build(graph("fp16"), tmp_path / "alexnet.engine", **options)
    assert built.build["options"] == EngineOptions(**options).changed()
    assert built.build["messages"] == []


def test_what_the_librarys_configuration_holds(
    graph: MakeGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back from the library's own object."""
    held: dict[str, Any] = {}
    last_step = tensorrt._Build._set_timings

    def spy(self: Any, config: Any) -> None:
        last_step(self, config)
        pools = trt.MemoryPoolType
        held.update(
            tf32=config.get_flag(trt.BuilderFlag.TF32),
            sparse=config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS),
            workspace=config.get_memory_pool_limit(pools.WORKSPACE),
            tactics=config.get_memory_pool_limit(pools.TACTIC_DRAM),
            streams=config.max_aux_streams,
            level=config.builder_optimization_level,
            verbosity=config.profiling_verbosity,
            targets=[str(config.get_compute_capability(i).name) for i in range(config.num_compute_capabilities)],
        )

    monkeypatch.setattr(tensorrt._Build, "_set_timings", spy)
    options = {"sparsity": True, "memory_cap": 512, "optimization_level": 1, "compute_capability": ("sm86",)}
    build(graph("fp16"), tmp_path / "alexnet.engine", **options)
    assert held == {
        "tf32": False,
        "sparse": True,
        "workspace": 256 << 20,
        "tactics": 512 << 20,
        "streams": 0,
        "level": 1,
        "verbosity": trt.ProfilingVerbosity.DETAILED,
        "targets": ["SM86"],
    }


def test_a_graph_with_its_own_batch_needs_no_profile(graph: MakeGraph, tmp_path: Path) -> None:
    engine = tmp_path / "alexnet.engine"
    assert build(graph("fp16", batch=4), engine, min_batch=4, opt_batch=4, max_batch=4).layers[0].built == "fp16"
    with pytest.raises(UserError, match=r"a fixed batch, and other batches were asked for: 4, not 1 to 16"):
        build(graph("fp16", batch=4), engine)


def test_progress_is_reported(graph: MakeGraph, tmp_path: Path) -> None:
    updates: list[tuple[int, str]] = []

    class Reporter(QuietReporter):
        def update(self, completed: int, detail: str = "") -> None:
            updates.append((completed, detail))

    build(graph("fp16"), tmp_path / "alexnet.engine", reporter=Reporter())
    assert [completed for completed, _ in updates] == list(range(1, len(updates) + 1))
    assert any(detail.startswith("Building engine 1/") for _, detail in updates)


def test_a_timing_cache_is_not_touched_by_rtx(graph: MakeGraph, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"of TensorRT")
    built = build(graph("fp16"), tmp_path / "alexnet.engine", timing_cache=cache)
    assert cache.read_bytes() == b"of TensorRT"
    assert built.build["timing_cache"] is None
    assert "neither read nor written" in built.build["warnings"][0]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Where an engine of an earlier build is, which a failed one must leave alone."""
    path = tmp_path / "out" / "alexnet.engine"
    path.parent.mkdir()
    path.write_bytes(b"the engine before")
    return path


def kept(engine: Path) -> bool:
    """Whether the earlier engine is as it was and nothing lies beside it."""
    return engine.read_bytes() == b"the engine before" and list(engine.parent.iterdir()) == [engine]


def test_a_graph_of_another_precision(graph: MakeGraph, engine: Path) -> None:
    with pytest.raises(PrecisionError, match=r"conv1 is fp32, not fp16, .*fc8 is fp32, not fp16"):
        build(graph("fp32"), engine, "fp16")
    assert kept(engine)


def test_anaccepted_difference_is_recorded(graph: MakeGraph, tmp_path: Path) -> None:
    built = build(graph("fp32"), tmp_path / "alexnet.engine", "fp16", allow_fallback=True)
    assert built.build["fallback"][0] == "conv1 is fp32, not fp16"
    assert "size not compared: other precisions were accepted" in built.build["proof"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda whole: b"", "has 0 inputs, not one"),
        (lambda whole: b"not an ONNX file", "cannot read the graph"),
        (lambda whole: whole[:-1000], "cannot read the graph"),
        (None, "no such ONNX file"),
    ],
    ids=["empty", "text", "cut", "missing"],
)
def test_a_file_that_is_no_graph(
    graph: MakeGraph, engine: Path, tmp_path: Path, content: Callable[[bytes], bytes] | None, problem: str
) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content(graph("fp16").read_bytes()))
    with pytest.raises(ArtifactError, match=problem) as refused:
        build(path, engine)
    assert "broken.onnx" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert kept(engine)


def test_a_build_that_fails_gives_the_librarys_reason(
    graph: MakeGraph, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(features.FIRST_SM_RTX, "fp32", 75)  # which knows that Turing has no FP32 here
    with pytest.raises(ArtifactError, match=r"could not build the engine \(.*Turing.*try another precision") as refused:
        build(graph("fp32"), engine, "fp32", compute_capability=("sm75",))
    assert "\n" not in str(refused.value)
    assert kept(engine)


def test_a_kept_error_does_not_keep_the_network(
    graph: MakeGraph, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export of every format keeps the errors to its end. TensorRT tells of a second logger while an object with the
    first is alive."""
    monkeypatch.setitem(features.FIRST_SM_RTX, "fp32", 75)
    with pytest.raises(ArtifactError) as refused:
        build(graph("fp32"), engine, "fp32", compute_capability=("sm75",))
    logged: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            logged.append(message)

    monkeypatch.setattr(tensorrt, "make_logger", lambda *arguments, **more: Logger())
    build(graph("fp16"), engine)
    assert refused.tb is not None
    assert logged
    assert not [message for message in logged if "differs from one already registered" in message]


def test_an_option_that_the_library_refuses_and_only_logs(
    graph: MakeGraph, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineOptions, "pool_limits", lambda self: {"dla-local-dram": 16})
    with pytest.raises(UserError, match=r"does not take an option \(.*DLA memory pool"):
        build(graph("fp16"), engine)
    assert kept(engine)


def test_a_library_that_cannot_start(graph: MakeGraph, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(logger: Any) -> None:
        logger.log(trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(trt, "Builder", broken)
    with pytest.raises(MissingComponentError, match=r"cannot start its builder \(CUDA initialization failure"):
        build(graph("fp16"), engine)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (b"damaged" * 9, "update", r"does not take the timing cache \(.*timing.cache; delete it, or name another"),
        (b"", "load", "the timing cache is empty"),
        (None, "require", "no such timing cache, and mode require needs one"),
    ],
)
def test_a_timing_cache_that_cannot_be_used(
    graph: MakeGraph,
    engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    mode: str,
    message: str,
) -> None:
    """TensorRT-RTX's bindings have TensorRT's timing cache, so they stand in for them here; without a GPU the build would
    end at the proof."""
    cache = tmp_path / "timing.cache"
    if content is not None:
        cache.write_bytes(content)
    monkeypatch.setattr(tensorrt, "load_library", lambda runtime: trt)
    with pytest.raises(UserError, match=message) as refused:
        build(graph("fp16"), engine, runtime="tensorrt", timing_cache=cache, timing_cache_mode=mode)
    assert "\n" not in str(refused.value)
    assert kept(engine)


def test_a_full_or_read_only_disk(graph: MakeGraph, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        build(graph("fp16"), tmp_path / "file" / "alexnet.engine")


def test_ctrl_c_stops_the_build(graph: MakeGraph, engine: Path) -> None:
    """A real SIGINT in the middle of a real build: raised at the builder's first step, the steps held up meanwhile."""
    program = textwrap.dedent(
        """
        import os, signal, sys, time
        from pathlib import Path
        from alexnet_edge.export.engines.options import EngineOptions
        from alexnet_edge.export.engines.engine import check_engine
        from alexnet_edge.export.engines.tensorrt import build_engine
        from alexnet_edge.progress import QuietReporter

        class Reporter(QuietReporter):
            steps = 0
            def update(self, completed, detail=""):
                self.steps = completed
                if completed == 1:
                    os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.02)

        reporter = Reporter()
        try:
            build_engine(Path(sys.argv[1]), Path(sys.argv[2]), check_engine("rtx", EngineOptions(), "fp16"),
                         weight_bytes=1 << 20, size=227, calibrator=None, reporter=reporter)
        except KeyboardInterrupt:
            print("stopped after", reporter.steps)
            sys.exit(130)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(graph("fp16")), str(engine)],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 130, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) < 60  # a whole build has more than 100 steps
    assert "Traceback" not in done.stderr
    assert kept(engine)


def test_an_error_in_the_reporter_stops_the_build_and_is_raised(graph: MakeGraph, engine: Path) -> None:
    class Reporter(QuietReporter):
        steps = 0

        def update(self, completed: int, detail: str = "") -> None:
            self.steps = completed
            raise BrokenPipeError("nobody listens")

    reporter = Reporter()
    with pytest.raises(BrokenPipeError, match="nobody listens"):
        build(graph("fp16"), engine, reporter=reporter)
    assert reporter.steps < 60
    assert kept(engine)


def unfinished(version: str, **more: Any) -> Any:
    """A build by TensorRT `version` that has not begun."""
    spec = EngineSpec(
        runtime="tensorrt", features=Features.of_version(version), precision="int8", options=EngineOptions()
    )
    return tensorrt._Build(
        **{"trt": trt, "spec": spec, "size": SIZE, "calibrator": None, "reporter": QuietReporter(), **more}
    )


def test_an_error_that_a_calibrator_kept_is_raised() -> None:
    """Through a stand-in: the calibrator's own class is only in TensorRT up to 10.16."""
    calibrator = SimpleNamespace(error=UserError("no images"))
    builder = SimpleNamespace(build_serialized_network=lambda network, config: None)
    with pytest.raises(UserError, match="no images"):
        unfinished("10.3.0", calibrator=calibrator)._built(builder, None, SimpleNamespace(), Path("g"))


def test_a_second_ctrl_c_does_not_wait() -> None:
    """A builder without steps, as TensorRT 8's, cannot be stopped."""
    notes: list[str] = []

    class Reporter(QuietReporter):
        def note(self, text: str) -> None:
            notes.append(text)

    running = threading.Event()
    builder = SimpleNamespace(build_serialized_network=lambda network, config: running.wait(60))
    job = unfinished("8.6.1", reporter=Reporter())
    timers = [threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)) for delay in (0.2, 0.6)]
    for timer in timers:
        timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            job._built(builder, None, SimpleNamespace(), Path("g"))
    finally:
        running.set()
    assert not any(timer.is_alive() for timer in timers)  # the first alone did not end it
    assert notes == ["TensorRT 8.6.1 cannot be stopped: waiting for the end of its build"]


@pytest.mark.parametrize(("size", "fits"), [(100, True), (122, True), (78, True), (125, False), (75, False)])
def test_the_size_of_an_engine_is_a_proof(size: int, fits: bool) -> None:
    refusal = pytest.raises(PrecisionError, match="it was not built in the precision asked for")
    with nullcontext() if fits else refusal:
        assert "size: " in prove_size(size << 20, "fp16", 100 << 20, EngineOptions())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"stripped": True}, "the weights are not in the file"),
        ({"sparsity": True}, "stored compressed"),
        (ON_DLA, "a DLA's compiler packs its weights"),
        ({"allow_fallback": True}, "other precisions were accepted"),
    ],
)
def test_what_the_size_says_nothing_about(options: dict[str, Any], why: str) -> None:
    assert why in prove_size(1, "fp16", 100 << 20, EngineOptions(**options))


def placed(**placements: str) -> tuple[LayerPrecision, ...]:
    """Layers on the DLA, unless `placements` say otherwise."""
    return tuple(
        LayerPrecision(
            name=name, requested="fp16", built="fp16", evidence="test", placement=placements.get(name, "DLA")
        )
        for name in LAYER_NAMES
    )


def test_a_layer_that_left_the_dla_is_refused_unless_it_may() -> None:
    with pytest.raises(PrecisionError, match="fc6 runs on the GPU, not on the DLA"):
        accept(placed(fc6="GPU"), EngineOptions(**ON_DLA), "engine")
    may = EngineOptions(**ON_DLA, gpu_fallback=True)
    assert accept(placed(fc6="GPU"), may, "engine") == ["fc6 runs on the GPU, not on the DLA"]
    assert accept(placed(), EngineOptions(**ON_DLA), "engine") == []
