"""What training reads: the same views from threads, processes and devices, in order, ahead, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_edge.errors import DataError, ImageError, UserError
from alexnet_edge.images.augment import CENTRE, Draw, epoch_draws, measure_lighting, view
from alexnet_edge.images.datasets import ImageSet, open_split
from alexnet_edge.images.feeds import BATCHES_AHEAD, FeatureFeed, ImageFeed, compute_features, fixed_views
from alexnet_edge.images.preprocess import Preprocessing, load_rgb, preprocess_image, preset
from alexnet_edge.progress import QuietReporter

SMALL = Preprocessing(resize=32, crop=24)


def make(images: ImageSet, spec: Preprocessing = SMALL, **options: Any) -> ImageFeed:
    return ImageFeed(images, spec, **{"workers": 0, "on_bad_image": "fail", **options})


def everything(feed: ImageFeed, order: Sequence[int], draws: Sequence[Draw], batch: int) -> tuple[Any, list[int]]:
    parts = list(feed.batches(order, draws, batch))
    return torch.cat([x for x, _ in parts]), torch.cat([labels for _, labels in parts]).tolist()


def broken_copy(image_folder: Path, tmp_path: Path) -> ImageSet:
    """The training images, of which the first four are damaged."""
    root = shutil.copytree(image_folder, tmp_path / "copy")
    for index in range(4):
        (root / f"train/blue/{index}.jpg").write_bytes(b"broken")
    return open_split(root, "train")


DRAWS = epoch_draws(24, seed=0, epoch=0)


@pytest.fixture
def images(image_folder: Path) -> ImageSet:
    return open_split(image_folder, "train")


@pytest.mark.parametrize("size", [(40, 33), (300, 256), (257, 400)])
def test_central_training_view_is_the_shared_preprocessing(tmp_path: Path, size: tuple[int, int]) -> None:
    random = np.random.default_rng(size[0])
    for label in ("a", "b"):
        for index in range(2):
            (tmp_path / label).mkdir(exist_ok=True)
            pixels = random.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{index}.png")
    images = open_split(tmp_path, "train")
    for name in ("imagenet-227", "caffe-227"):
        for options in ({}, {"augment_on": "device"}):
            feed = make(images, preset(name), **options)
            for _ in range(2):  # from the file, then from memory
                ((x_NCHW, labels_N),) = feed.batches(range(2), [CENTRE] * 2, 2)
                for index in range(2):
                    expected = preprocess_image(load_rgb(tmp_path / images.name(index)), preset(name))
                    assert np.array_equal(x_NCHW[index].numpy(), expected)
                assert labels_N.tolist() == [0, 1]


def ways() -> Iterator[Any]:
    for augment_on in ("workers", "device"):
        for workers in (0, 1, 3):
            yield {"workers": workers, "augment_on": augment_on}
        yield {"workers": 2, "augment_on": augment_on, "budget": 0}
        yield {"workers": 2, "augment_on": augment_on, "pool": "processes"}


@pytest.mark.parametrize("options", list(ways()), ids=lambda options: "-".join(map(str, options.values())))
def test_views_do_not_depend_on_who_makes_them(images: ImageSet, options: dict[str, Any]) -> None:
    lighting = measure_lighting(images, SMALL, sigma=0.5, on_bad_image="fail")
    order = np.random.default_rng(0).permutation(24).tolist()
    expected, labels = everything(make(images, lighting=lighting), order, DRAWS, 24)
    feed = make(images, lighting=lighting, **options)
    try:
        for batch in (5, 24):
            views, view_labels = everything(feed, order, DRAWS, batch)
            assert torch.equal(views, expected)
            assert view_labels == labels == images.labels_N[order].tolist()
        tail, _ = everything(feed, order[10:], DRAWS[10:], 5)  # as a resumed run asks
        assert torch.equal(tail, expected[10:])
    finally:
        feed.close()


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_processor(images: ImageSet) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    lighting = measure_lighting(images, SMALL, sigma=0.5, on_bad_image="fail")
    expected, labels = everything(make(images, lighting=lighting), range(24), DRAWS, 5)
    for options in ({}, {"augment_on": "device"}, {"pool": "processes"}):
        feed = make(images, lighting=lighting, device=torch.device("cuda"), **{"workers": 2, **options})
        parts = list(feed.batches(range(24), DRAWS, 5))
        feed.close()
        assert all(x.is_cuda and labels_N.is_cuda for x, labels_N in parts)
        torch.testing.assert_close(torch.cat([x for x, _ in parts]).cpu(), expected, rtol=1e-6, atol=1e-6)
        assert torch.cat([labels_N for _, labels_N in parts]).tolist() == labels


def test_images_beyond_the_memory_budget_are_decoded_again(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    usual = ImageSet.image
    monkeypatch.setattr(ImageSet, "image", lambda self, index: decoded.append(index) or usual(self, index))
    answers = []
    for budget, expected in ((0, 48), (1 << 30, 24), (5 * 32 * 45 * 3, range(26, 48))):
        decoded.clear()
        feed = make(images, workers=2, budget=budget)
        for _ in range(2):
            answers.append(everything(feed, range(24), [CENTRE] * 24, 5)[0])
        assert len(decoded) in (expected if isinstance(expected, range) else (expected,))
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_nobody_reads_further_ahead_than_said(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    usual = ImageSet.image
    monkeypatch.setattr(ImageSet, "image", lambda self, index: read.append(index) or usual(self, index))
    batches = make(images, workers=2).batches(range(24), [CENTRE] * 24, 2)
    next(batches)
    end = time.monotonic() + 20
    while len(read) < 2 * (1 + BATCHES_AHEAD) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    assert sorted(read) == list(range(2 * (1 + BATCHES_AHEAD)))
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"augment_on": "device"}, {"workers": 2, "pool": "processes"}])
def test_bad_images_leave_their_batches_in_their_places(
    image_folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    images = broken_copy(image_folder, tmp_path)
    good, _ = everything(make(open_split(image_folder, "train")), range(24), DRAWS, 24)
    feed = make(images, **{"on_bad_image": "skip", **options})
    try:
        for _ in range(2):
            parts = list(feed.batches(range(24), DRAWS, 3))
            assert [len(x) for x, _ in parts] == [len(labels_N) for _, labels_N in parts] == [0, 2, *[3] * 6]
            assert parts[0][0].shape == (0, 3, 24, 24)
            assert torch.equal(torch.cat([x for x, _ in parts]), good[4:])
            assert sorted(feed.bad) == [0, 1, 2, 3]
            assert "blue/2.jpg" in str(feed.bad[2])
    finally:
        feed.close()
    feed = make(images, **options)
    with pytest.raises(ImageError, match=r"blue/1\.jpg") as caught:
        list(feed.batches(range(1, 24), DRAWS[1:], 3))
    assert caught.value.exit_code == 2
    feed.close()


def test_a_loop_that_is_left_leaves_no_descriptor_and_no_work(images: ImageSet) -> None:
    feed = make(images, workers=2, pool="processes")
    everything(feed, range(24), DRAWS, 2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        batches = feed.batches(range(24), DRAWS, 2)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    expected, _ = everything(make(images), range(24), DRAWS, 24)
    assert torch.equal(everything(feed, range(24), DRAWS, 7)[0], expected), "it can be asked again"
    feed.close()


def test_a_killed_worker_is_said_in_one_line(images: ImageSet) -> None:
    feed = make(images, workers=1, pool="processes")
    everything(feed, range(24), DRAWS, 8)
    executor: Any = feed._executor
    for process in executor._processes.values():
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a process that reads images ended unasked.*; use fewer workers, or threads"):
        everything(feed, list(range(24)) * 1000, epoch_draws(24000, seed=0, epoch=0), 8)
    assert len(everything(feed, range(24), DRAWS, 8)[0]) == 24, "new workers take over"
    feed.close()


def test_workers_end_by_nobody_but_their_parent(images: ImageSet) -> None:
    feed = make(images, workers=2, pool="processes")
    batches = feed.batches(list(range(24)) * 100, epoch_draws(2400, seed=0, epoch=0), 8)
    next(batches)
    executor: Any = feed._executor
    workers = list(executor._processes)
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", *map(str, workers)], check=True)
    assert sum(len(x) for x, _ in batches) == 2400 - 8, "every batch comes"
    assert list(executor._processes) == workers
    os.kill(workers[0], signal.SIGTERM)
    with pytest.raises(DataError, match="a process that reads images ended unasked"):
        everything(feed, list(range(24)) * 1000, epoch_draws(24000, seed=0, epoch=0), 8)
    feed.close()


PARENT = """
import sys, time
from alexnet_edge.images.augment import epoch_draws
from alexnet_edge.images.datasets import open_split
from alexnet_edge.images.feeds import ImageFeed
from alexnet_edge.images.preprocess import Preprocessing
if __name__ == "__main__":
    images = open_split(sys.argv[1], "train")
    feed = ImageFeed(images, Preprocessing(resize=32, crop=24), workers=2, on_bad_image="fail", pool="processes")
    batches = feed.batches(list(range(24)) * 1000, epoch_draws(24000, seed=0, epoch=0), 4)
    for _ in range(20):
        next(batches)
    print(*feed._executor._processes, flush=True)
    time.sleep(200)
