"""Sessions: the same checks in every runtime, and the same answers from the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cuda_machine import Machine
from onnx import TensorProto, helper, numpy_helper
from tensorrt_library import CLASSES, SIZE, WEIGHT, Library, answers, engine_file, images
from tensorrt_library import MANIFEST as ENGINE

from alexnet_edge.artifact import SUFFIXES, Artifact, Format, commit
from alexnet_edge.environment import usable_cpus
from alexnet_edge.errors import ArtifactError, CheckpointError, MissingComponentError, UserError
from alexnet_edge.images.preprocess import Preprocessing
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.nvidia.cuda import gpu_info
from alexnet_edge.sessions import Session, open_session, runnable
from alexnet_edge.sessions.null import NullSession
from alexnet_edge.sessions.openvino import load_library, shared_core
from alexnet_edge.sessions.tensorrt import TensorRTSession
from alexnet_edge.sessions.torch import CheckpointSession
from alexnet_edge.sessions.torchscript import quiet_jit

MakeCheckpoint = Callable[..., Path]

MANIFEST = replace(
    ENGINE,
    format="onnx",
    runtime="onnxruntime",
    precision="fp32",
    input=replace(ENGINE.input, max_batch=None),
    output=replace(ENGINE.output, max_batch=None),
    build={},
)


def small_onnx(folder: Path, **change: Any) -> Artifact:
    """Flatten and one matrix product, as an ONNX file with its manifest."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "small.tmp")
    return commit(folder / "small.tmp", folder / "small.onnx", replace(MANIFEST, **change))


def small_openvino(folder: Path) -> Artifact:
    """The same as an OpenVINO IR."""
    openvino = load_library()
    model = shared_core().read_model(str(small_onnx(folder).path))
    openvino.save_model(model, str(folder / "staged.xml"), compress_to_fp16=False)
    return commit(folder / "staged.xml", folder / "small.xml", replace(MANIFEST, format="openvino", runtime="openvino"))


@pytest.fixture(params=["null", "torch", "onnxruntime", "openvino", "tensorrt", "tensorrt with CUDA graphs"])
def session(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tiny_checkpoint: MakeCheckpoint,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> Session:
    """A closed session of each runtime; TensorRT's on stand-ins."""
    if request.param.startswith("tensorrt"):
        library = Library(machine)
        monkeypatch.setattr("alexnet_edge.sessions.tensorrt.load_library", lambda runtime: library)
        return TensorRTSession(engine_file(tmp_path), cuda_graph="graphs" in request.param)
    if request.param == "null":
        return NullSession(input_size=SIZE, num_classes=CLASSES)
    if request.param == "torch":
        return open_session(tiny_checkpoint(), threads=1)
    make = small_openvino if request.param == "openvino" else small_onnx
    return open_session(make(tmp_path), threads=1)


def small_torch(folder: Path, format_: Format) -> Artifact:
    """The same as a TorchScript file or an exported program."""
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, CLASSES)).eval()
    x_NCHW = torch.zeros(2, 3, SIZE, SIZE)
    staged = folder / "staged.tmp"
    if format_ == "torchscript":
        with quiet_jit():
            torch.jit.save(torch.jit.freeze(torch.jit.trace(module, x_NCHW)), str(staged))
    else:
        dynamic = ({0: torch.export.Dim("batch", min=1, max=16)},)
        with staged.open("wb") as stream:
            torch.export.save(torch.export.export(module, (x_NCHW,), dynamic_shapes=dynamic), stream)
    return commit(staged, folder / f"small{SUFFIXES[format_]}", replace(MANIFEST, format=format_, runtime="torch"))


FOUR_CLASSES: dict[str, Any] = {"classes": tuple("abcd"), "output": replace(MANIFEST.output, shape=(4,))}
OTHER_SIZE: dict[str, Any] = {
    "preprocessing": Preprocessing(resize=5, crop=5),
    "input": replace(MANIFEST.input, shape=(3, 5, 5)),
}


