"""A Triton model repository: what is written, what Triton's own message classes and its real server make of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from contract.bindings import BindingsError, required
from contract.triton_server import Running, model_config, triton_server
from narrow_network import write_checkpoint
from small_artifacts import write_artifact as artifact_at

from alexnet_edge import records
from alexnet_edge.artifact import Artifact, TensorSpec, commit, load_artifact
from alexnet_edge.errors import AlexNetEdgeError, GateError, UserError
from alexnet_edge.export.triton import TritonModel, TritonOptions, config_of, write_triton_model
from alexnet_edge.files import sha256_file
from alexnet_edge.images.preprocess import Preprocessing
from alexnet_edge.predict import predict
from alexnet_edge.sessions import open_session

CLIENT = Path(__file__).parents[2] / "docs" / "examples" / "kserve_client.py"


def write_artifact(path: Path, **changes: Any) -> Artifact:
    """A small ONNX file with a manifest that calls it proved, unless `parity` says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return artifact_at(path, **changes)


Serve = Callable[..., TritonModel]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`serve(artifact, max_batch, instances=2)` writes it into the repository `tmp_path/triton`."""

    def write(artifact: Artifact, max_batch: int | None = None, **options: Any) -> TritonModel:
        return write_triton_model(artifact, TritonOptions(repository=tmp_path / "triton", **options), max_batch)

    return write


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_artifact(tmp_path / "artifacts" / "alexnet_fp32.onnx", seed=0)


def engine(path: Path, *, least: int = 1, most: int = 8, **changes: Any) -> Artifact:
    """A file with an engine's manifest: nothing loads it here."""
    source = write_artifact(path.with_name("source.onnx"), seed=0)
    manifest = replace(
        source.manifest,
        format="trt",
        runtime="tensorrt",
        precision="int8",
        input=replace(source.manifest.input, min_batch=least, max_batch=most),
        output=replace(source.manifest.output, min_batch=least, max_batch=most),
        build={"options": {"opt_batch": 4}},
    )
    building = path.with_name("building.engine")
    building.write_bytes(b"not an engine")
    return commit(building, path, replace(manifest, **changes))


def openvino(path: Path, **changes: Any) -> Artifact:
    source = write_artifact(path.with_name("source.onnx"), seed=0)
    building = path.with_name("building.xml")
    building.write_text("<net/>", encoding="utf-8")
    building.with_suffix(".bin").write_bytes(b"weights")
    return commit(building, path, replace(source.manifest, format="openvino", runtime="openvino", **changes))


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def test_the_repository_holds_the_proved_file_itself(artifact: Artifact, serve: Serve, tmp_path: Path) -> None:
    model = serve(artifact)
    folder = tmp_path / "triton" / "alexnet_fp32"
    assert (model.folder, model.version, model.added) == (folder, 1, True)
    assert set(tree(folder)) == {"config.pbtxt", "labels.txt", "1/model.onnx", "1/model.onnx.json"}
    assert sha256_file(folder / "1" / "model.onnx") == artifact.manifest.sha256
    assert load_artifact(folder / "1" / "model.onnx").manifest == artifact.manifest
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list(artifact.manifest.classes)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_the_next_file_is_the_next_version(artifact: Artifact, serve: Serve, tmp_path: Path) -> None:
    serve(artifact)
    before = tree(tmp_path / "triton")
    again = serve(artifact)
    assert (again.version, again.added) == (1, False)
    assert tree(tmp_path / "triton") == before
    other = write_artifact(tmp_path / "other" / "alexnet_fp32.onnx", seed=1)
    model = serve(other)
    assert (model.version, model.added) == (2, True)
    assert load_artifact(model.folder / "1" / "model.onnx").manifest.sha256 == artifact.manifest.sha256
    assert "num_versions: 1\n" in (model.folder / "config.pbtxt").read_text(encoding="utf-8")
    serve(other, keep_versions=2)
    assert "num_versions: 2\n" in (model.folder / "config.pbtxt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def messages() -> ModuleType:
    try:
        return model_config()
    except BindingsError as reason:
        if required():
            raise
        pytest.skip(str(reason))


def parsed(messages: ModuleType, model: Any) -> Any:
    """The configuration as the server reads it: an unknown field or a value of the wrong kind is an error."""
    from google.protobuf import text_format

    text = (model.folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, messages.ModelConfig())


def test_config_of_an_onnx_file(messages: ModuleType, artifact: Artifact, serve: Serve) -> None:
    names = {"model_name": "flowers", "instances": 3, "instance_kind": "gpu", "queue_delay": 500, "keep_versions": 2}
    model = serve(artifact, 6, **names)
    config = parsed(messages, model)
    assert (config.name, config.backend, config.platform) == ("flowers", "onnxruntime", "onnxruntime_onnx")
    assert config.default_model_filename == "model.onnx"
    assert config.max_batch_size == 6
    (x,), (answer,) = config.input, config.output
    assert (x.name, list(x.dims), x.data_type) == ("input", [3, 227, 227], messages.TYPE_FP32)
    assert (answer.name, list(answer.dims), answer.data_type) == ("logits", [4], messages.TYPE_FP32)
    assert answer.label_filename == "labels.txt"
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.profile)) == (3, messages.ModelInstanceGroup.KIND_GPU, [])
    assert config.version_policy.latest.num_versions == 2
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert list(config.dynamic_batching.preferred_batch_size) == []
    assert [entry.batch_size for entry in config.model_warmup] == [1, 6]
    for entry in config.model_warmup:
        assert list(entry.inputs["input"].dims) == [3, 227, 227]
        assert entry.inputs["input"].random_data
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    assert parameters["alexnet_edge.sha256"] == artifact.manifest.sha256
    assert records.decode(Preprocessing, parameters["alexnet_edge.preprocessing"]) == artifact.manifest.preprocessing
    assert any("not on the GPU" in note for note in model.notes)


