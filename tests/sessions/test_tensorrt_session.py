"""A session on an engine: refused before it is loaded where it cannot run, and every answer's way to the GPU and back.

TensorRT and CUDA are stand-ins here (see `cuda_machine`); the refusals of TensorRT-RTX are its own.
"""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import one_line
from cuda_machine import Machine, has_driver
from tensorrt_library import (
    BUILD,
    CLASSES,
    MANIFEST,
    PLAN,
    PLATFORM,
    SIZE,
    SM,
    VERSION,
    Library,
    Runtime,
    answers,
    engine_file,
    images,
)

from alexnet_edge import records
from alexnet_edge.artifact import Artifact, Manifest, TensorSpec, commit, manifest_path
from alexnet_edge.errors import ArtifactError, MissingComponentError, UserError
from alexnet_edge.images.preprocess import preset
from alexnet_edge.nvidia import cuda
from alexnet_edge.sessions import engine_file as loading
from alexnet_edge.sessions import open_session, runnable
from alexnet_edge.sessions import tensorrt as module
from alexnet_edge.sessions.engine_file import RTX_MAGIC, refusal, trusted_engine
from alexnet_edge.sessions.open import open_artifact
from alexnet_edge.sessions.tensorrt import TensorRTSession


@pytest.fixture
def trt(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The library, also for whoever asks for the one that is installed."""
    library = Library(machine)
    monkeypatch.setattr(module, "load_library", lambda runtime: library)
    monkeypatch.setattr(loading, "load_library", lambda runtime: library)
    return library


@pytest.fixture
def session(tmp_path: Path, trt: Library, machine: Machine) -> Iterator[TensorRTSession]:
    """An open one; nothing may be held after it."""
    with TensorRTSession(engine_file(tmp_path)) as opened:
        yield opened
    assert machine.held() == []


def refused(session: TensorRTSession, kind: type[UserError] = ArtifactError) -> str:
    """The line that opening the session ends in; nothing may be held after it."""
    line = one_line(session.__enter__, kind)
    assert cuda.runtime_library().held() == []
    assert session._state == "closed"
    return line


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_answers(tmp_path: Path, trt: Library, machine: Machine, cuda_graph: bool) -> None:
    with TensorRTSession(engine_file(tmp_path), cuda_graph=cuda_graph) as session:
        for count in (1, 3, 3, 2, 4, 1):
            for _ in range(3):
                y_NK = session.run(images(count))
                assert y_NK.dtype == np.float32
                np.testing.assert_allclose(y_NK, answers(images(count)), rtol=1e-6)
    assert machine.held() == []


def test_what_was_made_last_goes_first(tmp_path: Path, trt: Library) -> None:
    session = TensorRTSession(engine_file(tmp_path))
    with session:
        session.run(images(1))
        trt.did.clear()
    assert trt.did == ["context gone", "engine gone", "runtime gone"]


def test_closing_waits_for_what_still_runs(tmp_path: Path, trt: Library, machine: Machine) -> None:
    """Memory that a running inference writes to is not given back under it."""
    with TensorRTSession(engine_file(tmp_path)) as session:
        session.prepare(images(1))
        session.enqueue()
    assert trt.runs == 1
    assert machine.held() == []


def test_each_step_does_its_part(session: TensorRTSession, trt: Library, machine: Machine) -> None:
    """Latency figures rest on this: the copies are in `prepare` and `fetch`, and nothing else is in `enqueue`."""
    session.run(images(2))
    for step, expected in (
        (lambda: session.prepare(images(2)), ["cudaMemcpyAsync", "cudaStreamSynchronize"]),
        (session.enqueue, []),
        (session.synchronize, ["cudaStreamSynchronize"]),
        (session.fetch, ["cudaMemcpyAsync", "cudaStreamSynchronize"]),
    ):
        machine.calls.clear()
        step()
        assert machine.calls == expected


def test_the_input_is_copied_when_prepare_returns(session: TensorRTSession, trt: Library) -> None:
    x_NCHW = images(2)
    session.prepare(x_NCHW)
    x_NCHW[:] = 0
    for _ in range(2):
        session.enqueue()
    session.synchronize()
    np.testing.assert_allclose(session.fetch(), answers(images(2)), rtol=1e-6)
    assert trt.runs == 2


def test_shape_and_memory_are_set_once_per_batch_size(session: TensorRTSession, trt: Library, machine: Machine) -> None:
    for count in (2, 2, 1, 1, 2):
        session.run(images(count))
    assert [step for step in trt.did if step.startswith("shape")] == ["shape 2", "shape 1", "shape 2"]
    assert machine.calls.count("cudaMalloc") == 2, "a smaller batch fits where the larger one was"
    assert machine.calls.count("cudaHostAlloc") == 2
    session.run(images(4))
    assert len(machine.device) == len(machine.host) == 2, "outgrown memory was not given back"


def test_an_error_while_it_runs_is_one_line(session: TensorRTSession, trt: Library, machine: Machine) -> None:
    session.prepare(images(1))
    trt.fail = {"execute_async_v3"}
    assert "TensorRT cannot run the engine (refused 1)" in one_line(session.enqueue, UserError)
    assert "TensorRT cannot run the engine (refused 2)" in one_line(session.enqueue, UserError)
    trt.fail = {"set_input_shape"}
    assert "TensorRT takes no input of this shape (" in one_line(lambda: session.run(images(2)), UserError)
    trt.fail = {"set_tensor_address"}
    assert "TensorRT takes no address for input (" in one_line(lambda: session.run(images(2)), UserError)
    trt.fail = set()
    np.testing.assert_allclose(session.run(images(2)), answers(images(2)), rtol=1e-6)


def test_what_could_not_be_prepared_is_not_run(session: TensorRTSession, trt: Library, machine: Machine) -> None:
    session.run(images(1))
    machine.fail["cudaMalloc"] = 2
    assert "too little free memory" in one_line(lambda: session.prepare(images(4)), UserError)
    for call in (session.enqueue, session.fetch):
        with pytest.raises(UserError, match="on a session that is open"):
            call()
    del machine.fail["cudaMalloc"]
    np.testing.assert_allclose(session.run(images(1)), answers(images(1)), rtol=1e-6)


@pytest.mark.parametrize("successes", [0, 1])
def test_pinned_memory_that_runs_out(session: TensorRTSession, trt: Library, machine: Machine, successes: int) -> None:
    allocate = machine._cudaHostAlloc
    left = iter([True] * successes)

    def runs_out(size: int, flags: int) -> int:
        if not next(left, False):
            raise UserError("no pinned memory")
        return allocate(size, flags)

    machine._cudaHostAlloc = runs_out  # type: ignore[method-assign]
    with pytest.raises(UserError, match="no pinned memory"):
        session.run(images(2))
    machine._cudaHostAlloc = allocate  # type: ignore[method-assign]
    np.testing.assert_allclose(session.run(images(2)), answers(images(2)), rtol=1e-6)


def test_details(tmp_path: Path, trt: Library) -> None:
    with TensorRTSession(engine_file(tmp_path), threads=1) as session:
        assert session.details() == {
            "runtime": "tensorrt",
            "device": "cuda",
            "threads": 1,
            "version": VERSION,
            "gpu": "Orin",
            "sm": SM,
            "driver": "12.6",
            "integrated": True,
            "cuda_graph": False,
            "context_memory_bytes": 1 << 20,
            "transfers": "prepare: host to GPU, fetch: GPU to host, both through pinned memory and outside enqueue",
        }


def test_context_memory_of_older_releases(tmp_path: Path, trt: Library) -> None:
    trt.engine_attributes = {"device_memory_size": 1 << 10}
    with TensorRTSession(engine_file(tmp_path)) as session:
        assert session.details()["context_memory_bytes"] == 1 << 10


def test_an_inference_is_recorded_once_per_batch_size(tmp_path: Path, trt: Library, machine: Machine) -> None:
    with TensorRTSession(engine_file(tmp_path), cuda_graph=True) as session:
        session.prepare(images(2))
        for _ in range(4):
            session.enqueue()
        session.synchronize()
        assert [step for step in trt.did if step in ("execute", "record")] == ["execute", "record"]
        assert trt.runs == 4, "recording must not run, and every launch must"
        machine.calls.clear()
        session.enqueue()
        assert machine.calls == ["cudaGraphLaunch"]
        session.run(images(2) + 1)
        assert len(machine.executables) == 1
        session.run(images(3))
        assert [step for step in trt.did if step in ("execute", "record")] == ["execute", "record"] * 2
        assert len(machine.executables) == 1, "the record of another shape must go"
        assert session.details()["cuda_graph"] is True
    assert machine.held() == []


def test_an_engine_that_cannot_be_recorded(tmp_path: Path, trt: Library, machine: Machine) -> None:
    machine.capturable = False
    with TensorRTSession(engine_file(tmp_path), cuda_graph=True) as session:
        line = one_line(lambda: session.run(images(1)), UserError)
        assert line.startswith(
            "the inference cannot be recorded as a CUDA graph (TensorRT cannot run the engine (refused 1))"
        )
        assert line.endswith("; leave CUDA graphs off")
        assert not machine.capturing
    assert machine.held() == []


def test_tensorrt_rtx_records_by_itself(tmp_path: Path, trt: Library) -> None:
    trt.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")  # type: ignore[attr-defined]
    artifact = engine_file(tmp_path, runtime="tensorrt-rtx")
    with TensorRTSession(artifact, cuda_graph=True) as session:
        for _ in range(3):
            session.run(images(1))
        assert session.details()["runtime"] == "tensorrt-rtx"
    with TensorRTSession(artifact) as session:
        session.run(images(1))
    assert [step for step in trt.did if step in ("context", "context whole graph")] == [
        "context whole graph",
        "context",
    ]
    assert "record" not in trt.did


COMPATIBLE, AMPERE = {"version_compatible": True}, {"hardware_compatibility": "ampere-plus"}
SAME = {"hardware_compatibility": "same-compute-capability"}


@pytest.mark.parametrize(
    ("build", "machine_is", "expected"),
    [
        ({}, {"version": "10.7.0"}, "was built with TensorRT 10.3.0, this machine has 10.7.0"),
        ({}, {"version": "10.3.1"}, "was built with TensorRT 10.3.0, this machine has 10.3.1"),
        ({}, {"sm": "sm110"}, "was built for sm87, the GPU of this machine is sm110"),
        ({}, {"platform": "linux-riscv"}, f"was built on {PLATFORM}, this machine is linux-riscv"),
        ({"stripped": True}, {}, "was built without its weights"),
        (COMPATIBLE, {"version": "10.16.1.11"}, "was built with TensorRT 10.3.0, this machine has 10.16.1.11, "
         "and it needs the lean runtime of its own version, which this package does not load"),
        (AMPERE, {"sm": "sm75"}, "is for sm80 and newer, the GPU of this machine is sm75"),
        (SAME, {"sm": "sm86"}, "was built for sm87, the GPU of this machine is sm86"),
        ({"sm": None, "compute_capabilities": ["sm86", "sm89"]}, {},
         "is for sm86, sm89, the GPU of this machine is sm87"),
        ({}, {}, None),
        ({"version": "10.13.3.9"}, {"version": "10.13.3"}, None),
        ({"version": "10.14.1.48.post1"}, {"version": "10.14.1.48"}, None),
        (COMPATIBLE, {}, None),
        (AMPERE, {"sm": "sm121"}, None),
        ({"compute_capabilities": ["sm86", "sm87"], "sm": None}, {}, None),
        ({"compute_capabilities": "all supported", "sm": None}, {}, None),
        ({"version": None, "sm": None, "platform": None}, {"version": "11.0.0", "sm": "sm110", "platform": "other"}, None),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, build: dict[str, Any], machine_is: dict[str, str], expected: str | None) -> None:
    artifact = engine_file(tmp_path, build={**BUILD, **build})
    found = {"version": VERSION, "sm": SM, "platform": PLATFORM, **machine_is}
    reason = refusal(artifact, library_version=found["version"], sm=found["sm"], platform=found["platform"])
    assert reason == (expected and f"the engine {expected}")


def test_a_refusal_comes_before_loading(tmp_path: Path, trt: Library, machine: Machine) -> None:
    trt.__version__ = "10.7.0"
    artifact = engine_file(tmp_path)
    assert refused(TensorRTSession(artifact)) == (
        f"the engine was built with TensorRT 10.3.0, this machine has 10.7.0: {artifact.path}; rebuild it here"
    )
    trt.__version__ = VERSION
    machine.sm = (11, 0)
    assert "built for sm87, the GPU of this machine is sm110" in refused(TensorRTSession(artifact))
    assert trt.did == []


def test_without_a_gpu(tmp_path: Path, trt: Library, machine: Machine) -> None:
    machine.fail["cudaGetDeviceCount"] = 100
    artifact = engine_file(tmp_path)
    assert refused(TensorRTSession(artifact), MissingComponentError).startswith("there is no NVIDIA GPU here; ")
    assert runnable(artifact) == (
        "a tensorrt engine needs the NVIDIA GPU it was built for (there is no NVIDIA GPU here)"
    )
    assert one_line(lambda: open_session(artifact)).startswith(
        "a tensorrt engine needs the NVIDIA GPU it was built for"
    )


def test_without_the_library(tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_library(runtime: str) -> ModuleType:
        raise MissingComponentError("TensorRT is not installed", fix="run: sudo apt-get install python3-libnvinfer")

    monkeypatch.setattr(module, "load_library", load_library)
    monkeypatch.setattr(loading, "load_library", load_library)
    artifact = engine_file(tmp_path)
    assert refused(TensorRTSession(artifact), MissingComponentError) == (
        "TensorRT is not installed; run: sudo apt-get install python3-libnvinfer"
    )
    assert runnable(artifact) == ("a tensorrt engine needs the NVIDIA GPU it was built for (TensorRT is not installed)")


def test_another_device(tmp_path: Path, trt: Library) -> None:
    artifact = engine_file(tmp_path)
    expected = "an engine runs on the GPU only: --device cpu; leave --device out"
    assert one_line(lambda: TensorRTSession(artifact, device="cpu"), UserError) == expected
    assert one_line(lambda: open_session(artifact, device="cpu"), UserError) == expected


def test_another_runtime(tmp_path: Path, trt: Library) -> None:
    artifact = engine_file(tmp_path, runtime="openvino")
    assert "no library runs engines of openvino" in one_line(lambda: TensorRTSession(artifact))
    assert "openvino engine needs" in (runnable(artifact) or "")


def test_the_reason_of_the_library(tmp_path: Path, trt: Library) -> None:
    artifact = engine_file(tmp_path)
    artifact.path.write_bytes(b"changed after it was checked")
    assert refused(TensorRTSession(artifact)) == (
        "TensorRT 10.3.0 cannot load the engine (Error Code 1: Serialization (magicTagRead failed. Trying to load)): "
        f"{artifact.path}; rebuild it here"
    )


def test_code_in_an_engine_is_not_run(tmp_path: Path, trt: Library) -> None:
    """A version-compatible engine that another builder made may carry a lean runtime; those of this package do not."""
    build = {**BUILD, "version_compatible": True, "options": {"version_compatible": True}}
    line = refused(TensorRTSession(engine_file(tmp_path, plan={**PLAN, "host_code": True}, build=build)))
    assert "(Error Code 3: the plan has host code and that is not allowed)" in line
    assert line.endswith("rebuild it here")


def test_a_driver_the_library_cannot_use(tmp_path: Path, trt: Library) -> None:
    trt.fail = {"Runtime"}
    assert refused(TensorRTSession(engine_file(tmp_path)), MissingComponentError) == (
        "TensorRT cannot use the GPU (CUDA initialization failure with error: 35); see `alexnet-edge doctor`"
    )


def test_no_room_for_a_context(tmp_path: Path, trt: Library) -> None:
    trt.fail = {"create_execution_context"}
    line = refused(TensorRTSession(engine_file(tmp_path)), UserError)
    assert line.startswith("TensorRT cannot make an execution context (")
    assert line.endswith("; free some of the GPU's memory, or export with a smaller --max-batch")


def test_no_room_for_a_stream(tmp_path: Path, trt: Library, machine: Machine) -> None:
    machine.fail["cudaStreamCreateWithFlags"] = 2
    assert "too little free memory" in refused(TensorRTSession(engine_file(tmp_path)), UserError)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"inputs": {"data": [-1, 3, SIZE, SIZE]}}, "takes 1 to 4 of data 3x4x4 to logits 5, its manifest says 1 to 4"),
        ({"inputs": {"input": [-1, 3, 5, 5]}}, "takes 1 to 4 of input 3x5x5 to logits 5, its manifest says"),
        ({"outputs": {"logits": [-1, 6]}}, "to logits 6, its manifest says 1 to 4 of input 3x4x4 to logits 5"),
        ({"batches": [1, 1, 2]}, "takes 1 to 2 of input 3x4x4 to logits 5, its manifest says 1 to 4"),
        (
            {"inputs": {"input": [2, 3, SIZE, SIZE]}},
            "takes 2 to 2 of input 3x4x4 to logits 5, its manifest says 1 to 4",
        ),
        ({"inputs": {"input": [-1, 3, SIZE, SIZE], "more": [-1, 1]}}, "has 2 inputs and 1 outputs, not one of each"),
        ({"outputs": {}}, "has 1 inputs and 0 outputs, not one of each"),
        ({"inputs": {"input": [-1, SIZE]}}, "shapes are (-1, 4) and (-1, 5), not (N, 3, S, S) and (N, K)"),
        ({"outputs": {"logits": [-1, -1]}}, "shapes are (-1, 3, 4, 4) and (-1, -1), not (N, 3, S, S) and (N, K)"),
        ({"dtypes": {"input": "half"}}, "tensor input is not float32"),
        ({"profiles": 3}, "has 3 optimisation profiles, not one"),
    ],
)
def test_an_engine_of_another_network(tmp_path: Path, trt: Library, plan: dict[str, Any], expected: str) -> None:
    assert expected in refused(TensorRTSession(engine_file(tmp_path, plan={**PLAN, **plan})))


def test_a_fixed_batch(tmp_path: Path, trt: Library) -> None:
    plan = {**PLAN, "inputs": {"input": [2, 3, SIZE, SIZE]}, "outputs": {"logits": [2, CLASSES]}}
    fixed = replace(MANIFEST.input, min_batch=2, max_batch=2)
    with TensorRTSession(engine_file(tmp_path, plan=plan, input=fixed)) as session:
        np.testing.assert_allclose(session.run(images(2)), answers(images(2)), rtol=1e-6)


def test_dla_core(tmp_path: Path, trt: Library) -> None:
    artifact = engine_file(tmp_path, build={**BUILD, "dla_core": 1})
    assert "is for DLA core 1, this machine and TensorRT 10.3.0 have 0" in refused(TensorRTSession(artifact))
    trt.dla_cores = 2
    with TensorRTSession(artifact) as session:
        assert "deserialise on DLA core 1" in trt.did
        assert session.details()["dla_core"] == 1


def test_weight_streaming_budget(tmp_path: Path, trt: Library) -> None:
    artifact = engine_file(tmp_path, build={**BUILD, "weight_streaming": True})
    trt.engine_attributes["weight_streaming_budget_v2"] = 1 << 30
    with TensorRTSession(artifact) as session:
        assert session._loaded.engine.weight_streaming_budget_v2 == 1000
        assert session.details()["weight_streaming_budget_bytes"] == 1000
    with TensorRTSession(engine_file(tmp_path)) as session:
        assert session._loaded.engine.weight_streaming_budget_v2 == 1 << 30
        assert "weight_streaming_budget_bytes" not in session.details()


def test_damaged_files(tmp_path: Path, trt: Library) -> None:
    """Whatever happened to the file, it is seen before the library reads it."""
    path = engine_file(tmp_path).path
    content = path.read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        line = one_line(lambda: open_session(path))
        assert "the file does not match its manifest" in line
        assert line.endswith("copy it again, or export it again")
        assert "the file does not match its manifest" in one_line(lambda: open_session(path, trust=True))
    for length in (0, 10, len(content) - 1):
        path.write_bytes(content[:length])
        assert "the file does not match its manifest" in one_line(lambda: open_session(path))
    path.write_bytes(content)
    manifest_path(path).unlink()
    assert one_line(lambda: open_session(path)) == (
        f"the engine has no manifest (a.engine.json), and loading one may run code that it carries: {path}; "
        "copy the manifest along with it, or add --trust if you know where it is from"
    )
    assert trt.did == []


def test_open_session_takes_the_gpu_for_an_engine(tmp_path: Path, trt: Library) -> None:
    artifact = engine_file(tmp_path)
    assert runnable(artifact) is None
    for source in (artifact, artifact.path):
        with open_session(source) as session:
            assert session.device == "cuda"
            np.testing.assert_allclose(session.run(images(1)), answers(images(1)), rtol=1e-6)


def test_open_session_gives_the_reason_and_the_command(tmp_path: Path, trt: Library) -> None:
    trt.__version__ = "8.6.2"
    artifact = engine_file(tmp_path)
    assert one_line(lambda: open_session(artifact)) == (
        f"the engine was built with TensorRT 10.3.0, this machine has 8.6.2: {artifact.path}; "
        "run it where it was built, or rebuild it"
    )


def bare_engine(folder: Path, size: int = 227, **change: Any) -> Path:
    """An engine file and nothing beside it."""
    path = folder / "bare.engine"
    shapes = {"inputs": {"data": [-1, 3, size, size]}, "outputs": {"prob": [-1, CLASSES]}}
    path.write_bytes(json.dumps({**PLAN, **shapes, **change}).encode())
    return path


@pytest.mark.parametrize("size", [227, 224])
def test_a_trusted_engine_says_itself_what_it_takes(tmp_path: Path, trt: Library, size: int) -> None:
    path = bare_engine(tmp_path, size)
    artifact = open_artifact(path, trust=True)
    manifest = artifact.manifest
    assert manifest.input == TensorSpec(name="data", dtype="float32", shape=(3, size, size), max_batch=4)
    assert manifest.output == TensorSpec(name="prob", dtype="float32", shape=(CLASSES,), max_batch=4)
    assert manifest.classes == ("0", "1", "2", "3", "4")
    assert manifest.preprocessing == preset(f"imagenet-{size}")
    assert manifest.runtime == "tensorrt"
    assert artifact.label == "trt of unknown precision"
    assert records.decode(Manifest, json.dumps(records.to_builtins(manifest))) == manifest
    with open_session(path, trust=True) as session:
        assert session.details()["version"] == VERSION


def test_a_trusted_engine_with_a_fixed_batch(tmp_path: Path, trt: Library) -> None:
    path = bare_engine(tmp_path, inputs={"input": [2, 3, 227, 227]}, outputs={"probabilities": [2, 7]})
    manifest = trusted_engine(path).manifest
    assert (manifest.input.min_batch, manifest.input.max_batch) == (2, 2)
    assert manifest.head == "probabilities"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"inputs": {"data": [-1, 3, 299, 299]}},
            "takes 3x299x299, and without a manifest its preprocessing is not known",
        ),
        ({"inputs": {"data": [-1, 1, 227, 227]}}, "takes 1x227x227, and without a manifest"),
        ({"inputs": {"data": [-1, 3, 227, 224]}}, "takes 3x227x224, and without a manifest"),
        ({"dtypes": {"data": "half"}}, "tensor data is not float32"),
        ({"profiles": 2}, "has 2 optimisation profiles, not one"),
        ({"host_code": True}, "TensorRT 10.3.0 cannot load the engine (Error Code 3: the plan has host code"),
    ],
)
def test_trust_does_not_make_it_fit(tmp_path: Path, trt: Library, change: dict[str, Any], expected: str) -> None:
    path = bare_engine(tmp_path, **change)
    line = one_line(lambda: open_artifact(path, trust=True))
    assert expected in line
    assert str(path) in line
    assert "--trust" not in line


def test_a_trusted_file_that_is_no_engine(tmp_path: Path, trt: Library) -> None:
    path = bare_engine(tmp_path)
    for content in (b"", b"nonsense", path.read_bytes()[:-10]):
        path.write_bytes(content)
        assert one_line(lambda: open_session(path, trust=True)) == (
            f"TensorRT 10.3.0 cannot load the engine (Error Code 1: Serialization (magicTagRead failed. Trying to load)): "
            f"{path}; get one that was built with this library, for this GPU"
        )


def test_trust_is_for_engines(tmp_path: Path, trt: Library) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"graph")
    assert "the artifact has no manifest (a.onnx.json)" in one_line(lambda: open_artifact(path, trust=True))


def test_trust_needs_a_gpu(tmp_path: Path, trt: Library, machine: Machine) -> None:
    machine.fail["cudaGetDeviceCount"] = 100
    path = bare_engine(tmp_path)
    assert "there is no NVIDIA GPU here" in one_line(lambda: open_artifact(path, trust=True), MissingComponentError)


@pytest.mark.parametrize("fails", [False, True])
def test_no_collection_starts_in_the_library(
    tmp_path: Path, trt: Library, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    seen: list[bool] = []
    deserialise = Runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        Runtime, "deserialize_cuda_engine", lambda *args: seen.append(gc.isenabled()) or deserialise(*args)
    )
    artifact = engine_file(tmp_path)
    trt.fail = {"create_execution_context"} if fails else set()
    with suppress(UserError), TensorRTSession(artifact):
        assert gc.isenabled()
    assert seen == [False]
    assert gc.isenabled()


@pytest.mark.parametrize("plan", [{"host_code": True}, {"profiles": 2}])
def test_an_error_keeps_nothing_of_the_library_alive(tmp_path: Path, trt: Library, plan: dict[str, Any]) -> None:
    bare = bare_engine(tmp_path, **plan)
    artifact = engine_file(tmp_path, plan={**PLAN, **plan})
    for call in (lambda: trusted_engine(bare), TensorRTSession(artifact).__enter__):
        trt.did.clear()
        with pytest.raises(ArtifactError) as kept:
            call()
        assert kept.value.__traceback__ is not None
        assert "runtime gone" in trt.did
        assert ("engine gone" in trt.did) == ("profiles" in plan)


FAILS_TWICE = """
import gc, sys
from pathlib import Path
import tensorrt_rtx
from cuda_machine import Machine
from alexnet_edge.nvidia import cuda
from alexnet_edge.errors import ArtifactError
from alexnet_edge.sessions.engine_file import trusted_engine

class Collecting(tensorrt_rtx.ILogger):
    def __init__(self):
        tensorrt_rtx.ILogger.__init__(self)
    def log(self, severity, message):
        gc.collect()

machine = Machine()
cuda.runtime_library = lambda: machine
gc.disable()
try:
    trusted_engine(Path(sys.argv[1]))
except ArtifactError as error:
    error.itself = error  # what only a collection frees
tensorrt_rtx.Runtime(Collecting())
print("done")
"""


def test_a_failed_load_does_not_block_the_next(tmp_path: Path, rtx: Any) -> None:
    """The real library destroys no runtime while it logs: it would wait for itself."""
    path = tmp_path / "bare.engine"
    path.write_bytes(RTX_MAGIC)
    run = subprocess.run(
        [sys.executable, "-c", FAILS_TWICE, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stdout == "done\n", run.stderr


@pytest.fixture(scope="module")
def rtx() -> Any:
    try:
        return importlib.import_module("tensorrt_rtx")
    except ImportError:
        pytest.skip("TensorRT-RTX is not installed")


@pytest.fixture(scope="module")
def rtx_engine(rtx: Any) -> bytes:
    """A small engine that the real library built."""
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(0)
    x = network.add_input("input", rtx.float32, (-1, 3, SIZE, SIZE))
    relu = network.add_activation(x, rtx.ActivationType.RELU)
    relu.get_output(0).name = "logits"
    network.mark_output(relu.get_output(0))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("input", (1, 3, SIZE, SIZE), (1, 3, SIZE, SIZE), (4, 3, SIZE, SIZE))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


def rtx_file(folder: Path, content: bytes) -> Artifact:
    temporary = folder / "finished.tmp"
    temporary.write_bytes(content)
    return commit(temporary, folder / "rtx.engine", replace(MANIFEST, runtime="tensorrt-rtx", build={}))


def test_an_engine_of_tensorrt_rtx_is_known_by_its_first_bytes(rtx_engine: bytes) -> None:
    assert rtx_engine.startswith(RTX_MAGIC)


def test_the_library_of_a_trusted_engine(
    tmp_path: Path, rtx_engine: bytes, trt: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(loading, "load_library", lambda runtime: asked.append(runtime) or trt)
    path = tmp_path / "bare.engine"
    path.write_bytes(rtx_engine)
    assert "TensorRT-RTX 10.3.0 cannot load the engine" in one_line(lambda: trusted_engine(path))
    assert asked == ["rtx"]


@pytest.mark.parametrize("content", [b"nonsense", bytes(1000), b"ftrt" + bytes(1000)])
def test_the_real_library_refuses_what_is_no_engine(tmp_path: Path, rtx: Any, machine: Machine, content: bytes) -> None:
    line = refused(TensorRTSession(rtx_file(tmp_path, content)))
    assert line.startswith(f"TensorRT-RTX {rtx.__version__} cannot load the engine (malformed engine): ")
    assert line.endswith("rebuild it here")


@pytest.mark.skipif(has_driver(), reason="there is an NVIDIA driver here")
def test_the_real_library_without_a_gpu(tmp_path: Path, rtx: Any, rtx_engine: bytes, machine: Machine) -> None:
    """The stand-in says that there is a GPU, and the real library finds none: its own reason is given."""
    line = refused(TensorRTSession(rtx_file(tmp_path, rtx_engine)))
    assert line.startswith(f"TensorRT-RTX {rtx.__version__} cannot load the engine (")
    assert "cudaError 35: CUDA driver version is insufficient" in line
