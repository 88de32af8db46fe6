"""Calibration: histograms against numpy, entropy against the algorithm as published, and a cache that cannot be stale."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alexnet_edge.errors import DataError, ImageError, UserError
from alexnet_edge.export.graphs.onnx import layer_inputs, onnx_from_checkpoint, write_onnx
from alexnet_edge.export.quantising import calibrate as module
from alexnet_edge.export.quantising.calibrate import (
    BINS,
    LEVELS,
    METHODS,
    PERCENTILE,
    Calibration,
    Collecting,
    Histogram,
    calibrate,
    choose_amax,
)
from alexnet_edge.images.datasets import ImageSet, batches, open_images
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.proof.evaluate import outputs_NK
from alexnet_edge.proof.recorded import calibration_images, random_images
from alexnet_edge.sessions.torch import CheckpointSession

MakeCheckpoint = Callable[..., Path]
Calibrate = Callable[..., Calibration]


@pytest.fixture
def few(image_folder: Path, tmp_path: Path) -> Path:
    """A folder of four images that a test may change."""
    folder = tmp_path / "few"
    folder.mkdir()
    for source in sorted((image_folder / "val").glob("*/0.jpg")):
        shutil.copy(source, folder / f"{source.parent.name}.jpg")
    return folder


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Takes the network out of `calibrate`; grows by one with each pass over the images."""
    passes: list[int] = []

    def observed(
        checkpoint: Checkpoint, images: Any, taps: Any, title: str, how: Collecting, skipped: Any
    ) -> Iterator[dict[str, np.ndarray]]:
        passes.append(1)
        for batch in batches(
            images, checkpoint.info.preprocessing, batch=8, on_bad_image=how.on_bad_image, bad=skipped
        ):
            yield {name: batch.x_NCHW * np.float32(index + 1) for index, name in enumerate(taps)}

    monkeypatch.setattr(module, "observed", observed)
    return passes


@pytest.fixture
def minmax(checkpoint: Checkpoint, few: Path, tmp_path: Path) -> Calibrate:
    """Calibrates on the images of `few` as they are, with a cache, unless something else is named."""

    def run(network: Checkpoint = checkpoint, images: ImageSet | None = None, **options: Any) -> Calibration:
        return calibrate(
            network, images or open_images(few), **{"method": "minmax", "cache": tmp_path / "cache", **options}
        )

    return run


def filled(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part.astype(np.float32))
    return histogram


@pytest.mark.parametrize(
    ("parts", "top"),
    [
        ([np.random.default_rng(0).normal(0, 3, (2, 5, 100)).astype(np.float32)], None),
        ([np.linspace(0.001, 1, 5000), np.array([3.5])], 4.0),
    ],
    ids=["one", "doubled"],
)
def test_counts_are_numpy_s(parts: list[np.ndarray], top: float | None) -> None:
    histogram = filled(*parts)
    values = np.abs(np.concatenate([part.ravel() for part in parts]))
    assert histogram.largest == values.max()
    assert histogram.top == (top or values.max())
    assert histogram.counts.sum() == values.size
    expected, _ = np.histogram(values, bins=BINS, range=(0, histogram.top))
    # a value on an edge may fall on either side of it: float32 against float64
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(expected)).max() <= 1


@settings(deadline=None, max_examples=40)
@given(st.lists(arrays(np.float32, st.integers(0, 30), elements=st.floats(-(2.0**90), 2.0**90, width=32)), max_size=5))
def test_nothing_is_lost_when_the_range_doubles(parts: list[np.ndarray]) -> None:
    histogram = filled(*parts)
    values = np.concatenate([*parts, np.zeros(0)])
    assert histogram.counts.sum() == values.size
    assert (histogram.counts >= 0).all()
    assert histogram.largest == np.abs(values).max(initial=0)
    assert histogram.largest <= histogram.top or histogram.top == 0
    for method in METHODS:
        amax = choose_amax(histogram, method)
        assert 0 < amax <= max(histogram.largest, 1.0)
        assert 0 <= histogram.saturated(amax) <= 1


