"""Name what is in an image, with any artifact that runs here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alexnet_edge.errors import DataError, ImageError, UserError
from alexnet_edge.images.datasets import FileItem, ImageSet, OnBadImage, open_images
from alexnet_edge.proof.evaluate import outputs_NK, probabilities
from alexnet_edge.sessions import Session


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """One class and how probable the network holds it, from 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The most probable classes of one image, best first."""

    image: str
    guesses: tuple[Guess, ...]


def predict(
    session: Session,
    paths: Sequence[Path],
    *,
    top: int = 5,
    on_bad_image: OnBadImage = "fail",
    bad: list[ImageError] | None = None,
) -> list[Prediction]:
    """The `top` most probable classes of each image; a folder stands for every image in it.

    Raises:
        UserError: when `top` is not positive, or nothing is named.
        DataError: when a folder has no images.
        ImageError: when an image cannot be used and `on_bad_image` is `fail`.
    """
    _check_top(top)
    if not paths:
        raise UserError("no image named", fix="give one or more image files or folders")
    items: list[FileItem] = []
    for path in paths:
        if path.is_dir():
            folder = open_images(path)
            items += [FileItem(path, folder.name(index)) for index in range(len(folder))]
        else:
            items.append(FileItem(path.parent, path.name))
    images = ImageSet(items, [-1] * len(items), (), {"kind": "files"})
    try:
        y_NK, indices_N = outputs_NK(session, images, on_bad_image=on_bad_image, bad=bad)
    except DataError:
        if bad:  # every one was skipped: the list says why
            return []
        raise
    return [
        Prediction(image=str(items[index].path), guesses=guesses)
        for index, guesses in zip(indices_N.tolist(), _guesses(session, y_NK, top), strict=True)
    ]


def predict_frame(session: Session, image: Image.Image, *, name: str, top: int = 5) -> Prediction:
    """The `top` most probable classes of one decoded RGB image, such as a camera's frame.

    Raises:
        UserError: when `top` is not positive; ImageError when the image cannot be resized sensibly.
    """
    _check_top(top)
    y_NK, _ = outputs_NK(session, ImageSet([_Frame(name, image)], [-1], (), {"kind": "frame"}), batch=1)
    return Prediction(image=name, guesses=next(_guesses(session, y_NK, top)))


@dataclass(frozen=True, slots=True)
class _Frame:
    """An image that is decoded already, as an item of an image set."""

    name: str
    decoded: Image.Image

    def image(self) -> Image.Image:
        return self.decoded

    def content(self) -> bytes:
        return self.decoded.tobytes()


def _guesses(session: Session, y_NK: np.ndarray[Any, Any], top: int) -> Iterator[tuple[Guess, ...]]:
    for row_K in probabilities(y_NK, session.head):
        best = np.argsort(-row_K, kind="stable")[:top]
        yield tuple(Guess(name=session.classes[entry], probability=float(row_K[entry])) for entry in best)


def _check_top(top: int) -> None:
    if top < 1:
        raise UserError("the number of classes to name must be 1 or more", value=top, fix="give --top 5")
