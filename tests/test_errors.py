"""The exception tree: drawn as it is, one line each, an exit code each."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

from alexnet_edge import errors


def drawing() -> dict[str, str]:
    """Class name to the name of its parent, read off the drawing in the module's docstring."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"(?P<lead>[ │├└─]+)(?P<name>\w+Error)\b", line):
            depth = (len(match["lead"]) - 4) // 4
            above[depth:] = [match["name"]]
            parents[match["name"]] = above[depth - 1] if depth else "Exception"
    return parents


def test_the_drawing_is_the_tree() -> None:
    classes = {
        name: value for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert drawing() == {name: value.__bases__[0].__name__ for name, value in classes.items()}
    assert len(classes) >= 10


def test_exit_codes_are_as_drawn() -> None:
    drawn = dict(re.findall(r"(\w+Error)\s+exit (\d+):", errors.__doc__ or ""))
    assert drawn["UserError"] == "2"
    assert drawn["GateError"] == "1"
    for name, parent in drawing().items():
        code = drawn.get(name) or drawn.get(parent)
        if code:
            assert getattr(errors, name).exit_code == int(code), name


def test_a_message_has_problem_value_and_fix_on_one_line() -> None:
    error = errors.UserError("no such\nthing", value="a\tb\r\nc", fix="try\nanother")
    assert str(error) == "no such thing: a b c; try another"
    assert (error.problem, error.value, error.fix) == ("no such\nthing", "a\tb\r\nc", "try\nanother")
    assert str(errors.UserError("batch must be 1 or more", value=0)) == "batch must be 1 or more: 0"
    assert str(errors.UserError("the session is closed")) == "the session is closed"


@pytest.mark.parametrize("extra", ["train", "onnx", "rtx"])
def test_needs_names_the_module_and_the_command(extra: str) -> None:
    with pytest.raises(errors.MissingComponentError) as error, errors.needs(extra):
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401
    assert str(error.value) == f"no_such_library is not installed; run: pip install 'alexnet-edge[{extra}]'"
    assert isinstance(error.value.__cause__, ModuleNotFoundError)


def test_needs_lets_other_errors_through() -> None:
    with pytest.raises(ZeroDivisionError), errors.needs("train"):
        _ = 1 // 0


BARE = """
import importlib.abc, importlib, pkgutil, sys

class Blocked(importlib.abc.MetaPathFinder):
    heavy = {"torch", "torchvision", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "safetensors", "scipy", "jinja2",
             "plotly", "psutil", "pytest", "ml_dtypes"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.heavy:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import alexnet_edge
names, refused = [], {}
for module in pkgutil.walk_packages(alexnet_edge.__path__, "alexnet_edge.", onerror=lambda name: None):
    if module.name.endswith("__main__") or module.name.rpartition(".")[2].startswith(("test_", "conftest")):
        continue
    names.append(module.name)
    try:
        importlib.import_module(module.name)
    except alexnet_edge.errors.MissingComponentError as error:
        refused[module.name] = str(error)
for name in names:
    print(name, "|", refused.get(name, "imported"))
"""


def test_every_module_imports_bare_or_says_what_it_needs() -> None:
    """With every optional library blocked, a module imports or names the pip command; nothing else is raised."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", BARE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    outcome = dict(line.split(" | ") for line in run.stdout.splitlines())
    for name in (
        "errors",
        "files",
        "environment",
        "images.preprocess",
        "images.datasets",
        "network.layers",
        "network.checkpoint",
        "artifact",
        "sessions.open",
    ):
        assert outcome[f"alexnet_edge.{name}"] == "imported"
    refused = {name: text for name, text in outcome.items() if text != "imported"}
    assert "alexnet_edge.network.model" in refused
    for name, text in refused.items():
        assert re.fullmatch(r"\w+ is not installed; run: pip install 'alexnet-edge\[\w+\]'", text), (name, text)