def test_minmax_is_exact() -> None:
    values = np.random.default_rng(1).normal(0, 1, 999).astype(np.float32)
    assert choose_amax(filled(values, 3 * values), "minmax") == np.abs(3 * values).max()


def test_percentile_is_numpy_s_within_a_bin() -> None:
    values = np.random.default_rng(2).gamma(1.0, 2.0, 200_000).astype(np.float32)
    histogram = filled(values[:50_000], values[50_000:])
    amax = choose_amax(histogram, "percentile")
    assert abs(amax - np.percentile(values, PERCENTILE)) <= histogram.top / BINS
    assert histogram.saturated(amax) <= 1 - PERCENTILE / 100


@pytest.mark.parametrize(("value", "amax"), [(0.0, 1.0), (7.0, 7.0)])
def test_a_constant_is_represented(value: float, amax: float) -> None:
    histogram = filled(np.full(10, value))
    assert [choose_amax(histogram, method) for method in METHODS] == pytest.approx([amax] * len(METHODS), rel=1 / BINS)
    assert histogram.saturated(amax) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(UserError, match="not finite"):
        filled(np.array([1.0, value]))


@pytest.mark.parametrize("seed", range(4))
def test_mse_is_the_best_of_all_ranges(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.abs(np.concatenate([rng.normal(0, 1, 50_000), rng.gamma(1, 3, 200)])).astype(np.float32)
    histogram = filled(values)

    def error(amax: float) -> float:
        steps = np.minimum(np.rint(values / (amax / 127)), 127)
        return float(((values - steps * (amax / 127)) ** 2).mean())

    chosen = choose_amax(histogram, "mse")
    candidates = np.linspace(0.05, 1, 200) * histogram.largest
    assert error(chosen) <= 1.02 * min(error(float(amax)) for amax in candidates)
    assert error(chosen) < error(choose_amax(histogram, "minmax"))


def published(counts: list[int]) -> int:
    """Migacz's algorithm, step by step as on the slides, in plain Python: the number of bins with the least divergence.

    As there, the first bin takes the count of the second; candidates end with the last bin that is not empty.
    """
    counts = [counts[1], *counts[1:]]
    last = max((index + 1 for index, count in enumerate(counts) if count), default=1)
    best, best_bins = math.inf, last
    for bins in range(LEVELS, last + 1):
        reference = [float(count) for count in counts[:bins]]
        reference[-1] += sum(counts[bins:])
        groups: list[list[int]] = [[] for _ in range(LEVELS)]
        for index in range(bins):
            groups[index * LEVELS // bins].append(index)
        candidate = [0.0] * bins
        for group in groups:
            filled = [index for index in group if counts[index]]
            for index in filled:
                candidate[index] = sum(counts[entry] for entry in group) / len(filled)
        if sum(candidate) == 0:
            continue
        p = [value / sum(reference) for value in reference]
        q = [value / sum(candidate) for value in candidate]
        divergence = sum(a * math.log(a / max(b, 1e-6)) for a, b in zip(p, q, strict=True) if a > 0)
        if divergence < best - 1e-12:
            best, best_bins = divergence, bins
    return best_bins


@pytest.mark.parametrize("seed", range(8))
def test_entropy_is_the_published_algorithm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(140, 330))
    shape = np.exp(-np.arange(length) / rng.uniform(10, 80)) * rng.uniform(50, 5000)
    counts = rng.poisson(shape)
    counts[rng.integers(0, length, 4)] += rng.integers(0, 3, 4)
    assert module._least_divergence(counts.astype(np.int64)) == published(counts.tolist())


def test_entropy_clips_a_heavy_tail() -> None:
    rng = np.random.default_rng(3)
    body = np.abs(rng.normal(0, 1, 200_000))
    histogram = filled(body, np.array([60.0, 80.0, 100.0]))
    amax = choose_amax(histogram, "entropy")
    assert 2.0 < amax < 30.0
    assert 0 < histogram.saturated(amax) < 0.01


def test_entropy_keeps_a_uniform_distribution_whole() -> None:
    histogram = filled((np.arange(BINS * 20) + 0.5) / (BINS * 20) * 5)
    assert choose_amax(histogram, "entropy") == pytest.approx(5.0, rel=1 / BINS)
    assert histogram.saturated(choose_amax(histogram, "entropy")) == 0.0


def test_entropy_with_everything_far_from_zero() -> None:
    """Candidates that would keep nothing at all are no candidates."""
    histogram = filled(np.full(1000, 5.0), np.array([5.5]))
    assert choose_amax(histogram, "entropy") >= 5.0


def test_minmax_is_that_of_onnxruntime(checkpoint: Checkpoint, few: Path, tmp_path: Path, minmax: Calibrate) -> None:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    largest = minmax()
    assert largest.num_images == 4
    assert not largest.cached
    assert tuple(largest.amax) == LAYER_NAMES
    assert set(largest.saturated.values()) == {0.0}

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts: Iterator[Any] = batches(open_images(few), checkpoint.info.preprocessing, batch=1)

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.parts, None)
            return None if part is None else {"input": part.x_NCHW}

    write_onnx(onnx_from_checkpoint(checkpoint), tmp_path / "a.onnx")
    calibrator = create_calibrator(
        str(tmp_path / "a.onnx"),
        ["Conv", "Gemm"],
        str(tmp_path / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )
    calibrator.collect_data(Reader())
    ranges = calibrator.compute_data().data
    for layer, tensor in layer_inputs(checkpoint.info.arch).items():
        low, high = (float(np.asarray(value).ravel()[0]) for value in ranges[tensor].range_value)
        assert largest.amax[layer] == pytest.approx(max(abs(low), abs(high)), rel=1e-5), layer
    again = minmax()
    assert again.cached
    assert again.amax == largest.amax
    assert again.to_json() == largest.to_json()
    less = minmax(method="entropy")
    assert less.cached, "another method needs no second pass"
    assert all(0 < less.amax[name] <= largest.amax[name] for name in LAYER_NAMES)
    assert less.table_sha256 != largest.table_sha256


def test_cache_is_hit_by_the_same_content(few: Path, tmp_path: Path, collected: list[int], minmax: Calibrate) -> None:
    first, second = minmax(), minmax()
    shutil.copytree(few, tmp_path / "moved")
    third = minmax(images=open_images(tmp_path / "moved"))
    assert len(collected) == 1
    assert (first.cached, second.cached, third.cached) == (False, True, True)
    assert first.amax == second.amax == third.amax
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_cache_is_missed_when_an_image_or_the_network_changes(
    checkpoint: Checkpoint, few: Path, collected: list[int], minmax: Calibrate
) -> None:
    minmax()
    preprocessing = replace(checkpoint.info.preprocessing, resize=227)
    assert not minmax(replace(checkpoint, sha256="00" * 32)).cached
    assert not minmax(replace(checkpoint, info=replace(checkpoint.info, preprocessing=preprocessing))).cached
    assert minmax().cached
    shutil.copy(few / "red.jpg", few / "blue.jpg")
    assert not minmax().cached
    assert not minmax(images=open_images(few, limit=2)).cached
    assert len(collected) == 5


def test_a_damaged_cache_is_collected_again(tmp_path: Path, collected: list[int], minmax: Calibrate) -> None:
    good = minmax()
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    damaged = [b"", b"not a zip file", whole[:100], whole[: len(whole) // 2], whole[:-30], b"\x93NUMPY\x01\x00" + whole]
    for content in damaged:
        path.write_bytes(content)
        passes = len(collected)
        again = minmax()
        assert not again.cached
        assert len(collected) == passes + 1
        assert again.amax == good.amax
        assert minmax().cached, "and written again"


def test_no_flipped_byte_of_the_cache_changes_the_magnitudes(
    tmp_path: Path, collected: list[int], minmax: Calibrate
) -> None:
    good = minmax()
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    heads = [place for place in range(len(whole)) if whole[place : place + 2] == b"PK"]
    places = [*rng.integers(0, len(whole), 40), *[head + step for head in heads for step in range(0, 46, 3)]]
    for place in places:
        if place < len(whole):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(flipped)
            cached = module._read_cache(path, LAYER_NAMES)
            if cached is not None:
                assert cached[1] == good.num_images
                amax = {name: choose_amax(histogram, "minmax") for name, histogram in cached[0].items()}
                assert amax == good.amax, place


def test_a_cache_that_cannot_be_written_does_not_stop_the_calibration(
    tmp_path: Path, collected: list[int], minmax: Calibrate, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    ranges = minmax(cache=tmp_path / "file" / "cache")
    assert ranges.num_images == 4
    assert not ranges.cached
    (record,) = caplog.records
    assert "a part of the path is a file" in record.getMessage()


def test_bad_images_are_refused_or_listed(few: Path, collected: list[int], minmax: Calibrate) -> None:
    (few / "bad.jpg").write_bytes((few / "red.jpg").read_bytes()[:200])
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        minmax()
    for _ in range(2):  # the list is told every time, so nothing is kept
        ranges = minmax(how=Collecting(on_bad_image="skip"))
        assert ranges.num_images == 4
        assert len(ranges.skipped) == 1
        assert "bad.jpg" in ranges.skipped[0]
        assert ranges.to_json()["skipped"] == list(ranges.skipped)


def test_what_cannot_be_calibrated(few: Path, collected: list[int], minmax: Calibrate) -> None:
    with pytest.raises(UserError, match="entropy, minmax, percentile"):
        minmax(method="average")
    assert not collected
    for path in few.iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match="none of the 4 images can be used"):
        minmax(how=Collecting(on_bad_image="skip"))


def test_random_pixels_only_when_named_and_recorded(checkpoint: Checkpoint, collected: list[int]) -> None:
    with pytest.raises(UserError, match=r"records no train data.*--calibration"):
        calibration_images(checkpoint, None, None)
    with pytest.raises(UserError, match="1 or more"):
        calibration_images(checkpoint, "random", 0)
    images = calibration_images(checkpoint, "random", 3)
    assert images.source == {"kind": "random", "count": 3}
    assert len(images) == 3
    ranges = calibrate(checkpoint, images)
    assert ranges.to_json()["source"] == {"kind": "random", "count": 3}
    assert ranges.images_sha256 == random_images(3).content_hash()
    assert ranges.images_sha256 != random_images(2).content_hash()
    first, second = (np.asarray(images.image(index)) for index in (0, 1))
    assert first.shape == (256, 256, 3)
    assert not np.array_equal(first, second)


def test_the_training_images_of_the_checkpoint_are_the_default(checkpoint: Checkpoint, image_folder: Path) -> None:
    from alexnet_edge.images.datasets import open_split

    data = {"source": open_split(image_folder, "train").source}
    trained = replace(checkpoint, info=replace(checkpoint.info, data=data))
    images = calibration_images(trained, None, 8)
    assert len(images) == 8
    assert np.bincount(images.labels_N).tolist() == [2, 2, 2, 2], "evenly spread over the classes"
    named = calibration_images(trained, str(image_folder / "val"), None)
    assert len(named) == 12


def test_outputs_that_no_layer_takes_are_calibrated_when_asked_for(
    checkpoint: Checkpoint, few: Path, minmax: Calibrate
) -> None:
    """On the network itself; the layers' own ranges do not change."""
    plain, ranges = minmax(), minmax(outputs=True)
    assert plain.output_amax == {}
    assert "output_amax" not in plain.to_json()
    assert set(ranges.output_amax) == {"conv1", "conv2", "fc8"}
    assert ranges.amax == plain.amax
    again = minmax(outputs=True)
    assert again.cached
    assert again.output_amax == ranges.output_amax
    with CheckpointSession(checkpoint) as session:
        answers_NK, _ = outputs_NK(session, open_images(few))
    assert ranges.output_amax["fc8"] == pytest.approx(float(np.abs(answers_NK).max()), rel=1e-4)
