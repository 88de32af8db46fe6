"""Adds the tests' networks to the package's as soon as its tables are imported; listings of architectures omit them.

The tests' own process imports this first. `sitecustomize.py` imports it in every process that a test starts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import Any

_TABLES = ("alexnet_edge.network.layers", "alexnet_edge.images.preprocess")


class Hidden(dict[str, Any]):
    """A table with entries that can be looked up and are not listed."""

    def __init__(self, listed: dict[str, Any], hidden: Callable[[], dict[str, Any]]) -> None:
        super().__init__(listed)
        self.hidden = hidden

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.hidden()

    def __missing__(self, name: str) -> Any:
        return self.hidden()[name]


def _networks() -> dict[str, Any]:
    import narrow_network

    return narrow_network.NETWORKS


class _Loader(SourceFileLoader):
    def exec_module(self, module: Any) -> None:
        super().exec_module(module)
        if module.__name__ == "alexnet_edge.network.layers":
            module.ARCHITECTURES = Hidden(module.ARCHITECTURES, _networks)
        else:
            tiny = module.Preprocessing(resize=80, crop=67)
            module.PRESETS = Hidden(module.PRESETS, lambda: {"tiny-67": tiny})


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in _TABLES else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


sys.meta_path.insert(0, _Finder)
