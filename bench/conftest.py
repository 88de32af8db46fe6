"""What `pytest bench --benchmark-only` measures: every format, precision and device that this machine can run.

The subjects are the newest checkpoint in `runs/` (or, without one, a network trained here on the synthetic set) and its
artifacts: those in `artifacts/` that were exported from it, and what is missing, built once and kept by content.

How the latencies come into pytest-benchmark. Runtimes with spinning thread pools disturb each other inside one process, and
asking a worker process for one inference at a time would let its threads fall asleep between samples. So `run_bench`
measures all selected cases first, interleaved, each in fresh worker processes, in the same tight loop as
`alexnet-edge bench`; then each test replays its raw samples through a clock of its own (`ReplayClock` in `suite.py`, the
test's pytest-benchmark timer). The table, the JSON, the histogram and `--benchmark-compare` thus rest on exactly the
measured samples: no pipe and no pytest inside them, nothing subtracted.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alexnet_edge import __version__, records
from alexnet_edge.artifact import Artifact, Format, Precision, load_artifact
from alexnet_edge.bench.rounds.results import BenchResult
from alexnet_edge.bench.rounds.run import Plan, run_bench
from alexnet_edge.bench.suite import ARTIFACT_CASES, BATCHES, CASES, Case, replay
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.environment import versions
from alexnet_edge.errors import AlexNetEdgeError, CheckpointError, UserError
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.export.graphs.targets import this_machine_or_none
from alexnet_edge.export.settings import CACHE, ExportSettings
from alexnet_edge.files import sha256_json
from alexnet_edge.images.datasets import ImageSet, synthetic
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.load import load_checkpoint, newest_checkpoint
from alexnet_edge.progress import ConsoleReporter
from alexnet_edge.proof.recorded import validation_images
from alexnet_edge.sessions.base import Device

SHORT_S = 1.0
"""Below so many seconds per case, p90 is measured instead of p99, and the proof takes fewer images."""

SHORT_IMAGES = 200
"""So many then. The bounds are shares of 98 % and more: of 40 images, a single one that changes its class would break them."""

CACHE_BENCH = CACHE / "bench"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("alexnet-edge")
    group.addoption(
        "--bench-seconds",
        type=float,
        default=float(os.environ.get("ALEXNET_EDGE_BENCH_SECONDS", "3")),
        help="least measuring time per case and batch; below 1 also fewer samples (p90 instead of p99) and fewer images "
        "in the proof (default 3, or ALEXNET_EDGE_BENCH_SECONDS)",
    )
    group.addoption("--bench-threads", type=int, default=None, help="processor threads of the runtimes (default all)")
    group.addoption("--bench-runs", type=Path, default=Path("runs"), help="where checkpoints are (default runs/)")
    group.addoption(
        "--bench-artifacts", type=Path, default=Path("artifacts"), help="where artifacts are (default artifacts/)"
    )


def pytest_configure(config: pytest.Config) -> None:
    # said of every test whose set-up failed, and would then be reported as a second failure of its own
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used at all")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """The time limit counts a benchmark alone: the first one's fixtures train, build and measure for all of them."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(func_only=True))


