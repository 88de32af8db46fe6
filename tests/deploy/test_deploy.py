"""Deploy over a real SSH connection to a server on this machine: the whole way, the way back, and every fault on it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from loopback_device import LoopbackDevice
from narrow_network import CLASSES, write_checkpoint

from alexnet_edge.deploy import preflight, run
from alexnet_edge.deploy.bundle import Bundle, BundleFile, make_bundle
from alexnet_edge.deploy.golden import read_golden, write_golden
from alexnet_edge.deploy.link import Link
from alexnet_edge.deploy.plan import BenchOptions, Manner, Order
from alexnet_edge.deploy.run import Deployed, deploy, plan_deploy, rollback, status
from alexnet_edge.errors import DeviceError, DisconnectedError, GateError
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.images.datasets import open_images
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.progress import QuietReporter

pytestmark = pytest.mark.slow

SOON = BenchOptions(seconds=0.05, rounds=1, percentile=50, cold=False, roofline=False)
NO_BENCH = BenchOptions(seconds=0)


class Notes(QuietReporter):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """The narrow network as an FP32 ONNX file."""
    folder = tmp_path_factory.mktemp("narrow")
    exporter = Exporter(
        load_checkpoint(write_checkpoint(folder / "model.safetensors")),
        out=folder / "artifacts",
        proof_images=open_images(image_folder / "val", classes=CLASSES),
    )
    return exporter.export("onnx", "fp32").path


@pytest.fixture(scope="module")
def bundle_of(artifact: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """`bundle_of(limit)`: another limit makes another release."""
    cache = tmp_path_factory.mktemp("cache")

    def make(limit: int = 4, bench: BenchOptions = NO_BENCH) -> Bundle:
        order = Order(artifact=artifact, format="onnx", images=str(image_folder / "val"), limit=limit, bench=bench)
        return make_bundle(order, cache=cache, reporter=QuietReporter())

    return make


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackDevice]:
    folder = tmp_path_factory.mktemp("device")
    made = LoopbackDevice(folder, folder / "environments")
    yield made
    made.kill()


@pytest.fixture(scope="module")
def place(
    device: LoopbackDevice, bundle_of: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Deployed]:
    """The device's root, and the release that was deployed there first: with a bench, and its reports fetched."""
    root = device.root("shared")
    try:
        first = deploy(
            bundle_of(3, SOON),
            device.link("shared"),
            Manner(reports=tmp_path_factory.mktemp("reports"), reconnect_s=0),
            reporter=QuietReporter(),
        )
    except DeviceError as error:
        if "No matching distribution" in str(error) and os.environ.get("CI") != "true":
            pytest.skip("the package index cannot be reached")
        raise
    return root, first


@pytest.fixture
def manner(tmp_path: Path) -> Manner:
    return Manner(reports=tmp_path / "reports", reconnect_s=0, keep=50)


def serving(root: Path) -> str:
    """The release that serves, which must be whole: its artifact is the one of its manifest."""
    folder = (root / "current").resolve()
    assert json.loads((folder / "artifact.json").read_text())["sha256"]
    from alexnet_edge.deploy.board import Board, Line

    Board(root, Line(1.0))._require_whole(folder)
    return folder.name


def one_line(caught: pytest.ExceptionInfo[Any]) -> str:
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


# --- the whole way -------------------------------------------------------------------------------------------------------


def test_deployed_measured_and_fetched(place: tuple[Path, Deployed], bundle_of: Callable[..., Bundle]) -> None:
    root, first = place
    assert serving(root) == first.release == bundle_of(3, SOON).release()
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


def test_what_serves_answers_by_its_fixed_names(place: tuple[Path, Deployed], image_folder: Path) -> None:
    root, _ = place
    image = next((image_folder / "val" / "red").iterdir())
    command = [
        root / "current" / "alexnet-edge",
        "predict",
        "--json",
        "--artifact",
        root / "current" / "artifact",
        image,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=120)
    guesses = json.loads(done.stdout)["predictions"][0]["guesses"]
    assert sum(guess["probability"] for guess in guesses) == pytest.approx(1)


