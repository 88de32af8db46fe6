"""The parts of a deploy by themselves: names that are refused, bundles, golden sets, the preflight, the device's program."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrow_network import CLASSES, write_checkpoint
from PIL import Image

from alexnet_edge import __version__, records
from alexnet_edge.artifact import load_artifact
from alexnet_edge.deploy import agent, board, golden
from alexnet_edge.deploy.bundle import Bundle, BundleFile, make_bundle
from alexnet_edge.deploy.fleet import read_fleet
from alexnet_edge.deploy.link import Link, LinkSettings, number, printable
from alexnet_edge.deploy.plan import BenchOptions, Manner, Order
from alexnet_edge.deploy.preflight import Facts, cuda_requirement, fits, judge
from alexnet_edge.deploy.run import as_text, fetch_reports, release_name, sentence_of, status
from alexnet_edge.deploy.wheel import write_wheel
from alexnet_edge.errors import ArtifactError, DataError, DeviceError, GateError, ParityError, UserError
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.export.graphs.source import checkpoint_from_onnx
from alexnet_edge.export.quantising.calibrate import Calibration, decode_calibration
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.images.datasets import ImageSet, open_images
from alexnet_edge.network import layers
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.progress import QuietReporter
from alexnet_edge.proof.evaluate import outputs_NK
from alexnet_edge.records import RecordError
from alexnet_edge.sessions import open_session

HOSTILE = {
    "destination": [
        "-oProxyCommand=touch /tmp/x", "user@-oProxyCommand=x", "", "a b", "a;reboot", "a$(reboot)", "`a`", "a|b", "a&b",
        "user@host/../x", "us'er@host", 'a"b', "a\nb", "a\0b", "user@user@host", "host-", "a" * 400, "ssh://host",
    ],
    "root": ["../x", "a/../b", "..", "a/..", "-x", "", "a;b", "$HOME", "a b", "~"],
    "python": ["python3;x", "-c", "", "py thon", "$(x)"],
    "container": ["", "-v", "a b", "a;reboot", "$(x)", "--privileged", "a'b", "a\nb"],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in HOSTILE.items() for value in values])
def test_arguments_of_commands_that_are_refused(field: str, value: str) -> None:
    noun = {
        "destination": "a host to deploy to",
        "root": "a folder",
        "python": "a Python",
        "container": "a container image",
    }
    with pytest.raises(UserError, match=f"not {noun[field]}"):
        LinkSettings(**{"destination": "board", field: value})


@pytest.mark.parametrize(
    "host", ["board", "user@board", "u_s-e.r@192.168.1.20", "root@fe80::1%eth0", "jetson-orin.local"]
)
def test_hosts_that_are_taken_stand_behind_the_options(host: str) -> None:
    command = Link(LinkSettings(destination=host, root="a..b/c")).command()
    assert command[-3:-1] == ["--", host]
    assert "BatchMode=yes" in command
    assert not any("StrictHostKeyChecking" in word or "UserKnownHostsFile" in word for word in command)


@pytest.mark.parametrize(
    "image", ["alexnet-edge:jetpack6", "registry.local:5000/a/b@sha256:" + "0" * 64, "sha256:" + "0" * 64]
)
def test_images_that_are_taken_are_an_argument(image: str) -> None:
    command = Link(LinkSettings(destination="board", container=image)).command()
    assert command[-3:-1] == ["--", "board"]
    words = shlex.split(command[-1])
    assert words[:3] == ["exec", "sh", "-c"]
    assert image in words[4:]
    for script in (words[3], words[-1]):
        assert subprocess.run(["sh", "-n", "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinkSettings(destination="board", silence_s=0),
        lambda: LinkSettings(destination="board", connect_s=float("nan")),
        lambda: BenchOptions(seconds=-1),
        lambda: BenchOptions(rounds=0),
        lambda: BenchOptions(batches=(0,)),
        lambda: Manner(keep=0),
        lambda: Manner(reconnect_s=-1),
        lambda: Order(artifact=Path("x"), format="onnx", limit=0),
        lambda: Order(artifact=Path("x"), format="onnx", threads=0),
        lambda: Order(artifact=Path("x"), format="openvino"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        make()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"malformed \(device: missing\)"),
        ("device = 3", r"malformed \(device: expected array"),
        ("device = []", r"malformed \(device: expected array of length >= 1"),
        ("[[device]]\nhost = 'a'\n" * 257, r"malformed \(device: expected array of length <= 256"),
        ("more = 1\n[[device]]\nhost = 'a'", r"malformed \(more: unknown"),
        ("[[device]]\nname = 'x'", r"device\[0\]\.host: missing"),
        ("[[device]]\nhost = 'a'\npasswort = 'x'", r"device\[0\]\.passwort: unknown, expected one of host"),
        ("[[device]]\nhost = 3", r"device\[0\]\.host: expected str, got int"),
        ("[[device]]\nhost = '-oProxyCommand=x'", "not a host"),
        ("[[device]]\nhost = 'a'\ncontainer = '--privileged'", "not a container image"),
        ("[[device]]\nhost = 'a'\n[[device]]\nhost = 'a'", "named twice"),
        ("[[device]]\nhost = 'a'\nname = 'x'\n[[device]]\nhost = 'a'\nname = 'y'", "named twice: y"),
        ("[[device]]\nhost = 'a'\nname = 'x'\n[[device]]\nhost = 'b'\nname = 'x'", "named twice: x"),
        ("[[device", "no TOML file"),
        ("\xff", "no TOML file"),
    ],
)
def test_fleets_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=words):
        read_fleet(path, lambda host, **own: LinkSettings(destination=host, **own))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["board"], "--artifact is missing"),
        (["--artifact", "no.onnx"], "name one device"),
        (["board", "--artifact", "no.onnx", "--to", "fleet.toml"], "name one device"),
        (["status", "board", "--to", "fleet.toml"], "name one device"),
        (["board", "--rollback"], "write: alexnet-edge deploy rollback DEVICE"),
        (["board", "--status"], "write: alexnet-edge deploy status DEVICE"),
        (["board", "--to-release", "x"], "write: alexnet-edge deploy rollback DEVICE --to-release"),
        (["board", "--artifact", "no.onnx"], "no such artifact"),
        (["board", "--artifact", "x", "--int8", "--fp16"], "one precision"),
        (["board", "--artifact", "x", "--format", "zip"], "--format has no such choice"),
        (["board", "--artifact", "x", "--workspace", "5"], "for TensorRT engines only"),
        (["status", "--", "-oProxyCommand=x"], "not a host to deploy to"),
    ],
)
def test_one_line_for_each_mistake(run_cli: Any, arguments: list[str], words: str) -> None:
    assert words in run_cli.refuses("deploy", *arguments)


@pytest.mark.slow
def test_the_wheel_is_this_package_and_always_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = write_wheel(tmp_path / "a"), write_wheel(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = archive.namelist()
        record = archive.read(f"alexnet_edge-{__version__}.dist-info/RECORD").decode().splitlines()
    assert {line.split(",")[0] for line in record} == set(names)
    for name in ("deploy/agent.py", "deploy/board.py", "export/exporter.py", "bench/report/report.html.j2", "py.typed"):
        assert f"alexnet_edge/{name}" in names
    target = str(tmp_path / "installed")
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, str(first)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    code = f"import sys; sys.path.insert(0, {target!r}); import alexnet_edge.deploy.agent as a; print(a.__file__)"
    imported = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True).stdout
    assert imported.startswith(target)


@pytest.fixture
def narrow_exports(tmp_path: Path, image_folder: Path) -> tuple[Path, Calibration]:
    """FP32 and INT8 ONNX files of the narrow network in one folder, and the INT8 ranges."""
    exporter = Exporter(
        load_checkpoint(write_checkpoint(tmp_path / "model.safetensors")),
        ExportSettings(out=tmp_path / "artifacts", cache=tmp_path / "cache"),
        proof_images=open_images(image_folder / "val", classes=CLASSES),
        calibration_images=open_images(image_folder / "train"),
    )
    for precision in ("fp32", "int8"):
        exporter.export("onnx", precision)
    return tmp_path / "artifacts", exporter.quantiser.calibration()


def answered(folder: Path, image_folder: Path) -> tuple[ImageSet, np.ndarray[Any, Any]]:
    """The validation images, and what the FP32 file answers."""
    images = open_images(image_folder / "val", classes=CLASSES)
    with open_session(folder / "alexnet_fp32.onnx") as session:
        return images, outputs_NK(session, images)[0]


@pytest.mark.slow
def test_ranges_and_answers_from_elsewhere_give_the_same_file(
    narrow_exports: tuple[Path, Calibration], image_folder: Path, tmp_path: Path
) -> None:
    folder, ranges = narrow_exports
    images, answers_NK = answered(folder, image_folder)

    def exporter(name: str, **more: Any) -> Exporter:
        checkpoint = checkpoint_from_onnx(folder / "alexnet_fp32.onnx")
        return Exporter(
            checkpoint, ExportSettings(out=tmp_path / name), proof_images=images, reference_NK=answers_NK, **more
        )

    there = exporter("there", calibration=decode_calibration(json.dumps(ranges.to_json())))
    built = there.export("onnx", "int8")
    assert built.manifest.sha256 == load_artifact(folder / "alexnet_int8.onnx").manifest.sha256
    assert built.manifest.calibration == ranges.to_json()
    there.prover.reference_NK()[:] += 9  # the proof is against the answers that came along
    with pytest.raises(ParityError):
        exporter("wrong").export("onnx", "fp32")


@pytest.mark.parametrize(
    "change",
    [
        {"method": "guess"},
        {"amax": {}},
        {"table_sha256": "0" * 64},
        {"amax": dict.fromkeys(layers.LAYER_NAMES, -1.0)},
        {"num_images": "many"},
        {"source": None},
    ],
)
def test_ranges_that_were_changed_are_refused(change: dict[str, Any]) -> None:
    amax = dict.fromkeys(layers.LAYER_NAMES, 1.0)
    good = Calibration(amax=amax, saturated={}, method="minmax", num_images=1, images_sha256="", source={})
    assert decode_calibration(json.dumps(good.to_json())) == good
    assert decode_calibration(json.dumps({**good.to_json(), "audit": {"warnings": []}})) == good, "a manifest's"
    with pytest.raises(RecordError, match=rf"^{next(iter(change))}: "):
        decode_calibration(json.dumps({**good.to_json(), **change}))


@pytest.mark.slow
def test_the_bundle_of_an_order(narrow_exports: tuple[Path, Calibration], image_folder: Path, tmp_path: Path) -> None:
    folder, ranges = narrow_exports

    def make(artifact: str, **fields: Any) -> tuple[Bundle, dict[str, Path]]:
        order = Order(artifact=folder / artifact, images=str(image_folder / "val"), limit=4, **fields)
        bundle = make_bundle(order, cache=tmp_path / "cache2", reporter=QuietReporter())
        return bundle, {file.name: file.path for file in bundle.files}

    def answered_by(files: dict[str, Path]) -> str:
        return str(golden.read_golden(files["golden.tar"], tmp_path / "golden").images.source["reference"]["runtime"])

    wheel = f"alexnet_edge-{__version__}-py3-none-any.whl"
    bundle, files = make("alexnet_int8.onnx", format="onnx")
    assert list(files) == ["alexnet_int8.onnx", "alexnet_int8.onnx.json", "golden.tar", wheel]
    assert (bundle.build["build"], bundle.requirements) == (False, ("onnxruntime>=1.20", "threadpoolctl>=3.1"))
    for artifact in ("alexnet_int8.onnx", "alexnet_fp32.onnx"):
        bundle, files = make(artifact, format="trt", precision="int8")
        assert list(files) == ["alexnet_fp32.onnx", "alexnet_fp32.onnx.json", "calibration.json", "golden.tar", wheel]
        assert json.loads(files["calibration.json"].read_text())["table_sha256"] == ranges.table_sha256
        assert (bundle.build["build"], bundle.build["runtime"]) == (True, "tensorrt")
    bundle, files = make("alexnet_int8.onnx", format="onnx", precision="fp16")
    assert (next(iter(files)), bundle.build["calibration"]) == ("alexnet_fp32.onnx", False)
    assert answered_by(files) == "torch"
    (tmp_path / "model.safetensors").unlink()
    assert answered_by(make("alexnet_int8.onnx", format="onnx")[1]) == "onnxruntime"
    _, files = make("alexnet_fp32.onnx", format="onnx", precision="int8-int4-fc")
    assert json.loads(files["calibration.json"].read_text())["table_sha256"] == ranges.table_sha256
    with pytest.raises(ArtifactError, match="no FP8 calibration"):
        make("alexnet_fp32.onnx", format="trt", precision="fp8")
    for format, precision in (("onnx", "bf16"), ("onnx", "mixed"), ("trt", "mixed"), ("trt", "int8-int4-fc")):
        with pytest.raises(UserError, match=f"does not build {precision} for {format}"):
            make("alexnet_int8.onnx", format=format, precision=precision)
    (folder / "alexnet_fp32.onnx").rename(folder / "away.onnx")
    with pytest.raises(ArtifactError, match="there is none beside this one"):
        make("alexnet_int8.onnx", format="trt")
    with pytest.raises(ArtifactError, match="nothing here can say what the right answers are"):
        make("alexnet_int8.onnx", format="onnx")


@pytest.mark.slow
def test_an_engine_that_cannot_be_proved_there_is_not_taken(
    narrow_exports: tuple[Path, Calibration], image_folder: Path, tmp_path: Path
) -> None:
    """TensorRT-RTX builds without a GPU: the way of an engine up to its proof, which cannot be run here."""
    pytest.importorskip("tensorrt_rtx")
    folder, ranges = narrow_exports
    release = tmp_path / "device" / "releases" / "trt-int8-x"
    (release / "files").mkdir(parents=True)
    for name in ("alexnet_fp32.onnx", "alexnet_fp32.onnx.json"):
        (release / "files" / name).write_bytes((folder / name).read_bytes())
    (release / "files" / "calibration.json").write_text(json.dumps(ranges.to_json()))
    golden.write_golden(release / "files" / "golden.tar", *answered(folder, image_folder), {})
    settings = {
        "build": True, "source": "alexnet_fp32.onnx", "format": "trt", "precision": "int8", "calibration": True,
        "engine": {"max_batch": 4}, "runtime": "rtx", "threads": 1,
    }  # fmt: skip
    stream = io.StringIO()
    with pytest.raises(GateError, match="not proved on the device: built, not run"):
        agent.build(release, settings, agent.EventReporter(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert any("memory for the builder" in event.get("note", "") for event in events)
    assert any(event.get("did") == "building trt int8" for event in events)
    assert not (release / board.ARTIFACT).exists()


@pytest.fixture
def images(image_folder: Path) -> ImageSet:
    return open_images(image_folder / "val", classes=("blue", "green", "red", "yellow"), limit=4)


def test_a_golden_set_comes_back_as_it_was(images: ImageSet, tmp_path: Path) -> None:
    answers_NK = np.arange(16, dtype=np.float32).reshape(4, 4)
    for name in ("a.tar", "b.tar"):
        golden.write_golden(tmp_path / name, images, answers_NK, {"runtime": "torch"})
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    back = golden.read_golden(tmp_path / "a.tar", tmp_path / "out")
    assert np.array_equal(back.reference_NK, answers_NK)
    assert back.images.labels_N.tolist() == images.labels_N.tolist()
    assert back.images.classes == images.classes
    for index in range(4):
        assert np.array_equal(np.asarray(back.images.image(index)), np.asarray(images.image(index)))


def test_file_names_do_not_travel(tmp_path: Path) -> None:
    for name in ("$(touch x).png", "; reboot.png", "-rf.png", "a\nb.png", "'\".png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    golden.write_golden(tmp_path / "g.tar", open_images(tmp_path), np.zeros((5, 2), np.float32), {})
    with tarfile.open(tmp_path / "g.tar") as archive:
        assert archive.getnames()[2:] == [f"{index:06d}.png" for index in range(5)]


def member(name: str, data: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, data if entry.isreg() else b""


def listed(*files: str) -> tuple[tarfile.TarInfo, bytes]:
    entries = [{"file": name, "name": name, "label": 0} for name in files]
    listing = {"schema": 1, "classes": ["a", "b"], "images": entries, "reference": {}}
    return member("golden.json", json.dumps(listing).encode())


def logits(count: int = 1) -> tuple[tarfile.TarInfo, bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((count, 2), np.float32))
    return member("logits.npy", buffer.getvalue())


LISTED, LOGITS, FILE = listed("000000.jpg"), logits(), member("000000.jpg")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([listed("../000000.jpg")], "logits.npy is missing"),
        ([listed("../../x.jpg"), LOGITS], "name '../../x.jpg'"),
        ([listed("000000.sh"), LOGITS], "name '000000.sh'"),
        ([listed("000001.jpg"), LOGITS], "name '000001.jpg'"),
        (
            [LISTED, LOGITS, member(FILE[0].name, type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0)],
            "no regular file",
        ),
        (
            [LISTED, LOGITS, member(FILE[0].name, type=tarfile.LNKTYPE, linkname="golden.json", size=0)],
            "no regular file",
        ),
        ([LISTED, LOGITS, member("../../evil.jpg")], "is not 000000.jpg"),
        ([LISTED, LOGITS, FILE, member("more.jpg")], "more members"),
        ([LISTED, logits(3), FILE], "answers"),
        ([member("golden.json", b"{"), LOGITS], "malformed"),
        ([member("golden.json", b"[]"), LOGITS], "malformed"),
    ],
)
def test_hostile_golden_sets_are_refused(tmp_path: Path, members: list[Any], words: str) -> None:
    path = tmp_path / "golden.tar"
    with tarfile.open(path, "w") as archive:
        for entry, data in members:
            archive.addfile(entry, io.BytesIO(data))
    with pytest.raises(ArtifactError, match=words):
        golden.read_golden(path, tmp_path / "out" / "golden")
    assert {entry.name for entry in (tmp_path / "out" / "golden").iterdir()} <= {"000000.jpg"}
    assert {entry.name for entry in tmp_path.iterdir()} == {"golden.tar", "out"}


def test_oversized_images_are_refused(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden.write_golden(tmp_path / "g.tar", images, np.zeros((4, 4), np.float32), {})
    monkeypatch.setattr(golden, "MOST_IMAGE_BYTES", 100)
    with pytest.raises(DataError, match="oversized image"):
        golden.write_golden(tmp_path / "h.tar", images, np.zeros((4, 4), np.float32), {})
    with pytest.raises(ArtifactError, match="oversized"):
        golden.read_golden(tmp_path / "g.tar", tmp_path / "out")


def test_what_is_not_sent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(board.MOST_BYTES + 1)
    for name, words in (
        ("pipe", "not a regular file"),
        (".", "not a regular file"),
        ("none", "cannot be read"),
        ("large", "oversized file"),
    ):
        with pytest.raises(UserError, match=words):
            BundleFile.of("x", tmp_path / name)


class Talk:
    """Requests to `board.py` in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def ask(self, data: bytes = b"", **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n" + data)
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith(board.MARK.encode()), line
        value: dict[str, Any] = json.loads(line[len(board.MARK) :])
        return value

    def lock_and_send(self) -> None:
        """Take the lock, and send a file of three bytes."""
        assert "done" in self.ask(do="lock", who="me")
        assert "done" in self.ask(b"abc", do="receive", sha256=DIGEST, offset=0, bytes=3)


@contextmanager
def talking(root: Path) -> Iterator[Talk]:
    command = [sys.executable, "-I", board.__file__, str(root), "20"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        talk = Talk(process)
        assert talk.answer()["hello"] == 1
        yield talk
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=20)


DIGEST = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of b"abc"
ABC = {"name": "a", "sha256": DIGEST, "bytes": 3}


def bundle_json(*files: dict[str, Any]) -> dict[str, Any]:
    return {"schema": 1, "files": list(files), "about": {}, "build": {}, "bench": {}}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        *(
            ([{**ABC, "name": name}], "not a name of a file")
            for name in ("../../evil", "/etc/passwd", "wheels/../../x", "a/b", "a;reboot", "a\nb", "-rf")
        ),
        ([{**ABC, "sha256": "../../x"}], "not a checksum"),
        ([{**ABC, "bytes": 1 << 40}], "oversized"),
        ([{**ABC, "bytes": -1}], "oversized"),
        ([ABC] * 2, "names a file twice"),
        ([{**ABC, "bytes": 4}], "corrupt bundle"),
        ([], "1 to 512 files"),
        ([{**ABC, "name": f"f{index}"} for index in range(600)], "1 to 512 files"),
    ],
)
def test_hostile_bundles_are_refused(tmp_path: Path, files: list[dict[str, Any]], words: str) -> None:
    with talking(tmp_path / "root") as talk:
        talk.lock_and_send()
        answer = talk.ask(do="stage", id="onnx-fp32-0123456789ab", bundle=bundle_json(*files))
        assert words in answer["refused"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"root"}


