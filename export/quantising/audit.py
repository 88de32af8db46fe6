"""Calibration audit: what the images that ranges were taken from are, and what they can be trusted for.

Three questions. Are the classes balanced? Are images of the evaluation among them, so that the proof has been seen before: the
same file, the same pixels in another file, or a picture that looks the same? Which layers saturate, and by how much?

Pictures that look the same are found by a difference hash: the picture in gray, scaled to 17x16, each pixel compared with its
right neighbour, which gives 256 bits; re-encoding, scaling and small changes of colour leave nearly all of them. Twelve lines,
against a package whose only used function would be these.

Source: N. Krawetz, "Kind of Like That" (hackerfactor.com, 2013), the difference hash, here with more bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexnet_edge.errors import ImageError
from alexnet_edge.images.datasets import ImageSet

if TYPE_CHECKING:
    from alexnet_edge.export.quantising.calibrate import Calibration

HASH_SIDE = 16
"""The difference hash has this many bits squared."""
LOOKS_ALIKE = 16
"""Bits of 256 in which two pictures that look the same may differ. Of 870,000 pairs of photographs (flowers, ImageNet samples)
the nearest differ in 38, all but one in ten thousand in 72 or more."""
FEW_IMAGES = 64
"""Fewer calibration images than this are warned of."""
IMBALANCE = 3.0
"""The largest class may have so many times the images of the smallest."""
SATURATED = 0.01
"""Share of saturated values of a layer that is warned of."""
MOST_LISTED = 10
"""Longest list of overlapping images in a manifest; the count is whole."""

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """A calibration image that is an evaluation image too."""

    calibration: str
    evaluation: str
    how: str
    """`file`: the same bytes; `pixels`: the same picture in another file; `looks alike`: nearly the same picture."""
    bits: int
    """Of the difference hash that differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationAudit:
    """What was found; kept in the manifest beside the ranges."""

    num_images: int
    classes: Mapping[str, int]
    """Images per class, or per folder where they have no labels; empty where they are in one folder without labels."""
    balance: float | None
    """Entropy of the classes' shares over the largest possible: 1 is even; None without classes."""
    missing: tuple[str, ...]
    """Classes of the network without an image, where the images are of the network's classes."""
    duplicates: int
    """Calibration images that are another's copy, by their pixels."""
    overlaps: tuple[Overlap, ...]
    """Those with the evaluation images, the first `MOST_LISTED`."""
    num_overlaps: Mapping[str, int]
    """How many calibration images overlap, by `Overlap.how`."""
    evaluation_images: int
    saturated: Mapping[str, float]
    """Share of saturated calibration values at the input of each layer."""
    warnings: tuple[str, ...]
    """What to know before relying on the ranges."""


@dataclass(frozen=True, slots=True)
class _Prints:
    """Fingerprints of a set, in its order; an image that cannot be read has none and is left out."""

    names: tuple[str, ...]
    files: tuple[str, ...]
    pixels: tuple[str, ...]
    hashes_NB: Bits
    """One row of bits per image."""


def audit(
    calibration: Calibration, images: ImageSet, evaluation: ImageSet, *, classes: Sequence[str] = ()
) -> CalibrationAudit:
    """Audit the images of a calibration against those that its answers are judged on.

    Args:
        calibration: the ranges, for their saturation.
        images: the images that it was made from.
        evaluation: the images of the proof.
        classes: the network's class names.
    """
    counts, missing = _classes(images, classes)
    ours, theirs = _prints(images), _prints(evaluation)
    found = _overlaps(ours, theirs)
    num_overlaps = {how: sum(entry.how == how for entry in found) for how in ("file", "pixels", "looks alike")}
    balance = _balance(list(counts.values()))
    duplicates = len(ours.pixels) - len(set(ours.pixels))
    return CalibrationAudit(
        num_images=len(images),
        classes=counts,
        balance=balance,
        missing=missing,
        duplicates=duplicates,
        overlaps=tuple(found[:MOST_LISTED]),
        num_overlaps=num_overlaps,
        evaluation_images=len(evaluation),
        saturated=dict(calibration.saturated),
        warnings=tuple(_warnings(images, counts, missing, duplicates, found, num_overlaps, calibration)),
    )