@pytest.mark.parametrize(
    ("format_", "change", "message"),
    [
        ("onnx", {"input": replace(MANIFEST.input, name="inpus")}, "input is input float32 Nx3x4x4, its manifest says inpus"),
        ("onnx", {"output": replace(MANIFEST.output, name="logit")}, "output is logits float32 Nx5, its manifest says logit "),
        ("onnx", FOUR_CLASSES, "output is logits float32 Nx5, its manifest says logits float32 Nx4"),
        ("onnx", OTHER_SIZE, "input is input float32 Nx3x4x4, its manifest says input float32 Nx3x5x5"),
        ("openvino", {"input": replace(MANIFEST.input, name="inpus")}, "input is input float32 Nx3x4x4, its manifest says inpus"),
        ("openvino", FOUR_CLASSES, "output is logits float32 Nx5, its manifest says logits float32 Nx4"),
        ("torchscript", FOUR_CLASSES, "output is float32 Nx5, its manifest says logits float32 Nx4"),
        ("pt2", FOUR_CLASSES, "output is float32 Nx5, its manifest says logits float32 Nx4"),
        ("pt2", OTHER_SIZE, "input is float32 Nx3x4x4, its manifest says input float32 Nx3x5x5"),
    ],
)  # fmt: skip
def test_a_manifest_of_other_inputs_and_outputs_is_refused(
    tmp_path: Path, format_: Format, change: dict[str, Any], message: str
) -> None:
    makers = {"onnx": small_onnx, "openvino": small_openvino}
    artifact = makers[format_](tmp_path) if format_ in makers else small_torch(tmp_path, format_)
    with open_session(artifact, threads=1):
        pass
    lying = replace(artifact, manifest=replace(artifact.manifest, **change))
    with pytest.raises(ArtifactError, match=message) as error, open_session(lying, threads=1):
        pass
    assert error.value.exit_code == 2
    assert str(artifact.path) in str(error.value)


def size_of(session: Session) -> int:
    return session.input.shape[1]


def test_runs_batches_of_any_size(session: Session) -> None:
    with session:
        for count in (1, 3, 2):
            x_NCHW = images(count, size_of(session))
            y_NK = session.run(x_NCHW)
            assert y_NK.dtype == np.float32
            assert y_NK.shape == (count, *session.output.shape)
            np.testing.assert_array_equal(session.run(x_NCHW), y_NK)


def test_steps_are_the_run(session: Session) -> None:
    x_NCHW = images(2, size_of(session))
    with session:
        expected_NK = session.run(x_NCHW).copy()
        session.prepare(images(3, size_of(session)))
        session.enqueue()
        session.prepare(x_NCHW)
        for _ in range(3):
            session.enqueue()
        session.synchronize()
        np.testing.assert_array_equal(session.fetch(), expected_NK)


def test_views_and_read_only_arrays_are_taken(session: Session) -> None:
    x_NCHW = images(4, size_of(session))
    with session:
        expected_NK = session.run(np.ascontiguousarray(x_NCHW[::2, ::-1])).copy()
        view = x_NCHW[::2, ::-1]
        view.flags.writeable = False
        np.testing.assert_array_equal(session.run(view), expected_NK)


def test_nothing_happens_before_it_is_opened(session: Session) -> None:
    assert session.load_ns == 0
    x_NCHW = images(1, size_of(session))
    for call in (lambda: session.run(x_NCHW), session.enqueue, session.synchronize, session.fetch):
        with pytest.raises(UserError, match=r"\(\) called on a session that is closed; use `with open_session"):
            call()


def test_state_is_checked(session: Session) -> None:
    x_NCHW = images(1, size_of(session))
    with session:
        assert session.load_ns > 0
        for call in (session.enqueue, session.synchronize, session.fetch):
            with pytest.raises(UserError, match=r"\(\) called on a session that is open"):
                call()
        session.prepare(x_NCHW)
        for call in (session.synchronize, session.fetch):
            with pytest.raises(UserError, match=r"\(\) called on a session that is prepared"):
                call()
        with pytest.raises(UserError, match="already open"):
            session.__enter__()
        session.enqueue()
        session.fetch()
    with pytest.raises(UserError, match=r"prepare\(\) called on a session that is closed"):
        session.run(x_NCHW)


def test_opens_again(session: Session) -> None:
    x_NCHW = images(1, size_of(session))
    answers = []
    for _ in range(2):
        with session:
            answers.append(session.run(x_NCHW).copy())
    np.testing.assert_array_equal(*answers)


def test_closes_when_the_block_raises(session: Session) -> None:
    with pytest.raises(ZeroDivisionError), session:
        _ = 1 // 0
    with pytest.raises(UserError, match="is closed"):
        session.run(images(1, size_of(session)))


