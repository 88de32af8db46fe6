"""The same image files through PIL, OpenCV and torchvision: how far the input moves before any quantisation does.

A device that decodes and resizes with another library gives the network another input. Here each way is taken apart into
decoding and resizing, and the checkpoint in FP32 answers its inputs, so that what the pipeline changes is not blamed on an
artifact's precision.

Letters: N images, C channels, H height, W width, K classes.

Sources: OpenCV documentation, "Geometric Image Transformations" (`INTER_LINEAR` takes four neighbours whatever the scale,
`INTER_AREA` averages); torchvision documentation, `Resize` (`antialias`); both decode JPEG by libjpeg-turbo as PIL does, but
their versions and settings (chroma upsampling, the inverse transform) may differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_edge.artifact import Artifact
from alexnet_edge.errors import DataError, ImageError, UserError
from alexnet_edge.images.datasets import FileItem, ImageSet, IntArray, OnBadImage
from alexnet_edge.images.preprocess import Preprocessing, centre_offset, load_rgb, normalise, resize_shorter
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.proof.evaluate import labels_for
from alexnet_edge.sessions import Session, open_session, reference_session

IMAGES = 100
"""Images compared by default; each is decoded several times."""
BATCH = 20

Pixels = npt.NDArray[np.uint8]
"""`(H, W, 3)`, RGB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Library:
    """How one library decodes and resizes."""

    name: str
    decode: Callable[[bytes], Pixels]
    resize: Callable[[Pixels, int, int], Pixels]
    """Pixels to this width and height."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way from a file to the input, against this package's; differences are in steps of 8-bit pixels."""

    name: str
    decode_mean: float
    """Mean difference of the decoded pixels."""
    decode_max: float
    resize_mean: float | None
    """Mean difference of the resized pixels, of the same decoded ones; None where no image had to be resized."""
    input_mean: float
    """Mean difference of what the network sees, before its normalisation."""
    input_max: float
    flips: int
    """Images to which the FP32 checkpoint answers another class."""
    top1_agreement: float
    accuracy: float | None
    """Top-1 of the FP32 checkpoint on these inputs; None without labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessingReport:
    """Every way that could be compared here."""

    ways: tuple[Way, ...]
    num_images: int
    num_resized: int
    """Images whose size was not the right one already."""
    artifact_flips: int | None
    """Images to which the artifact, with this package's input, answers another class than the checkpoint; None without one."""
    findings: tuple[str, ...]
    """What moves the answers, in words."""
    missing: tuple[str, ...]
    """Libraries that are not here, with the command that adds them."""


def compare_preprocessing(
    checkpoint: Checkpoint,
    images: ImageSet,
    *,
    artifact: Artifact | None = None,
    threads: int | None = None,
    on_bad_image: OnBadImage = "fail",
    limit: int = IMAGES,
) -> PreprocessingReport:
    """Decode and resize the same files by every library that is here, and let the checkpoint in FP32 answer each input.

    `limit` of the image files are used, evenly spread. The changes of the `artifact` are set beside those of the pipelines.

    Raises:
        UserError: when there is no image, or the images are not files.
        ImageError: when a file cannot be used and `on_bad_image` is `fail`.
    """
    if not all(isinstance(item, FileItem) for item in images.items) or not len(images):
        raise UserError(
            "decoding is compared on image files",
            value=images.source.get("kind"),
            fix="give a folder of images with --images",
        )
    chosen, spec = images.spread(limit), checkpoint.info.preprocessing
    libraries, missing = _libraries()
    used, all_inputs = _read(chosen, spec, libraries, on_bad_image)
    own = all_inputs[0]
    num_resized = len(own.resize)
    labels_N = None
    with suppress(DataError):
        labels_N = labels_for(checkpoint.info.classes, chosen)[used]
    with reference_session(checkpoint, threads=threads) as session:
        answers = [_answers(session, inputs, spec) for inputs in all_inputs]
    ways = [
        _way(inputs, own, answers_N, answers[0], labels_N)
        for inputs, answers_N in zip(all_inputs, answers, strict=True)
    ]
    artifact_flips, alone = None, ""
    if artifact is not None:
        with open_session(artifact, threads=threads) as session:
            artifact_flips = int((_answers(session, own, spec) != answers[0]).sum())
        alone = f"; {artifact.label} alone changes {artifact_flips}"
    findings = [_finding(way, len(used), alone) for way in ways[1:]]
    if num_resized < len(used):
        same = f"{len(used) - num_resized} of {len(used)} images"
        findings.append(f"{same} have the right size already: on them nothing is resized")
    return PreprocessingReport(
        ways=tuple(ways),
        num_images=len(used),
        num_resized=num_resized,
        artifact_flips=artifact_flips,
        findings=tuple(findings),
        missing=tuple(missing),
    )


