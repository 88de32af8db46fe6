"""The golden set: real images, and what the checkpoint answered to them.

On the laptop it is written once and kept by content; on the device it is the reference of the parity proof. It is a tar with
a fixed list of members: `golden.json`, `logits.npy`, and one image file each, named by number.

Letters: N images, K classes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from alexnet_edge import records
from alexnet_edge.errors import ArtifactError, DataError
from alexnet_edge.files import staged
from alexnet_edge.images.datasets import FileItem, ImageSet
from alexnet_edge.images.folders import IMAGE_SUFFIXES
from alexnet_edge.images.preprocess import FloatArray

MOST_IMAGES = 5000
MOST_IMAGE_BYTES = 64 << 20
"""Largest single image file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Image:
    file: str
    name: str
    label: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listing:
    """The file `golden.json` of a golden set."""

    schema: Literal[1] = 1
    classes: tuple[str, ...]
    images: tuple[_Image, ...]
    reference: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """Images and the reference's answers to them; `images.source["reference"]` says what answered."""

    images: ImageSet
    reference_NK: FloatArray


def write_golden(path: Path, images: ImageSet, reference_NK: FloatArray, reference: Mapping[str, Any]) -> None:
    """Write `images` with the answers `(N, K)` float32; the same content gives the same bytes. DataError when an image is
    oversized or there are too many."""
    assert len(images) == len(reference_NK)
    if not 0 < len(images) <= MOST_IMAGES:
        raise DataError(f"a golden set has 1 to {MOST_IMAGES} images", value=len(images), fix="give fewer with --limit")
    members, listed = dict[str, bytes](), list[_Image]()
    for index, item in enumerate(images.items):
        if isinstance(item, FileItem):
            data, suffix = item.content(), PurePosixPath(item.relative).suffix.lower()
        else:  # drawn: kept without loss
            buffer = io.BytesIO()
            item.image().save(buffer, "PNG")
            data, suffix = buffer.getvalue(), ".png"
        if len(data) > MOST_IMAGE_BYTES:
            problem = f"oversized image: {len(data)} bytes, at most {MOST_IMAGE_BYTES}"
            raise DataError(problem, value=item.name, fix="leave it out")
        members[f"{index:06d}{suffix}"] = data
        listed.append(_Image(file=f"{index:06d}{suffix}", name=item.name, label=int(images.labels_N[index])))
    logits = io.BytesIO()
    np.save(logits, np.ascontiguousarray(reference_NK, np.float32))
    listing = _Listing(classes=images.classes, images=tuple(listed), reference=reference)
    head = {"golden.json": json.dumps(records.to_builtins(listing), indent=1).encode(), "logits.npy": logits.getvalue()}
    with staged(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in {**head, **members}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))


def read_golden(path: Path, folder: Path) -> Golden:
    """Unpack a golden set into `folder`. Only members that its list names are written, each by this function itself;
    ArtifactError when one is a link, is not in the list, is oversized or missing, or the list is malformed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(path, "r:") as archive:
            listing = records.decode(_Listing, _member(archive, archive.next(), "golden.json"))
            logits = _member(archive, archive.next(), "logits.npy")
            if not 0 < len(listing.images) <= MOST_IMAGES:
                raise ValueError(f"images: expected 1 to {MOST_IMAGES}, got {len(listing.images)}")
            items = []
            for index, image in enumerate(listing.images):
                if image.file not in {f"{index:06d}{suffix}" for suffix in IMAGE_SUFFIXES}:
                    raise ValueError(f"name {image.file!r}")
                (folder / image.file).write_bytes(_member(archive, archive.next(), image.file))
                items.append(FileItem(folder, image.file))
            if archive.next() is not None:
                raise ValueError("more members than its list")
        reference_NK = np.load(io.BytesIO(logits), allow_pickle=False)
        if reference_NK.dtype != np.float32 or reference_NK.ndim != 2 or len(reference_NK) != len(items):
            raise ValueError(f"answers {reference_NK.dtype} {reference_NK.shape}")
    except (tarfile.TarError, EOFError, ValueError) as error:
        problem = f"the golden set is malformed ({error or type(error).__name__})"
        raise ArtifactError(problem, value=path.name, fix="deploy again") from error
    source = {"kind": "golden", "count": len(items), "reference": listing.reference}
    return Golden(
        images=ImageSet(items, [image.label for image in listing.images], listing.classes, source),
        reference_NK=reference_NK,
    )


def _member(archive: tarfile.TarFile, entry: tarfile.TarInfo | None, name: str) -> bytes:
    if entry is None:
        raise ValueError(f"{name} is missing")
    if not entry.isreg() or entry.name != name:
        raise ValueError(f"{entry.name[:80]!r} is {'not ' + name if entry.isreg() else 'no regular file'}")
    if entry.size > MOST_IMAGE_BYTES:
        raise ValueError(f"{name} is oversized: {entry.size} bytes")
    stream = archive.extractfile(entry)
    assert stream is not None
    return stream.read()