def test_a_link_in_the_bundle_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"abc")
    with talking(tmp_path / "root") as talk:
        talk.ask(do="lock", who="me")
        (tmp_path / "root" / "store" / DIGEST).symlink_to(secret)
        answer = talk.ask(do="stage", id="onnx-fp32-0123456789ab", bundle=bundle_json(ABC))
        assert "not a regular file" in answer["refused"]
        (tmp_path / "root" / "store" / DIGEST).unlink()
        (tmp_path / "root" / "incoming" / DIGEST).symlink_to(secret)
        answer = talk.ask(b"abc", do="receive", sha256=DIGEST, offset=0, bytes=3)
        assert "not a regular file" in answer["refused"]
    assert secret.read_bytes() == b"abc"


def test_hostile_requests_are_refused(tmp_path: Path) -> None:
    with talking(tmp_path / "root") as talk:

        def refused(words: str, **request: Any) -> None:
            assert words in talk.ask(**request)["refused"]

        refused("lock is not held", do="stage", id="x", bundle={})
        refused("no such request", do="main")
        refused("no such request", do="_point")
        refused("not a name", do="lock", who="$(reboot)")
        talk.ask(do="lock", who="me")
        for name in ("..", "../x", "a/b", "", "A", 3, None, ["x"]):
            refused("not a release", do="switch", id=name)
            refused("not a release", do="fetch", id=name, name="log.txt")
        refused("has no release", do="fetch", id="none-such", name="log.txt")
        (tmp_path / "root" / "releases" / "there").mkdir()
        for name in ("../../secret", "/etc/passwd", "release.json.tmp", None):
            refused("no such report", do="fetch", id="there", name=name)
        for words in (["x; y"], ["--index-url=http://x"], ["a b"], [3]):
            refused("not a requirement", do="environment", id="there", key="0" * 16, wheel="a.whl", requirements=words)
        refused("not finished: no stage", do="switch", id="there")
        refused("no such step", do="run", id="there", step="../x")
        refused("malformed", do="prune", keep="many")
        # and it hangs up: the bytes that would follow are no requests
        refused("oversized", do="receive", sha256=DIGEST, offset=0, bytes=board.MOST_BYTES + 1)


