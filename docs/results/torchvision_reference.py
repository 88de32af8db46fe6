"""Training as torchvision's reference script does it, beside training here: same images, network, batch and machine.

    python docs/results/torchvision_reference.py --data FOLDER

The reference is `references/classification` of torchvision: its `train_one_epoch`, its `ClassificationPresetTrain` with the
PIL backend, its `DataLoader` with `RandomSampler` and `pin_memory`, its SGD, with torchvision's own parts throughout; only the
number of workers is that of the processors, not 16. "same views" has the crop of a resized image that the recipes here take,
in place of `RandomResizedCrop`. Every side trains torchvision's AlexNet in FP32. Sides take turns, first one way, then the
other. It prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from alexnet_edge.environment import cpu_model, usable_cpus
from alexnet_edge.images.augment import epoch_draws
from alexnet_edge.images.datasets import open_split
from alexnet_edge.images.feeds import CACHE_BYTES, ImageFeed
from alexnet_edge.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, preset
from alexnet_edge.network.layers import architecture
from alexnet_edge.network.model import AlexNet, initialise
from alexnet_edge.training.distributed import World
from alexnet_edge.training.learner import Learner, prepare_network
from alexnet_edge.training.recipe import Recipe

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4  # the reference's for AlexNet


class Reference:
    """torchvision's reference script."""

    def __init__(self, folder: Path, batch: int, workers: int, *, same_views: bool) -> None:
        crop = (
            [transforms.Resize(256), transforms.RandomCrop(224)] if same_views else [transforms.RandomResizedCrop(224)]
        )
        preset_train = transforms.Compose(
            [
                *crop,
                transforms.RandomHorizontalFlip(0.5),
                transforms.PILToTensor(),
                transforms.ConvertImageDtype(torch.float),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )
        dataset = ImageFolder(str(folder), preset_train)
        self.loader = DataLoader(
            dataset,
            batch_size=batch,
            sampler=RandomSampler(dataset),
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )
        self.model = models.alexnet(num_classes=len(dataset.classes))
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def epoch(self) -> Batches:
        yield from self.loader

    def step(self, image: torch.Tensor, target: torch.Tensor) -> None:
        self.model.train()
        output = self.model(image)
        loss = self.criterion(output, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.inference_mode():  # the reference's `accuracy` with its `MetricLogger`
            _, predicted = output.topk(5, 1, True, True)
            correct = predicted.t().eq(target[None])
            for k in (1, 5):
                (correct[:k].flatten().sum(dtype=torch.float32) * (100.0 / len(target))).item()
        loss.item()


class Here:
    """This package's feed and step."""

    def __init__(self, folder: Path, batch: int, workers: int, *, kept: bool) -> None:
        images = open_split(folder.parent, "train")
        self.batch = batch
        self.feed = ImageFeed(
            images,
            preset("imagenet-224"),
            workers=workers,
            on_bad_image="fail",
            budget=CACHE_BYTES if kept else 0,
        )
        model = AlexNet(architecture("torchvision", len(images.classes)))
        initialise(model, "kaiming", seed=0)
        recipe = Recipe(epochs=1, batch=batch, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        prepare_network(model, recipe, torch.device("cpu"))
        self.learner = Learner(model, recipe, World(), seed=0, steps=1)
        self.epochs, self.steps = itertools.count(), itertools.count()

    def epoch(self) -> Batches:
        epoch, count = next(self.epochs), len(self.feed)
        order = np.random.default_rng((0, epoch)).permutation(count).tolist()
        yield from self.feed.batches(order, epoch_draws(count, seed=0, epoch=epoch), self.batch)

    def step(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        self.learner.step(x, labels, count=len(labels), rate=LR, place=(0, next(self.steps)))


def rate(batches: Batches, step: Callable[[torch.Tensor, torch.Tensor], None] | None, most: int) -> float:
    """Images per second of up to `most` batches, from asking for the first one on."""
    begin, count = time.perf_counter(), 0
    for x, labels in itertools.islice(batches, most):
        if step is not None:
            step(x, labels)
        count += len(labels)
    return count / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, one folder per class")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps per side and round")
    options = parser.parse_args()
    torch.set_num_threads(usable_cpus())
    torch.manual_seed(0)
    sides: dict[str, Reference | Here] = {
        "torchvision's reference": Reference(options.data / "train", options.batch, options.workers, same_views=False),
        "the same, same views": Reference(options.data / "train", options.batch, options.workers, same_views=True),
        "here, decoding every image": Here(options.data / "train", options.batch, options.workers, kept=False),
        "here, images kept (epoch 2 on)": Here(options.data / "train", options.batch, options.workers, kept=True),
    }
    feed: dict[str, list[float]] = {name: [] for name in sides}
    training: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():  # warm-up: page cache, kept images, first steps
        rate(side.epoch(), None, 10**9)
        rate(side.epoch(), side.step, 1)
    for number in range(options.rounds):
        for name, side in list(sides.items())[:: 1 if number % 2 == 0 else -1]:
            feed[name].append(rate(side.epoch(), None, 10**9))
            training[name].append(rate(side.epoch(), side.step, options.steps))
    base = next(iter(sides))
    print(f"{cpu_model()}, {usable_cpus()} processors, torch {torch.__version__}; batch {options.batch}, ", end="")
    print(f"{options.workers} workers, {options.rounds} rounds; medians, in brackets lowest and highest\n")
    print("| | feed alone, images/s | x | training, images/s | x |")
    print("|---|---|---|---|---|")
    for name in sides:
        cells = []
        for found in (feed, training):
            middle = statistics.median(found[name])
            ratio = statistics.median(mine / its for mine, its in zip(found[name], found[base], strict=True))
            digits = 0 if found is feed else 1
            cells += [
                f"{middle:.{digits}f} ({min(found[name]):.{digits}f}-{max(found[name]):.{digits}f})",
                f"{ratio:.2f}",
            ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
