"""What this machine is, read from files as three kinds of machine have them."""

from __future__ import annotations

import json
import os
import platform
import struct
from pathlib import Path

import pytest

from alexnet_edge import environment

X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu vme avx avx2 avx512f avx512_vnni amx_tile amx_int8 amx_bf16 avx512_bf16
bogomips\t: 4800.00

processor\t: 1
model name\t: another
flags\t\t: fpu avx2
"""

JETSON = """\
processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""

ARM_WITHOUT_A_NAME = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd aes crc32 asimddp i8mm bf16 sve
CPU implementer\t: 0x41
"""

TEGRA = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
    "# KERNEL_VARIANT: oot\n"
)


def machine(root: Path, **files: str) -> Path:
    """A folder with files, `__` in a keyword standing for `/`."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


KIT = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
INTEL = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"]


@pytest.mark.parametrize(
    ("files", "model", "features", "l4t"),
    [
        ({"proc__cpuinfo": X86}, "Intel(R) Xeon(R) Platinum 8488C", INTEL, None),
        (
            {"proc__cpuinfo": JETSON, "etc__nv_tegra_release": TEGRA},
            "ARMv8 Processor rev 1 (v8l)", ["asimddp"], "36.4.3",
        ),
        (
            {"proc__cpuinfo": ARM_WITHOUT_A_NAME, "proc__device-tree__model": f"{KIT}\0"},
            KIT, ["asimddp", "i8mm", "bf16", "sve"], None,
        ),
        ({}, platform.processor() or None, [], None),
    ],
    ids=["x86", "jetson", "the board names the processor", "nothing can be read"],
)  # fmt: skip
def test_processors(
    tmp_path: Path, files: dict[str, str], model: str | None, features: list[str], l4t: str | None
) -> None:
    root = machine(tmp_path, **files)
    assert environment.cpu_model(root) == model
    assert environment.cpu_features(root) == features
    assert environment.l4t_release(root) == l4t


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64, DATE: Sat Feb 19\n", "32.7.1"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug 1", "35.4.1"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: Fri Aug 22", "38.2.0"),
        ("nothing of the kind", None),
        ("", None),
    ],
)
def test_l4t_releases(tmp_path: Path, text: str, release: str | None) -> None:
    assert environment.l4t_release(machine(tmp_path, etc__nv_tegra_release=text)) == release


def test_caches_and_governor(tmp_path: Path) -> None:
    assert environment.last_level_cache_bytes(tmp_path) is environment.cpu_governor(tmp_path) is None
    cpu, sizes = "sys__devices__system__cpu__cpu0__", ("48K\n", "32K\n", "2048K\n", "105M\n", "odd")
    files = {f"{cpu}cache__index{index}__size": size for index, size in enumerate(sizes)}
    root = machine(tmp_path, **files, **{f"{cpu}cpufreq__scaling_governor": "schedutil\n"})
    assert environment.last_level_cache_bytes(root) == 105 * 1024 * 1024
    assert environment.cpu_governor(root) == "schedutil"


@pytest.mark.parametrize("node", ["nvidia0", "nvhost-gpu", "nvgpu"])
def test_gpu_node(tmp_path: Path, node: str) -> None:
    assert not environment.gpu_node(tmp_path)
    machine(tmp_path, **{f"dev__{node}": ""})
    assert environment.gpu_node(tmp_path)


def test_gpus_by_their_drivers_own_names(tmp_path: Path) -> None:
    assert environment.gpu_models(tmp_path) is None
    for bus, name in (("0000:01:00.0", "NVIDIA GeForce RTX 4090"), ("0000:02:00.0", "NVIDIA RTX A2000")):
        file = f"proc__driver__nvidia__gpus__{bus}__information"
        machine(tmp_path, **{file: f"Model: \t\t {name}\nIRQ:   \t\t 34\n"})
    assert environment.gpu_models(tmp_path) == ["NVIDIA GeForce RTX 4090", "NVIDIA RTX A2000"]


def test_an_emulated_arm_processor_has_its_own_instructions_and_not_the_hosts(tmp_path: Path) -> None:
    root = machine(tmp_path, proc__cpuinfo=X86)
    vector = root / "proc/self/auxv"
    vector.parent.mkdir()
    vector.write_bytes(struct.pack("@8L", 16, 1 << 20 | 1 << 1, 26, 1 << 13, 6, 4096, 0, 0))
    assert environment.cpu_features(root, "aarch64") == ["asimddp", "i8mm"]
    assert "avx2" in environment.cpu_features(root, "x86_64")


@pytest.mark.parametrize(
    ("program", "emulated"),
    [
        ("/usr/bin/qemu-aarch64-static", "qemu-aarch64-static runs the instructions"),
        ("/run/rosetta/rosetta", "rosetta runs the instructions"),
        ("/usr/bin/python3.11", None),
        ("/opt/qemu-test/bin/python3", None),
    ],
)
def test_an_emulator_is_seen_by_the_program_that_runs(tmp_path: Path, program: str, emulated: str | None) -> None:
    link = tmp_path / f"proc/self/task/{os.getpid()}/exe"
    link.parent.mkdir(parents=True)
    link.symlink_to(program)
    assert environment.emulation(tmp_path, "aarch64") == emulated


@pytest.mark.parametrize(
    ("cpuinfo", "kind", "emulated"),
    [
        (X86, "aarch64", "the processor is no aarch64"),
        (JETSON, "x86_64", "the processor is no x86_64"),
        (X86, "x86_64", None),
        (JETSON, "aarch64", None),
        (ARM_WITHOUT_A_NAME, "aarch64", None),
    ],
)
def test_an_emulator_is_seen_by_a_processor_of_another_kind(
    tmp_path: Path, cpuinfo: str, kind: str, emulated: str | None
) -> None:
    assert environment.emulation(machine(tmp_path, proc__cpuinfo=cpuinfo), kind) == emulated


def test_a_marker_declares_an_emulator_that_is_not_seen(tmp_path: Path) -> None:
    root = machine(tmp_path, proc__cpuinfo=JETSON, **{"etc__alexnet-edge__emulated": "QEMU, machine virt\nmore\n"})
    assert environment.emulation(root, "aarch64") == "QEMU, machine virt"


def test_an_emulated_machine_does_not_bear_its_hosts_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "emulated").write_text("declared\n", encoding="utf-8")
    monkeypatch.setattr(environment, "EMULATED_MARKER", tmp_path / "emulated")
    found = environment.describe()
    assert found["emulated"] == "declared"
    assert found["cpu"].startswith(f"emulated {platform.machine()}, on ")
    assert found["cpu_features"] == []


def test_this_machine() -> None:
    found = environment.describe()
    assert found["emulated"] == environment.emulation()
    json.dumps(found, allow_nan=False)
    assert found["cpus"] == len(os.sched_getaffinity(0))
    total = Path("/proc/meminfo").read_text().split()[1]
    assert abs(found["memory_bytes"] / 1024 - int(total)) < 0.1 * int(total)
    assert found["versions"]["python"] == platform.python_version()


def test_affinity_is_respected() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert environment.usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_versions_are_those_imported() -> None:
    import numpy
    import PIL

    found = environment.versions()
    assert found["numpy"] == numpy.__version__
    assert found["pillow"] == PIL.__version__
    assert set(found) <= {"python", *environment.LIBRARIES}
