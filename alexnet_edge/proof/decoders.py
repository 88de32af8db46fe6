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
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_edge.artifact import Artifact
from alexnet_edge.errors import DataError, ImageError, UserError
from alexnet_edge.images.datasets import FileItem, ImageSet, OnBadImage
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
    """Decode and resize the same files by every library that is here, and let the checkpoint answer each input.

    Args:
        checkpoint: answers in FP32.
        images: image files; `limit` of them are used, evenly spread.
        artifact: whose own changes are set beside those of the pipelines.
        threads: processor threads.
        on_bad_image: what to do with a file that cannot be read.
        limit: how many images.

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
    chosen = images.spread(limit)
    libraries, missing = _libraries()
    pil = _Inputs(name="PIL (this package)")
    others = [_Inputs(name=library.name) for library in libraries]
    used, num_resized = list[int](), 0
    for index in range(len(chosen)):
        path, content = Path(chosen.name(index)), chosen.items[index].content()
        try:
            reference = _reference(path, content, checkpoint.info.preprocessing)
        except ImageError:
            if on_bad_image == "fail":
                raise
            continue
        used.append(index)
        num_resized += reference.changes_size
        pil.add(reference.input, 0.0, 0.0, 0.0 if reference.changes_size else None, reference.input)
        for library, inputs in zip(libraries, others, strict=True):
            _add_other(inputs, library, path, content, reference)
    if not used:
        raise DataError(f"none of the {len(chosen)} images can be used", fix="replace them")
    labels_N = None
    with suppress(DataError):
        labels_N = labels_for(checkpoint.info.classes, chosen)[used]
    with reference_session(checkpoint, threads=threads) as session:
        right_N = _answers(session, pil, checkpoint)
        ways = [
            _way(inputs, right_N if inputs is pil else _answers(session, inputs, checkpoint), right_N, labels_N)
            for inputs in (pil, *others)
        ]
    artifact_flips = None
    if artifact is not None:
        with open_session(artifact, threads=threads) as session:
            artifact_flips = int((_answers(session, pil, checkpoint) != right_N).sum())
    return PreprocessingReport(
        ways=tuple(ways),
        num_images=len(used),
        num_resized=num_resized,
        artifact_flips=artifact_flips,
        findings=tuple(_findings(ways[1:], len(used), num_resized, artifact, artifact_flips)),
        missing=tuple(missing),
    )


@dataclass(slots=True)
class _Inputs:
    """The inputs that one way gives, and how far they are from ours, image by image."""

    name: str
    pixels: list[Pixels] = field(default_factory=list)
    decode_mean: list[float] = field(default_factory=list)
    decode_max: list[float] = field(default_factory=list)
    resize_mean: list[float] = field(default_factory=list)
    input_mean: list[float] = field(default_factory=list)
    input_max: list[float] = field(default_factory=list)

    def add(
        self, pixels: Pixels, decode_mean: float, decode_max: float, resize_mean: float | None, expected: Pixels
    ) -> None:
        difference = np.abs(pixels.astype(np.int16) - expected)
        self.pixels.append(pixels)
        self.decode_mean.append(decode_mean)
        self.decode_max.append(decode_max)
        self.resize_mean += [] if resize_mean is None else [resize_mean]
        self.input_mean.append(float(difference.mean()))
        self.input_max.append(float(difference.max()))


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
    difference = np.abs(decoded.astype(np.int16) - reference.decoded)
    resized, resize_mean = decoded, None
    if reference.changes_size:
        height, width, _ = reference.resized.shape
        alone = library.resize(reference.decoded, width, height).astype(np.int16)
        resize_mean = float(np.abs(alone - reference.resized).mean())
        resized = library.resize(decoded, width, height)
    crop = _crop(resized, reference.input.shape[0])
    inputs.add(crop, float(difference.mean()), float(difference.max()), resize_mean, reference.input)


def _way(
    inputs: _Inputs,
    answers_N: npt.NDArray[np.int64],
    right_N: npt.NDArray[np.int64],
    labels_N: npt.NDArray[np.int64] | None,
) -> Way:
    flips = int((answers_N != right_N).sum())
    labelled = None if labels_N is None else labels_N >= 0
    accuracy = None
    if labels_N is not None and labelled is not None and labelled.any():
        accuracy = float((answers_N == labels_N)[labelled].mean())
    return Way(
        name=inputs.name,
        decode_mean=float(np.mean(inputs.decode_mean)),
        decode_max=max(inputs.decode_max),
        resize_mean=float(np.mean(inputs.resize_mean)) if inputs.resize_mean else None,
        input_mean=float(np.mean(inputs.input_mean)),
        input_max=max(inputs.input_max),
        flips=flips,
        top1_agreement=1 - flips / len(right_N),
        accuracy=accuracy,
    )


def _answers(session: Session, inputs: _Inputs, checkpoint: Checkpoint) -> npt.NDArray[np.int64]:
    spec = checkpoint.info.preprocessing
    parts = [
        session.run(normalise(np.stack(inputs.pixels[first : first + BATCH]), spec)).argmax(axis=1)
        for first in range(0, len(inputs.pixels), BATCH)
    ]
    return np.concatenate(parts).astype(np.int64)


def _findings(
    ways: list[Way], num_images: int, num_resized: int, artifact: Artifact | None, artifact_flips: int | None
) -> list[str]:
    findings = []
    for way in ways:
        if way.input_max == 0:
            findings.append(f"{way.name}: the same input, bit for bit")
            continue
        resize = way.resize_mean or 0.0
        part = "resizing" if resize > way.decode_mean else "decoding"
        text = f"{way.name}: {way.flips} of {num_images} answers change, most of the drift is from {part}"
        if artifact_flips is not None and artifact is not None:
            text += f"; {artifact.label} alone changes {artifact_flips}"
        findings.append(text)
    if num_resized < num_images:
        findings.append(
            f"{num_images - num_resized} of {num_images} images have the right size already: on them nothing is resized"
        )
    return findings


def _crop(pixels_HWC: Pixels, crop: int) -> Pixels:
    x0, y0 = centre_offset(pixels_HWC.shape[1], pixels_HWC.shape[0], crop)
    return pixels_HWC[y0 : y0 + crop, x0 : x0 + crop]


def _libraries() -> tuple[list[_Library], list[str]]:
    """The libraries that are here, and what to run for those that are not."""
    installed: list[_Library] = []
    missing: list[str] = []
    for name, package, build in (
        ("OpenCV", "opencv-python-headless", _opencv),
        ("torchvision", "torchvision", _torchvision),
    ):
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

    def resize(method: int) -> Callable[[Pixels, int, int], Pixels]:
        return lambda pixels, width, height: np.asarray(
            cv2.resize(pixels, (width, height), interpolation=method), np.uint8
        )

    return [
        _Library(name="OpenCV, INTER_LINEAR", decode=decode, resize=resize(cv2.INTER_LINEAR)),
        _Library(name="OpenCV, INTER_AREA", decode=decode, resize=resize(cv2.INTER_AREA)),
    ]


def _torchvision() -> list[_Library]:
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import functional

    def decode(content: bytes) -> Pixels:
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        with (
            warnings.catch_warnings()
        ):  # from 0.29 on it points to TorchCodec, whose still images are not everywhere yet
            warnings.simplefilter("ignore", DeprecationWarning)
            pixels_CHW = decode_image(data, ImageReadMode.RGB, apply_exif_orientation=True)
        return np.ascontiguousarray(pixels_CHW.permute(1, 2, 0).numpy())

    def resize(antialias: bool) -> Callable[[Pixels, int, int], Pixels]:
        def call(pixels: Pixels, width: int, height: int) -> Pixels:
            image_CHW = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
            scaled = functional.resize(image_CHW, [height, width], antialias=antialias)
            return np.ascontiguousarray(scaled.permute(1, 2, 0).numpy())

        return call

    return [
        _Library(name="torchvision tensors, antialias", decode=decode, resize=resize(True)),
        _Library(name="torchvision tensors, no antialias", decode=decode, resize=resize(False)),
    ]
