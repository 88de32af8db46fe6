"""This very package as a wheel, from the files that run here: the same bytes for the same package, wherever it is installed.

Source: "Binary distribution format", packaging.python.org.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from importlib import metadata
from pathlib import Path

import alexnet_edge
from alexnet_edge import __version__
from alexnet_edge.errors import MissingComponentError

_DATE = (2020, 1, 1, 0, 0, 0)
_SUFFIXES = (".py", ".typed", ".j2")
_WHEEL = b"Wheel-Version: 1.0\nGenerator: alexnet-edge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path) -> Path:
    """Write `alexnet_edge-VERSION-py3-none-any.whl` into `folder`; MissingComponentError when the package is not installed."""
    installed = (entry for entry in metadata.distributions(name="alexnet-edge") if entry.version == __version__)
    texts = [(entry.read_text("METADATA"), entry.read_text("entry_points.txt")) for entry in installed]
    about, entries = next((pair for pair in texts if None not in pair), (None, None))  # a source tree has another one
    if about is None or entries is None:
        raise MissingComponentError(
            f"alexnet-edge {__version__} runs here but is not installed, and a device needs its list of dependencies",
            fix="run: pip install .",
        )
    info = f"alexnet_edge-{__version__}.dist-info"
    content = _sources()
    content[f"{info}/METADATA"] = about.encode()
    content[f"{info}/WHEEL"] = _WHEEL
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
    paths = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names]
    sources = {f"alexnet_edge/{path.relative_to(root).as_posix()}": path for path in paths if path.suffix in _SUFFIXES}
    return {name: sources[name].read_bytes() for name in sorted(sources)}