"""


def test_workers_end_with_a_parent_that_is_killed(image_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, script, image_folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        end = time.monotonic() + 60
        while os.getpgid(parent.pid) in [os.getpgid(pid) for pid in workers]:  # one may have only just begun
            assert time.monotonic() < end, "Ctrl-C is the parent's alone"
            time.sleep(0.05)
        parent.kill()
    end = time.monotonic() + 60
    while alive := [pid for pid in workers if running(pid)]:
        assert time.monotonic() < end, f"{alive} outlived their parent"
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_fixed_views_are_ten_different_ones() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 300, 3), np.uint8)
    seen = [view(pixels, Preprocessing(), draw).tobytes() for draw in fixed_views(10)]
    assert len(set(seen)) == 10
    centre, mirrored = (view(pixels, Preprocessing(), draw) for draw in fixed_views(2))
    assert np.array_equal(mirrored, centre[:, ::-1])
    with pytest.raises(UserError, match="views must be from 1 to 10: 11"):
        fixed_views(11)


def test_feature_feed_picks_the_drawn_view() -> None:
    features_VNF = torch.arange(2 * 3).reshape(2, 3, 1).float()
    feed = FeatureFeed(features_VNF, torch.tensor([7, 8, 9]))
    ((x, labels),) = feed.batches([2, 0, 1], [Draw(0.9, 0, 0), Draw(0.1, 0, 0), CENTRE], 3)
    assert x[:, 0].tolist() == [5.0, 0.0, 1.0]
    assert labels.tolist() == [9, 7, 8]


def test_features_of_images_of_which_a_whole_batch_is_broken(image_folder: Path, tmp_path: Path) -> None:
    feed = make(broken_copy(image_folder, tmp_path), on_bad_image="skip")
    computed = compute_features(
        feed, lambda x_NCHW: x_NCHW.flatten(1)[:, :5], 5, views=2, batch=2, reporter=QuietReporter(), split=""
    )
    assert computed.features_VNF.shape == (2, 20, 5)
    assert computed.labels_N.tolist() == feed.images.labels_N[4:].tolist()