def test_a_release_that_serves_is_never_laid_out_anew(tmp_path: Path) -> None:
    root = tmp_path / "root"
    request = {"do": "stage", "id": "onnx-x", "bundle": bundle_json(ABC)}
    with talking(root) as talk:
        talk.lock_and_send()
        assert "done" in talk.ask(**request)
        (root / "current").symlink_to("releases/onnx-x")
        (root / "releases" / "onnx-x" / "files" / "a").unlink()
        assert "--force" in talk.ask(**request)["fix"]
        assert talk.ask(do="status")["done"]["current"] == "onnx-x"


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Puts an `ssh` on PATH that prints these lines (Python's `print` arguments) whatever it is asked."""
    tool = folder / "bin" / "ssh"
    tool.parent.mkdir()
    body = "\n".join(lines)
    tool.write_text(f"#!{sys.executable}\nimport os, sys\nMARK = {board.MARK!r}\n{body}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")


HELLO = "print(MARK + '{\"hello\": 1}', flush=True)"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["while True: print('noise')"], "prints without end"),
        (["sys.stdout.write('x' * (3 << 20))"], "oversized line"),
        (["print(MARK + '{\"hello\": 1')"], "answer is damaged"),
        (["print(MARK + '[' * 100000)"], "answer is damaged"),
        (["print(MARK + '{\"hello\": 2}')"], "speaks another language"),
        (["print(MARK + '{\"old\": \"2.7\\\\u001b[2J\"}')"], r"too old: 2\.7 \[2J, and 3\.10"),
        ([HELLO, "print(MARK + '{\"done\": 3}')"], "not understood"),
        ([HELLO, "print(MARK + '{\"done\": {\"releases\": 3}}')"], "not understood"),
        ([HELLO, "print(MARK + '{\"refused\": \"a\\\\u001b]0;x\\\\u0007b\\\\nc\"}')"], "a ]0;x b c"),
        (["sys.exit(127)"], "has no Python"),
        (["print('Permission denied (publickey).', file=sys.stderr)", "sys.exit(255)"], "none of your keys"),
        (["sys.exit(1)"], "was lost"),
    ],
)  # fmt: skip
def test_a_hostile_device_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], words: str
) -> None:
    pretend(tmp_path, monkeypatch, *lines)
    with pytest.raises(DeviceError, match=words) as caught:
        status(LinkSettings(destination="board"))
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_oversized_report_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piece = "print(MARK + '{\"piece\": \"' + 'A' * 60000 + '\"}', flush=True)"
    pretend(tmp_path, monkeypatch, HELLO, f"for _ in range(100000): {piece}")
    with Link(LinkSettings(destination="board")) as link, pytest.raises(DeviceError, match="oversized report"):
        link.fetch("onnx-x", "bench.json", most=1 << 20)


