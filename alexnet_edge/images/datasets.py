"""Labelled images: folders, ImageNet with its class list, and the built-in synthetic set. Needs no torch.

A folder is either `DIR/train` with `DIR/val`, each holding one sub-folder per class, or the class folders themselves; then
a tenth of every class, chosen by a hash of the file names, is kept for validation. Folders named by WordNet id
(`n01440764`) take their label from a class list, a CSV file with the columns `wnid,index,name`: the one given, or
`classes.csv` in the folder or in its parent. Without a class list they are classes of their own, in sorted order: right
for training from scratch, never a position in ImageNet's 1000.

Hidden files and folders are ignored. Links are followed, except loops of links. The order is that of the sorted paths.

Letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexnet_edge.errors import DataError, ImageError
from alexnet_edge.images.class_list import find_class_list, read_class_list
from alexnet_edge.images.folders import endings, files_below, folders_in
from alexnet_edge.images.preprocess import FloatArray, Preprocessing, load_rgb, preprocess_image
from alexnet_edge.images.synthetic import SYNTHETIC_CLASSES, draw

Split = Literal["train", "val"]
OnBadImage = Literal["skip", "fail"]
IntArray = npt.NDArray[np.int64]
Result = TypeVar("Result")

SYNTHETIC = "synthetic"
"""The name of the built-in set, accepted wherever a folder is."""

VALIDATION_SHARE = 10
"""One image in this many is kept for validation where a folder has no `train` and `val`."""


class Item(Protocol):
    """One image that can be opened again."""

    @property
    def name(self) -> str: ...

    def image(self) -> Image.Image: ...

    def content(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class FileItem:
    """An image file below a folder."""

    root: Path
    relative: str
    """Path below `root`, with `/` between its parts."""

    @property
    def path(self) -> Path:
        return self.root / self.relative

    @property
    def name(self) -> str:
        return os.fsencode(self.relative).decode("utf-8", "backslashreplace")  # printable, whatever the bytes on disk

    def image(self) -> Image.Image:
        return load_rgb(self.path)

    def content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:  # the set still has a hash; an error is raised when the image is opened
            return f"unreadable: {error.errno}".encode()


class ImageSet:
    """An ordered list of images that can be opened again, with labels where they are known."""

    def __init__(
        self, items: Sequence[Item], labels: Sequence[int] | IntArray, classes: Sequence[str], source: Mapping[str, Any]
    ) -> None:
        self.items = tuple(items)
        self.classes = tuple(classes)
        """Class names by network output index; empty when the images have no labels."""
        self.labels_N: IntArray = np.asarray(labels, np.int64).reshape(len(self.items))
        """Output index of each image's class; -1 where it has no label."""
        self.labels_N.setflags(write=False)
        self.source = dict(source)
        """What `reopen` needs, as JSON; checkpoints record it."""
        self._hash = ""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return bool(self.classes) and bool((self.labels_N >= 0).all())

    def image(self, index: int) -> Image.Image:
        """The decoded image, upright 8-bit RGB.

        Raises:
            ImageError: when it cannot be used.
        """
        return self.items[index].image()

    def name(self, index: int) -> str:
        """The path below the folder that was opened, or `synthetic/train/000012`."""
        return self.items[index].name

    def content_hash(self) -> str:
        """SHA-256 over the ordered names, labels and contents: file bytes, or pixels for the synthetic set."""
        if not self._hash:
            digest = hashlib.sha256()
            for item, label in zip(self.items, self.labels_N.tolist(), strict=True):
                digest.update(f"{item.name}\0{label}\0".encode())
                digest.update(hashlib.sha256(item.content()).digest())
            self._hash = digest.hexdigest()
        return self._hash

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The images at `indices`, in that order."""
        origin = self.source.get("indices")
        recorded = [int(index) if origin is None else origin[index] for index in indices]
        items = [self.items[index] for index in indices]
        labels_N = self.labels_N[np.asarray(indices, np.int64)]
        return ImageSet(items, labels_N, self.classes, {**self.source, "indices": recorded})

    def spread(self, limit: int) -> ImageSet:
        """At most `limit` images, the same number of each class as far as there are enough, evenly spaced within it.

        Unlabelled images are spread over their folders. The order stays.

        Raises:
            DataError: when `limit` is not positive.
        """
        if limit < 1:
            raise DataError("the number of images must be 1 or more", value=limit, fix="give a positive number")
        if limit >= len(self):
            return self
        groups: dict[object, list[int]] = {}
        for index, label in enumerate(self.labels_N.tolist()):
            key = label if label >= 0 else self.items[index].name.rpartition("/")[0]
            groups.setdefault(key, []).append(index)
        remaining, chosen = limit, list[int]()
        for position, members in enumerate(
            sorted(groups.values(), key=len)
        ):  # small groups leave their share to others
            share = min(len(members), -(-remaining // (len(groups) - position)))
            chosen += [members[step * len(members) // share] for step in range(share)]
            remaining -= share
        return self.subset(sorted(chosen))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Preprocessed images."""

    x_NCHW: FloatArray
    labels_N: IntArray
    """-1 where there is no label."""
    indices_N: IntArray
    """Positions in the `ImageSet`."""


