"""Deploy over a real SSH connection to a server on this machine: the whole way, the way back, and every fault on it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from loopback_device import LoopbackDevice
from narrow_network import CLASSES, write_checkpoint
from small_disk import small_disk

from alexnet_edge.deploy import preflight, run
from alexnet_edge.deploy.board import Board, Line
from alexnet_edge.deploy.bundle import Bundle, BundleFile, make_bundle
from alexnet_edge.deploy.golden import read_golden, write_golden
from alexnet_edge.deploy.link import Link
from alexnet_edge.deploy.plan import BenchOptions, Manner, Order
from alexnet_edge.deploy.run import Deployed, deploy, plan_deploy, rollback, status
from alexnet_edge.errors import AlexNetEdgeError, DeviceError, DisconnectedError, GateError
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.images.datasets import open_images
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.progress import QuietReporter

pytestmark = pytest.mark.slow

SOON = BenchOptions(seconds=0.05, rounds=1, percentile=50, cold=False, roofline=False)
NO_BENCH = BenchOptions(seconds=0)
MakeBundle = Callable[..., Bundle]


class Notes(QuietReporter):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """The narrow network as an FP32 ONNX file."""
    folder = tmp_path_factory.mktemp("narrow")
    checkpoint = load_checkpoint(write_checkpoint(folder / "model.safetensors"))
    images = open_images(image_folder / "val", classes=CLASSES)
    return (
        Exporter(checkpoint, ExportSettings(out=folder / "artifacts"), proof_images=images).export("onnx", "fp32").path
    )


@pytest.fixture(scope="module")
def bundle_of(artifact: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """`bundle_of(limit)`: another limit makes another release; `bundle_of(limit, name="x")` one of its own."""
    cache = tmp_path_factory.mktemp("cache")

    def make(limit: int = 4, bench: BenchOptions = NO_BENCH, name: str = "") -> Bundle:
        order = Order(artifact=artifact, format="onnx", images=str(image_folder / "val"), limit=limit, bench=bench)
        bundle = make_bundle(order, cache=cache, reporter=QuietReporter())
        return replace(bundle, about={**bundle.about, "name": name}) if name else bundle

    return make


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackDevice]:
    folder = tmp_path_factory.mktemp("device")
    made = LoopbackDevice(folder, folder / "environments")
    yield made
    made.kill()


def serving(root: Path) -> str:
    """The release that serves, which must be whole: its artifact is the one of its manifest."""
    folder = (root / "current").resolve()
    assert json.loads((folder / "artifact.json").read_text())["sha256"]
    Board(root, Line(1.0)).require_whole(folder)
    return folder.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A root on the device, and how the tests deploy there."""

    device: LoopbackDevice
    name: str
    manner: Manner
    first: Deployed | None = None
    """What was deployed there first."""

    @property
    def root(self) -> Path:
        return self.device.home / self.name

    def deploy(self, bundle: Bundle, reporter: QuietReporter | None = None, **fields: Any) -> Deployed:
        """With fields of the manner or of the link."""
        manner = replace(self.manner, **{name: fields.pop(name) for name in {*fields} & {*Manner.__slots__}})
        return deploy(bundle, self.device.link(self.name, **fields), manner, reporter=reporter or QuietReporter())

    @contextlib.contextmanager
    def refused(self, kind: type[AlexNetEdgeError], match: str | None = None) -> Iterator[pytest.ExceptionInfo[Any]]:
        """Inside, one line of this kind is raised, and what served before serves on."""
        before = serving(self.root)
        with pytest.raises(kind, match=match) as caught:
            yield caught
        assert str(caught.value)
        assert "\n" not in str(caught.value)
        assert f"{before} still serves" in str(caught.value)
        assert serving(self.root) == before