@dataclass(slots=True)
class _Inputs:
    """The inputs that one way gives, and how far its steps are from this package's, image by image."""

    name: str
    pixels: list[Pixels] = field(default_factory=list)
    decode: list[tuple[float, float]] = field(default_factory=list)
    """Mean and largest difference of the decoded pixels."""
    resize: list[float] = field(default_factory=list)
    """Mean difference of the resized pixels, of the images that had to be resized."""

    def add(self, pixels: Pixels, decode: tuple[float, float], resize: float | None) -> None:
        self.pixels.append(pixels)
        self.decode.append(decode)
        self.resize += [] if resize is None else [resize]


def _read(
    images: ImageSet, spec: Preprocessing, libraries: list[_Library], on_bad_image: OnBadImage
) -> tuple[list[int], list[_Inputs]]:
    """The positions of the images that can be used, and the inputs by this package and by each library."""
    own, *others = all_inputs = [_Inputs(name) for name in ("PIL (this package)", *(entry.name for entry in libraries))]
    used = list[int]()
    for index in range(len(images)):
        path, content = Path(images.name(index)), images.items[index].content()
        try:
            reference = _reference(path, content, spec)
        except ImageError:
            if on_bad_image == "fail":
                raise
            continue
        used.append(index)
        own.add(reference.input, (0.0, 0.0), 0.0 if reference.changes_size else None)
        for library, inputs in zip(libraries, others, strict=True):
            _add_other(inputs, library, path, content, reference)
    if not used:
        raise DataError(f"none of the {len(images)} images can be used", fix="replace them")
    return used, all_inputs


@dataclass(frozen=True, slots=True)
class _Reference:
    """What this package's own preprocessing makes of one file."""

    decoded: Pixels
    resized: Pixels
    input: Pixels
    """The central crop of `resized`."""

    @property
    def changes_size(self) -> bool:
        return self.decoded.shape != self.resized.shape


def _reference(path: Path, content: bytes, spec: Preprocessing) -> _Reference:
    """Raises ImageError when the file cannot be used."""
    image = load_rgb(path, content=content)
    resized = np.asarray(resize_shorter(image, spec, path=path))
    return _Reference(np.asarray(image), resized, _crop(resized, spec.crop))


def _add_other(inputs: _Inputs, library: _Library, path: Path, content: bytes, reference: _Reference) -> None:
    """Decode and resize one file by another library; add its input, and how far each step is from the reference."""
    decoded = library.decode(content)
    if decoded.shape != reference.decoded.shape:
        raise UserError(
            f"{library.name} decodes the image as {decoded.shape[1]}x{decoded.shape[0]}, PIL as "
            f"{reference.decoded.shape[1]}x{reference.decoded.shape[0]}",
            value=path,
            fix="check its EXIF orientation",
        )
    resized, resize_mean = decoded, None
    if reference.changes_size:
        height, width, _ = reference.resized.shape
        resize_mean, _ = _difference(library.resize(reference.decoded, width, height), reference.resized)
        resized = library.resize(decoded, width, height)
    inputs.add(_crop(resized, len(reference.input)), _difference(decoded, reference.decoded), resize_mean)


