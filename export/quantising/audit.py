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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

HOW = ("file", "pixels", "looks alike")
"""The same bytes; the same picture in another file; nearly the same picture: the strongest first."""

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """A calibration image that is an evaluation image too."""

    calibration: str
    evaluation: str
    how: str
    """One of `HOW`."""
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

    names: list[str]
    files: list[str]
    pixels: list[str]
    hashes_NB: Bits
    """One row of bits per image."""


def audit(
    calibration: Calibration, images: ImageSet, evaluation: ImageSet, *, classes: Sequence[str] = ()
) -> CalibrationAudit:
    """Audit the images that a calibration was made from against those of the proof; `classes` are the network's."""
    counts = _count(images)
    shares = np.array(list(counts.values()), np.float64) / (sum(counts.values()) or 1)
    prints = _prints(images)
    overlaps = _overlaps(prints, _prints(evaluation))
    result = CalibrationAudit(
        num_images=len(images),
        classes=counts,
        balance=float(-(shares * np.log(shares)).sum() / math.log(len(shares))) if len(shares) > 1 else None,
        missing=tuple(name for name in classes if counts and name not in counts) if set(counts) <= set(classes) else (),
        duplicates=len(prints.pixels) - len(set(prints.pixels)),
        overlaps=tuple(overlaps),
        num_overlaps={how: sum(entry.how == how for entry in overlaps) for how in HOW},
        evaluation_images=len(evaluation),
        saturated=dict(calibration.saturated),
        warnings=(),
    )
    warnings = tuple(_warnings(result, random=images.source.get("kind") == "random"))
    return replace(result, overlaps=result.overlaps[:MOST_LISTED], warnings=warnings)


def _count(images: ImageSet) -> dict[str, int]:
    """Images per class, or per folder where there are several and no labels."""
    if images.labelled:
        counts = np.bincount(images.labels_N, minlength=len(images.classes)).tolist()
        return {name: count for name, count in zip(images.classes, counts, strict=True) if count}
    folders = Counter(item.name.rpartition("/")[0] for item in images.items)
    return dict(folders) if len(folders) > 1 else {}


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
    return _Prints(names, files, pixels, np.array(hashes, np.uint8).reshape(-1, HASH_SIDE**2))


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
    counts: npt.NDArray[np.int64] = np.rint(differing).astype(np.int64)
    return counts


def _overlaps(calibration: _Prints, evaluation: _Prints) -> list[Overlap]:
    """One entry per calibration image that is among the others, by the strongest way in which it is."""
    if not calibration.names or not evaluation.names:
        return []
    bits_NM = distances(calibration.hashes_NB, evaluation.hashes_NB)
    files = {digest: index for index, digest in enumerate(evaluation.files)}
    pixels = {digest: index for index, digest in enumerate(evaluation.pixels)}
    overlaps = []
    for index, name in enumerate(calibration.names):
        how, other = "looks alike", int(bits_NM[index].argmin())
        if calibration.files[index] in files:
            how, other = "file", files[calibration.files[index]]
        elif calibration.pixels[index] in pixels:
            how, other = "pixels", pixels[calibration.pixels[index]]
        elif bits_NM[index, other] > LOOKS_ALIKE or not 16 < calibration.hashes_NB[index].sum() < 240:
            continue  # unlike, or so plain that its hash says nothing
        bits = int(bits_NM[index, other])
        overlaps.append(Overlap(calibration=name, evaluation=evaluation.names[other], how=how, bits=bits))
    return sorted(overlaps, key=lambda entry: HOW.index(entry.how))


def _warnings(audited: CalibrationAudit, *, random: bool) -> Iterator[str]:
    total, counts, overlaps = audited.num_images, audited.classes, audited.overlaps
    if random:
        yield "calibrated on random pixels: real activations look different"
    if total < FEW_IMAGES:
        yield f"calibrated on {total} images: fewer than {FEW_IMAGES} miss rare large values"
    if audited.missing:
        yield f"no calibration image of {', '.join(audited.missing)}"
    if counts and max(counts.values()) > IMBALANCE * min(counts.values()):
        most, least = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
        yield f"calibration images are unbalanced: {most} has {counts[most]}, {least} {counts[least]}"
    if audited.duplicates:
        yield f"{audited.duplicates} calibration images are copies of others among them"
    same, alike = audited.num_overlaps["file"] + audited.num_overlaps["pixels"], audited.num_overlaps["looks alike"]
    if same:
        first = overlaps[0]
        yield (
            f"{same} of {total} calibration images are evaluation images too (first {first.calibration} = "
            f"{first.evaluation}): the proof does not show what unseen images do"
        )
    if alike:
        first = overlaps[same]
        yield (
            f"{alike} of {total} calibration images look like evaluation images (first {first.calibration} and "
            f"{first.evaluation}, {first.bits} of {HASH_SIDE**2} bits differ)"
        )
    saturated = {name: share for name, share in audited.saturated.items() if share > SATURATED}
    if saturated:
        layers = ", ".join(f"{name} {share:.1%}" for name, share in saturated.items())
        yield f"calibration values saturate: {layers}; compare methods with `alexnet-edge calibrate`"
