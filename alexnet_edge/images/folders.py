"""Image files in a folder and its sub-folders. Hidden entries are ignored; links are followed, loops of links are not."""

from __future__ import annotations

import os
from pathlib import Path

from alexnet_edge.errors import DataError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)
"""Files with these endings, in upper or lower case, are images; others are ignored."""


def endings() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES)[:6]) + ", ..."


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listing:
            return sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"the folder cannot be read ({error.strerror})", value=folder, fix="check its permissions"
        ) from error


def folders_in(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(folder) if _is_dir(entry)]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def files_below(folder: Path) -> list[str]:
    """Sorted paths, below `folder`, of the image files in it and its sub-folders; each folder is entered once."""
    paths, entered = list[str](), set[tuple[int, int]]()

    def walk(current: Path, prefix: str) -> None:
        status = current.stat()
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        for entry in _entries(current):
            if _is_dir(entry):
                walk(current / entry.name, f"{prefix}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 (a million Paths are slow)
                paths.append(prefix + entry.name)

    walk(folder, "")
    return sorted(paths)
