"""Views: which there are, that their numbers are no accident of the machine, and the paper's change of light."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from alexnet_edge import records
from alexnet_edge.errors import DataError, ImageError
from alexnet_edge.images.augment import CENTRE, Draw, Lighting, epoch_draws, measure_lighting, view
from alexnet_edge.images.datasets import open_split
from alexnet_edge.images.feeds import ImageFeed
from alexnet_edge.images.preprocess import Preprocessing, normalise, preset, resize_shorter

SMALL = Preprocessing(resize=32, crop=24)
IMAGENET_FIRST = np.array([0.5675, 0.5808, 0.5836])
"""The first principal component of ImageNet's colours, as fb.resnet.torch and many after it publish it."""


def test_random_views_are_crops_and_mirrors_of_the_resized_image() -> None:
    pixels = np.arange(10 * 14 * 3, dtype=np.uint8).reshape(10, 14, 3)
    spec = Preprocessing(resize=10, crop=4)
    assert np.array_equal(view(pixels, spec, Draw(0.0, 0.0, 0.0)), pixels[:4, :4])
    assert np.array_equal(view(pixels, spec, Draw(0.999, 0.999, 0.0)), pixels[6:, 10:])
    assert np.array_equal(view(pixels, spec, Draw(0.5, 0.0, 0.5)), pixels[:4, 5:9][:, ::-1])
    assert np.array_equal(view(pixels, spec, CENTRE), pixels[3:7, 5:9])
    seen = {view(pixels, spec, draw).tobytes() for draw in epoch_draws(3000, seed=0, epoch=0)}
    assert len(seen) == 7 * 11 * 2, "every place and its mirror image, and no other"


def test_crops_of_the_paper_are_spread_evenly_over_their_places_and_half_are_mirrored() -> None:
    """227 of 256: 30 places each way."""
    draws = epoch_draws(30_000, seed=3, epoch=1)
    lefts = np.array([int(draw.left * 30) for draw in draws])
    tops = np.array([int(draw.top * 30) for draw in draws])
    for places in (lefts, tops):
        counts = np.bincount(places, minlength=30)
        assert len(counts) == 30
        chi_squared = ((counts - 1000) ** 2 / 1000).sum()
        assert chi_squared < 58  # 99.9 % of even draws, 29 degrees of freedom
    assert abs(np.corrcoef(lefts, tops)[0, 1]) < 0.02
    assert np.mean([draw.mirror >= 0.5 for draw in draws]) == pytest.approx(0.5, abs=0.01)


def test_a_draw_depends_on_seed_epoch_and_place_alone() -> None:
    few, many = epoch_draws(7, seed=5, epoch=2), epoch_draws(1000, seed=5, epoch=2)
    assert list(few) == list(many[:7])
    assert [many[3:8][index] for index in range(5)] == [many[index] for index in range(3, 8)]
    assert list(many.at([9, 2, 4])) == [many[9], many[2], many[4]]
    assert len(set(many)) == 1000
    for other in (epoch_draws(7, seed=5, epoch=3), epoch_draws(7, seed=6, epoch=2)):
        assert not set(few) & set(other)
    assert epoch_draws(0, seed=0, epoch=0)[:4].at([]) is not None
    with pytest.raises(IndexError):
        few[7]


def test_light_is_that_of_the_paper_on_real_images(data_root: Path) -> None:
    """Against section 4.1 written down once more with numpy, in float64, from the files to the network's input."""
    images = open_split(data_root / "flowers", "train").spread(40)
    spec = preset("paper-227")
    lighting = measure_lighting(images, spec, sigma=0.1, on_bad_image="fail")
    assert lighting.images == 40

    resized = [np.asarray(resize_shorter(images.image(index), spec), np.float64) / 255 for index in range(40)]
    covariance = np.cov(np.concatenate([pixels.reshape(-1, 3) for pixels in resized]).T, bias=True)
    for value, vector in zip(lighting.eigenvalues, np.array(lighting.eigenvectors), strict=True):
        np.testing.assert_allclose(covariance @ vector, value * vector, rtol=1e-6, atol=1e-9)
    assert sorted(lighting.eigenvalues, reverse=True) == list(lighting.eigenvalues)
    vectors_KC = np.array(lighting.eigenvectors)
    np.testing.assert_allclose(vectors_KC @ vectors_KC.T, np.eye(3), atol=1e-9)
    assert np.abs(vectors_KC[0] @ IMAGENET_FIRST) > 0.97, "brightness comes first in all photographs"
    assert 0.1 < lighting.eigenvalues[0] < 0.4, "ImageNet's is 0.2175"

    draws = epoch_draws(40, seed=1, epoch=0)
    feed = ImageFeed(images, spec, workers=0, on_bad_image="fail", lighting=lighting)
    ((x_NCHW, _),) = feed.batches(range(40), draws, 40)
    values, vectors = np.linalg.eigh(covariance)
    for index in range(40):
        draw = draws[index]
        alpha = 0.1 * np.array(draw.light)
        p = np.stack([vectors[:, k] * np.sign(vectors[np.abs(vectors[:, k]).argmax(), k]) for k in (2, 1, 0)], axis=1)
        added = p @ (alpha * values[[2, 1, 0]])
        height, width, _ = resized[index].shape
        left, top = int(draw.left * (width - 226)), int(draw.top * (height - 226))
        crop = resized[index][top : top + 227, left : left + 227]
        crop = crop[:, ::-1] if draw.mirror >= 0.5 else crop
        expected = ((crop + added - spec.mean) / spec.std).transpose(2, 0, 1)  # paper-227: the 0-255 scale
        np.testing.assert_allclose(x_NCHW[index].numpy(), expected, atol=2e-4)