def test_config_of_an_engine_follows_its_profile(messages: ModuleType, serve: Serve, tmp_path: Path) -> None:
    written = parsed(messages, serve(engine(tmp_path / "alexnet_int8.engine")))
    assert (written.backend, written.platform) == ("tensorrt", "tensorrt_plan")
    assert written.default_model_filename == "model.plan"
    assert written.max_batch_size == 8
    (group,) = written.instance_group
    assert (group.count, group.kind, list(group.profile)) == (1, messages.ModelInstanceGroup.KIND_GPU, ["0"])
    assert list(written.dynamic_batching.preferred_batch_size) == [4]
    assert [entry.batch_size for entry in written.model_warmup] == [1, 8]


def test_a_fixed_batch_is_part_of_the_dims(messages: ModuleType, serve: Serve, tmp_path: Path) -> None:
    written = parsed(messages, serve(engine(tmp_path / "alexnet_int8.engine", least=4, most=4)))
    assert written.max_batch_size == 0
    assert not written.HasField("dynamic_batching")
    assert list(written.input[0].dims) == [4, 3, 227, 227]
    assert list(written.output[0].dims) == [4, 4]
    (warmup,) = written.model_warmup
    assert (warmup.batch_size, list(warmup.inputs["input"].dims)) == (0, [4, 3, 227, 227])


def test_an_openvino_model_and_its_weights(messages: ModuleType, serve: Serve, tmp_path: Path) -> None:
    model = serve(openvino(tmp_path / "alexnet_fp32.xml"))
    weights = ("1/model.xml", "1/model.bin", "1/model.xml.json")
    assert set(tree(model.folder)) == {"config.pbtxt", "labels.txt", *weights}
    assert any("BF16" in note for note in model.notes)
    written = parsed(messages, model)
    assert (written.backend, written.platform) == ("openvino", "")
    assert written.default_model_filename == "model.xml"
    assert written.instance_group[0].kind == messages.ModelInstanceGroup.KIND_CPU


def test_any_text_survives_the_text_format(messages: ModuleType, artifact: Artifact) -> None:
    from google.protobuf import text_format

    odd = 'a "quoted" \\ back\nslash, ümläut \x7f'
    text = config_of([replace(artifact.manifest, architecture=odd)], "name", TritonOptions())
    config = text_format.Parse(text, messages.ModelConfig())
    assert config.parameters["alexnet_edge.architecture"].string_value == odd


def onnx_file(folder: Path, **changes: Any) -> Artifact:
    return write_artifact(folder / "alexnet_fp32.onnx", seed=0, **changes)