@pytest.fixture(scope="module")
def shared(device: LoopbackDevice, bundle_of: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The root `shared`; what was deployed there first has a bench, and its reports were fetched."""
    place = Place(
        device=device, name="shared", manner=Manner(reports=tmp_path_factory.mktemp("reports"), reconnect_s=0)
    )
    device.root("shared")
    try:
        return replace(place, first=place.deploy(bundle_of(3, SOON)))
    except DeviceError as error:
        if "No matching distribution" in str(error) and os.environ.get("CI") != "true":
            pytest.skip("the package index cannot be reached")
        raise


@pytest.fixture
def manner(tmp_path: Path) -> Manner:
    return Manner(reports=tmp_path / "reports", reconnect_s=0, keep=50)


@pytest.fixture
def place(shared: Place, manner: Manner) -> Place:
    """The shared root, with this test's own folder of reports."""
    return replace(shared, manner=manner)


def test_deployed_measured_and_fetched(place: Place, bundle_of: MakeBundle) -> None:
    first = place.first
    assert first is not None
    assert serving(place.root) == first.release == bundle_of(3, SOON).release()
    assert first.before is None
    assert set(first.state["steps"]) == {"stage", "environment", "build", "bench", "switch"}
    assert first.state["steps"]["build"]["parity"]["verdict"] == "passed"
    assert first.state["steps"]["build"]["layers"] == "8 of 8 fp32"
    assert first.page is not None
    page = first.page.read_text()
    assert "<html" in page
    assert "AlexNet on board" in page
    results = json.loads((first.reports / "bench.json").read_text())
    assert results["subjects"][0]["batches"][0]["percentiles_ns"]["p50"] == first.state["steps"]["bench"]["p50_ns"] > 0
    manifest = json.loads((first.reports / "manifest.json").read_text())
    assert manifest["parity"]["images"]["source"]["kind"] == "golden"
    assert manifest["sha256"] == first.state["steps"]["build"]["sha256"]
    assert "pip install" in (first.reports / "log.txt").read_text()


def predicted(root: Path, image_folder: Path, **environment: str) -> None:
    """What serves answers, by its fixed names."""
    image = next((image_folder / "val" / "red").iterdir())
    command = [root / "current" / "alexnet-edge", "predict", "--json", "--artifact", root / "current" / "artifact"]
    done = subprocess.run(
        [*map(str, command), image.name],
        cwd=image.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    guesses = json.loads(done.stdout)["predictions"][0]["guesses"]
    assert sum(guess["probability"] for guess in guesses) == pytest.approx(1)


def test_what_serves_answers_by_its_fixed_names(place: Place, image_folder: Path) -> None:
    predicted(place.root, image_folder)


def test_the_same_order_again_does_nothing_twice(place: Place, bundle_of: MakeBundle) -> None:
    bundle, notes = bundle_of(4), Notes()
    once, again = place.deploy(bundle), place.deploy(bundle, notes)
    assert (once.release, again.release, again.before) == (bundle.release(), bundle.release(), bundle.release())
    assert once.copied_bytes > 0 == again.copied_bytes
    assert any(line.startswith("build: done already") for line in notes.lines)
    forced = place.deploy(bundle, force=True)
    assert serving(place.root) == forced.release != again.release


def test_dry_run_changes_nothing(device: LoopbackDevice, bundle_of: MakeBundle) -> None:
    planned = plan_deploy(bundle_of(4), device.link("never"))
    assert not (device.home / "never").exists()
    assert planned.findings.refusals == ()
    assert planned.missing_bytes == bundle_of(4).bytes
    names = [step.partition(":")[0] for step in planned.steps]
    assert names == ["copy", "environment", "build", "proof", "bench", "switch", "fetch"]
    assert "nothing -> onnx-fp32-" in planned.steps[5]
    assert list(planned.to_json()) == [
        "device", "release", "facts", "refusals", "warnings", "serving", "missing_bytes", "steps"
    ]  # fmt: skip


def test_the_way_back(device: LoopbackDevice, bundle_of: MakeBundle, manner: Manner) -> None:
    root, link = device.root("back"), device.link("back")
    place = Place(device=device, name="back", manner=manner)
    with pytest.raises(DeviceError, match="nothing serves"):
        rollback(link)
    names = [place.deploy(bundle_of(limit)).release for limit in (3, 4, 5)]
    assert rollback(link)["current"] == names[1] == serving(root)
    assert rollback(link)["current"] == names[0] == serving(root)
    with pytest.raises(DeviceError, match="no release served before"):
        rollback(link)
    assert rollback(link, names[2])["current"] == names[2] == serving(root)
    state = status(link)
    assert (state["current"], state["before"]) == (names[2], names[0])
    assert [entry["why"] for entry in state["history"]] == ["deploy"] * 3 + ["rollback"] * 3
    assert sorted(entry["id"] for entry in state["releases"]) == sorted(names)
    artifact = (root / "releases" / names[0] / "artifact").resolve()
    artifact.write_bytes(artifact.read_bytes()[:-1])
    for release, words in ((None, "not what was proved"), ("onnx-fp32-000000000000", "has no release")):
        with pytest.raises(DeviceError, match=words):
            rollback(link, release)
        assert serving(root) == names[2]
    kept = place.deploy(bundle_of(6), keep=1).release
    assert {folder.name for folder in (root / "releases").iterdir()} == {kept, names[2]}


def cut_at(monkeypatch: pytest.MonkeyPatch, how: Callable[[], None], do: str, step: str | None) -> None:
    """Cut the connection, once: in the middle of a long request, after a short one is done and before its answer is heard."""
    asked, answered, cut = Link.ask, Link._answer, list[str]()

    def ask(self: Link, what: str, **fields: Any) -> dict[str, Any]:
        self.wanted = what == do and fields.get("step") == step  # type: ignore[attr-defined]
        return asked(self, what, **fields)

    def answer(self: Link, *words: Any, **more: Any) -> dict[str, Any]:
        if getattr(self, "wanted", False) and not cut:
            cut.append(do)
            if do != "run":
                answered(self, *words, **more)
            how()
        return answered(self, *words, **more)

    monkeypatch.setattr(Link, "ask", ask)
    monkeypatch.setattr(Link, "_answer", answer)


def before_asking(
    monkeypatch: pytest.MonkeyPatch, do: str, step: str | None, act: Callable[[], None], *, skip: int = 0
) -> None:
    """Let something happen before each such request but the first `skip`."""
    asked, turns = Link.ask, itertools.count()

    def ask(self: Link, what: str, **fields: Any) -> dict[str, Any]:
        if what == do and fields.get("step") == step and next(turns) >= skip:
            act()
        return asked(self, what, **fields)

    monkeypatch.setattr(Link, "ask", ask)


STEPS = [
    *((do, None) for do in ("facts", "lock", "have", "stage", "environment", "switch", "fetch", "prune")),
    *(("run", step) for step in ("build", "bench")),
]


@pytest.mark.parametrize(("do", "step"), STEPS)
def test_cut_at_every_step(
    do: str, step: str | None, place: Place, bundle_of: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, bundle = serving(place.root), bundle_of(5, name=f"cut at {do} {step}")
    with monkeypatch.context() as patch:
        cut_at(patch, place.device.cut, do, step)
        if do == "fetch":  # which has no request that goes through `ask`
            patch.setattr(Link, "fetch", lambda self, *_args, **_more: (place.device.cut(), self.ask("status"))[1])
        try:
            place.deploy(bundle)
        except DisconnectedError as error:
            text = str(error)
        else:
            assert do == "prune", "only the last answer may have come before the cut"
            return
    assert "\n" not in text
    assert "the connection to the device was lost" in text
    assert "look: " in text
    if do in ("switch", "fetch", "prune"):  # it may have been done before the cut was seen
        assert serving(place.root) in (before, bundle.release())
    else:
        assert f"{before} still serves on board" in text
        assert serving(place.root) == before
    result = place.deploy(bundle, reconnect_s=20)  # the lock is free
    assert serving(place.root) == result.release == bundle.release()


def test_cut_while_copying_goes_on_where_it_ended(
    place: Place, bundle_of: MakeBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    large = tmp_path / "large-1.0-py3-none-any.whl"  # an unused one in the bundle's folder of wheels
    large.write_bytes(np.random.default_rng(0).bytes(24 << 20))
    bundle = bundle_of(5)
    bundle = replace(bundle, files=(*bundle.files, BundleFile.of(f"wheels/{large.name}", large)))
    keyed = run.sha256_json
    monkeypatch.setattr(run, "sha256_json", lambda value: keyed({**value, "wheels": value["wheels"][:1]}))
    send, cut = Link.send, list[int]()

    def sending(self: Link, path: Path, *, on_bytes: Callable[[int], None], **fields: Any) -> None:
        def counted(count: int) -> None:
            if path == large and count > 16 << 20 and not cut:
                cut.append(count)
                time.sleep(0.5)
                place.device.cut()
            on_bytes(count)

        send(self, path, on_bytes=counted, **fields)

    monkeypatch.setattr(Link, "send", sending)
    before, notes = serving(place.root), Notes()
    result = place.deploy(bundle, notes, reconnect_s=60)
    assert any("copy: the connection to the device was lost" in line for line in notes.lines)
    assert serving(place.root) == result.release != before
    assert cut
    sent_twice = result.copied_bytes - bundle.files[-1].bytes
    assert sent_twice < bundle.files[-1].bytes / 2, "the file was sent again from its beginning"


def test_restarted_in_the_middle(place: Place, bundle_of: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before, bundle = serving(place.root), bundle_of(5, name="restart")
    back = threading.Timer(4, place.device.start)

    def restart() -> None:
        place.device.kill()
        back.start()

    cut_at(monkeypatch, restart, "run", "bench")
    seen: list[str] = []
    notes = Notes()
    notes.note = lambda text: seen.append(f"{serving(place.root)} | {text}")  # type: ignore[method-assign]
    result = place.deploy(bundle, notes, reconnect_s=60)
    back.join()
    lost = [line for line in seen if "connecting again" in line]
    assert lost
    assert all(line.startswith(before) for line in lost)
    assert any("build: done already" in line for line in seen), seen
    assert serving(place.root) == result.release == bundle.release()


def test_gone_for_good(place: Place, bundle_of: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, place.refused(DisconnectedError):
        cut_at(patch, place.device.kill, "run", "build")
        place.deploy(bundle_of(5, name="gone"), reconnect_s=3)
    place.device.start()


@pytest.fixture
def full_disk(shared: Place, manner: Manner) -> Iterator[Place]:
    """A root folder on a file system of 96 MB."""
    with small_disk(shared.device.home / "small", "size=96m") as folder:
        (folder / "environments").symlink_to(shared.device.environments)
        yield Place(device=shared.device, name="small", manner=manner)


def test_disk_full(full_disk: Place, bundle_of: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"nothing was copied: it has \d+ MB of disk free, and \d+ MB are needed"):
        full_disk.deploy(bundle_of(3))
    assert not (full_disk.root / "incoming").exists()
    monkeypatch.setitem(preflight.ENVIRONMENT_BYTES, "onnx", 0)
    first = full_disk.deploy(bundle_of(3))
    filler = full_disk.root / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(1 << 16))

    for do, step in (("have", None), ("stage", None), ("run", "build"), ("switch", None)):
        with monkeypatch.context() as patch, full_disk.refused(DeviceError, "disk full"):
            before_asking(patch, do, step, fill, skip=do == "have")  # the second of these is that of the copy
            full_disk.deploy(bundle_of(4))
        filler.unlink()
    assert full_disk.deploy(bundle_of(4)).before == first.release


def test_wrong_keys(place: Place, bundle_of: MakeBundle) -> None:
    device = place.device
    for known, words in (("other-host", "host key has changed"), (None, "host key is not known")):
        device.know(known)
        try:
            with pytest.raises(DisconnectedError, match=rf"^.*{words}.*$"):
                place.deploy(bundle_of(4))
        finally:
            device.know("host")
    (device.folder / "authorized_keys").rename(device.folder / "away")
    try:
        with pytest.raises(DisconnectedError, match="accepts none of your keys"):
            status(device.link("shared"))
    finally:
        (device.folder / "away").rename(device.folder / "authorized_keys")


def test_no_python_or_an_old_one(place: Place, bundle_of: MakeBundle) -> None:
    old = place.device.folder / "old-python"
    program = "import sys; sys.version_info = (3, 8, 10); exec(sys.argv[2])"
    old.write_text(f'#!/bin/sh\nexec "{shutil.which("python3")}" -c "{program}" "$@"\n')
    old.chmod(0o755)
    for python, words in (
        ("python3.99", r"^.*has no Python: python3\.99 was not found on board.*$"),
        (str(old), r"Python is too old: 3\.8, and 3\.10 is needed"),
    ):
        with pytest.raises(DeviceError, match=words):
            place.deploy(bundle_of(4), python=python)


def flipped(path: Path, index: int) -> bytes:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    return bytes(data)


def test_corrupt_on_the_way_and_in_the_store(
    place: Place, bundle_of: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(6, name="corrupt")
    golden = next(file for file in bundle.files if file.name == "golden.tar")
    store = place.root / "store" / golden.sha256
    store.unlink(missing_ok=True)
    (place.root / "incoming" / golden.sha256).write_bytes(b"no beginning of it")  # a damaged part is not gone on with

    def damage() -> None:
        store.chmod(0o600)
        store.write_bytes(flipped(store, store.stat().st_size // 2))

    with monkeypatch.context() as patch, place.refused(DeviceError, r"corrupt bundle: golden\.tar"):
        before_asking(patch, "stage", None, damage)
        place.deploy(bundle)
    send, sent = Link.send, list[Path]()

    def damaged(self: Link, path: Path, **fields: Any) -> None:
        if path == golden.path and not sent:
            sent.append(path)
            path = path.with_name("flipped.tar")
            path.write_bytes(flipped(golden.path, 0))
        send(self, path, **fields)

    monkeypatch.setattr(Link, "send", damaged)
    notes = Notes()
    place.deploy(bundle, notes)
    assert "copy: golden.tar arrived damaged, once more" in notes.lines
    assert serving(place.root) == bundle.release()


def test_two_at_once(place: Place, bundle_of: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before, link = serving(place.root), place.device.link("shared")
    monkeypatch.setattr(run, "LOCK_WAIT_S", 0.2)
    with Link(link) as first:
        first.ask("lock", who="somebody@else")
        with place.refused(DeviceError, r"another deploy is at work on the device \(from somebody@else, process"):
            place.deploy(bundle_of(4))
        with pytest.raises(DeviceError, match="another deploy is at work"):
            rollback(link)
        assert status(link)["current"] == before  # looking is free
    assert serving(place.root) == before


def test_not_the_checkpoints_answers(place: Place, bundle_of: MakeBundle, tmp_path: Path) -> None:
    bundle, link = bundle_of(4), place.device.link("shared")
    golden = next(file for file in bundle.files if file.name == "golden.tar")
    content = read_golden(golden.path, tmp_path / "golden")
    other = tmp_path / "other.tar"
    write_golden(other, content.images, content.reference_NK + np.float32(1), {})
    files = tuple(BundleFile.of(file.name, other) if file == golden else file for file in bundle.files)
    wrong = replace(bundle, files=files)
    with place.refused(GateError, r"does not answer like the checkpoint: max abs error 1") as caught:
        place.deploy(wrong)
    assert f"ssh board tail -n 40 shared/releases/{wrong.release()}/log.txt" in str(caught.value)
    failed = {entry["id"]: entry.get("failed") for entry in status(link)["releases"]}
    assert "max abs error" in failed[wrong.release()]["problem"]
    with pytest.raises(DeviceError, match="never served"):
        rollback(link, wrong.release())


def test_a_step_killed_by_the_kernel(place: Place, bundle_of: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Link.ask

    def ask(self: Link, do: str, *, on_progress: Any = None, **fields: Any) -> dict[str, Any]:
        def kill_agent(event: Mapping[str, Any]) -> None:
            on_progress(event)
            for process in psutil.process_iter(["cmdline"]):
                words = process.info["cmdline"] or []
                if "alexnet_edge.deploy.agent" in words and any(str(place.root) in word for word in words):
                    process.kill()

        return asked(self, do, on_progress=on_progress and kill_agent, **fields)

    monkeypatch.setattr(Link, "ask", ask)
    with place.refused(DeviceError, "killed by SIGKILL, as the kernel does when memory runs out"):
        place.deploy(bundle_of(5, name="out of memory"))


def test_a_silent_laptop_is_taken_for_gone(place: Place) -> None:
    with Link(place.device.link("shared", silence_s=2.0)) as link:
        link._writing.acquire()  # no sign of life any more
        link._put(b'{"do": "lock", "who": "silent"}\n')
        time.sleep(4)
        with Link(place.device.link("shared")) as other:
            other.ask("lock", who="other", wait_s=10)
        link._writing.release()


IMAGE, OTHER = "sha256:" + "a1" * 32, "sha256:" + "b2" * 32


def test_in_a_container(
    shared: Place,  # for its reason to skip
    device: LoopbackDevice,
    bundle_of: MakeBundle,
    manner: Manner,
    image_folder: Path,
) -> None:
    """The whole way and the way back, the device's side in a stand-in for Docker that hides the home folder."""
    docker = device.docker(edge=IMAGE)
    link, root = device.link("boxed", container="edge"), device.home / "boxed"
    planned = plan_deploy(bundle_of(3), link)
    assert f"in container image {IMAGE[7:19]}" in planned.findings.sentence()
    assert not root.exists(), "a device that was only looked at is as it was"
    boxed = Place(device=device, name="boxed", manner=manner)
    first = boxed.deploy(bundle_of(3), container="edge")
    assert first.release == planned.release == serving(root)
    assert first.release != bundle_of(3).release(), "an image's releases are its own"
    log = (first.reports / "log.txt").read_text()
    assert "Requirement already satisfied: numpy" in log, "what the image has is not fetched again"
    (python,) = root.glob("environments/*/bin/python")
    where = [str(python), "-I", "-c", "import alexnet_edge; print(alexnet_edge.__file__)"]
    imported = subprocess.run(where, capture_output=True, text=True, check=True).stdout
    assert imported.startswith(str(root)), "the wheel that was sent comes before the image's own package"

    def last_run() -> dict[str, Any]:
        path = f"{device.programs}:{os.environ['PATH']}"
        predicted(root, image_folder, PATH=path, HOME=str(device.home))
        value: dict[str, Any] = json.loads((docker / "runs.jsonl").read_text().splitlines()[-1])
        return value

    asked = last_run()
    assert (asked["image"], asked["--network"]) == (IMAGE, ["none"])
    assert f"{root}:{root}:ro" in asked["--volume"]
    second = boxed.deploy(bundle_of(4), container="edge")
    assert second.state["steps"]["environment"]["used_again"]
    device.docker(edge=OTHER, was=IMAGE)  # the image is built anew, under the same name
    assert plan_deploy(bundle_of(4), link).release != second.release
    assert last_run()["image"] == IMAGE, "a release stays with the image that it was proved in"
    assert rollback(device.link("boxed"))["current"] == first.release, "going back needs no container"
    assert status(link)["current"] == first.release


def test_containers_that_do_not_start(place: Place, bundle_of: MakeBundle) -> None:
    device, before = place.device, serving(place.root)
    device.docker(edge=IMAGE)
    for fields, words in (
        ({"container": "none:such"}, "^.*No such image: none:such.*$"),
        ({"container": "edge", "python": "python3.99"}, "^.*the container does not start on the device.*$"),
    ):
        with pytest.raises(DeviceError, match=words):
            place.deploy(bundle_of(4), **fields)
    (device.programs / "docker").unlink()  # there may be another one here, which does not know the image
    with pytest.raises(DeviceError, match="the container does not start on the device"):
        status(device.link("shared", container="edge"))
    assert serving(place.root) == before


def test_a_container_sets_no_power_mode(device: LoopbackDevice, bundle_of: MakeBundle, manner: Manner) -> None:
    device.docker(edge=IMAGE)
    bundle = bundle_of(3, replace(SOON, lock_clocks=True))
    with pytest.raises(DeviceError, match="nothing was copied: a container cannot set power mode and clocks"):
        Place(device=device, name="never", manner=manner).deploy(bundle, container="edge")
    deadline = time.monotonic() + 30
    while (device.home / "never").exists() and time.monotonic() < deadline:  # the shell there ends after the connection
        time.sleep(0.1)
    assert not (device.home / "never").exists()


def test_a_fleet_from_the_command_line(
    shared: Place, artifact: Path, image_folder: Path, run_cli: Any, tmp_path: Path
) -> None:
    device = shared.device
    one, two = device.root("one"), device.root("two")
    fleet = tmp_path / "fleet.toml"
    own, none = device.link("x").python, "python3.99"
    fleet.write_text(
        "".join(
            f'[[device]]\nhost = "board"\nname = "{name}"\nroot = "{root}"\npython = "{python}"\n'
            for name, root, python in (("kitchen", "one", own), ("broken", "two", none), ("garden", "two", own))
        )
    )
    common = ("--to", fleet, "--ssh-config", device.folder / "ssh_config")
    order = ("--artifact", artifact, "--images", image_folder / "val", "--limit", "3", "--bench-seconds", "0")
    plan = run_cli("deploy", *common, *order, "--dry-run")
    assert plan.returncode == 2
    assert plan.stdout.count("switch: ") == 2
    assert not (one / "releases").exists()
    result = run_cli("deploy", *common, *order)
    assert result.returncode == 2, result.stderr
    assert "1 of 3 devices failed: broken: the device has no Python" in result.stderr.splitlines()[-1]
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert rows["kitchen"][1] == rows["garden"][1] == serving(one) == serving(two)
    assert rows["broken"][1] == "failed"
    shown = run_cli("deploy", "status", *common)
    assert shown.stdout.count(" serves ") == 2
    assert "passed" in shown.stdout
    back = run_cli("deploy", "rollback", *common, "--json")
    assert "no release served before" in json.loads(back.stdout)["kitchen"]["error"]