@pytest.mark.parametrize("name", ["../../../etc", "..", "-x", "a/b"])
def test_reports_stay_below_their_folder(tmp_path: Path, name: str) -> None:
    class Nothing:
        def fetch(self, *_words: object, **_more: object) -> None:
            return None

    folder, page = fetch_reports(Nothing(), "onnx-x", tmp_path / "reports", f"user@{name}")  # type: ignore[arg-type]
    assert page is None
    assert folder.resolve().is_relative_to((tmp_path / "reports").resolve())


@pytest.mark.parametrize(
    ("name", "data"),
    [("bench.json", b"[]"), ("release.json", b"{"), ("manifest.json", b"{}"), ("bench.json", b"\xff")],
)
def test_reports_of_another_kind_are_refused(name: str, data: bytes) -> None:
    with pytest.raises(DeviceError, match="malformed report"):
        as_text(name, data)


def test_what_a_device_writes_is_shown_without_control_characters() -> None:
    assert as_text("log.txt", b"a\x1b[2Jb\n\xff") == "a[2Jb\n�"
    assert printable("a\x1b[2J\nb\x00" + "c" * 900, 20) == "a [2J b ccccccccc..."
    measured = {"p50_ns": 5e6, "batch": 1, "verdict": "INVALID", "reasons": ["too few samples", "drift\x1b"]}
    assert sentence_of("bench", measured) == "bench: p50 5.00 ms at batch 1, INVALID (too few samples; drift)"
    assert sentence_of("bench", {**measured, "reasons": 3}).endswith("INVALID")
    assert sentence_of("build", {"bytes": "x", "parity": {"top1_agreement": [1]}}).startswith("build: 0.0 MB")
    assert number(True) == number("3") == 0.0