def _difference(first: Pixels, second: Pixels) -> tuple[float, float]:
    """Mean and largest difference."""
    difference = np.abs(first.astype(np.int16) - second)
    return float(difference.mean()), float(difference.max())


def _way(inputs: _Inputs, own: _Inputs, answers_N: IntArray, right_N: IntArray, labels_N: IntArray | None) -> Way:
    decode_means, decode_largest = zip(*inputs.decode, strict=True)
    input_means, input_largest = zip(*map(_difference, inputs.pixels, own.pixels), strict=True)
    flips = int((answers_N != right_N).sum())
    accuracy = None
    if labels_N is not None and (labels_N >= 0).any():
        accuracy = float((answers_N == labels_N)[labels_N >= 0].mean())
    return Way(
        name=inputs.name,
        decode_mean=float(np.mean(decode_means)),
        decode_max=max(decode_largest),
        resize_mean=float(np.mean(inputs.resize)) if inputs.resize else None,
        input_mean=float(np.mean(input_means)),
        input_max=max(input_largest),
        flips=flips,
        top1_agreement=1 - flips / len(right_N),
        accuracy=accuracy,
    )


def _answers(session: Session, inputs: _Inputs, spec: Preprocessing) -> IntArray:
    parts = [
        session.run(normalise(np.stack(inputs.pixels[first : first + BATCH]), spec)).argmax(axis=1)
        for first in range(0, len(inputs.pixels), BATCH)
    ]
    return np.concatenate(parts).astype(np.int64)


def _finding(way: Way, num_images: int, alone: str) -> str:
    if way.input_max == 0:
        return f"{way.name}: the same input, bit for bit"
    part = "resizing" if (way.resize_mean or 0.0) > way.decode_mean else "decoding"
    return f"{way.name}: {way.flips} of {num_images} answers change, most of the drift is from {part}{alone}"


def _crop(pixels_HWC: Pixels, crop: int) -> Pixels:
    x0, y0 = centre_offset(pixels_HWC.shape[1], pixels_HWC.shape[0], crop)
    return pixels_HWC[y0 : y0 + crop, x0 : x0 + crop]


def _libraries() -> tuple[list[_Library], list[str]]:
    """The libraries that are here, and what to run for those that are not."""
    installed, missing = list[_Library](), list[str]()
    packages = (("OpenCV", "opencv-python-headless", _opencv), ("torchvision", "torchvision", _torchvision))
    for name, package, build in packages:
        try:
            installed += build()
        except ImportError:
            missing.append(f"{name} is not compared: it is not installed; run: pip install {package}")
    return installed, missing


def _opencv() -> list[_Library]:
    import cv2

    def decode(content: bytes) -> Pixels:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if decoded is None:
            raise ImageError("OpenCV cannot decode an image that PIL can", fix="convert it to JPEG or PNG")
        return np.ascontiguousarray(decoded[:, :, ::-1])

    def resize(method: int, pixels: Pixels, width: int, height: int) -> Pixels:
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=method), np.uint8)

    return [
        _Library(name=f"OpenCV, {method}", decode=decode, resize=partial(resize, getattr(cv2, method)))
        for method in ("INTER_LINEAR", "INTER_AREA")
    ]


def _torchvision() -> list[_Library]:
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import functional

    def decode(content: bytes) -> Pixels:
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        # from 0.29 on it points to TorchCodec, whose still images are not everywhere yet
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pixels_CHW = decode_image(data, ImageReadMode.RGB, apply_exif_orientation=True)
        return np.ascontiguousarray(pixels_CHW.permute(1, 2, 0).numpy())

    def resize(antialias: bool, pixels: Pixels, width: int, height: int) -> Pixels:
        image_CHW = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        scaled = functional.resize(image_CHW, [height, width], antialias=antialias)
        return np.ascontiguousarray(scaled.permute(1, 2, 0).numpy())

    return [
        _Library(name=f"torchvision tensors, {name}", decode=decode, resize=partial(resize, name == "antialias"))
        for name in ("antialias", "no antialias")
    ]