def parameters(cases: Sequence[Case]) -> list[Any]:
    """One pytest parameter per case; those this machine cannot run are skipped with the reason."""
    reasons = [(case, case.why_skipped()) for case in cases]
    return [
        pytest.param(case, id=case.id, marks=[pytest.mark.skip(reason=reason)] if reason else [])
        for case, reason in reasons
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, cases in (("artifact_case", ARTIFACT_CASES), ("case", CASES)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, parameters(cases))


class _Terminal(io.StringIO):
    """Standard error as it was before pytest began to capture it."""

    def __init__(self, capture: Any) -> None:
        super().__init__()
        self._capture = capture

    def write(self, text: str) -> int:
        with self._capture.global_and_fixture_disabled():
            sys.stderr.write(text)
            sys.stderr.flush()
        return len(text)


@pytest.fixture(scope="session")
def reporter(request: pytest.FixtureRequest) -> ConsoleReporter:
    """Progress, in plain lines, while fixtures train, export and measure."""
    terminal = _Terminal(request.config.pluginmanager.getplugin("capturemanager"))
    terminal.write("\n")  # pytest is in the middle of a line
    return ConsoleReporter(Console(file=terminal, highlight=False))


@pytest.fixture(scope="session")
def short(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--bench-seconds") < SHORT_S)


@pytest.fixture(scope="session")
def checkpoint(request: pytest.FixtureRequest, reporter: ConsoleReporter) -> Checkpoint:
    """The newest checkpoint in `runs/`, or a network trained on the synthetic set once and kept by its recipe."""
    try:
        return load_checkpoint(newest_checkpoint(request.config.getoption("--bench-runs")))
    except CheckpointError:
        reporter.note("no checkpoint in runs/: using a network trained on the synthetic set")
    from alexnet_edge.training.recipe import TrainSettings
    from alexnet_edge.training.run import train

    settings = TrainSettings()
    key = sha256_json(
        {"settings": records.to_builtins(settings), "recipe": asdict(settings.resolved()), "version": __version__}
        | {"images": synthetic("train").content_hash()}
    )[:16]
    kept = CACHE_BENCH / f"network-{key}"
    if not kept.is_dir():
        unfinished = CACHE_BENCH / f"unfinished-{key}"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was ended
        train(TrainSettings(runs=str(CACHE_BENCH), name=unfinished.name, keep=0), reporter=reporter)
        unfinished.rename(kept)
    return load_checkpoint(kept / "model.safetensors")


@pytest.fixture(scope="session")
def images(checkpoint: Checkpoint, short: bool) -> ImageSet:
    """The checkpoint's validation images, or the synthetic set's where they are not here."""
    try:
        image_set = validation_images(checkpoint)
    except UserError:
        image_set = synthetic("val")
    return image_set.spread(SHORT_IMAGES) if short and len(image_set) > SHORT_IMAGES else image_set


@pytest.fixture(scope="session")
def artifact_of(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, images: ImageSet, reporter: ConsoleReporter
) -> Callable[[Case], Artifact]:
    """`artifact_of(case)`: the checkpoint's artifact, from `artifacts/`, from the cache, or built now."""
    folder = request.config.getoption("--bench-artifacts")
    target = this_machine_or_none()  # as `alexnet-edge export` lowers them without --target
    lowered_for = None if target is None else target.name
    key = sha256_json({"checkpoint": checkpoint.sha256, "versions": versions(), "target": lowered_for})[:16]
    user_exporter, cached_exporter = (
        Exporter(checkpoint, ExportSettings(out=out, target=target), proof_images=images, reporter=reporter)
        for out in (folder, CACHE_BENCH / f"artifacts-{key}")
    )

    @cache
    def outcome_of(format: Format, precision: Precision) -> Artifact | AlexNetEdgeError:
        for exporter in (user_exporter, cached_exporter):
            path = exporter.path(format, precision)
            if path.is_file():
                artifact = load_artifact(path)
                if artifact.manifest.checkpoint_sha256 == checkpoint.sha256:
                    return artifact
        try:
            return cached_exporter.export(format, precision)
        except AlexNetEdgeError as error:
            return error

    def get(case: Case) -> Artifact:
        assert case.format is not None
        outcome = outcome_of(case.format, case.precision)
        if isinstance(outcome, AlexNetEdgeError):
            raise outcome
        return outcome

    return get


@pytest.fixture(scope="session")
def reference_NK(checkpoint: Checkpoint, images: ImageSet) -> FloatArray:
    """The checkpoint's answers on `images`, `(N, K)` float32."""
    from alexnet_edge.proof.evaluate import outputs_NK
    from alexnet_edge.sessions.torch import CheckpointSession

    with CheckpointSession(checkpoint) as session:
        return outputs_NK(session, images)[0]


@pytest.fixture(scope="session")
def measured(
    request: pytest.FixtureRequest,
    checkpoint: Checkpoint,
    images: ImageSet,
    artifact_of: Callable[[Case], Artifact],
    reporter: ConsoleReporter,
    short: bool,
) -> dict[Device, dict[str, Any]]:
    """The results of one bench per device, over every case and batch that a selected test asks for."""
    seconds = request.config.getoption("--bench-seconds")
    cases_by_device: dict[Device, dict[Case, None]] = {}
    batches = {BATCHES[0]}
    for item in request.session.items:
        params: Mapping[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        case = params.get("case")
        if case is not None and item.get_closest_marker("skip") is None:
            cases_by_device.setdefault(case.device, {})[case] = None
            batches.add(params.get("batch", BATCHES[0]))
    results = {}
    for device, cases in cases_by_device.items():
        paths = []
        for case in cases:
            with suppress(AlexNetEdgeError):  # the case's own tests fail with the reason
                paths.append(checkpoint.path if case.format is None else artifact_of(case).path)
        settings = MeasureSettings(
            device=device,
            batches=tuple(batch for batch in BATCHES if batch in batches),
            percentile=90.0 if short else 99.0,
            rounds=2 if short else 3,
            min_seconds=seconds,
            max_seconds=max(60.0, 10 * seconds),
        )
        threads = request.config.getoption("--bench-threads")
        plan = Plan(threads=(threads,) if threads else ())
        result: BenchResult = run_bench(paths, settings, plan, images=images, reporter=reporter)
        results[device] = result.to_json()
        if result.interrupted:
            pytest.exit("interrupted while measuring", returncode=2)
    return results


@pytest.fixture
def subject(
    case: Case,
    measured: dict[Device, dict[str, Any]],
    checkpoint: Checkpoint,
    artifact_of: Callable[[Case], Artifact],
) -> dict[str, Any]:
    """The case's entry in the results, as `BenchResult.to_json` describes it."""
    sha256 = checkpoint.sha256 if case.format is None else artifact_of(case).manifest.sha256
    result = measured[case.device]
    (entry,) = (candidate for candidate in result["subjects"] if candidate["sha256"] == sha256)
    return {**entry, "bench": {name: result[name] for name in _OF_BENCH}}


_OF_BENCH = (
    *("clock", "load", "settings", "inputs", "isolate", "pinned_cpus"),
    *("power", "peaks", "harness", "environment"),
)
_INVALID = pytest.StashKey[list[str]]()


@pytest.fixture
def play(benchmark: Any, request: pytest.FixtureRequest, subject: dict[str, Any]) -> Callable[[int], Mapping[str, Any]]:
    """`play(batch)` gives the case's samples to pytest-benchmark and returns their summary."""

    def replayed(batch: int) -> Mapping[str, Any]:
        summary = replay(benchmark, subject, batch)
        if summary["reasons"]:
            notes = request.config.stash.setdefault(_INVALID, [])
            notes.append(f"{subject['label']}, batch {batch}: {', '.join(summary['reasons'])}")
        return summary

    return replayed


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    notes = config.stash.get(_INVALID, [])
    if notes:
        terminalreporter.section("INVALID measurements: do not quote these figures")
        for note in notes:
            terminalreporter.line(note)