ORIN_NANO = {
    "cpu_features": ["asimddp"], "machine": "aarch64", "python": "3.10.12", "venv": True, "writable": True, "gpu": True,
    "disk_free_bytes": 20_000_000_000, "memory_bytes": 8_000_000_000, "memory_available_bytes": 6_000_000_000,
    "model": "NVIDIA Jetson Orin Nano", "l4t": "36.4.3", "os": "Ubuntu 22.04.5 LTS", "tensorrt": "10.3.0",
    "power_mode": "15W", "governor": "schedutil", "cuda": "12.6.68", "libc": "glibc-2.35", "root": "/home/a/alexnet-edge",
    "user": "a", "home": "/home/a", "boot_id": "x", "jetpack": "6.2", "kernel": "5.15", "container": None,
}  # fmt: skip
"""With JetPack 6.2."""


def a_device(**fields: Any) -> Facts:
    return records.convert(Facts, {**ORIN_NANO, **fields})


def a_bundle(
    format: str = "trt",
    precision: str = "int8",
    *,
    build: bool = True,
    files: tuple[BundleFile, ...] = (),
    **about: Any,
) -> Bundle:
    about = {"format": format, "precision": precision, "architecture": "two-tower", "classes": 1000, **about}
    return Bundle(files=files, about=about, build={"build": build}, bench={}, requirements=())