def batches(
    images: ImageSet,
    spec: Preprocessing,
    *,
    batch: int,
    on_bad_image: OnBadImage = "fail",
    bad: list[ImageError] | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """The images in order, preprocessed, `batch` at a time; the last batch may be smaller.

    `workers` threads decode ahead; 0 decodes in the caller's. An image that cannot be used raises when `on_bad_image` is
    `fail`; `skip` leaves it out and adds its error to `bad`.

    Raises:
        ImageError: when an image cannot be used and `on_bad_image` is `fail`.
        DataError: when `batch` is not positive, or no image is left.
    """
    if batch < 1:
        raise DataError("batch must be 1 or more", value=batch, fix="give a positive batch size")

    def joined(rows: Sequence[tuple[int, FloatArray]]) -> Batch:
        indices_N = np.asarray([index for index, _ in rows], np.int64)
        return Batch(x_NCHW=np.stack([x for _, x in rows]), labels_N=images.labels_N[indices_N], indices_N=indices_N)

    prepare = partial(preprocess_image, spec=spec)
    prepared = usable(images, prepare, on_bad_image=on_bad_image, bad=bad, workers=workers, ahead=2 * batch)
    while rows := list(islice(prepared, batch)):
        yield joined(rows)


def usable(
    images: ImageSet,
    prepare: Callable[..., Result],
    *,
    on_bad_image: OnBadImage,
    bad: list[ImageError] | None,
    workers: int,
    ahead: int,
) -> Iterator[tuple[int, Result]]:
    """`(index, prepare(image, path=path))` of each image that can be used, in order.

    Arguments and errors are those of `batches`.
    """

    def call(index: int) -> Result | ImageError:
        try:
            return prepare(images.image(index), path=Path(images.name(index)))
        except ImageError as error:
            return error

    count = 0
    for index, prepared in read_ahead(call, range(len(images)), workers=workers, ahead=ahead):
        if not isinstance(prepared, ImageError):
            yield index, prepared
            count += 1
        elif on_bad_image == "fail":
            raise prepared
        elif bad is not None:
            bad.append(prepared)
    if not count:
        origin = images.source.get("path", images.source.get("kind"))
        raise DataError(f"none of the {len(images)} images can be used", value=origin, fix="replace them")


def read_ahead(
    call: Callable[[int], Result], indices: Sequence[int], *, workers: int, ahead: int
) -> Iterator[tuple[int, Result]]:
    """`(index, call(index))` in order, computed by `workers` threads, at most `ahead` before they are used."""

    def numbered(index: int) -> tuple[int, Result]:
        return index, call(index)

    if workers < 1:
        yield from map(numbered, indices)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting = deque[Future[tuple[int, Result]]]()
    try:
        for index in indices:
            waiting.append(pool.submit(numbered, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def open_split(data: str | Path, split: Split, *, class_list: Path | None = None) -> ImageSet:
    """The training or validation images of `data`: `synthetic`, or a folder in the layout described at the head of this module.

    `class_list` is a CSV file with `wnid,index,name` that gives every folder its index; for WordNet ids it is searched.

    Raises:
        DataError: when the folder is missing or empty, has no classes or only one, or a class is not in the list.
    """
    if str(data) == SYNTHETIC:
        return synthetic(split)
    root = _existing(Path(data), class_list)
    train, val = root / "train", root / "val"
    if not train.is_dir() and not val.is_dir():
        return _class_folders(root, root, split, class_list, share=True)
    folder = train if split == "train" else val
    if not folder.is_dir():
        problem = f"the folder has no {split}/ beside {'val' if split == 'train' else 'train'}/"
        fix = f"add {split}/ with one folder per class, or name the other folder itself"
        raise DataError(problem, value=root, fix=fix)
    return _class_folders(root, folder, split, class_list, share=False)


def open_images(
    data: str | Path,
    *,
    limit: int | None = None,
    class_list: Path | None = None,
    classes: Sequence[str] | None = None,
) -> ImageSet:
    """Every image of a folder and its sub-folders, or one image file, or the validation half of the synthetic set.

    Images get labels when each lies in a folder named by one of `classes` (the network's, by output index), directly or
    through the class list; without `classes`, WordNet ids get the labels of the class list. Otherwise none has a label. At
    most `limit` images are kept, evenly spread over the classes or folders.

    Raises:
        DataError: when the folder is missing or has no images, or `limit` is not positive.
    """
    if str(data) == SYNTHETIC:
        images = synthetic("val")
    else:
        root = _existing(Path(data), class_list)
        if root.is_file():
            root, names = root.parent, [root.name]
        else:
            names = files_below(root)
            if not names:
                raise DataError("no images in the folder", value=root, fix=f"it needs {endings()} files")
        labels, class_names, used = _labels_by_folder(root, names, class_list, classes)
        source: dict[str, Any] = {"kind": "images", "path": str(root), "class_list": used and str(used)}
        if class_names and classes is not None:
            source["classes"] = list(classes)
        images = ImageSet([FileItem(root, name) for name in names], labels, class_names, source)
        if Path(data).is_file():
            images.source["file"] = names[0]
    return images if limit is None else images.spread(limit)


def open_for_evaluation(data: str | Path, *, classes: Sequence[str], class_list: Path | None = None) -> ImageSet:
    """The labelled images that a network with these `classes` is evaluated on.

    The validation half of the synthetic set, `DIR/val` where there is one, or else every image of the folder.

    Raises:
        DataError: when the folder is missing or empty, or its sub-folders are not classes of the network.
    """
    if str(data) == SYNTHETIC:
        return synthetic("val")
    path = Path(data)
    images = open_images(path / "val" if (path / "val").is_dir() else path, class_list=class_list, classes=classes)
    if not images.labelled:
        shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        problem = f"the images are not in folders named by the network's classes ({shown})"
        raise DataError(problem, value=path, fix="name the folders so, or give the class list with --class-list")
    return images


def reopen(source: Mapping[str, Any]) -> ImageSet:
    """The images that `ImageSet.source` recorded.

    Raises:
        DataError: when the folder is gone or changed so that they cannot be found, or `source` is not such a record.
    """
    try:
        kind = source["kind"]
        class_list = Path(source["class_list"]) if source.get("class_list") else None
        if kind == SYNTHETIC:
            images = synthetic(source["split"], count=int(source["count"]), seed=int(source["seed"]))
        elif kind == "folder":
            images = open_split(Path(source["path"]), source["split"], class_list=class_list)
        elif kind == "images":
            path = Path(source["path"]) / source.get("file", "")
            images = open_images(path, class_list=class_list, classes=source.get("classes"))
        else:
            raise DataError("unknown kind of data", value=kind, fix="name the images with --images")
        indices = source.get("indices")
        return images if indices is None else images.subset([int(index) for index in indices])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        problem = f"the recorded data cannot be opened again ({type(error).__name__}: {error})"
        raise DataError(problem, value=source.get("path"), fix="name the images with --images") from error


def _existing(path: Path, class_list: Path | None) -> Path:
    if class_list is not None and not class_list.is_file():
        raise DataError("no such class list", value=class_list, fix="give a CSV file with the columns wnid,index,name")
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise DataError("no such folder of images", value=path, fix="check the path, or use `synthetic`") from error
    if not resolved.is_dir() and not resolved.is_file():
        raise DataError("neither a folder nor a file", value=path, fix="name a folder of images")
    return resolved


def _class_folders(root: Path, folder: Path, split: Split, class_list: Path | None, *, share: bool) -> ImageSet:
    """The images of `folder`, a folder of class folders; with `share`, the part of each class that belongs to `split`."""
    if folder.is_file():
        raise DataError("this is a file, not a folder of images", value=folder, fix="name its folder")
    names = [entry.name for entry in folders_in(folder)]
    if not names:
        loose = len(files_below(folder))
        holds = f"it has {loose} images but no class folders" if loose else "it has no class folders"
        problem = f"not a folder of classes, {holds}"
        raise DataError(problem, value=folder, fix="put the images of each class in a folder")
    known = names if share or not (root / "train").is_dir() else [entry.name for entry in folders_in(root / "train")]
    used = class_list or find_class_list(root, names)
    if used is not None:
        classes, index_of = _indexed(read_class_list(used))
        fix = f"add it to {used}, or rename the folder"
    else:
        classes = sorted(known)
        index_of = {name: index for index, name in enumerate(classes)}
        fix = f"add it to {root / 'train'}, or remove it"
    items, labels = list[FileItem](), list[int]()
    for name in names:
        files = files_below(folder / name)
        if name not in index_of:
            raise DataError("folder is not a known class", value=folder / name, fix=fix)
        if not files and split == "train":
            raise DataError("class folder has no images", value=folder / name, fix="fill it or remove it")
        paths = [f"{name}/{path}" for path in files]
        kept = _share(paths, split) if share else paths
        items += [FileItem(folder, path) for path in kept]
        labels += [index_of[name]] * len(kept)
    if not items:
        raise DataError(f"no images for {split}", value=folder, fix=f"it needs {endings()} files, several per class")
    twice = [name for name, count in Counter(index_of[name] for name in names).items() if count > 1]
    if twice:
        raise DataError("two folders are the same class", value=classes[twice[0]], fix="merge them")
    if split == "train" and len(set(labels)) < 2:
        raise DataError("training needs images of two classes or more", value=folder, fix="add another class folder")
    source = {"kind": "folder", "path": str(root), "split": split, "class_list": used and str(used)}
    return ImageSet(items, labels, classes, source)


def _share(paths: list[str], split: Split) -> list[str]:
    """The part of one class that belongs to `split`: the tenth with the lowest hashes of the names is for validation."""
    ranked = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
    count = max(1, round(len(paths) / VALIDATION_SHARE)) if len(paths) > 1 else 0
    held_out = set(ranked[:count])
    return [path for path in paths if (path in held_out) == (split == "val")]


def _indexed(entries: Sequence[tuple[str, str]]) -> tuple[list[str], dict[str, int]]:
    """The class names of a class list, and the output index of every WordNet id and name."""
    return [name for _, name in entries], {key: index for index, pair in enumerate(entries) for key in pair}


def _labels_by_folder(
    root: Path, names: Sequence[str], class_list: Path | None, classes: Sequence[str] | None
) -> tuple[list[int], Sequence[str], Path | None]:
    """Label of each image by the nearest folder that is a class, the classes, and the class list used; or no labels."""
    folders = [name.split("/")[:-1] for name in names]
    nearest = sorted({parts[-1] for parts in folders if parts})
    used = class_list or find_class_list(root, nearest)
    entries = read_class_list(used) if used is not None else []
    listed, listed_index = _indexed(entries)
    if classes is None or (entries and tuple(classes) == tuple(f"class {index}" for index in range(len(entries)))):
        index_of = listed_index  # an imported network's classes have numbers only, which are those of the list
    else:
        index_of = {name: index for index, name in enumerate(classes)}
        index_of |= {wnid: index_of[name] for wnid, name in entries if name in index_of and wnid not in index_of}
    labels = [next((index_of[part] for part in reversed(parts) if part in index_of), -1) for parts in folders]
    if not index_of or min(labels) < 0:  # an accuracy over the few folders that happen to match would mislead
        return [-1] * len(names), (), used
    return labels, listed if classes is None else classes, used


SYNTHETIC_COUNTS: dict[Split, int] = {"train": 720, "val": 200}
"""Images of each half, a tenth of each class."""

SYNTHETIC_SEED = 2012


@dataclass(frozen=True, slots=True)
class SyntheticItem:
    """One synthetic image, drawn when it is opened."""

    split: Split
    seed: int
    index: int

    @property
    def label(self) -> int:
        return self.index % len(SYNTHETIC_CLASSES)

    @property
    def name(self) -> str:
        return f"{SYNTHETIC}/{self.split}/{self.index:06d}"

    def image(self) -> Image.Image:
        random = np.random.default_rng((self.seed, 0 if self.split == "train" else 1, self.index))
        return Image.fromarray(draw(SYNTHETIC_CLASSES[self.label], random))

    def content(self) -> bytes:
        return self.image().tobytes()


def synthetic(split: Split, *, count: int | None = None, seed: int = SYNTHETIC_SEED) -> ImageSet:
    """The built-in set: ten patterns and shapes in random colours, sizes, places and angles, with noise.

    Image `index` depends on `(seed, split, index)` alone, so a smaller set is the beginning of a larger one.

    Raises:
        DataError: when `count` is below the number of classes, `seed` is negative, or the split is unknown.
    """
    if split not in SYNTHETIC_COUNTS:
        raise DataError("no such split", value=split, fix="choose train or val")
    count = SYNTHETIC_COUNTS[split] if count is None else count
    if count < len(SYNTHETIC_CLASSES):
        raise DataError("the synthetic set needs an image of each class", value=count, fix="give 10 or more")
    if seed < 0:
        raise DataError("the seed must not be negative", value=seed, fix="give 0 or more")
    items = [SyntheticItem(split, seed, index) for index in range(count)]
    source = {"kind": SYNTHETIC, "split": split, "count": count, "seed": seed}
    return ImageSet(items, [item.label for item in items], SYNTHETIC_CLASSES, source)