def test_the_same_order_again_does_nothing_twice(
    place: tuple[Path, Deployed], device: LoopbackDevice, bundle_of: Callable[..., Bundle], manner: Manner
) -> None:
    root, _ = place
    bundle, notes = bundle_of(4), Notes()
    once = deploy(bundle, device.link("shared"), manner, reporter=QuietReporter())
    again = deploy(bundle, device.link("shared"), manner, reporter=notes)
    assert (once.release, again.release, again.before) == (bundle.release(), bundle.release(), bundle.release())
    assert once.copied_bytes > 0 == again.copied_bytes
    assert any(line.startswith("build: done already") for line in notes.lines)
    forced = deploy(bundle, device.link("shared"), replace(manner, force=True), reporter=QuietReporter())
    assert serving(root) == forced.release != again.release


def test_dry_run_changes_nothing(device: LoopbackDevice, bundle_of: Callable[..., Bundle]) -> None:
    planned = plan_deploy(bundle_of(4), device.link("never"))
    assert not (device.home / "never").exists()
    assert planned.findings.refusals == ()
    assert planned.missing_bytes == bundle_of(4).bytes
    assert [step.partition(":")[0] for step in planned.steps] == [
        "copy", "environment", "build", "proof", "bench", "switch", "fetch"
    ]  # fmt: skip
    assert "nothing -> onnx-fp32-" in planned.steps[5]


def test_the_way_back(device: LoopbackDevice, bundle_of: Callable[..., Bundle], manner: Manner) -> None:
    root = device.root("back")
    link = device.link("back")
    with pytest.raises(DeviceError, match="nothing serves"):
        rollback(link)
    names = [deploy(bundle_of(limit), link, manner, reporter=QuietReporter()).release for limit in (3, 4, 5)]
    assert rollback(link)["current"] == names[1] == serving(root)
    assert rollback(link)["current"] == names[0] == serving(root)
    with pytest.raises(DeviceError, match="no release served before"):
        rollback(link)
    assert rollback(link, names[2])["current"] == names[2] == serving(root)
    found = status(link)
    assert (found["current"], found["before"]) == (names[2], names[0])
    assert [entry["why"] for entry in found["history"]] == ["deploy"] * 3 + ["rollback"] * 3
    assert sorted(entry["id"] for entry in found["releases"]) == sorted(names)
    artifact = (root / "releases" / names[0] / "artifact").resolve()
    artifact.write_bytes(artifact.read_bytes()[:-1])
    with pytest.raises(DeviceError, match="not what was proved"):
        rollback(link)
    assert serving(root) == names[2]
    with pytest.raises(DeviceError, match="has no release"):
        rollback(link, "onnx-fp32-000000000000")
    kept = deploy(bundle_of(6), link, replace(manner, keep=1), reporter=QuietReporter()).release
    assert {folder.name for folder in (root / "releases").iterdir()} == {kept, names[2]}


# --- the connection is cut ----------------------------------------------------------------------------------------------


def cut_at(monkeypatch: pytest.MonkeyPatch, how: Callable[[], None], do: str, step: str | None) -> None:
    """Cut the connection, once: in the middle of a long request, after a short one is done and before its answer is heard."""
    asked, answered, cut = Link.ask, Link._answer, list[str]()

    def ask(self: Link, what: str, **fields: Any) -> dict[str, Any]:
        self.wanted = what == do and fields.get("step") == step  # type: ignore[attr-defined]
        return asked(self, what, **fields)

    def answer(self: Link, *rest: Any) -> dict[str, Any]:
        if getattr(self, "wanted", False) and not cut:
            cut.append(do)
            if do != "run":
                answered(self, *rest)
            how()
        return answered(self, *rest)

    monkeypatch.setattr(Link, "ask", ask)
    monkeypatch.setattr(Link, "_answer", answer)


STEPS = [
    ("facts", None),
    ("lock", None),
    ("have", None),
    ("stage", None),
    ("environment", None),
    ("run", "build"),
    ("run", "bench"),
    ("switch", None),
    ("fetch", None),
    ("prune", None),
]