def test_a_good_device_is_taken() -> None:
    findings = judge(a_device(), a_bundle(), missing_bytes=300_000_000)
    assert (findings.refusals, findings.warnings) == ((), ())
    for words in ("Jetson Orin Nano", "Jetson Linux 36.4.3", "TensorRT 10.3.0", "power mode 15W", "8.0 GB memory"):
        assert words in findings.sentence()
    assert cuda_requirement(a_device()) == ["cuda-python==12.6.*"]
    assert cuda_requirement(a_device(cuda=None)) == ["cuda-python==12.6.*"]
    assert cuda_requirement(a_device(cuda=None, l4t="39.2")) == ["cuda-python==13.0.*"]


@pytest.mark.parametrize(
    ("fields", "bundle", "words"),
    [
        ({"machine": "armv7l"}, a_bundle(), "architecture is armv7l"),
        ({"venv": False}, a_bundle(), "python3-venv"),
        ({"writable": False}, a_bundle(), "may not write"),
        ({"libc": "musl-1.2"}, a_bundle("onnx"), "musl"),
        ({"disk_free_bytes": 500_000_000}, a_bundle(), "500 MB of disk free"),
        ({"memory_bytes": 1_000_000_000}, a_bundle(), "1000 MB of memory"),
        ({"tensorrt": None}, a_bundle(), "no TensorRT"),
        ({"tensorrt": "8.5.2"}, a_bundle(), "does not build INT8: 8.6"),
        ({"tensorrt": "10.0.1"}, a_bundle(precision="int4-fc"), "does not build INT4-FC: 10.3"),
        ({"gpu": False}, a_bundle(), "no NVIDIA GPU"),
        ({"container": "sha256:0", "gpu": False}, a_bundle(), "nvidia-container-toolkit"),
        ({"container": "sha256:0", "tensorrt": None}, a_bundle(), "the image has no TensorRT"),
        ({"container": "sha256:0", "venv": False}, a_bundle(), "add python3-venv to the image"),
    ],
)
def test_devices_that_are_refused(fields: dict[str, Any], bundle: Bundle, words: str) -> None:
    (refusal,) = judge(a_device(**fields), bundle, missing_bytes=300_000_000).refusals
    assert words in refusal