def test_light_moves_all_pixels_of_an_image_alike_and_differently_each_epoch(image_folder: Path) -> None:
    images = open_split(image_folder, "train")
    lighting = measure_lighting(images, SMALL, sigma=0.1, on_bad_image="fail")
    plain = ImageFeed(images, SMALL, workers=0, on_bad_image="fail")
    lit = ImageFeed(images, SMALL, workers=0, on_bad_image="fail", lighting=lighting)
    moved = []
    for epoch in (0, 1):
        draws = epoch_draws(24, seed=0, epoch=epoch)
        ((before, _),), ((after, _),) = (feed.batches(range(24), draws, 24) for feed in (plain, lit))
        difference_NCX = (after - before).flatten(2).numpy()
        assert np.ptp(difference_NCX, axis=2).max() < 1e-5
        moved.append(difference_NCX.mean(2))
    assert (np.abs(moved[0] - moved[1]).max(1) > 1e-4).all()
    ((centre, _),), ((unlit, _),) = (feed.batches(range(24), [CENTRE] * 24, 24) for feed in (plain, lit))
    assert np.array_equal(centre.numpy(), unlit.numpy()), "evaluation's view has its own light"


def test_light_spreads_as_far_as_sigma_says() -> None:
    random = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(random.normal(size=(3, 3)))
    rows = tuple(tuple(float(value) for value in row) for row in vectors)
    lighting = Lighting(sigma=0.1, eigenvalues=(0.2, 0.02, 0.005), eigenvectors=rows, images=1)  # type: ignore[arg-type]
    shifts = np.stack([lighting.shift(draw.light) for draw in epoch_draws(20_000, seed=0, epoch=0)])
    along = shifts.astype(np.float64) @ vectors.T
    assert along.mean(0) == pytest.approx(0, abs=5e-4)
    assert along.std(0) == pytest.approx([0.02, 0.002, 0.0005], rel=0.03)
    assert lighting.shift(CENTRE.light).tolist() == [0, 0, 0]


def test_lighting_is_recorded_to_the_last_bit(image_folder: Path) -> None:
    lighting = measure_lighting(open_split(image_folder, "train"), SMALL, sigma=0.1, on_bad_image="fail")
    again = records.decode(Lighting, json.dumps(records.to_builtins(lighting)))
    assert again == lighting
    assert lighting == measure_lighting(open_split(image_folder, "train"), SMALL, sigma=0.1, on_bad_image="fail")
    for damage in ({"eigenvectors": [[1, 0, 0]]}, {"eigenvalues": [1, 2]}):
        with pytest.raises(ValueError, match=r"^eigen(vectors|values): expected array of length 3"):
            records.convert(Lighting, {**records.to_builtins(lighting), **damage})
    assert all(math.isclose(np.linalg.norm(vector), 1) for vector in lighting.eigenvectors)


def test_lighting_of_images_of_which_some_or_all_are_broken(image_folder: Path, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "broken.jpg").write_bytes(b"broken")
    images = open_split(tmp_path, "train")
    with pytest.raises(DataError, match="no training image can be used"):
        measure_lighting(images, SMALL, sigma=0.1, on_bad_image="skip")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        measure_lighting(images, SMALL, sigma=0.1, on_bad_image="fail")
    (tmp_path / "train/a/good.jpg").write_bytes((image_folder / "train/red/0.jpg").read_bytes())
    assert measure_lighting(open_split(tmp_path, "train"), SMALL, sigma=0.1, on_bad_image="skip").images == 1


def test_normalise_into_memory_that_is_there_and_with_a_shift() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    spec = preset("imagenet-227")
    out = np.empty((2, 3, 5, 7), np.float32)
    assert normalise(pixels[:, :, ::-1], spec, out=out) is out
    assert np.array_equal(out, normalise(pixels, spec)[..., ::-1])
    shift = np.array([0.1, -0.2, 0.0], np.float32)
    moved = normalise(pixels, spec, shift_C=shift) - normalise(pixels, spec)
    np.testing.assert_allclose(moved, np.broadcast_to((shift / spec.std)[:, None, None], moved.shape), atol=1e-6)