NOT_RUN = {"verdict": "not run", "reasons": ["built, not run: no GPU"]}
NEW_LINE = {"classes": ("a\nb", "c", "d", "e"), "output": TensorSpec(name="logits", dtype="float32", shape=(4,))}
REFUSED: dict[str, tuple[Callable[[Path], Artifact], dict[str, Any], int | None]] = {
    r"not proved \(not run: built, not run: no GPU\)": (lambda folder: onnx_file(folder, parity=NOT_RUN), {}, None),
    "no proof is recorded": (lambda folder: onnx_file(folder, parity={}), {}, None),
    "far off": (lambda folder: onnx_file(folder, parity={"verdict": "failed", "reasons": ["far off"]}), {}, None),
    "does not load an engine of TensorRT-RTX": (
        lambda folder: engine(folder / "a.engine", runtime="tensorrt-rtx"),
        {},
        None,
    ),
    "not torchscript": (lambda folder: onnx_file(folder, format="torchscript"), {}, None),
    "answers FP8 graphs wrongly": (lambda folder: onnx_file(folder, precision="fp8"), {}, None),
    "runs on cpu: gpu": (lambda folder: openvino(folder / "a.xml"), {"instance_kind": "gpu"}, None),
    "runs on gpu: cpu": (lambda folder: engine(folder / "a.engine"), {"instance_kind": "cpu"}, None),
    "8 at most: 9": (lambda folder: engine(folder / "a.engine"), {}, 9),
    "a batch of 4 only: 2": (lambda folder: engine(folder / "a.engine", least=4, most=4), {}, 2),
    "no less than 2": (lambda folder: engine(folder / "a.engine", least=2), {}, None),
    "does not fit on a line": (lambda folder: onnx_file(folder, **NEW_LINE), {}, None),
    "no name of a model: my model": (lambda folder: write_artifact(folder / "my model.onnx", seed=0), {}, None),
}
"""By the message: the artifact, options, the largest batch."""


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused_and_leaves_nothing(message: str, serve: Serve, tmp_path: Path) -> None:
    make, options, max_batch = REFUSED[message]
    (tmp_path / "artifacts").mkdir()
    made = make(tmp_path / "artifacts")
    proved = made.manifest.parity.get("verdict") == "passed"
    with pytest.raises(UserError if proved else GateError, match=message):
        serve(made, max_batch, **options)
    assert not (tmp_path / "triton").exists() or not list((tmp_path / "triton").glob("*"))
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "a b", "ü", "a" * 101])
def test_a_name_that_is_a_path_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--model-name"):
        TritonOptions(model_name=name)


@pytest.mark.parametrize("field", ["instances", "keep_versions"])
def test_numbers_below_one_are_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} must be 1 or more: 0"):
        TritonOptions(**{field: 0})


def test_another_network_does_not_join_a_model(artifact: Artifact, serve: Serve, tmp_path: Path) -> None:
    serve(artifact)
    before = tree(tmp_path / "triton")
    other = write_artifact(tmp_path / "b" / "alexnet_fp32.onnx", seed=1, classes=("w", "x", "y", "z"))
    with pytest.raises(UserError, match="has other classes"):
        serve(other, keep_versions=2)
    with pytest.raises(UserError, match=r"version 1 has no model\.plan"):
        serve(engine(tmp_path / "c" / "alexnet_fp32.engine"))
    assert tree(tmp_path / "triton") == before
    assert serve(other).version == 2, "alone in service it may have other classes"


def test_a_damaged_version_is_noticed(artifact: Artifact, serve: Serve) -> None:
    (serve(artifact).folder / "1" / "model.onnx").write_bytes(b"something else")
    with pytest.raises(AlexNetEdgeError, match="does not match its manifest"):
        serve(artifact)