@pytest.mark.parametrize(
    ("name", "machine", "instruction", "lack"),
    [
        ("cpu-avx512-vnni", "x86_64", "avx512_vnni", "has no avx512_vnni"),
        ("cpu-avx512-vnni", "x86_64", "asimddp", "is aarch64"),
        ("cpu-arm64", "aarch64", "asimddp", None),
        ("cpu-arm64", "aarch64", "i8mm", "has no i8mm"),
    ],
)
def test_a_file_for_another_processor_is_refused(name: str, machine: str, instruction: str, lack: str | None) -> None:
    """Before the copy; whoever names the FP32 file has it lowered there."""
    target = {"name": name, "machines": [machine], "instructions": [instruction]}
    refusals = judge(a_device(), a_bundle("onnx", build=False, lowered_for=target), missing_bytes=0).refusals
    assert [f"lowered for {name} and its processor {lack}: " in refusal for refusal in refusals] == [True] * bool(lack)


def test_a_small_device_takes_what_needs_no_build() -> None:
    small = a_device(tensorrt=None, gpu=False, l4t=None, memory_bytes=1_000_000_000, memory_available_bytes=700_000_000)
    findings = judge(small, a_bundle("onnx", build=False), missing_bytes=60_000_000)
    assert findings.refusals == ()
    assert "are advised" in findings.warnings[0]


