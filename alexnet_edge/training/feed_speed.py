"""How fast training gets its images, and whether it has to wait for them.

Each way to read them is measured alone (images per second that nobody uses) and inside training steps (with the share of
time that the steps waited). Steps on one batch over and over are the bound. Rounds are interleaved. After the first round
the operating system's cache serves the images: this does not measure a disk.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np

from alexnet_edge.environment import describe, usable_cpus
from alexnet_edge.errors import MissingComponentError, UserError, needs
from alexnet_edge.images.augment import epoch_draws, measure_lighting
from alexnet_edge.images.datasets import ImageSet
from alexnet_edge.images.feeds import CACHE_BYTES, ImageFeed
from alexnet_edge.images.preprocess import preset
from alexnet_edge.images.reader import AugmentOn, Pool
from alexnet_edge.network.layers import Architecture
from alexnet_edge.progress import Reporter
from alexnet_edge.training.recipe import RECIPES, LoaderSettings

with needs("train"):
    import torch
    from torch import Tensor

    from alexnet_edge.network.model import AlexNet, initialise
    from alexnet_edge.training.distributed import World
    from alexnet_edge.training.learner import Learner, prepare_network

SCHEMA = 1
MOST_IMAGES = 2000
"""A larger set is measured on this many of its images, evenly spread."""

LIGHTING_SIGMA = 0.1
"""Views are those of the paper's recipe, the most work that a recipe asks for."""

BOTTLENECK = 0.05
"""Steps that wait for a larger share of their time are held up by the feed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to read images."""

    pool: Pool
    workers: int
    augment_on: AugmentOn
    kept: bool
    """Whether resized images are kept in memory, as in the second epoch of a set that fits; otherwise each is decoded."""

    @property
    def label(self) -> str:
        singular = {"threads": "thread", "processes": "process"}[self.pool]
        readers = (
            f"{self.workers} {singular if self.workers == 1 else self.pool}" if self.workers else "training thread"
        )
        return f"{readers}{', light on the device' if self.augment_on == 'device' else ''}"


def ways(settings: LoaderSettings) -> list[Way]:
    """The ways to compare: images are kept only with threads, which share them; the device augments only on a GPU."""
    return [
        Way(pool=pool, workers=workers, augment_on=place, kept=kept)
        for workers in settings.workers or (usable_cpus(),)
        for pool in (get_args(Pool) if workers else ("threads",))
        for place in (get_args(AugmentOn) if settings.device == "cuda" else ("workers",))
        for kept in ((False, True) if pool == "threads" else (False,))
    ]


def measure_loader(
    images: ImageSet, arch: Architecture, settings: LoaderSettings, *, command: Sequence[str], reporter: Reporter
) -> dict[str, Any]:
    """The result as JSON: `rows` has an entry per way, with a figure per round. `command` is the command line, for the record.

    Raises:
        UserError: when a setting is out of range.
        MissingComponentError: when the device is not there.
        ImageError: when an image cannot be used.
    """
    settings = _checked(settings)
    torch.set_num_threads(settings.threads or usable_cpus())
    images = images.spread(MOST_IMAGES)
    step_images_per_s, rows = _measured(images, arch, settings, reporter)
    reporter.finish(f"{len(rows)} ways to read, {settings.rounds} rounds")
    return {
        "schema": SCHEMA,
        "command": list(command),
        "settings": asdict(settings),
        "architecture": arch.name,
        "data": {"source": images.source.get("path", images.source["kind"]), "images": len(images)},
        "step_images_per_s": step_images_per_s,
        "rows": rows,
        "environment": describe(),
    }


def _measured(
    images: ImageSet, arch: Architecture, settings: LoaderSettings, reporter: Reporter
) -> tuple[list[float], list[dict[str, Any]]]:
    """Images per second of the steps alone, by round, and the figures of every way to read."""
    compared = ways(settings)
    rows: list[dict[str, Any]] = [
        {**asdict(way), "label": way.label, "feed_images_per_s": [], "training_images_per_s": [], "wait_share": []}
        for way in compared
    ]
    feeds = _feeds(images, arch, compared, torch.device(settings.device))
    alone: list[float] = []
    step = _training_step(arch, torch.device(settings.device))
    batch = min(settings.batch, len(images))
    reporter.start("Loader", settings.rounds * (1 + 2 * len(compared)) + 1)
    done = itertools.count(1)
    try:
        for way, feed in zip(compared, feeds, strict=True):
            held = _warm_up(feed, batch, whole=way.kept)
        _timed((held for _ in itertools.count()), step, seconds=0.0)
        reporter.update(next(done), "warm-up")
        for _ in range(settings.rounds):
            images_per_s, _ = _timed((held for _ in itertools.count()), step, seconds=settings.seconds)
            alone.append(images_per_s)
            reporter.update(next(done), "training step alone")
            for feed, row in zip(feeds, rows, strict=True):
                images_per_s, _ = _timed(_endless(feed, batch), _drop, seconds=settings.seconds)
                row["feed_images_per_s"].append(images_per_s)
                reporter.update(next(done), row["label"])
                images_per_s, wait_share = _timed(_endless(feed, batch), step, seconds=settings.seconds)
                row["training_images_per_s"].append(images_per_s)
                row["wait_share"].append(wait_share)
                reporter.update(next(done), f"{row['label']}, in training")
    finally:
        for feed in feeds:
            feed.close()
    return alone, rows


