"""`alexnet-edge bench` and `bench loader`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args

from cyclopts import Parameter

from alexnet_edge.artifact import Format, Precision
from alexnet_edge.bench.loadgen.settings import Scenario, ScenarioSettings
from alexnet_edge.bench.rounds.run import Plan
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.cli.common import (
    DeviceChoice,
    Json,
    Printing,
    Quiet,
    artifacts_in,
    chosen_device,
    fields_of,
    print_result,
)
from alexnet_edge.cli.parsing import make_app
from alexnet_edge.cli.report import write_reports
from alexnet_edge.errors import GateError, UserError
from alexnet_edge.images.datasets import SYNTHETIC
from alexnet_edge.training.recipe import LoaderSettings

if TYPE_CHECKING:
    from alexnet_edge.progress import Reporter

app = make_app(
    "bench", help_epilogue="An option that takes a list takes commas or may be repeated; every combination is measured."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Subjects:
    """Which of the files are measured, and on what."""

    format: tuple[Literal["torch", Format], ...] = ()
    """Only files of this format; torch is the checkpoint."""
    precision: tuple[Precision, ...] = ()
    """Only files of this precision."""
    images: str | None = None
    """Folder of images, or `synthetic` [what the checkpoint was trained on]."""
    device: DeviceChoice = "auto"
    """cpu, cuda, or auto: the GPU for engines, the processor for everything else."""
    trust: bool = False
    """Load an engine that has no manifest. It may run code: know where it comes from."""
    runs: Path = Path("runs")
    """Folder of the training runs."""
    artifacts: Path = Path("artifacts")
    """Folder of the artifacts."""

    def chosen(self, files: Sequence[Path]) -> list[Path]:
        """Those of the formats and precisions that are named; a checkpoint is `torch` in FP32."""
        from alexnet_edge.artifact import load_artifact
        from alexnet_edge.network.load import CHECKPOINT_SUFFIXES, newest_checkpoint

        if not files:
            files = [newest_checkpoint(self.runs), *(artifacts_in(self.artifacts) if self.artifacts.is_dir() else [])]
        if not self.format and not self.precision:
            return list(files)
        kept = []
        for path in files:
            kind = ("torch", "fp32")
            if path.suffix not in CHECKPOINT_SUFFIXES:
                manifest = load_artifact(path).manifest
                kind = (manifest.format, manifest.precision)
            if kind[0] in (self.format or kind) and kind[1] in (self.precision or kind):
                kept.append(path)
        if not kept:
            raise UserError(
                "nothing to measure is of that format and precision",
                value=", ".join([*self.format, *self.precision]),
                fix="write it with `alexnet-edge export`",
            )
        return kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenarios:
    """MLPerf's scenarios, the same settings for each."""

    scenario: tuple[Literal["all", Scenario], ...] = ()
    """Also measure by a scenario of MLPerf LoadGen."""
    scenario_seconds: float | None = None
    """Least duration of a scenario [10]."""
    latency_bound_ms: float | None = None
    """Server: 99 % within this [5 x the single-stream p90]."""
    target_qps: float | None = None
    """Server: this rate [the highest that passes]."""

    def settings(self) -> tuple[ScenarioSettings, ...]:
        names: Sequence[Any] = get_args(Scenario) if "all" in self.scenario else tuple(dict.fromkeys(self.scenario))
        for option, value, needed in (
            ("--scenario-seconds", self.scenario_seconds, names),
            ("--latency-bound-ms", self.latency_bound_ms, "server" in names),
            ("--target-qps", self.target_qps, "server" in names),
        ):
            if value is not None and not names:
                raise UserError(f"{option} belongs to a scenario", fix="add --scenario all")
            if value is not None and not needed:
                raise UserError(f"{option} belongs to the server scenario", fix="add --scenario server")
        seconds: dict[str, Any] = {} if self.scenario_seconds is None else {"seconds": self.scenario_seconds}
        server: dict[str, Any] = {"latency_bound_ms": self.latency_bound_ms, "target_qps": self.target_qps}
        return tuple(
            ScenarioSettings(scenario=name, **seconds, **(server if name == "server" else {})) for name in names
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Peers:
    """Other tools on the same checkpoint, each by its own default export."""

    peers: tuple[str, ...] = ()
    """Also these tools: all, or names as in openvino-nncf,onnxruntime."""
    peers_python: Path | None = None
    """The interpreter that has those tools [this one]."""

    def __post_init__(self) -> None:
        if self.peers_python is not None and not self.peers:
            raise UserError("--peers-python belongs to --peers", value=self.peers_python, fix="add --peers all")

    def prepared(
        self, subjects: Sequence[Path], batches: tuple[int, ...], reporter: Reporter
    ) -> tuple[list[Path], dict[str, str]]:
        """The peers of the first checkpoint among the subjects, and why others are left out."""
        from alexnet_edge.bench.peers import prepare_peers
        from alexnet_edge.export.settings import CACHE
        from alexnet_edge.network.load import load_checkpoint
        from alexnet_edge.proof.recorded import validation_images

        if not self.peers:
            return [], {}
        checkpoint = next((path for path in subjects if path.suffix == ".safetensors"), None)
        if checkpoint is None:
            raise UserError("peers are made from a checkpoint", value="--peers", fix="name one beside the artifacts")
        return prepare_peers(
            self.peers,
            checkpoint,
            batches=batches,
            folder=CACHE / "peers",
            images=validation_images(load_checkpoint(checkpoint)),
            python=self.peers_python,
            reporter=reporter,
        )


@app.default
def bench(
    files: Annotated[
        list[Path] | None,
        Parameter(help="Artifacts and checkpoints [newest checkpoint in runs/ and all in artifacts/]."),
    ] = None,
    /,
    *,
    subjects: Annotated[Subjects, fields_of("What is measured")] = Subjects(),
    settings: Annotated[
        MeasureSettings,
        fields_of(
            "How", only="settings batches percentile rounds min_seconds cold in_flight like", negative_bool="no-"
        ),
    ] = MeasureSettings(),
    plan: Annotated[Plan, fields_of("How", without="harness scenarios peers_left_out", negative_bool="no-")] = Plan(),
    scenarios: Annotated[Scenarios, fields_of("MLPerf LoadGen")] = Scenarios(),
    peers: Annotated[Peers, fields_of("Peers")] = Peers(),
    out: Annotated[Path, Parameter(help="Results; .md, .csv and .html go beside it.")] = Path("reports/bench.json"),
    printing: Annotated[Printing, fields_of()] = Printing(),
) -> None:
    """Measure latency and throughput, each subject in processes of its own, interleaved."""
    from alexnet_edge.bench.rounds.run import run_bench
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.bench import show_bench
    from alexnet_edge.images.datasets import open_images

    settings = replace(
        settings, device=chosen_device(subjects.device) or "cpu"
    )  # an engine runs on the GPU all the same
    plan = replace(plan, scenarios=scenarios.settings())
    chosen = subjects.chosen(files or [])
    with _terminated_like_interrupted(), console.reporter(printing.quiet) as reporter:
        prepared, left_out = peers.prepared(chosen, settings.batches, reporter)
        result = run_bench(
            [*chosen, *prepared],
            settings,
            replace(plan, peers_left_out=left_out),
            images=open_images(subjects.images) if subjects.images is not None else None,
            out=out,
            command=["alexnet-edge", *sys.argv[1:]],
            trust=subjects.trust,
            reporter=reporter,
        )
    value = result.to_json()
    written = write_reports(value, out)
    print_result(printing.json, value, lambda: show_bench(value, written))
    if result.interrupted:
        raise KeyboardInterrupt
    if result.errors:
        raise GateError("; ".join(f"{label}: {reason}" for label, reason in result.errors.items()))


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Have SIGTERM, which a service manager or a container sends, end the work as Ctrl-C does: what was measured is kept."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command
def loader(
    *,
    settings: Annotated[LoaderSettings, fields_of()] = LoaderSettings(),
    images: Annotated[str, Parameter(help="Training folder, or `synthetic`.")] = SYNTHETIC,
    arch: Annotated[str, Parameter(help="The network whose training step waits for the images.")] = "one-tower",
    out: Annotated[Path, Parameter(help="Results.")] = Path("reports/loader.json"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Images per second of training's feed, and how long its steps wait for them."""
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.training import show_loader
    from alexnet_edge.files import write_json
    from alexnet_edge.images.datasets import open_split
    from alexnet_edge.network.layers import architecture
    from alexnet_edge.training.feed_speed import loader_verdict, measure_loader

    training_set = open_split(images, "train")
    with console.reporter(quiet) as reporter:
        result = measure_loader(
            training_set,
            architecture(arch, len(training_set.classes)),
            settings,
            command=["alexnet-edge", *sys.argv[1:]],
            reporter=reporter,
        )
    result["verdict"] = loader_verdict(result)
    write_json(out, result)
    print_result(json, result, lambda: show_loader(result, result["verdict"], out))