def _classes(images: ImageSet, classes: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    if images.labelled:
        counts = np.bincount(images.labels_N, minlength=len(images.classes)).tolist()
        by_name = {name: count for name, count in zip(images.classes, counts, strict=True) if count}
        missing = [name for name in classes if name not in by_name] if set(by_name) <= set(classes) else []
        return by_name, tuple(missing)
    folders: dict[str, int] = {}
    for item in images.items:
        folder = item.name.rpartition("/")[0]
        folders[folder] = folders.get(folder, 0) + 1
    if len(folders) < 2:
        return {}, ()
    missing = [name for name in classes if name not in folders] if set(folders) <= set(classes) else []
    return folders, tuple(missing)


def _balance(counts: Sequence[int]) -> float | None:
    if len(counts) < 2:
        return None
    shares = np.asarray(counts, np.float64) / sum(counts)
    return float(-(shares * np.log(shares)).sum() / math.log(len(counts)))


def _prints(images: ImageSet) -> _Prints:
    names, files, pixels, hashes = [], [], [], []
    for index, item in enumerate(images.items):
        try:
            picture = images.image(index)
        except ImageError:  # whoever uses it says so
            continue
        names.append(item.name)
        files.append(hashlib.sha256(item.content()).hexdigest())
        pixels.append(hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest())
        hashes.append(difference_hash(picture))
    rows = np.stack(hashes) if hashes else np.zeros((0, HASH_SIDE * HASH_SIDE), np.uint8)
    return _Prints(tuple(names), tuple(files), tuple(pixels), rows)


def difference_hash(picture: Image.Image) -> Bits:
    """The bits `(256,)` of a picture: whether each pixel of its small gray copy is darker than its right neighbour."""
    small = picture.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    gray = np.asarray(small, np.int16)
    bits: Bits = (gray[:, 1:] > gray[:, :-1]).astype(np.uint8).ravel()
    return bits


def distances(first_NB: Bits, second_MB: Bits) -> npt.NDArray[np.int64]:
    """In how many bits each row of the first differs from each of the second: `(N, M)`."""
    a, b = first_NB.astype(np.float32), second_MB.astype(np.float32)
    differing = a.sum(axis=1)[:, None] + b.sum(axis=1)[None, :] - 2 * (a @ b.T)
    found: npt.NDArray[np.int64] = np.rint(differing).astype(np.int64)
    return found


def _overlaps(ours: _Prints, theirs: _Prints) -> list[Overlap]:
    """One entry per calibration image that is among the others, by the strongest way in which it is."""
    if not ours.names or not theirs.names:
        return []
    bits_NM = distances(ours.hashes_NB, theirs.hashes_NB)
    files = {digest: index for index, digest in enumerate(theirs.files)}
    pixels = {digest: index for index, digest in enumerate(theirs.pixels)}
    found = []
    for index, name in enumerate(ours.names):
        nearest = int(bits_NM[index].argmin())
        how, other = "looks alike", nearest
        if ours.files[index] in files:
            how, other = "file", files[ours.files[index]]
        elif ours.pixels[index] in pixels:
            how, other = "pixels", pixels[ours.pixels[index]]
        elif bits_NM[index, nearest] > LOOKS_ALIKE or not 16 < ours.hashes_NB[index].sum() < 240:
            continue  # unlike, or so plain that its hash says nothing
        bits = int(bits_NM[index, other])
        found.append(Overlap(calibration=name, evaluation=theirs.names[other], how=how, bits=bits))
    return sorted(found, key=lambda entry: ("file", "pixels", "looks alike").index(entry.how))


def _warnings(
    images: ImageSet,
    counts: Mapping[str, int],
    missing: Sequence[str],
    duplicates: int,
    overlaps: Sequence[Overlap],
    num_overlaps: Mapping[str, int],
    calibration: Calibration,
) -> list[str]:
    found = []
    if images.source.get("kind") == "random":
        found.append("calibrated on random pixels: real activations look different")
    if len(images) < FEW_IMAGES:
        found.append(f"calibrated on {len(images)} images: fewer than {FEW_IMAGES} miss rare large values")
    if missing:
        found.append(f"no calibration image of {', '.join(missing)}")
    if counts and max(counts.values()) > IMBALANCE * min(counts.values()):
        most, least = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
        found.append(f"calibration images are unbalanced: {most} has {counts[most]}, {least} {counts[least]}")
    if duplicates:
        found.append(f"{duplicates} calibration images are copies of others among them")
    same = num_overlaps["file"] + num_overlaps["pixels"]
    if same:
        first = overlaps[0]
        found.append(
            f"{same} of {len(images)} calibration images are evaluation images too (first {first.calibration} = "
            f"{first.evaluation}): the proof does not show what unseen images do"
        )
    if num_overlaps["looks alike"]:
        first = next(entry for entry in overlaps if entry.how == "looks alike")
        found.append(
            f"{num_overlaps['looks alike']} of {len(images)} calibration images look like evaluation images (first "
            f"{first.calibration} and {first.evaluation}, {first.bits} of {HASH_SIDE**2} bits differ)"
        )
    worst = {name: share for name, share in calibration.saturated.items() if share > SATURATED}
    if worst:
        layers = ", ".join(f"{name} {share:.1%}" for name, share in worst.items())
        found.append(f"calibration values saturate: {layers}; compare methods with `alexnet-edge calibrate`")
    return found