@pytest.mark.parametrize("field", [{"machine": 3}, {"disk_free_bytes": "many"}, {"python": None}, {"venv": "yes"}])
def test_facts_of_the_wrong_kind_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match=f"^{next(iter(field))}: expected "):
        a_device(**field)


def test_an_engine_s_release_is_named_by_its_tensorrt_too() -> None:
    """After an upgrade of JetPack, or in another image, the same order builds again."""
    engine, file = a_bundle(), a_bundle("onnx", build=False)
    names = {release_name(engine, a_device(tensorrt=version)) for version in ("10.3.0", "10.16.2")}
    names |= {release_name(engine, a_device(container=image)) for image in ("sha256:0", "sha256:1")}
    names.add(release_name(engine, a_device(), "again"))
    assert len(names) == 5
    assert release_name(file, a_device()) == release_name(file, a_device(tensorrt=None)) == file.release()
    assert release_name(file, a_device(container="sha256:0")) != file.release()


def test_the_power_mode_of_a_container_is_read_from_nvpmodel_s_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/var/lib/nvpmodel/status": "pmode:0002 fmode:fanNull",
        "/etc/nvpmodel.conf": "< POWER_MODEL ID=12 NAME=7W >\n< POWER_MODEL ID=2 NAME=25W >",
    }
    monkeypatch.setattr(board, "_answer", lambda *_command: None)
    monkeypatch.setattr(board, "_text", files.get)
    assert board.power_mode() == "25W"
    del files["/etc/nvpmodel.conf"]
    assert board.power_mode() == "0002"
    del files["/var/lib/nvpmodel/status"]
    assert board.power_mode() is None


def test_what_this_machine_says_of_itself_is_understood(tmp_path: Path) -> None:
    facts = records.convert(Facts, board.facts(tmp_path / "none" / "yet"))
    assert facts.python == ".".join(map(str, sys.version_info[:3]))
    assert facts.disk_free_bytes > 0
    assert facts.cpu_features
    assert facts.os
    assert facts.memory_bytes
    assert 0 < (facts.memory_available_bytes or 0) < facts.memory_bytes


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("numpy-2.2.6-cp310-cp310-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", True),
        ("numpy-2.2.6-cp310-cp310-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", False),
        ("numpy-2.2.6-cp312-cp312-manylinux_2_17_aarch64.whl", False),
        ("rich-14.0.0-py3-none-any.whl", True),
        ("old-1.0-py2.py3-none-any.whl", True),
        ("onnx-1.19.0-cp38-abi3-manylinux2014_aarch64.whl", True),
        ("onnx-1.19.0-cp312-abi3-manylinux2014_aarch64.whl", False),
        ("nothing.whl", False),
    ],
)
def test_wheels_that_fit(name: str, right: bool) -> None:
    assert fits(name, a_device()) == right
    bundle = a_bundle(files=(BundleFile(name=f"wheels/{name}", path=Path(name), sha256=DIGEST, bytes=1),))
    assert bool(judge(a_device(), bundle, missing_bytes=0).refusals) != right


def test_a_release_is_named_by_all_that_it_is_made_of() -> None:
    bundle = a_bundle()
    names = {bundle.release(), bundle.release("again")}
    names |= {replace(bundle, bench={"seconds": 1}).release(), replace(bundle, build={"build": False}).release()}
    assert len(names) == 4
    assert all(board.RELEASE.fullmatch(name) for name in names)
    assert bundle.release() == a_bundle().release()
