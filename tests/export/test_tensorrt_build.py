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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSES, MakeCheckpoint
from narrow_network import NARROW

from alexnet_edge.artifact import LayerPrecision, Precision, layer_types
from alexnet_edge.errors import ArtifactError, MissingComponentError, OutputError, PrecisionError, UserError
from alexnet_edge.export.engines import features, tensorrt
from alexnet_edge.export.engines.features import EngineSpec, Features, check
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.engines.tensorrt import BuiltEngine, accept, build_engine, prove_size
from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_onnx
from alexnet_edge.export.precision import weight_bytes
from alexnet_edge.images.preprocess import preset
from alexnet_edge.network import layers
from alexnet_edge.network.checkpoint import Checkpoint, CheckpointInfo, parameter_shapes
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.nvidia.libraries import load_library
from alexnet_edge.progress import QuietReporter

trt: Any = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8", "int4-fc")
RANGES = dict.fromkeys(layers.LAYER_NAMES, 4.0)
SIZE = 227
MakeGraph = Callable[..., Path]


@pytest.fixture(scope="module")
def narrow() -> Checkpoint:
    """A narrow AlexNet of 1 MB: the same eight layers and names."""
    info = CheckpointInfo(architecture="narrow", classes=CLASSES, preprocessing=preset(NARROW.preprocessing))
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(NARROW)
    weights = {name: rng.standard_normal(shape, np.float32) * np.float32(0.05) for name, shape in shapes.items()}
    return Checkpoint(path=Path("narrow.safetensors"), sha256="0" * 64, info=info, weights=weights)


@pytest.fixture(scope="module")
def graph(narrow: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> MakeGraph:
    """`graph("int8")` is the narrow network's ONNX file in that precision; `batch=4` is its form for a DLA."""
    folder = tmp_path_factory.mktemp("graphs")

    def make(precision: Precision, *, batch: int | None = None) -> Path:
        path = folder / f"{precision}_{batch}.onnx"
        if not path.exists():
            amax = RANGES if precision in ("int8", "fp8") else None
            write_onnx(onnx_from_checkpoint(narrow, precision=precision, amax=amax, for_dla=batch), path)
        return path

    return make


def build(onnx_path: Path, engine_path: Path, precision: Precision = "fp16", **more: Any) -> BuiltEngine:
    """A build with TensorRT-RTX; options of the engine and arguments of `build_engine` by name."""
    named = ("weight_bytes", "calibrator", "reporter", "trt", "logger")
    runtime = more.pop("runtime", "rtx")
    given: dict[str, Any] = {"weight_bytes": 1 << 20, **{name: more.pop(name) for name in named if name in more}}
    spec = check(EngineOptions(**more), precision, Features.detect(given.get("trt") or load_library(runtime)), runtime)
    return build_engine(onnx_path, engine_path, spec, size=SIZE, **given)


# --- engines --------------------------------------------------------------------------------------------------------------


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
    assert built.version == trt.__version__


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
    "given",
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
    ids=lambda given: " ".join(given),
)
def test_options_that_rtx_takes(graph: MakeGraph, tmp_path: Path, given: dict[str, Any]) -> None:
    built = build(graph("fp16"), tmp_path / "alexnet.engine", **given)
    assert built.build["options"] == EngineOptions(**given).changed()
    assert built.messages == ()