def test_wrong_inputs(session: Session) -> None:
    size = size_of(session)
    good = images(1, size)
    wrong: list[tuple[Any, str]] = [
        (good.astype(np.float64), "must be a float32 array: float64"),
        (good.astype(np.uint8), "must be a float32 array: uint8"),
        (good.tolist(), "must be a float32 array: list"),
        (None, "must be a float32 array: NoneType"),
        (torch.from_numpy(good), "must be a float32 array: torch.float32"),
        (good[0], "must have shape"),
        (good[:, :1], "must have shape"),
        (good[..., :-1], "must have shape"),
        (np.moveaxis(good, 1, -1), "must have shape"),
        (good[:0], "batch must be from 1 to "),
    ]
    with session:
        for value, expected in wrong:
            with pytest.raises(UserError) as error:
                session.run(value)
            assert expected in str(error.value)
            assert "\n" not in str(error.value)
            assert error.value.exit_code == 2
        assert session.run(good).shape == (1, *session.output.shape), "a refused input must leave the session usable"


def test_threads(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    artifact = small_onnx(tmp_path)
    for source in (artifact, artifact.path, tiny_checkpoint()):
        for threads in (0, -1):
            with pytest.raises(UserError, match=f"threads must be 1 or more: {threads}; leave it out"):
                open_session(source, threads=threads)
    assert open_session(artifact).threads == usable_cpus()
    with open_session(artifact, threads=1) as session:
        assert session.details()["threads"] == 1
        assert session._session.get_session_options().intra_op_num_threads == 1  # type: ignore[attr-defined]
    before = torch.get_num_threads()
    try:
        with open_session(tiny_checkpoint(), threads=1):
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_batch_range_of_the_manifest(tmp_path: Path) -> None:
    artifact = small_onnx(tmp_path, input=replace(MANIFEST.input, min_batch=2, max_batch=3))
    with open_session(artifact) as session:
        assert session.run(images(3)).shape == (3, CLASSES)
        for count in (1, 4):
            with pytest.raises(UserError, match=f"batch must be from 2 to 3: {count}; split the batch or export again"):
                session.run(images(count))


def test_onnxruntime_answers(tmp_path: Path) -> None:
    x_NCHW = images(3)
    with open_session(small_onnx(tmp_path)) as session:
        np.testing.assert_allclose(session.run(x_NCHW), answers(x_NCHW), rtol=1e-5, atol=1e-5)
        assert session.details()["provider"] == "CPUExecutionProvider"
        assert session.details()["version"] == onnxruntime.__version__
        assert session.classes == tuple("abcde")


def test_torch_answers(tiny_checkpoint: MakeCheckpoint) -> None:
    path = tiny_checkpoint()
    checkpoint = load_checkpoint(path)
    x_NCHW = images(2, 227)
    with open_session(path, threads=1) as session:
        y_NK = session.run(x_NCHW)
        assert session.details() == {
            "runtime": "torch",
            "device": "cpu",
            "threads": 1,
            "version": str(torch.__version__),
        }
    with torch.inference_mode():
        np.testing.assert_array_equal(y_NK, checkpoint.model()(torch.from_numpy(x_NCHW)).numpy())
    assert session.classes == checkpoint.info.classes
    assert session.preprocessing == checkpoint.info.preprocessing
    with CheckpointSession(checkpoint, threads=1) as again:
        np.testing.assert_array_equal(again.run(x_NCHW), y_NK)


def test_an_answer_is_not_overwritten_by_the_next(session: Session) -> None:
    x_NCHW = images(2, size_of(session))
    with session:
        first_NK = session.run(x_NCHW)
        kept_NK = first_NK.copy()
        session.run(x_NCHW + 1)
        np.testing.assert_array_equal(first_NK, kept_NK)


def test_null_returns_zeros() -> None:
    with NullSession() as session:
        y_NK = session.run(np.ones((2, 3, 227, 227), np.float32))
        assert y_NK.shape == (2, 1000)
        assert not y_NK.any()
        assert session.details() == {"runtime": "null", "device": "cpu", "threads": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU here")
def test_cuda_without_a_gpu(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    for source in (tiny_checkpoint(), small_onnx(tmp_path)):
        session = open_session(source, device="cuda")
        with pytest.raises(MissingComponentError) as error:
            session.__enter__()
        assert "\n" not in str(error.value)
        assert str(error.value).endswith("; use --device cpu")
        assert error.value.exit_code == 2
        with pytest.raises(UserError, match="is closed"):
            session.fetch()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_answers(tiny_checkpoint: MakeCheckpoint) -> None:
    x_NCHW = images(2, 227)
    with (
        open_session(tiny_checkpoint()) as on_cpu,
        open_session(tiny_checkpoint(), device="cuda") as on_gpu,
    ):
        np.testing.assert_allclose(on_gpu.run(x_NCHW), on_cpu.run(x_NCHW), rtol=1e-2, atol=1e-2)


def test_unknown_device(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such device: tpu; choose cpu or cuda"):
        open_session(small_onnx(tmp_path), device="tpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("format_", ["onnx", "torchscript", "pt2"])
def test_a_file_its_runtime_cannot_load(tmp_path: Path, format_: Any) -> None:
    """The checksum fits and the content is nonsense: the runtime's complaint becomes one line."""
    for index, content in enumerate((b"", b"nonsense", b"PK\x03\x04 not a zip", bytes(1000))):
        temporary = tmp_path / "finished.tmp"
        temporary.write_bytes(content)
        artifact = commit(temporary, tmp_path / f"{index}.bin", replace(MANIFEST, format=format_))
        session = open_session(artifact)
        with pytest.raises(ArtifactError) as error:
            session.__enter__()
        assert "\n" not in str(error.value)
        assert str(artifact.path) in str(error.value)
        assert str(error.value).endswith("export it again")


@pytest.mark.skipif(gpu_info() is not None, reason="there is an NVIDIA GPU here")
def test_an_engine_is_not_run_here(tmp_path: Path) -> None:
    temporary = tmp_path / "finished.tmp"
    temporary.write_bytes(b"engine")
    manifest = replace(MANIFEST, format="trt", runtime="tensorrt-rtx")
    artifact = commit(temporary, tmp_path / "a.engine", manifest)
    assert runnable(artifact) is not None
    assert runnable(small_onnx(tmp_path)) is None
    for device in (None, "cuda"):
        with pytest.raises(ArtifactError, match="tensorrt-rtx engine needs the NVIDIA GPU it was built for") as error:
            open_session(artifact, device=device)  # type: ignore[arg-type]
        assert str(error.value).endswith("; run it where it was built, or rebuild it")
        assert error.value.manifest == artifact.manifest
    with pytest.raises(UserError, match="an engine runs on the GPU only: --device cpu; leave --device out"):
        open_session(artifact, device="cpu")


def test_everything_else_runs_on_the_processor_by_default(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    for source in (small_onnx(tmp_path), tiny_checkpoint()):
        for device in (None, "cpu"):
            assert open_session(source, device=device).device == "cpu"  # type: ignore[arg-type]


def test_an_input_that_could_not_be_placed_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The input prepared before is gone by then: its answer must not be taken for the new one's."""
    with open_session(small_onnx(tmp_path)) as session:
        expected_NK = session.run(images(2)).copy()
        with monkeypatch.context() as patch:
            patch.setattr(session._binding, "bind_cpu_input", lambda *args: 1 / 0)  # type: ignore[attr-defined]
            with pytest.raises(ZeroDivisionError):
                session.prepare(images(3))
        for call in (session.enqueue, session.synchronize, session.fetch):
            with pytest.raises(UserError, match="on a session that is open"):
                call()
        np.testing.assert_array_equal(session.run(images(2)), expected_NK)


def test_missing_and_damaged_sources(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such artifact"):
        open_session(tmp_path / "none.onnx")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        open_session(tmp_path / "none.safetensors")
    artifact = small_onnx(tmp_path)
    os.truncate(artifact.path, 10)
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        open_session(artifact.path)


@pytest.mark.parametrize(("library", "extra"), [("onnxruntime", "onnx"), ("torch", "train")])
def test_missing_runtime_is_one_line(tmp_path: Path, library: str, extra: str, tiny_checkpoint: MakeCheckpoint) -> None:
    source = small_onnx(tmp_path).path if library == "onnxruntime" else tiny_checkpoint()
    code = (
        "import importlib.abc, sys\n"
        "class Blocked(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {library!r}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from pathlib import Path\n"
        "from alexnet_edge.errors import MissingComponentError\n"
        "from alexnet_edge.sessions import open_session\n"
        "try:\n"
        "    open_session(Path(sys.argv[1])).__enter__()\n"
        "except MissingComponentError as error:\n"
        "    print(error, error.exit_code)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(source)], capture_output=True, text=True, check=False)
    assert run.stdout == f"{library} is not installed; run: pip install 'alexnet-edge[{extra}]' 2\n", run.stderr
