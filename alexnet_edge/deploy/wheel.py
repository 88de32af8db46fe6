"""This very package as a wheel, from the files that run here: the same bytes for the same package, wherever it is installed.

Source: "Binary distribution format", packaging.python.org.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib import metadata
from pathlib import Path

import alexnet_edge
from alexnet_edge import __version__
from alexnet_edge.errors import MissingComponentError

_DATE = (2020, 1, 1, 0, 0, 0)
_SUFFIXES = (".py", ".typed", ".j2")


def write_wheel(folder: Path) -> Path:
    """Write `alexnet_edge-VERSION-py3-none-any.whl` into `folder`.

    Raises:
        MissingComponentError: when the package is not installed, so that nothing tells what it depends on.
    """
    about = entries = None
    for distribution in metadata.distributions(
        name="alexnet-edge"
    ):  # a source tree has another one beside the installed
        if distribution.version == __version__ and about is None:
            about, entries = distribution.read_text("METADATA"), distribution.read_text("entry_points.txt")
    if about is None or entries is None:
        raise MissingComponentError(
            f"alexnet-edge {__version__} runs here but is not installed, and a device needs its list of dependencies",
            fix="run: pip install .",
        )
    info = f"alexnet_edge-{__version__}.dist-info"
    content = _sources()
    content[f"{info}/METADATA"] = about.encode()
    content[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: alexnet-edge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    content[f"{info}/entry_points.txt"] = entries.encode()
    record = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in content.items()
    ]
    content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    path = folder / f"alexnet_edge-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return path


def _sources() -> dict[str, bytes]:
    """The package's files by name; `export` and `bench` are links in a source folder, and folders in the wheel."""
    root = Path(alexnet_edge.__file__).parent
    folders, content = [root], dict[str, bytes]()
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if path.is_dir() and path.name != "__pycache__":
                folders.append(path)
            elif path.suffix in _SUFFIXES:
                content[f"alexnet_edge/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return dict(sorted(content.items()))
