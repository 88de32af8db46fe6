"""This package's TensorRT code against the real Python bindings of eight releases, without TensorRT.

`contract/bindings.py` makes the bindings importable, `contract/strict.py` makes stand-ins that accept exactly what they
accept, `contract/world.py` says what the stand-ins answer, and `contract/drive.py` runs every case in one process per release.
Here is what must come out. It shows which calls are made with which arguments on each release, not that an engine is right:
for that there must be a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from contract import bindings as wheels
from contract.bindings import RELEASES, Binding, BindingsError, NoWheelError, Release, prepare, required
from contract.strict import signatures
from narrow_network import CLASSES, write_checkpoint

from alexnet_edge import records
from alexnet_edge.artifact import LAYER_NAMES, Manifest, Precision, TensorSpec, layer_types
from alexnet_edge.network.load import load_checkpoint

DRIVE = Path(__file__).parents[1] / "contract" / "drive.py"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8", "int4-fc")

Answers = dict[str, Any]


def write_job(folder: Path) -> dict[str, Any]:
    """The graphs of every precision, for the GPU and for a DLA, and what the cases need to know of them."""
    from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_onnx
    from alexnet_edge.export.precision import weight_bytes

    graphs = {}
    checkpoint = load_checkpoint(write_checkpoint(folder / "narrow.safetensors"))
    ranges = dict.fromkeys(LAYER_NAMES, 4.0)
    for precision in PRECISIONS:
        amax = ranges if precision in ("int8", "fp8") else None
        forms = {precision: None} | ({f"{precision} dla 2": 2} if precision in ("fp32", "fp16", "int8") else {})
        for name, batch in forms.items():
            path = folder / f"{name}.onnx"
            write_onnx(onnx_from_checkpoint(checkpoint, precision=precision, amax=amax, for_dla=batch), path)
            graphs[name] = str(path)
    sizes = {precision: weight_bytes(checkpoint.info.arch, precision) for precision in PRECISIONS}
    manifest = Manifest(
        format="trt",
        runtime="tensorrt",
        precision="fp16",
        architecture="one-tower",
        classes=CLASSES,
        head="logits",
        preprocessing=checkpoint.info.preprocessing,
        input=TensorSpec(name="input", dtype="float32", shape=(3, 227, 227), max_batch=16),
        output=TensorSpec(name="logits", dtype="float32", shape=(len(CLASSES),), max_batch=16),
        checkpoint="slim.safetensors",
        checkpoint_sha256="0" * 64,
    )
    return {"graphs": graphs, "weight_bytes": sizes, "artifact": records.to_builtins(manifest)}


def run(binding: Binding, job: dict[str, Any], folder: Path) -> Answers:
    described = folder / f"{binding.release.version}.json"
    here = {"version": binding.release.version, "folder": str(binding.folder), "stubs": list(map(str, binding.stubs))}
    described.write_text(json.dumps(job | here), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(DRIVE), str(described)],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        return {"crash": f"exit code {done.returncode}: {done.stderr[-2000:]}"}
    answers: Answers = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answers | BindingsError]:
    """The answers of every release, or why it cannot be had."""
    folder = tmp_path_factory.mktemp("contract")
    bindings = prepare()
    found = {version: binding for version, binding in bindings.items() if isinstance(binding, Binding)}
    job = write_job(folder) if found else {}
    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(found, pool.map(lambda binding: run(binding, job, folder), found.values()), strict=True))
    return {version: answers.get(version, reason) for version, reason in bindings.items()}  # type: ignore[misc]


@pytest.fixture(params=RELEASES, ids=lambda release: release.version)
def release(request: pytest.FixtureRequest) -> Release:
    chosen: Release = request.param
    return chosen


@pytest.fixture
def answers(everything: dict[str, Answers | BindingsError], release: Release) -> Answers:
    found = everything[release.version]
    if isinstance(found, BindingsError):
        if required() and not isinstance(found, NoWheelError):
            pytest.fail(str(found))
        pytest.skip(str(found))
    assert "crash" not in found, found["crash"]
    return found


def refusal(case: Answers, kind: str = "UserError") -> str:
    """The message of the error that a case must end in; the engine before is still there."""
    assert case["error"][0] == kind
    assert "\n" not in case["error"][1]
    assert case.get("engine", "kept") == "kept"
    return str(case["error"][1])


def weakly_typed(release: Release) -> bool:
    """From 10.12 on the package builds strongly typed."""
    return release.number < (10, 12)


def has_dla(release: Release) -> bool:
    """10.7 was the last release with it, until 11.4.1."""
    return release.number <= (10, 7)


def test_signature_of_a_plain_method() -> None:
    (found,) = signatures("set_flag(self: a.b.IBuilderConfig, flag: a.b.BuilderFlag) -> None\n\nSets a flag.")
    (flag,) = found.parameters
    assert (flag.name, flag.annotation, flag.has_default, found.returns) == ("flag", "a.b.BuilderFlag", False, "None")


def test_signature_with_defaults_that_are_no_python() -> None:
    (found,) = signatures(
        "run(self: X, a: T = <T.B: (0, 1)>, b: str = 'x, y', *, c: List[int] = [1, 2]) -> Tuple[int, str]"
    )
    parameters = [(entry.name, entry.has_default, entry.by_position) for entry in found.parameters]
    assert parameters == [("a", True, True), ("b", True, True), ("c", True, False)]
    assert found.returns == "Tuple[int, str]"


def test_every_overload_is_read() -> None:
    doc = "f(*args, **kwargs)\nOverloaded function.\n\n1. f(self: X, a: int) -> int\n\n2. f(self: X, a: str) -> str\n"
    assert [entry.returns for entry in signatures(doc)] == ["int", "str"]


def test_unnamed_parameter_cannot_be_named() -> None:
    (found,) = signatures("__getitem__(self: X, arg0: int) -> str")
    assert [entry.by_name for entry in found.parameters] == [False]


NOT_NOTED = {"missing attribute", "member that this release lacks", "text of host memory"}
"""What `hasattr` may ask for: an AttributeError, and no fault."""


def test_stand_ins_refuse_planted_mistakes(answers: Answers) -> None:
    attempts = answers["misuse"]["attempts"]
    assert len(attempts) > 20
    accepted = [name for name, (outcome, _) in attempts.items() if outcome == "accepted"]
    assert accepted == []
    silent = {name for name, (_, noted) in attempts.items() if not noted}
    assert silent <= NOT_NOTED


def test_stand_ins_accept_what_is_right(answers: Answers) -> None:
    misuse = answers["misuse"]
    assert misuse["faults"] == []
    assert misuse["accepted"] == ["set_flag", "set_shape", "set_memory_pool_limit", "profiling_verbosity"]
    assert misuse["read_back"] == "DETAILED"
    assert misuse["bytes"] == "plan"


def test_no_annotation_goes_unchecked(answers: Answers) -> None:
    assert answers["misuse"]["unknown"] == []


def test_every_script_answers_something_real(everything: dict[str, Answers | BindingsError]) -> None:
    absent = [set(found["scripts"]["absent"]) for found in everything.values() if isinstance(found, dict)]
    if not absent:
        pytest.skip("no release can be imported here")
    assert set.intersection(*absent) == set()


def test_no_call_that_the_release_would_refuse(answers: Answers) -> None:
    broken = {name: case["broken"].splitlines()[-1] for name, case in answers.items() if "broken" in case}
    faults = {name: case["faults"] for name, case in answers.items() if case.get("faults")}
    assert (broken, faults) == ({}, {})


def test_features_are_those_of_the_bindings(answers: Answers, release: Release) -> None:
    found = answers["features"]
    assert found["detected"] == found["real"]
    assert found["expected"] == found["real"], "what `of_version` expects of a builder that cannot be asked"
    assert found["typing"] == found["of_version_typing"] == ("weak" if weakly_typed(release) else "strong")


def test_building_and_running_need_no_training_library(answers: Answers) -> None:
    assert answers["imports"]["imported"] == []


WEAK: dict[Precision, tuple[str, list[str]]] = {
    "fp32": ("fp32", []),
    "fp16": ("fp32", ["FP16", "OBEY_PRECISION_CONSTRAINTS"]),
    "bf16": ("fp32", ["BF16", "OBEY_PRECISION_CONSTRAINTS"]),
    "int8": ("int8", ["INT8"]),
    "fp8": ("fp8", ["FP16", "FP8", "OBEY_PRECISION_CONSTRAINTS"]),
    "int4-fc": ("int4-fc", ["FP16", "INT4", "OBEY_PRECISION_CONSTRAINTS"]),
}
"""The graph that a weakly typed builder is fed for each precision, and the flags that are set; TF32 is cleared."""
FIRST: dict[Precision, tuple[int, int]] = {"bf16": (10, 0), "fp8": (10, 0), "int4-fc": (10, 3)}
"""The first release that builds a precision."""


def builds(release: Release, precision: Precision) -> bool:
    return release.number >= FIRST.get(precision, (0, 0))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision(answers: Answers, release: Release, precision: Precision) -> None:
    case = answers[precision]
    if not builds(release, precision):
        assert precision in refusal(case)
        assert case["builds"] == 0
        return
    graph, flags = WEAK[precision] if weakly_typed(release) else (precision, [])
    assert "error" not in case, case["error"]
    assert case["graph"] == graph
    assert case["flags"] == flags
    assert {name: layer["built"] for name, layer in case["layers"].items()} == layer_types(precision)
    assert case["build"]["typing"] == ("weak" if weakly_typed(release) else "strong")
    assert case["build"]["version"] == release.version
    assert case["engine"] == "written"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_network_flags(answers: Answers, release: Release, precision: Precision) -> None:
    explicit = ["EXPLICIT_BATCH"] if release.major < 11 else []
    expected = [*explicit, *([] if weakly_typed(release) else ["STRONGLY_TYPED"])]
    assert answers[precision].get("network") == (expected if builds(release, precision) else None)


@pytest.mark.parametrize(("precision", "member"), [("fp16", "HALF"), ("bf16", "BF16")])
def test_weakly_typed_layers_are_constrained(
    answers: Answers, release: Release, precision: Precision, member: str
) -> None:
    held = {"conv1/lrn": "FLOAT", "conv2/lrn": "FLOAT"}
    expected = dict.fromkeys(LAYER_NAMES, member) | held if weakly_typed(release) else {}
    assert answers[precision].get("precisions") == (expected if builds(release, precision) else None)


def test_fp32_means_fp32(answers: Answers) -> None:
    assert "TF32" not in answers["fp32"]["flags"]
    assert "TF32" in answers["tf32"]["flags"]


def test_engine_is_asked_what_was_built(answers: Answers) -> None:
    assert answers["fp16"]["profiling_verbosity"] == "DETAILED"
    assert "inspector" in answers["fp16"]["build"]["proof"]


def test_layer_built_otherwise_is_refused(answers: Answers) -> None:
    assert "fc6 is fp32" in refusal(answers["built in FP32"], "PrecisionError")


def test_accepted_fallback_is_recorded(answers: Answers, release: Release) -> None:
    case = answers["fallback allowed"]
    assert case["layers"]["fc6"]["built"] == "fp32"
    assert any("fc6" in line for line in case["build"]["fallback"])
    if weakly_typed(release):
        assert "PREFER_PRECISION_CONSTRAINTS" in case["flags"]


def test_inspector_without_types_is_no_proof(answers: Answers, release: Release) -> None:
    case = answers["inspector tells names only"]
    if weakly_typed(release):
        assert refusal(case, "PrecisionError")
    else:
        assert {layer["built"] for layer in case["layers"].values()} == {"fp16"}
        assert "network" in case["build"]["proof"]
    assert refusal(answers["names only, too small"], "PrecisionError")


MIB = 1 << 20
SETTINGS: dict[str, dict[str, Any]] = {
    "batches": {"profiles": [{"input": [[batch, 3, 227, 227] for batch in (2, 4, 8)]}]},
    "workspace": {"pools": {"WORKSPACE": 64 * MIB}},
    "pools": {"pools": {"WORKSPACE": 64 * MIB, "TACTIC_DRAM": 512 * MIB}},
    "pool tactic-shared-memory": {"pools": {"TACTIC_SHARED_MEMORY": MIB}},
    "optimization level": {"builder_optimization_level": 5},
    "memory cap": {"pools": {"WORKSPACE": 512 * MIB, "TACTIC_DRAM": 1024 * MIB}, "max_aux_streams": 0},
    "ampere plus": {"hardware_compatibility_level": "AMPERE_PLUS"},
    "same compute capability": {"hardware_compatibility_level": "SAME_COMPUTE_CAPABILITY"},
    "dla fp16": {"default_device_type": "DLA", "DLA_core": 1, "profiles": []},
    "pools of a dla": {"pools": {"DLA_LOCAL_DRAM": 256 * MIB}},
}
"""What an option sets, besides flags."""
FLAGS: dict[str, set[str]] = {
    "sparsity": {"SPARSE_WEIGHTS"},
    "version compatible": {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"},
    "refit": {"REFIT"},
    "stripped": {"STRIP_PLAN"},
    "weight streaming": {"WEIGHT_STREAMING"},
    "dla fp16": {"GPU_FALLBACK"},
    "pools of a dla": {"GPU_FALLBACK"},
    "timing cache, require": {"ERROR_ON_TIMING_CACHE_MISS"},
}
"""The flags that an option sets, besides those of its precision."""
SINCE: dict[str, tuple[int, int]] = {
    "pool tactic-shared-memory": (10, 0),
    "stripped": (10, 0),
    "timing cache, require": (10, 0),
    "same compute capability": (10, 9),
    "weight streaming": (10, 12),
}
"""The first release that an option is used with; weight streaming needs strong typing."""


def lacks(release: Release, option: str) -> bool:
    return release.number < SINCE.get(option, (0, 0)) or ("dla" in option and not has_dla(release))


@pytest.mark.parametrize("option", list(dict.fromkeys([*SETTINGS, *FLAGS])))
def test_option(answers: Answers, release: Release, option: str) -> None:
    case = answers[option]
    if lacks(release, option):
        assert release.version in refusal(case)
        assert case["builds"] == 0
        return
    assert "error" not in case, case["error"]
    settings = SETTINGS.get(option, {})
    assert {name: case[name] for name in settings} == settings
    precision = set(WEAK["fp16"][1]) if weakly_typed(release) else set()
    assert set(case["flags"]) == precision | FLAGS.get(option, set())


def test_nothing_is_set_that_was_not_asked_for(answers: Answers) -> None:
    case = answers["fp16"]
    chosen = {"builder_optimization_level", "max_aux_streams", "hardware_compatibility_level", "default_device_type"}
    assert chosen & case.keys() == set()
    assert case["pools"] == {}
    assert case["timing_caches"] == []
    assert case["profiles"] == [{"input": [[batch, 3, 227, 227] for batch in (1, 1, 16)]}]


def test_compute_capability_is_refused(answers: Answers, release: Release) -> None:
    assert release.version in refusal(answers["compute capability"])


@pytest.mark.parametrize("case", ["dla fp16", "calibrator on a DLA", "calibration table on a DLA"])
def test_what_the_dla_leaves_to_the_gpu_is_told(answers: Answers, release: Release, case: str) -> None:
    answer = answers[case]
    if not has_dla(release):
        assert refusal(answer)
        return
    assert answer["build"]["not_on_dla"] == ["conv1/lrn", "conv2/lrn", "flatten"]
    assert {layer["placement"] for layer in answer["layers"].values()} == {"DLA"}


def test_dla_that_cannot_be_used(answers: Answers) -> None:
    assert refusal(answers["no DLA here"])
    case = answers["dla without fallback"]
    assert refusal(case, "ArtifactError" if case["error"][0] == "ArtifactError" else "UserError")


def test_code_in_an_engine_is_never_allowed(answers: Answers) -> None:
    assert answers["version compatible"]["host_code"] == []
    assert answers["fp16"]["host_code"] == []


@pytest.mark.parametrize(
    ("case", "read", "left"),
    [
        ("timing cache, new", "", "+timed"),
        ("timing cache, update", "times", "times+timed"),
        ("timing cache, load", "times", "times"),
    ],
)
def test_timing_cache(answers: Answers, case: str, read: str, left: str) -> None:
    answer = answers[case]
    assert "error" not in answer, answer["error"]
    assert answer["timing_caches"] == [read]
    assert answer["timing_cache_set"]
    assert answer["cache"] == left


ALGORITHMS = {"entropy2": "ENTROPY_CALIBRATION_2", "minmax": "MINMAX_CALIBRATION"}


@pytest.mark.parametrize("method", ALGORITHMS)
def test_calibrator(answers: Answers, release: Release, method: str) -> None:
    case = answers[f"calibrator {method}"]
    if not weakly_typed(release):
        assert refusal(case)
        assert case["builds"] == 0
        return
    assert "error" not in case, case["error"]
    assert case["graph"] == "fp32"
    assert "INT8" in case["flags"]
    assert {case["precisions"][name] for name in LAYER_NAMES} == {"INT8"}
    found = case["calibration"]
    assert found["algorithm"] == ALGORITHMS[method]
    assert (found["batch_size"], found["batches"], found["addresses"]) == (2, 5, ["int"])
    assert found["profile_set"], "the free batch is calibrated in the calibrator's batches"


@pytest.mark.parametrize("method", ALGORITHMS)
def test_calibration_table_is_used_again(answers: Answers, release: Release, method: str) -> None:
    again = answers[f"calibrator {method}"]["again"]
    assert again.get("batches") == (0 if weakly_typed(release) else None)
    assert again.get("cache", "TRT-").startswith("TRT-")


@pytest.mark.parametrize("case", ["calibration table", "calibration table on a DLA"])
def test_own_ranges_as_a_calibration_table(answers: Answers, release: Release, case: str) -> None:
    answer = answers[case]
    if not weakly_typed(release):
        assert refusal(answer)
        return
    assert "error" not in answer, answer["error"]
    assert answer["calibration"]["batches"] == 0
    assert "\nlogits: " in answer["calibration"]["cache"]


def test_calibrator_on_a_dla(answers: Answers, release: Release) -> None:
    case = answers["calibrator on a DLA"]
    if not has_dla(release):
        assert refusal(case)
        return
    assert {"INT8", "FP16", "GPU_FALLBACK"} <= set(case["flags"])
    assert case["calibration"]["batches"] == 5


def test_calibrator_is_for_int8(answers: Answers) -> None:
    assert refusal(answers["calibrator on fp16"])


@pytest.mark.parametrize(
    ("case", "kind", "reason"),
    [
        ("builder fails", "ArtifactError", "Could not find any implementation for node conv1"),
        ("parser fails", "ArtifactError", "unsupported operator"),
        ("no GPU", "MissingComponentError", "CUDA initialization failure"),
    ],
)
def test_failure_gives_the_librarys_reason(answers: Answers, case: str, kind: str, reason: str) -> None:
    assert reason in refusal(answers[case], kind)


def test_interrupted_build_stops_and_keeps_the_previous_engine(answers: Answers, release: Release) -> None:
    case = answers["interrupted"]
    assert refusal(case, "KeyboardInterrupt") == ""
    assert case["stopped"] == (release.major >= 10), "TensorRT 8 cannot be stopped"
    assert case["files"] == ["alexnet.engine"]


def test_progress_is_reported_where_the_builder_tells(answers: Answers, release: Release) -> None:
    case = answers["fp16"]
    assert (case["progress"] > 0) == (release.major >= 10)
    assert case.get("progress_monitor") == ("IProgressMonitor" if release.major >= 10 else None)


OUTPUTS = [[[float(value * column) for column in (1, 2, 3, 4)]] * batch for value, batch in ((1, 2), (2, 2), (3, 3))]
"""The stand-in's answers to the three batches: the input's first pixel times 1, 2, 3, 4."""


@pytest.mark.parametrize("case", ["session", "session with CUDA graph", "session on a DLA"])
def test_session_answers(answers: Answers, case: str) -> None:
    answer = answers[case]
    assert "error" not in answer, answer["error"]
    assert answer["outputs"] == OUTPUTS
    assert answer["held"] == [], "memory, streams and graphs are given back"
    assert answer["contexts"] == 1
    assert answer["host_code"] == []


def test_shape_is_set_once_per_batch_size(answers: Answers) -> None:
    assert answers["session"]["shapes"] == [[2, 3, 227, 227], [3, 3, 227, 227]]
    assert answers["session"]["executions"] == 9


def test_cuda_graph_is_launched_instead_of_the_engine(answers: Answers) -> None:
    case = answers["session with CUDA graph"]
    assert case["executions"] == 4, "for each batch size one plain run and one that is recorded"
    assert case["graph_launches"] == 7


def test_dla_core_is_chosen_before_loading(answers: Answers) -> None:
    assert answers["session on a DLA"]["dla_core"] == [1]
    assert refusal(answers["session on a missing DLA"], "ArtifactError")


def test_weight_streaming_budget(answers: Answers, release: Release) -> None:
    case = answers["session with weight streaming"]
    if release.number < (10, 12):
        assert case["lacking"] == "weight streaming"
        return
    assert "error" not in case, case["error"]
    assert case["budgets"] == {"weight_streaming_budget_v2": [2 * MIB]}


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("session on a damaged engine", "magicTagRead"),
        ("session of another version", "9.9.9"),
        ("session on an engine with code", "host code is not allowed"),
    ],
)
def test_engine_that_cannot_be_loaded(answers: Answers, case: str, reason: str) -> None:
    answer = answers[case]
    assert reason in refusal(answer, "ArtifactError")
    assert "rebuild" in refusal(answer, "ArtifactError")
    assert answer["held"] == []
    assert answer["host_code"] == []


@pytest.mark.parametrize("case", ["profile", "profile with CUDA graph"])
def test_the_librarys_profile(answers: Answers, case: str) -> None:
    answer = answers[case]
    assert answer["nodes"] == [
        ["Reformatting CopyNode for Input Tensor 0 to conv1", "", 1_250_000],
        ["conv1 + conv1/relu", "", 2_500_000],
        ["fc8", "", 1_500_000],
    ], "the mean of three inferences, in nanoseconds"
    assert (answer["emitted"], answer["reported"]) == (0, 3), "reported once each, and not by the launch itself"
    assert answer["graph_launches"] == 0, "a recorded inference is not profiled"
    assert "on a session that is open" in answer["not_prepared"]
    assert answer["same_answers"]
    assert answer["profiled_after"] == 0, "what runs afterwards is not profiled"
    assert "reports no layer times" in answer["refused"]
    assert answer["answers_after_refusal"]
    assert answer["held"] == []


NO_VERSION = "ERROR: Could not find a version that satisfies the requirement x (from versions: 9.0)"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("/usr/bin/python3: No module named pip", "no pip"),
        (NO_VERSION, f"none for Python {sys.version_info.major}.{sys.version_info.minor}"),
        (f"WARNING: Retrying (Retry(total=0)) after connection broken\n{NO_VERSION}", "cannot be reached"),
        ("ERROR: disk full", "disk full"),
    ],
)
def test_missing_wheel_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, reason: str) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=said)
    monkeypatch.setenv(wheels.CACHE, str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    found = prepare([Release(version="8.6.1", package="tensorrt-bindings")])["8.6.1"]
    assert isinstance(found, BindingsError)
    assert "tensorrt-bindings==8.6.1" in str(found)
    assert reason in str(found)


def test_missing_compiler_says_why(
    everything: dict[str, Answers | BindingsError], monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(isinstance(found, BindingsError) for found in everything.values()):
        pytest.skip("the wheels are not in the cache")
    monkeypatch.setenv("CC", "no-such-compiler")
    wheels.stubs.cache_clear()
    reasons = prepare().values()
    wheels.stubs.cache_clear()
    assert all(isinstance(reason, BindingsError) and "C compiler" in str(reason) for reason in reasons)


def test_required_bindings_are_there(everything: dict[str, Answers | BindingsError]) -> None:
    if not required():
        pytest.skip(f"{wheels.REQUIRED} is not 1")
    assert any(isinstance(found, dict) for found in everything.values())