def test_export_proves_then_writes(
    run_cli: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "model.safetensors")
    words = ("triton", "--checkpoint", checkpoint, "--images", image_folder / "val", "--quiet")
    done = run_cli(*words, "--model-name", "narrow", "--max-batch", "4")
    assert done.returncode == 0, done.stderr
    assert "triton/narrow: version 1" in done.stdout
    folder = run_cli.folder / "triton" / "narrow"
    served, exported = load_artifact(folder / "1" / "model.onnx"), run_cli.folder / "artifacts" / "alexnet_fp32.onnx"
    assert served.manifest.parity["verdict"] == "passed"
    assert sha256_file(served.path) == sha256_file(exported)
    again = run_cli("triton", "--artifact", exported, "--model-name", "narrow", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["added"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--format", "onnx", "--instances", "2"], "no such option: --instances"),
        (["triton", "--workspace", "2"], "no such option: --workspace"),
        (["triton", "--artifact", "a.onnx", "--int8"], "the artifact is served as it is"),
        (["triton", "--artifact", "a.onnx"], "no such artifact: a.onnx"),
        (["triton", "--model-name", "../x"], "--model-name"),
        (["triton", "--instance-kind", "npu"], "no such choice: npu"),
    ],
)
def test_mistakes_are_one_line(run_cli: Any, arguments: list[str], message: str) -> None:
    assert message in run_cli.refuses(*arguments)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A Triton server on a repository with one model, `means`, in two instances; and its folder."""
    folder = tmp_path_factory.mktemp("served")
    first = write_artifact(folder / "artifacts" / "means.onnx", seed=0)
    write_triton_model(first, TritonOptions(repository=folder / "triton", instances=2), max_batch=5)
    try:
        with triton_server(folder / "triton", folder) as server:
            yield server, folder
    except BindingsError as reason:
        if required():
            raise
        pytest.skip(str(reason))


def ask(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CLIENT), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def names(text: str) -> list[list[str]]:
    return [re.findall(r"(\w+) -?\d+\.\d+", line.partition(": ")[2]) for line in text.splitlines()]


def test_the_server_takes_the_configuration_and_warms_up(served: tuple[Running, Path]) -> None:
    server, folder = served
    assert server.get("v2")["name"] == "triton"
    config: Any = server.get("v2/models/means/config")
    assert config["max_batch_size"] == 5
    assert config["instance_group"][0]["count"] == 2
    assert config["output"][0]["label_filename"] == "labels.txt"
    sha256 = config["parameters"]["alexnet_edge.sha256"]["string_value"]
    assert sha256 == sha256_file(folder / "triton" / "means" / "1" / "model.onnx")
    log = server.log.read_text(encoding="utf-8")
    assert log.count("INSTANCE") == 2
    assert log.count("KIND_CPU") + log.count(" CPU") >= 2
    assert sorted(int(size) for size in re.findall(r"BATCH (\d+)", log)) == [1, 1, 5, 5], "each instance is warmed up"


@pytest.mark.parametrize("mode", [[], ["--json"]])
def test_the_example_client_gets_the_sessions_answers(
    served: tuple[Running, Path], image_folder: Path, mode: list[str]
) -> None:
    server, folder = served
    images = sorted((image_folder / "val").rglob("*.jpg"))[:5]
    done = ask(server.url, "means", *images, *mode)
    assert done.returncode == 0, done.stderr
    with open_session(folder / "artifacts" / "means.onnx") as session:
        expected = predict(session, images, top=3)
    assert names(done.stdout) == [[guess.name for guess in entry.guesses] for entry in expected]
    values = [[float(value) for value in re.findall(r"\w+ (-?\d+\.\d+)", line)] for line in done.stdout.splitlines()]
    gaps = np.diff(np.log([[guess.probability for guess in entry.guesses] for entry in expected]), axis=1)
    assert np.allclose(np.diff(values, axis=1), gaps, atol=2e-3), "the logits themselves are the session's"


def test_what_the_server_refuses_is_told(served: tuple[Running, Path], image_folder: Path) -> None:
    server, _ = served
    images = sorted((image_folder / "val").rglob("*.jpg"))[:6]
    too_many = ask(server.url, "means", *images)
    assert too_many.returncode == 1
    assert "batch-size must be <= 5" in too_many.stderr
    unknown = ask(server.url, "nothing", images[0])
    assert unknown.returncode == 1
    assert "nothing" in unknown.stderr
    assert "Traceback" not in too_many.stderr + unknown.stderr


def test_no_server_is_one_line(image_folder: Path) -> None:
    image = next((image_folder / "val").rglob("*.jpg"))
    done = ask("http://127.0.0.1:9", "means", image)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "127.0.0.1:9" in done.stderr


def test_a_running_server_takes_the_next_version(served: tuple[Running, Path]) -> None:
    server, folder = served
    second = write_artifact(folder / "next" / "means.onnx", seed=1)
    model = write_triton_model(second, TritonOptions(repository=folder / "triton", instances=2), max_batch=5)
    assert model.version == 2
    deadline = time.monotonic() + 60
    while server.get("v2/models/means").get("versions") != ["2"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert server.get("v2/models/means")["versions"] == ["2"]
