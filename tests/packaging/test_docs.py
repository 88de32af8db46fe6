"""What the documentation shows exists: its commands with their options, its links, its examples."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from command_line import command_names, options_of

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
UNITS = sorted((ROOT / "docs" / "examples").glob("*.service")) + sorted((ROOT / "docs" / "examples").glob("*.path"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def options() -> dict[str, set[str]]:
    """The options of each command."""
    own = [("bench", "loader"), ("deploy", "rollback"), ("deploy", "status")]
    return {" ".join(names): options_of(*names) for names in [*((name,) for name in command_names()), *own]}


def check_words(words: list[str]) -> None:
    """`words` are a command of the command line and its arguments."""
    name, *arguments = words
    if arguments and f"{name} {arguments[0]}" in options():
        name, arguments = f"{name} {arguments[0]}", arguments[1:]
    if name not in ("--version", "--help"):
        given = {word.partition("=")[0] for word in arguments if word.startswith("--") and word != "--"}
        assert given <= options()[name], f"{name} has no {given - options()[name]}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_are_shown_exist(page: Path) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|\|", line):
            if found := re.match(r"\s*(?:\$ )?(?:\S*/)?alexnet-edge ([a-z-].*)", command):
                check_words(shlex.split(found.group(1).partition(" | ")[0], comments=True))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, target


def modules_of_the_map() -> dict[str, set[str]]:
    """The modules that the tree in docs/architecture.md names, by folder."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = text.partition("## The rooms\n\n```\n")[2].partition("```\n")[0]
    modules: dict[str, set[str]] = {}
    top = folder = ""
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        first = line.split()[0]
        if indent == 0:
            top = folder = first.rstrip("/")
        elif indent == 2:
            folder = f"{top}/{first.rstrip('/')}" if first.endswith("/") else top
        modules.setdefault(folder, set()).update(name for name in re.findall(r"[\w*]+\.py\b", line) if "*" not in name)
    return modules


def test_the_map_names_every_module() -> None:
    shown = modules_of_the_map()
    for folder in ("alexnet_edge", "export", "bench"):
        for path in [ROOT / folder, *(ROOT / folder).iterdir()]:
            name = path.relative_to(ROOT).as_posix()
            if not path.is_dir() or path.is_symlink() or name in ("alexnet_edge/cli", "bench/__pycache__"):
                continue
            modules = {module.name for module in path.glob("*.py") if not module.name.startswith(("__", "test_"))}
            if modules:
                assert shown.get(name, set()) == modules, f"docs/architecture.md, {name}/"


def examples() -> list[tuple[str, str]]:
    """Python that the documentation shows: its name and text."""
    blocks = [
        (f"{name_of(page)}:{number}", block)
        for page in PAGES
        for number, block in enumerate(
            re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        )
    ]
    return blocks + [(name_of(path), path.read_text("utf-8")) for path in sorted((ROOT / "docs").rglob("*.py"))]


@pytest.mark.parametrize(("name", "text"), examples(), ids=[name for name, _ in examples()])
def test_examples_import_names_that_exist(name: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("alexnet_edge"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_the_units_are_what_systemd_takes(tmp_path: Path) -> None:
    program = tmp_path / "alexnet-edge" / "current" / "alexnet-edge"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    starts = [
        line.partition("=")[2].split()
        for unit in UNITS
        for line in unit.read_text(encoding="utf-8").splitlines()
        if line.startswith("ExecStart=%h/alexnet-edge/current/alexnet-edge")
    ]
    assert starts
    for _, *words in starts:
        check_words(words)
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here: the units are not checked by systemd itself")
    done = subprocess.run(
        [analyze, "verify", "--user", *map(str, UNITS)],
        env={**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
