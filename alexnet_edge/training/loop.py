"""The state of a training run and its loop: feeds, first or resumed weights, epochs, and the files that it writes.

Letters: N batch, C channels, H height, W width, K classes, F features.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge import records
from alexnet_edge.environment import usable_cpus, versions
from alexnet_edge.errors import CheckpointError, DataError, DivergedError, InterruptedRunError, UserError, needs
from alexnet_edge.files import MALFORMED, write_json
from alexnet_edge.images.augment import CENTRE, Lighting, epoch_draws, measure_lighting
from alexnet_edge.images.datasets import ImageSet, open_split
from alexnet_edge.images.feeds import FeatureFeed, Feed, ImageFeed, compute_features
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import HISTORY_FILE, CheckpointInfo, save_checkpoint
from alexnet_edge.network.layers import LAYER_NAMES, architecture
from alexnet_edge.progress import Reporter
from alexnet_edge.proof.evaluate import Evaluation, score
from alexnet_edge.training import snapshot as snapshots
from alexnet_edge.training.folder import MODEL_FILE, SCHEMA
from alexnet_edge.training.history import EpochRow, Sums, TrainResult
from alexnet_edge.training.log import TensorBoardLog, require_tensorboard
from alexnet_edge.training.recipe import TrainSettings, recipe_json
from alexnet_edge.training.schedule import learning_rate
from alexnet_edge.training.snapshot import Snapshot
from alexnet_edge.training.start import first_model, first_preprocessing
from alexnet_edge.training.stop import Stop

with needs("train"):
    import torch
    from torch import Tensor

    from alexnet_edge.training.distributed import World
    from alexnet_edge.training.learner import Learner, prepare_network, restore_weights
    from alexnet_edge.training.rescale import rescale

RESCALE_SAMPLE = 64
"""Images, evenly spaced in the training set, that the first weights are fitted to."""

HOPELESS_STEPS, HOPELESS_LOSS = 50, 10.0
"""A run has diverged when the loss stayed above 10 times that of an even guess for 50 steps in a row."""

LEAST_SCALE = 1e-3
"""FP16 has diverged when its loss scaler, which halves at each overflow, falls below this."""


class TrainingRun:
    """The state of one run, in one of its processes."""

    def __init__(self, settings: TrainSettings, world: World, reporter: Reporter, stop: Stop, started: float) -> None:
        self.settings, self.world, self.reporter, self.stop, self.started = settings, world, reporter, stop, started
        self.recipe = settings.resolved()
        if self.recipe.batch % world.size:
            problem = f"{world.size} processes cannot share a batch evenly"
            fix = f"choose a --batch that is a multiple of {world.size}"
            raise UserError(problem, value=self.recipe.batch, fix=fix)
        self.threads = settings.threads or max(1, usable_cpus() // world.local_size)
        torch.set_num_threads(self.threads)
        class_list = Path(settings.class_list) if settings.class_list else None
        self.images = open_split(settings.data, "train", class_list=class_list)
        self.val_images = open_split(settings.data, "val", class_list=class_list)
        self.arch = architecture(settings.arch, len(self.images.classes))
        self.spec = first_preprocessing(settings, self.recipe, self.arch)
        self.model, self.loaded = first_model(settings, self.recipe, self.arch, reporter)
        self.epoch, self.step = 0, 0  # the next step to take: epoch from 0, step within it
        self.sums = Sums()
        self.history: list[EpochRow] = []
        self.best: EpochRow | None = None
        self.recent: deque[float] = deque(maxlen=HOPELESS_STEPS)
        self.last_saved = -math.inf
        self.folder = Path()
        self.image_feeds: list[ImageFeed] = []
        self.log: TensorBoardLog | None = None
        if settings.tensorboard:
            require_tensorboard()

    def prepare(self, folder: Path, snapshot: Snapshot | None) -> None:
        """Open the feeds, fit the first weights or take over those of a snapshot, and make the optimizer."""
        self.folder = folder
        if snapshot is None:
            self._write_history()  # from here on the run can be found again
        else:
            with _fitting(snapshot):
                restore_weights(self.model, snapshot.tensors)  # first: frozen features are computed with them
        prepare_network(self.model, self.recipe, self.world.device)
        self.model.to(self.world.device)
        self.lighting = self._measured_lighting(snapshot)
        self.image_feeds = [self._image_feed(self.images, self.lighting), self._image_feed(self.val_images, None)]
        self.feed: Feed = self.image_feeds[0]
        self.val_feed: Feed = self.image_feeds[1]
        self.input_shape: tuple[int, ...] = (3, self.arch.input_size, self.arch.input_size)
        forward: Callable[[Tensor], Tensor] = self.model.logits
        fitted = [name for name in LAYER_NAMES if name not in self.loaded]
        if snapshot is not None or not self.recipe.rescale:
            fitted = []
        if self.recipe.freeze == "features":
            self._rescale(forward, [name for name in fitted if name.startswith("conv")])
            self.feed, self.val_feed = self._features()
            forward = self.model.classifier
            fitted = [name for name in fitted if name.startswith("fc")]
        self._rescale(forward, fitted)
        self.steps = -(-len(self.feed) // self.recipe.batch)
        total = self.steps * self.recipe.epochs
        self.learner = Learner(self.model, self.recipe, self.world, seed=self.settings.seed, steps=total)
        if snapshot is not None:
            with _fitting(snapshot):
                self._restore(snapshot)

    def _image_feed(self, images: ImageSet, lighting: Lighting | None) -> ImageFeed:
        return ImageFeed(
            images,
            self.spec,
            workers=self.threads if self.settings.workers is None else self.settings.workers,
            on_bad_image=self.settings.on_bad_image,
            lighting=lighting,
            device=self.world.device,
            augment_on=self.settings.augment_on,
            pool=self.settings.pool,
        )

    def close(self) -> None:
        """End the readers of images."""
        for feed in self.image_feeds:
            feed.close()

    def _measured_lighting(self, snapshot: Snapshot | None) -> Lighting | None:
        """The colours' principal components, measured once in a run; None where no view has its light changed."""
        if self.recipe.lighting_sigma == 0 or self.recipe.freeze == "features":
            return None
        if snapshot is not None:
            with _fitting(snapshot):
                return records.convert(Lighting, snapshot.state["lighting"])
        sigma, on_bad_image = self.recipe.lighting_sigma, self.settings.on_bad_image
        return self.world.from_first(
            lambda: measure_lighting(self.images, self.spec, sigma=sigma, on_bad_image=on_bad_image)
        )

    def _features(self) -> list[FeatureFeed]:
        """The answers of the frozen layers, which every process computes once for itself."""
        self.model.eval()
        width = next(spec.in_channels for spec in self.arch.layers if spec.kind == "fc")
        self.input_shape = (width,)
        return [
            compute_features(feed, self.model.features, width, views=views, reporter=self.reporter, split=split)
            for feed, views, split in zip(self.image_feeds, (self.recipe.views, 1), ("train", "val"), strict=True)
        ]

    def _rescale(self, forward: Callable[[Tensor], Tensor], layers: Sequence[str]) -> None:
        if not layers:
            return
        sample = sorted({place * len(self.feed) // RESCALE_SAMPLE for place in range(RESCALE_SAMPLE)})
        x, _ = next(iter(self.feed.batches(sample, [CENTRE] * len(sample), len(sample))))
        if not len(x):
            raise DataError("no training image can be used", value=self.settings.data, fix="replace them")
        rescale(self.model, forward, x.to(self.world.device), layers)

    def _restore(self, snapshot: Snapshot) -> None:
        state = snapshot.state
        self.learner.restore(snapshot.tensors, state["learner"])
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        self.sums = Sums(**state["sums"])
        self.history = [EpochRow(**row) for row in state["history"]]
        self.best = EpochRow(**state["best"]) if state["best"] else None

    def go(self) -> TrainResult:
        """Train to the end or the time limit; snapshots, history and the best weights are in the folder."""
        self.last_saved = time.monotonic()
        self.stop.preparing = False
        complete = True
        while self.epoch < self.recipe.epochs and complete:
            complete = self._epoch()
        assert self.best is not None, "every way here leads through a validation"
        if complete:
            if self.settings.keep == 0 and self.world.first:
                snapshots.remove_all(self.folder)
            self._write_history(complete=True)
        else:
            self._write_snapshot()
            self.reporter.note(f"time limit reached; go on with: alexnet-edge train --resume {self.folder}")
        return TrainResult(
            run=self.folder,
            checkpoint=self.folder / MODEL_FILE,
            best=self.best,
            history=tuple(self.history),
            seconds=time.monotonic() - self.started,
            complete=complete,
            skipped=self._skipped(),
            first=self.world.first,
        )

    def _epoch(self) -> bool:
        """Train to the end of the epoch and validate; False when the time limit ends the run first."""
        begin, seen_before = time.monotonic(), self.sums.seen
        self.reporter.start(f"Epoch {self.epoch + 1}/{self.recipe.epochs}", self.steps)
        in_time, waited_s = self._steps(begin)
        if not self.sums.seen:
            raise DataError("no training image can be used", value=self.settings.data, fix="replace them")
        trained_s = time.monotonic() - begin
        result = self._validate()
        row = EpochRow(
            epoch=self.epoch + 1,
            loss=self.sums.loss / self.sums.seen,
            accuracy=self.sums.correct / self.sums.seen,
            val_loss=result.loss,
            top1=result.top1,
            top5=result.top5,
            lr=self._rate(max(self.step - 1, 0)),
            gradient_norm=self.sums.gradient_norm / max(self.sums.steps, 1),
            images_per_s=(self.sums.seen - seen_before) / trained_s,
            wait_share=waited_s / trained_s,
            seconds=time.monotonic() - begin,
        )
        self._keep_if_best(row)
        if not in_time:
            return False
        self.history.append(row)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, Sums()
        if self.log is not None:
            filters_OCHW = self.learner.kept.conv1.weight.detach().float().cpu().numpy()
            self.log.epoch(row, self.epoch * self.steps, filters_OCHW)
        self._write_history()
        self._write_snapshot()
        self.reporter.finish(
            f"loss {row.loss:.3f}, accuracy {row.accuracy:.1%}, val loss {row.val_loss:.3f}, top-1 {row.top1:.1%}, "
            f"{row.images_per_s:.0f} images/s"
        )
        late = self.world.sums([float(self._late())])[0] > 0
        return not (late and self.epoch < self.recipe.epochs)

    def _steps(self, begin: float) -> tuple[bool, float]:
        """Take the remaining steps of the epoch; whether there was time for them, and seconds waited for images."""
        count, batch = len(self.feed), self.recipe.batch
        order_N = np.random.default_rng((self.settings.seed, self.epoch)).permutation(count)
        draws = epoch_draws(count, seed=self.settings.seed, epoch=self.epoch)
        ends = [(first, min(first + batch, count)) for first in range(self.step * batch, count, batch)]
        mine = [place for first, end in ends for place in self.world.part(first, end)]
        seen_before, waited_s = self.sums.seen, 0.0
        batches = self.feed.batches(order_N[mine].tolist(), draws.at(mine), batch // self.world.size)
        nothing = (
            torch.empty((0, *self.input_shape)),
            torch.empty(0, dtype=torch.int64),
        )  # a last batch may be too small
        for first, end in ends:
            begin_s = time.monotonic()
            x, labels_N = next(batches, None) or nothing
            batch_wait_s = time.monotonic() - begin_s
            waited_s += batch_wait_s
            late = self._take(x, labels_N, end - first, begin_s=begin_s, wait_s=batch_wait_s)
            seen, rate = max(self.sums.seen, 1), (self.sums.seen - seen_before) / (time.monotonic() - begin)
            detail = f"loss {self.sums.loss / seen:.3f}, accuracy {self.sums.correct / seen:.1%}, {rate:.0f} images/s"
            self.reporter.update(self.step, detail)
            if late and self.step < self.steps:
                return False, waited_s
            if self.world.first and time.monotonic() - self.last_saved >= self.settings.save_minutes * 60:
                self._write_snapshot()
        return True, waited_s

    def _take(self, x: Tensor, labels_N: Tensor, expected: int, *, begin_s: float, wait_s: float) -> bool:
        """Take one step, which began at `begin_s` and waited `wait_s` for its batch; returns whether the time is up.

        Raises:
            InterruptedRunError: when a signal asked any process to stop, after a snapshot was written.
            DivergedError: when the step was not finite.
        """
        count = expected
        if self.settings.on_bad_image == "skip":
            count = int(self.world.sums([len(labels_N)])[0])
        rate = self._rate(self.step)
        stop, late = self.stop.asked, self._late()
        if count:
            place = (self.epoch, self.step)
            step = self.learner.step(x, labels_N, count=count, rate=rate, place=place, flags=(float(stop), float(late)))
            self._check_step(step.loss, step.gradient_norm, rate)
            stop, late = (flag > 0 for flag in step.flags)
            self.sums.add(step.loss, step.correct, step.count, step.gradient_norm)
            if self.log is not None:
                seconds = time.monotonic() - begin_s
                figures = {
                    "loss": step.loss,
                    "accuracy": step.correct / step.count,
                    "lr": rate,
                    "gradient_norm": step.gradient_norm,
                    "images_per_s": step.count / seconds,
                    "wait_share": wait_s / seconds,
                }
                self.log.step(self.epoch * self.steps + self.step + 1, figures)
        self.step += 1
        if stop or (self.world.size == 1 and self.stop.asked):
            self._leave()
        return late

    def _check_step(self, loss: float, gradient_norm: float, rate: float) -> None:
        scaler = self.learner.scaler
        self.recent.append(loss)
        even = math.log(self.arch.num_classes)
        if not math.isfinite(loss):
            reason = f"the loss is {loss}"
        elif not math.isfinite(gradient_norm) and not scaler.is_enabled():
            reason = "the gradient is not finite"
        elif scaler.is_enabled() and scaler.get_scale() < LEAST_SCALE:
            reason = f"FP16 overflows at every scale down to {scaler.get_scale():.1g}"
        elif len(self.recent) == HOPELESS_STEPS and min(self.recent) > HOPELESS_LOSS * even:
            reason = f"the loss stayed above {HOPELESS_LOSS * even:.0f} for {HOPELESS_STEPS} steps"
        else:
            return
        place = f"epoch {self.epoch + 1}, step {self.step + 1}"
        raise self._diverged(f"{reason} in {place}, learning rate {rate:.2g}, gradient norm {gradient_norm:.3g}")

    def _rate(self, step: int) -> float:
        errors = [1 - row.top1 for row in self.history]
        return learning_rate(self.recipe, self.epoch + step / self.steps, errors)

    def _validate(self) -> Evaluation:
        mine = self.world.part(0, len(self.val_feed))
        outputs, labels = list[FloatArray](), list[Any]()
        for x, labels_N in self.val_feed.batches(mine, [CENTRE] * len(mine), 64):
            if len(x):
                outputs.append(self.learner.logits(x).cpu().numpy())
                labels.append(labels_N.cpu().numpy())
            if self.world.size == 1 and self.stop.asked:
                self._leave()
        gathered = self.world.gather((outputs, labels))
        outputs = [part for parts, _ in gathered for part in parts]
        labels = [part for _, parts in gathered for part in parts]
        if not outputs:
            raise DataError("no validation image can be used", value=self.settings.data, fix="replace them")
        y_NK = np.concatenate(outputs)
        if not np.isfinite(y_NK).all():
            place = f"epoch {self.epoch + 1}, step {self.step}"
            rate, norm = self._rate(max(self.step - 1, 0)), self.sums.gradient_norm / max(self.sums.steps, 1)
            raise self._diverged(
                f"the outputs after {place}, are not finite, learning rate {rate:.2g}, mean gradient norm {norm:.3g}"
            )
        return score(y_NK, np.concatenate(labels), classes=self.images.classes, head="logits")

    def _leave(self) -> None:
        self._write_snapshot()
        place = f"epoch {self.epoch + 1} of {self.recipe.epochs}"
        error = InterruptedRunError(f"stopped in {place}; go on with: alexnet-edge train --resume {self.folder}")
        if self.stop.signal is not None:
            error.exit_code = 128 + self.stop.signal
        raise error

    def _diverged(self, reason: str) -> DivergedError:
        saved = [f"the last good snapshot is {path}" for path in snapshots.newest_first(self.folder)[:1]]
        if self.best is not None:
            saved.append(f"the best checkpoint so far is {self.folder / MODEL_FILE}")
        return DivergedError(
            f"training diverged: {reason}; {'; '.join(saved) or 'no checkpoint was written'}; "
            f"try --lr {self.recipe.lr / 3:.1g}"
        )

    def _late(self) -> bool:
        limit = self.settings.max_minutes
        return limit is not None and time.monotonic() - self.started >= limit * 60

    def _skipped(self) -> tuple[str, ...]:
        """The errors of the images that any process left out."""
        bad = [{index: str(error) for index, error in feed.bad.items()} for feed in self.image_feeds]
        faults: list[dict[int, str]] = [{}, {}]  # of the training and the validation images
        for process in self.world.gather(bad):
            for split, more in zip(faults, process, strict=True):
                split.update(more)
        return tuple(text for split in faults for _, text in sorted(split.items()))

    def _keep_if_best(self, row: EpochRow) -> None:
        """Write the weights when the epoch is the best, by top-1, then by loss."""
        if self.best is not None and (row.top1, -row.val_loss) <= (self.best.top1, -self.best.val_loss):
            return
        self.best = row
        skipped = self._skipped()
        if not self.world.first:
            return
        recipe = {**self.settings.to_json(), **recipe_json(self.recipe)}
        info = CheckpointInfo(
            architecture=self.arch.name,
            classes=self.images.classes,
            preprocessing=self.spec,
            recipe={**recipe, "computed_in": self.learner.precision, "processes": self.world.size},
            data={
                **_described(self.images),
                "val": _described(self.val_images),
                "skipped": list(skipped),
                "lighting": records.to_builtins(self.lighting),
            },
            metrics=records.to_builtins(row),
            tools=versions(),
        )
        weights = {name: value.cpu().numpy() for name, value in self.learner.kept_weights().items()}
        save_checkpoint(self.folder / MODEL_FILE, weights, info)

    def _write_snapshot(self) -> None:
        """Write a snapshot that `prepare` can continue from; none when weights are not finite: the next step raises that."""
        if not self.world.first or not self.learner.finite():
            return
        state = {
            **self._begun_as(),
            "data_hash": self.images.content_hash(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "best": self.best,
            "history": self.history,
            "learner": self.learner.state(),
            "lighting": self.lighting,
        }
        snapshots.write(
            self.folder, self.learner.tensors(), records.to_builtins(state), keep=max(self.settings.keep, 1)
        )
        self.last_saved = time.monotonic()

    def _write_history(self, *, complete: bool = False) -> None:
        skipped = self._skipped() if self.history else ()
        if not self.world.first:
            return
        history = {
            "schema": SCHEMA,
            **self._begun_as(),
            "complete": complete,
            "best": self.best,
            "epochs": self.history,
            "skipped": skipped,
        }
        write_json(self.folder / HISTORY_FILE, records.to_builtins(history))

    def _begun_as(self) -> dict[str, Any]:
        recipe = recipe_json(self.recipe)
        return {"settings": self.settings.to_json(), "recipe": recipe, "processes": self.world.size}


def _described(images: ImageSet) -> dict[str, Any]:
    return {"source": images.source, "hash": images.content_hash(), "images": len(images)}


@contextmanager
def _fitting(snapshot: Snapshot) -> Iterator[None]:
    """Refuse a snapshot that is whole but does not fit the run."""
    try:
        yield
    except (RuntimeError, *MALFORMED) as error:
        problem = f"the snapshot does not fit the run ({type(error).__name__}: {error})"
        raise CheckpointError(problem, value=snapshot.path, fix="start a new run") from error