@pytest.mark.parametrize(("do", "step"), STEPS)
def test_cut_at_every_step(
    do: str,
    step: str | None,
    place: tuple[Path, Deployed],
    device: LoopbackDevice,
    bundle_of: Callable[..., Bundle],
    manner: Manner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, _ = place
    before = serving(root)
    bundle = replace(bundle_of(5), about={**bundle_of(5).about, "cut": f"{do} {step}"})  # a release of its own
    with monkeypatch.context() as patch:
        cut_at(patch, device.cut, do, step)
        if do == "fetch":  # which has no request that goes through `ask`
            patch.setattr(Link, "fetch", lambda self, *_args, **_more: (device.cut(), self.ask("status"))[1])
        try:
            deploy(bundle, device.link("shared"), manner, reporter=QuietReporter())
        except DisconnectedError as error:
            text = str(error)
        else:
            assert do == "prune", "only the last answer may have come before the cut"
            return
    assert "\n" not in text
    assert "the connection to the device was lost" in text
    assert "look: " in text
    if do in ("switch", "fetch", "prune"):  # it may have been done before the cut was seen
        assert serving(root) in (before, bundle.release())
    else:
        assert f"{before} still serves on board" in text
        assert serving(root) == before
    notes = Notes()
    result = deploy(bundle, device.link("shared"), replace(manner, reconnect_s=20), reporter=notes)  # the lock is free
    assert serving(root) == result.release == bundle.release()


def test_cut_while_copying_goes_on_where_it_ended(
    place: tuple[Path, Deployed],
    device: LoopbackDevice,
    bundle_of: Callable[..., Bundle],
    manner: Manner,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    root, _ = place
    large = tmp_path / "large-1.0-py3-none-any.whl"  # an unused one in the bundle's folder of wheels
    large.write_bytes(np.random.default_rng(0).bytes(24 << 20))
    bundle = bundle_of(5)
    bundle = replace(bundle, files=(*bundle.files, BundleFile.of(f"wheels/{large.name}", large)))
    keyed = run.sha256_json
    monkeypatch.setattr(run, "sha256_json", lambda value: keyed({**value, "wheels": value["wheels"][:1]}))
    send, cut = Link.send, list[int]()

    def sending(self: Link, path: Path, *, on_bytes: Callable[[int], None], **fields: Any) -> None:
        def told(count: int) -> None:
            if path == large and count > 16 << 20 and not cut:
                cut.append(count)
                time.sleep(0.5)
                device.cut()
            on_bytes(count)

        send(self, path, on_bytes=told, **fields)

    monkeypatch.setattr(Link, "send", sending)
    before = serving(root)
    notes = Notes()
    result = deploy(bundle, device.link("shared"), replace(manner, reconnect_s=60), reporter=notes)
    assert any("copy: the connection to the device was lost" in line for line in notes.lines)
    assert serving(root) == result.release != before
    assert cut
    sent_twice = result.copied_bytes - bundle.files[-1].bytes
    assert sent_twice < bundle.files[-1].bytes / 2, "the file was sent again from its beginning"


def test_restarted_in_the_middle(
    place: tuple[Path, Deployed],
    device: LoopbackDevice,
    bundle_of: Callable[..., Bundle],
    manner: Manner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, _ = place
    before = serving(root)
    bundle = replace(bundle_of(5), about={**bundle_of(5).about, "cut": "restart"})
    back = threading.Timer(4, device.start)

    def restart() -> None:
        device.kill()
        back.start()

    cut_at(monkeypatch, restart, "run", "bench")
    seen: list[str] = []
    notes = Notes()
    notes.note = lambda text: (seen.append(f"{serving(root)} | {text}"), None)[1]  # type: ignore[method-assign]
    result = deploy(bundle, device.link("shared"), replace(manner, reconnect_s=60), reporter=notes)
    back.join()
    lost = [line for line in seen if "connecting again" in line]
    assert lost
    assert all(line.startswith(before) for line in lost)
    assert any("build: done already" in line for line in seen), seen
    assert serving(root) == result.release == bundle.release()


def test_gone_for_good(
    place: tuple[Path, Deployed],
    device: LoopbackDevice,
    bundle_of: Callable[..., Bundle],
    manner: Manner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, _ = place
    before = serving(root)
    bundle = replace(bundle_of(5), about={**bundle_of(5).about, "cut": "gone"})
    with monkeypatch.context() as patch:
        cut_at(patch, device.kill, "run", "build")
        with pytest.raises(DisconnectedError) as caught:
            deploy(bundle, device.link("shared"), replace(manner, reconnect_s=3), reporter=QuietReporter())
    assert f"{before} still serves" in one_line(caught)
    device.start()
    assert serving(root) == before


# --- the other faults ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(device: LoopbackDevice) -> Iterator[Path]:
    """A root folder on a file system of 96 MB."""
    folder = device.home / "small"
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    (folder / "environments").symlink_to(device.environments)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_full(
    small_disk: Path,
    place: tuple[Path, Deployed],
    device: LoopbackDevice,
    bundle_of: Callable[..., Bundle],
    manner: Manner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(DeviceError, match=r"nothing was copied: it has \d+ MB of disk free, and \d+ MB are needed"):
        deploy(bundle_of(3), device.link("small"), manner, reporter=QuietReporter())
    assert not (small_disk / "incoming").exists()
    monkeypatch.setitem(preflight.ENVIRONMENT_BYTES, "onnx", 0)
    first = deploy(bundle_of(3), device.link("small"), manner, reporter=QuietReporter())
    asked = Link.ask

    def fill(do: str, step: str | None) -> Callable[..., dict[str, Any]]:
        def ask(self: Link, what: str, **fields: Any) -> dict[str, Any]:
            if what == do and fields.get("step") == step:
                with (small_disk / "filler").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
                    while True:
                        stream.write(bytes(1 << 16))
            return asked(self, what, **fields)

        return ask

    for do, step in (("have", None), ("stage", None), ("run", "build"), ("switch", None)):
        with monkeypatch.context() as patch:
            patch.setattr(Link, "ask", fill(do, step))
            if do == "have":  # between the preflight and the copy
                patch.setattr(run, "_preflight", lambda link, bundle: (judged(link, bundle), 0))
            with pytest.raises(DeviceError) as caught:
                deploy(bundle_of(4), device.link("small"), manner, reporter=QuietReporter())
        text = one_line(caught)
        assert "disk full" in text, (do, text)
        assert f"{first.release} still serves" in text
        (small_disk / "filler").unlink()
        assert serving(small_disk) == first.release
    assert deploy(bundle_of(4), device.link("small"), manner, reporter=QuietReporter()).before == first.release


def judged(link: Link, bundle: Bundle) -> preflight.Findings:
    return preflight.judge(preflight.checked(link.ask("facts")), bundle, missing_bytes=0)


def test_wrong_host_key(
    device: LoopbackDevice, place: tuple[Path, Deployed], bundle_of: Callable[..., Bundle], manner: Manner
) -> None:
    for known, words in (("other-host", "host key has changed"), (None, "host key is not known")):
        device.know(known)
        try:
            with pytest.raises(DisconnectedError, match=words) as caught:
                deploy(bundle_of(4), device.link("shared"), manner, reporter=QuietReporter())
        finally:
            device.know("host")
        one_line(caught)
    (device.folder / "authorized_keys").rename(device.folder / "away")
    try:
        with pytest.raises(DisconnectedError, match="accepts none of your keys"):
            status(device.link("shared"))
    finally:
        (device.folder / "away").rename(device.folder / "authorized_keys")


def test_no_python_or_an_old_one(
    device: LoopbackDevice,
    place: tuple[Path, Deployed],
    bundle_of: Callable[..., Bundle],
    manner: Manner,
    tmp_path: Path,
) -> None:
    with pytest.raises(DeviceError, match=r"has no Python: python3\.99 was not found on board") as caught:
        deploy(bundle_of(4), device.link("shared", python="python3.99"), manner, reporter=QuietReporter())
    one_line(caught)
    old = device.folder / "old-python"
    old.write_text(
        f'#!/bin/sh\nexec "{shutil.which("python3")}" -c "import sys; sys.version_info = (3, 8, 10); exec(sys.argv[2])" "$@"\n'
    )
    old.chmod(0o755)
    with pytest.raises(DeviceError, match=r"Python is too old: 3\.8, and 3\.10 is needed"):
        status(device.link("shared", python=str(old)))


def test_corrupt_on_the_way_and_in_the_store(
    place: tuple[Path, Deployed],
    device: LoopbackDevice,
    bundle_of: Callable[..., Bundle],
    manner: Manner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, _ = place
    before = serving(root)
    bundle = replace(bundle_of(6), about={**bundle_of(6).about, "cut": "corrupt"})
    golden = next(file for file in bundle.files if file.name == "golden.tar")
    (root / "store" / golden.sha256).unlink(missing_ok=True)
    (root / "incoming" / golden.sha256).write_bytes(b"no beginning of it")  # a damaged part is not gone on with
    asked = Link.ask

    def ask(self: Link, what: str, **fields: Any) -> dict[str, Any]:
        if what == "stage":
            kept = root / "store" / golden.sha256
            kept.chmod(0o600)
            data = bytearray(kept.read_bytes())
            data[len(data) // 2] ^= 1
            kept.write_bytes(data)
        return asked(self, what, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(Link, "ask", ask)
        with pytest.raises(DeviceError, match=r"corrupt bundle: golden\.tar") as caught:
            deploy(bundle, device.link("shared"), manner, reporter=QuietReporter())
    assert f"{before} still serves" in one_line(caught)
    assert serving(root) == before
    send, flipped = Link.send, list[str]()

    def damaged(self: Link, path: Path, **fields: Any) -> None:
        if path == golden.path and not flipped:
            flipped.append("once")
            other = path.with_name("flipped.tar")
            data = bytearray(path.read_bytes())
            data[0] ^= 1
            other.write_bytes(data)
            path = other
        send(self, path, **fields)

    monkeypatch.setattr(Link, "send", damaged)
    notes = Notes()
    deploy(bundle, device.link("shared"), manner, reporter=notes)
    assert "copy: golden.tar arrived damaged, once more" in notes.lines
    assert serving(root) == bundle.release()


def test_two_at_once(
    place: tuple[Path, Deployed],
    device: LoopbackDevice,
    bundle_of: Callable[..., Bundle],
    manner: Manner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, _ = place
    before = serving(root)
    monkeypatch.setattr(run, "LOCK_WAIT_S", 0.2)
    with Link(device.link("shared")) as first:
        first.ask("lock", who="somebody@else")
        with pytest.raises(DeviceError, match="another deploy is at work on the device") as caught:
            deploy(bundle_of(4), device.link("shared"), manner, reporter=QuietReporter())
        assert "from somebody@else, process" in one_line(caught)
        with pytest.raises(DeviceError, match="another deploy is at work"):
            rollback(device.link("shared"))
        assert status(device.link("shared"))["current"] == before  # looking is free
    assert serving(root) == before


def test_not_the_checkpoints_answers(
    place: tuple[Path, Deployed],
    device: LoopbackDevice,
    bundle_of: Callable[..., Bundle],
    manner: Manner,
    tmp_path: Path,
) -> None:
    root, _ = place
    before = serving(root)
    bundle = bundle_of(4)
    golden = next(file for file in bundle.files if file.name == "golden.tar")
    found = read_golden(golden.path, tmp_path / "golden")
    other = tmp_path / "other.tar"
    write_golden(other, found.images, found.reference_NK + np.float32(1), found.reference)
    files = tuple(BundleFile.of(file.name, other) if file == golden else file for file in bundle.files)
    with pytest.raises(GateError, match=r"does not answer like the checkpoint: max abs error 1") as caught:
        deploy(replace(bundle, files=files), device.link("shared"), manner, reporter=QuietReporter())
    text = one_line(caught)
    assert f"{before} still serves on board" in text
    assert f"ssh board tail -n 40 shared/releases/{replace(bundle, files=files).release()}/log.txt" in text
    assert serving(root) == before
    failed = {entry["id"]: entry.get("failed") for entry in status(device.link("shared"))["releases"]}
    assert "max abs error" in failed[replace(bundle, files=files).release()]["problem"]
    with pytest.raises(DeviceError, match="never served"):
        rollback(device.link("shared"), replace(bundle, files=files).release())


def test_a_step_killed_by_the_kernel(
    place: tuple[Path, Deployed],
    device: LoopbackDevice,
    bundle_of: Callable[..., Bundle],
    manner: Manner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, _ = place
    before = serving(root)
    bundle = replace(bundle_of(5), about={**bundle_of(5).about, "cut": "oom"})
    progress = run._Deploy._progress

    def kill_agent(self: Any, event: Mapping[str, Any]) -> None:
        progress(self, event)
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "alexnet_edge.deploy.agent" in words and any(str(root) in word for word in words):
                process.kill()

    monkeypatch.setattr(run._Deploy, "_progress", kill_agent)
    with pytest.raises(DeviceError, match="killed by SIGKILL, as the kernel does when memory runs out") as caught:
        deploy(bundle, device.link("shared"), manner, reporter=QuietReporter())
    assert f"{before} still serves" in one_line(caught)
    assert serving(root) == before


def test_a_silent_laptop_is_taken_for_gone(device: LoopbackDevice, place: tuple[Path, Deployed]) -> None:
    link = Link(device.link("shared", silence_s=2.0))
    with link:
        link._writing.acquire()  # no sign of life any more
        link._put(b'{"do": "lock", "who": "silent"}\n')
        time.sleep(4)
        with Link(device.link("shared")) as other:
            other.ask("lock", who="other", wait_s=10)
        link._writing.release()


# --- in a container ------------------------------------------------------------------------------------------------------

IMAGE, OTHER = "sha256:" + "a1" * 32, "sha256:" + "b2" * 32


def test_in_a_container(
    place: tuple[Path, Deployed],  # for its reason to skip
    device: LoopbackDevice,
    bundle_of: Callable[..., Bundle],
    manner: Manner,
    image_folder: Path,
) -> None:
    """The whole way and the way back, the device's side in a stand-in for Docker that hides the home folder."""
    docker = device.docker(edge=IMAGE)
    link = device.link("boxed", container="edge")
    root = device.home / "boxed"
    planned = plan_deploy(bundle_of(3), link)
    assert f"in container image {IMAGE[7:19]}" in planned.findings.sentence()
    assert not root.exists(), "a device that was only looked at is as it was"
    first = deploy(bundle_of(3), link, manner, reporter=QuietReporter())
    assert first.release == planned.release == serving(root) != bundle_of(3).release(), (
        "an image's releases are its own"
    )
    log = (first.reports / "log.txt").read_text()
    assert "Requirement already satisfied: numpy" in log, "what the image has is not fetched again"
    (python,) = root.glob("environments/*/bin/python")
    where = [python, "-I", "-c", "import alexnet_edge; print(alexnet_edge.__file__)"]
    found = subprocess.run(list(map(str, where)), capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(root)), "the wheel that was sent comes before the image's own package"

    def predicted() -> tuple[dict[str, Any], dict[str, Any]]:
        image = next((image_folder / "val" / "red").iterdir())
        command = [root / "current" / "alexnet-edge", "predict", "--json", "--artifact", root / "current" / "artifact"]
        done = subprocess.run(
            [*map(str, command), image.name],
            cwd=image.parent,
            env={"PATH": f"{device.programs}:{os.environ['PATH']}", "HOME": str(device.home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), json.loads((docker / "runs.jsonl").read_text().splitlines()[-1])

    answer, asked = predicted()
    assert sum(guess["probability"] for guess in answer["predictions"][0]["guesses"]) == pytest.approx(1)
    assert (asked["image"], asked["--network"]) == (IMAGE, ["none"])
    assert f"{root}:{root}:ro" in asked["--volume"]
    second = deploy(bundle_of(4), link, manner, reporter=QuietReporter())
    assert second.state["steps"]["environment"]["used_again"]
    device.docker(edge=OTHER, was=IMAGE)  # the image is built anew, under the same name
    assert plan_deploy(bundle_of(4), link).release != second.release
    assert predicted()[1]["image"] == IMAGE, "a release stays with the image that it was proved in"
    assert rollback(device.link("boxed"))["current"] == first.release, "going back needs no container"
    assert status(link)["current"] == first.release


def test_containers_that_do_not_start(
    device: LoopbackDevice, bundle_of: Callable[..., Bundle], manner: Manner, place: tuple[Path, Deployed]
) -> None:
    root, _ = place
    before = serving(root)
    device.docker(edge=IMAGE)
    for fields, words in (
        ({"container": "none:such"}, "No such image: none:such"),
        ({"container": "edge", "python": "python3.99"}, "the container does not start on the device"),
    ):
        with pytest.raises(DeviceError, match=words) as caught:
            deploy(bundle_of(4), device.link("shared", **fields), manner, reporter=QuietReporter())
        one_line(caught)
    (device.programs / "docker").unlink()  # there may be another one here, which does not know the image
    with pytest.raises(DeviceError, match="the container does not start on the device"):
        status(device.link("shared", container="edge"))
    assert serving(root) == before


def test_a_container_sets_no_power_mode(
    device: LoopbackDevice, bundle_of: Callable[..., Bundle], manner: Manner
) -> None:
    device.docker(edge=IMAGE)
    bundle = bundle_of(3, replace(SOON, lock_clocks=True))
    with pytest.raises(DeviceError, match="nothing was copied: a container cannot set power mode and clocks"):
        deploy(bundle, device.link("never", container="edge"), manner, reporter=QuietReporter())
    deadline = time.monotonic() + 30
    while (device.home / "never").exists() and time.monotonic() < deadline:  # the shell there ends after the connection
        time.sleep(0.1)
    assert not (device.home / "never").exists()


# --- the command line, and several devices ---------------------------------------------------------------------------------


def test_a_fleet_from_the_command_line(
    place: tuple[Path, Deployed],
    device: LoopbackDevice,
    artifact: Path,
    image_folder: Path,
    run_cli: Any,
    tmp_path: Path,
) -> None:
    device.root("one")
    device.root("two")
    fleet = tmp_path / "fleet.toml"
    python = f'python = "{device.link("x").python}"'
    fleet.write_text(
        f'[[device]]\nhost = "board"\nname = "kitchen"\nroot = "one"\n{python}\n'
        f'[[device]]\nhost = "board"\nname = "broken"\nroot = "two"\npython = "python3.99"\n'
        f'[[device]]\nhost = "board"\nname = "garden"\nroot = "two"\n{python}\n'
    )
    common = ("--to", fleet, "--ssh-config", device.folder / "ssh_config")
    wanted = ("--artifact", artifact, "--images", image_folder / "val", "--limit", "3", "--bench-seconds", "0")
    plan = run_cli("deploy", *common, *wanted, "--dry-run")
    assert plan.returncode == 2
    assert plan.stdout.count("switch: ") == 2
    assert not (device.home / "one" / "releases").exists()
    result = run_cli("deploy", *common, *wanted)
    assert result.returncode == 2, result.stderr
    assert "1 of 3 devices failed: broken: the device has no Python" in result.stderr.splitlines()[-1]
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert rows["kitchen"][1] == rows["garden"][1] == serving(device.home / "one") == serving(device.home / "two")
    assert rows["broken"][1] == "failed"
    shown = run_cli("deploy", "status", *common)
    assert shown.stdout.count(" serves ") == 2
    assert "passed" in shown.stdout
    back = run_cli("deploy", "rollback", *common, "--json")
    assert "no release served before" in json.loads(back.stdout)["kitchen"]["error"]