def _checked(settings: LoaderSettings) -> LoaderSettings:
    """The settings with the device decided."""
    workers = min(settings.workers, default=0)
    for name, value, least in (("batch", settings.batch, 1), ("rounds", settings.rounds, 1), ("workers", workers, 0)):
        if value < least:
            raise UserError(f"{name} must be {least} or more", value=value, fix="raise it")
    if not 0 < settings.seconds < 3600:
        raise UserError("seconds must be above 0 and below 3600", value=settings.seconds, fix="change it")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise MissingComponentError("torch sees no CUDA GPU here", fix="use --device cpu")
    return replace(settings, device="cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")


def _feeds(images: ImageSet, arch: Architecture, compared: Sequence[Way], device: torch.device) -> list[ImageFeed]:
    """A feed for each way, of the same views."""
    spec = preset(arch.preprocessing)
    lighting = measure_lighting(images, spec, sigma=LIGHTING_SIGMA, on_bad_image="fail")
    return [
        ImageFeed(
            images,
            spec,
            workers=way.workers,
            on_bad_image="fail",
            budget=CACHE_BYTES if way.kept else 0,
            lighting=lighting,
            device=device,
            augment_on=way.augment_on,
            pool=way.pool,
        )
        for way in compared
    ]


def loader_verdict(result: dict[str, Any]) -> str:
    """Which way is fastest in training, and whether training waits for it."""
    best = max(result["rows"], key=lambda row: statistics.median(row["training_images_per_s"]))
    share = statistics.median(best["wait_share"])
    held_up = "holds training up" if share > BOTTLENECK else "is not the bottleneck"
    return (
        f"the feed {held_up}: with {best['label']}{', images kept' if best['kept'] else ''}, "
        f"steps wait {share:.1%} of their time"
    )


def _timed(
    batches: Generator[tuple[Tensor, Tensor], None, None], use: Callable[[Tensor, Tensor], None], *, seconds: float
) -> tuple[float, float]:
    """Use batches for this many seconds, one batch at least: images per second, and the share of time waited for them."""
    begin = now = time.perf_counter()
    waited, count = 0.0, 0
    with closing(batches):
        while count == 0 or now - begin < seconds:
            begin_wait = time.perf_counter()
            x, labels_N = next(batches)
            waited += time.perf_counter() - begin_wait
            use(x, labels_N)
            count += len(labels_N)
            now = time.perf_counter()
    return count / (now - begin), waited / (now - begin)


def _endless(feed: ImageFeed, batch: int) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Epoch after epoch of full batches."""
    count = len(feed) // batch * batch
    for epoch in itertools.count():
        order = np.random.default_rng((0, epoch)).permutation(len(feed))[:count].tolist()
        yield from feed.batches(order, epoch_draws(count, seed=0, epoch=epoch), batch)


def _warm_up(feed: ImageFeed, batch: int, *, whole: bool) -> tuple[Tensor, Tensor]:
    """Start the workers; with `whole`, let them keep all images. Returns the first batch."""
    count = len(feed) if whole else batch
    first, *_ = feed.batches(range(batch), epoch_draws(batch, seed=0, epoch=0), batch)
    for _ in feed.batches(range(batch, count), epoch_draws(count - batch, seed=0, epoch=0), batch):
        pass
    return first


def _drop(x: Tensor, labels_N: Tensor) -> None:
    """Wait until the batch is on the device, and drop it."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _training_step(arch: Architecture, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    model = AlexNet(arch)
    initialise(model, "kaiming", seed=0)
    recipe = RECIPES["modern"]
    prepare_network(model, recipe, device)
    learner = Learner(model, recipe, World(device=device), seed=0, steps=1000)
    numbers = itertools.count()

    def step(x: Tensor, labels_N: Tensor) -> None:
        learner.step(x, labels_N, count=len(labels_N), rate=1e-4, place=(0, next(numbers)))

    return step