def test_what_the_library_was_told(graph: MakeGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back from the library's own configuration object."""
    told: dict[str, Any] = {}
    last_step = tensorrt._Build._set_timings

    def spy(self: Any, config: Any) -> None:
        last_step(self, config)
        pools = trt.MemoryPoolType
        told.update(
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
    build(
        graph("fp16"),
        tmp_path / "alexnet.engine",
        sparsity=True,
        memory_cap=512,
        optimization_level=1,
        compute_capability=("sm86",),
    )
    assert told == {
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
    told: list[tuple[int, str]] = []

    class Reporter(QuietReporter):
        def update(self, completed: int, detail: str = "") -> None:
            told.append((completed, detail))

    build(graph("fp16"), tmp_path / "alexnet.engine", reporter=Reporter())
    assert [completed for completed, _ in told] == list(range(1, len(told) + 1))
    assert any(detail.startswith("Building engine 1/") for _, detail in told)


def test_a_timing_cache_is_not_touched_by_rtx(graph: MakeGraph, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"of TensorRT")
    built = build(graph("fp16"), tmp_path / "alexnet.engine", timing_cache=cache)
    assert cache.read_bytes() == b"of TensorRT"
    assert built.build["timing_cache"] is None
    assert "neither read nor written" in built.build["warnings"][0]


# --- refused --------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("content", [b"", b"not an ONNX file"], ids=["empty", "text"])
def test_a_file_that_is_no_graph(engine: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as refused:
        build(path, engine)
    assert "broken.onnx" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert kept(engine)


def test_a_truncated_graph(graph: MakeGraph, engine: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(graph("fp16").read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match="cannot read the graph"):
        build(path, engine)
    assert kept(engine)


def test_a_missing_graph(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such ONNX file"):
        build(tmp_path / "none.onnx", engine)


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
    told: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            told.append(message)

    build(graph("fp16"), engine, logger=Logger())
    assert refused.tb is not None
    assert told
    assert not [message for message in told if "differs from one already registered" in message]


def test_an_option_that_the_library_refuses_and_only_logs(
    graph: MakeGraph, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineOptions, "pool_limits", lambda self: {"dla-local-dram": 16})
    with pytest.raises(UserError, match=r"does not take an option \(.*DLA memory pool"):
        build(graph("fp16"), engine)
    assert kept(engine)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"compute_capability": ("sm87",)}, "does not build for this GPU architecture: sm87"),
        ({"dla_core": 0, "max_batch": 1}, "would ignore a DLA"),
        ({"workspace": 1 << 30}, "larger than the memory of"),
    ],
)
def test_what_is_refused_before_the_graph_is_read(
    engine: Path, tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        build(tmp_path / "none.onnx", engine, **given)


def test_a_library_that_cannot_start(graph: MakeGraph, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(logger: Any) -> None:
        logger.log(trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(trt, "Builder", broken)
    with pytest.raises(MissingComponentError, match=r"cannot start its builder \(CUDA initialization failure"):
        build(graph("fp16"), engine)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"damaged" * 9, "update", r"does not take the timing cache \(.*timing.cache; delete it, or name another"),
        (b"", "load", "the timing cache is empty"),
        (None, "require", "no such timing cache, and mode require needs one"),
    ],
)
def test_a_timing_cache_that_cannot_be_used(
    graph: MakeGraph, engine: Path, tmp_path: Path, content: bytes | None, mode: str, said: str
) -> None:
    """TensorRT-RTX's bindings have TensorRT's timing cache, so they stand in for them here; without a GPU the build would
    end at the proof."""
    cache = tmp_path / "timing.cache"
    if content is not None:
        cache.write_bytes(content)
    with pytest.raises(UserError, match=said) as refused:
        build(graph("fp16"), engine, runtime="tensorrt", trt=trt, timing_cache=cache, timing_cache_mode=mode)
    assert "\n" not in str(refused.value)
    assert kept(engine)


def test_a_full_or_read_only_disk(graph: MakeGraph, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        build(graph("fp16"), tmp_path / "file" / "alexnet.engine")


# --- interrupted ----------------------------------------------------------------------------------------------------------


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
                         weight_bytes=1 << 20, size=227, reporter=reporter)
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


def test_an_error_that_a_calibrator_kept_is_raised(graph: MakeGraph, engine: Path) -> None:
    """Through a monitor's stand-in: the calibrator's own class is only in TensorRT up to 10.16."""
    calibrator = type("Calibrator", (), {"error": UserError("no images"), "get_batch_size": lambda self: 1})()
    made = _job(calibrator=calibrator)
    with pytest.raises(UserError, match="no images"):
        made._built(type("Builder", (), {"build_serialized_network": lambda *a: None})(), None, _Config(), Path("g"))


class _Config:
    progress_monitor: Any = None


def _spec(version: str) -> EngineSpec:
    features = Features.of_version(version)
    return EngineSpec(runtime="tensorrt", features=features, precision="int8", options=EngineOptions())


def _job(**given: Any) -> Any:
    settings: dict[str, Any] = {
        "trt": trt,
        "runtime": "tensorrt",
        "name": "TensorRT 10.3.0",
        "spec": _spec("10.3.0"),
        "size": SIZE,
        "calibrator": None,
        "logger": None,
        "log": [],
        "reporter": QuietReporter(),
    }
    return tensorrt._Build(**{**settings, **given})


def test_a_second_ctrl_c_does_not_wait() -> None:
    """A builder without steps, as TensorRT 8's, cannot be stopped."""
    notes: list[str] = []

    class Reporter(QuietReporter):
        def note(self, text: str) -> None:
            notes.append(text)

    running = threading.Event()
    builder = type("Builder", (), {"build_serialized_network": lambda *arguments: running.wait(60)})()
    job = _job(spec=_spec("8.6.1"), name="TensorRT 8.6.1", reporter=Reporter())
    timers = [threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)) for delay in (0.2, 0.6)]
    for timer in timers:
        timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            job._built(builder, None, _Config(), Path("g"))
    finally:
        running.set()
    assert not any(timer.is_alive() for timer in timers)  # the first alone did not end it
    assert notes == ["TensorRT 8.6.1 cannot be stopped: waiting for the end of its build"]


# --- the proof ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "fits"), [(100, True), (122, True), (78, True), (125, False), (75, False)])
def test_the_size_of_an_engine_is_a_proof(size: int, fits: bool) -> None:
    expected = 100 << 20
    if fits:
        assert "size: " in prove_size(size << 20, "fp16", expected, EngineOptions())
    else:
        with pytest.raises(PrecisionError, match="it was not built in the precision asked for"):
            prove_size(size << 20, "fp16", expected, EngineOptions())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (EngineOptions(stripped=True), "the weights are not in the file"),
        (EngineOptions(sparsity=True), "stored compressed"),
        (EngineOptions(dla_core=0, max_batch=1), "a DLA's compiler packs its weights"),
        (EngineOptions(allow_fallback=True), "other precisions were accepted"),
    ],
)
def test_what_the_size_says_nothing_about(options: EngineOptions, why: str) -> None:
    assert why in prove_size(1, "fp16", 100 << 20, options)


def _layers(**changes: str) -> tuple[LayerPrecision, ...]:
    return tuple(
        LayerPrecision(name=name, requested="fp16", built="fp16", evidence="test", placement=changes.get(name, "DLA"))
        for name in layers.LAYER_NAMES
    )


def test_a_layer_that_left_the_dla_is_refused_unless_it_may() -> None:
    on_dla = {"dla_core": 0, "max_batch": 1}
    with pytest.raises(PrecisionError, match="fc6 runs on the GPU, not on the DLA"):
        accept(_layers(fc6="GPU"), EngineOptions(**on_dla), "engine")
    may = EngineOptions(**on_dla, gpu_fallback=True)
    assert accept(_layers(fc6="GPU"), may, "engine") == ["fc6 runs on the GPU, not on the DLA"]
    assert accept(_layers(), EngineOptions(**on_dla), "engine") == []
