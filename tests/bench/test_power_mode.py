"""The power mode is put back whatever happens; `nvpmodel` and `jetson_clocks` are stand-ins that keep their state in files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from machine_tree import DATA, Tools, grow

from alexnet_edge.bench.machine import power_mode as module
from alexnet_edge.bench.machine.power_mode import Setting, left_over, power_mode, restore_left_over
from alexnet_edge.errors import AlexNetEdgeError, UserError

BEFORE = ("2", "as before")

BENCH = """
import signal, sys, time
from pathlib import Path
from alexnet_edge.bench.machine.power_mode import power_mode
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where they run in a script's background
folder = Path(sys.argv[1])
with power_mode("15W", clocks=True, root=folder / "root", state=folder / "journal", path=sys.argv[2], euid=0):
    print("inside", flush=True)
    time.sleep(60)
"""


class Board:
    """A folder with stand-in commands, a root and a place for the journal."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.state = folder, folder / "root", folder / "journal"
        self.tools = Tools(folder)
        self.boot("first")

    def boot(self, name: str) -> None:
        file = self.root / "proc/sys/kernel/random/boot_id"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name}\n")

    def set(self, mode: str | int | None, *, clocks: bool = False) -> AbstractContextManager[Setting]:
        return power_mode(mode, clocks=clocks, root=self.root, state=self.state, path=self.tools.path, euid=0)

    def restore(self) -> str | None:
        return restore_left_over(self.root, self.state)

    @property
    def is_as_before(self) -> bool:
        return self.tools.now == BEFORE and not left_over(state=self.state)

    def bench(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", BENCH, str(self.folder), self.tools.path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def settle(self) -> None:
        """Wait for a guard that restores."""
        with module._locked(self.state):
            return

    def guard(self, bench: int) -> int:
        """The guard's process, a child of the benchmark's."""
        children = Path(f"/proc/{bench}/task/{bench}/children")
        for child in children.read_text().split():
            if b"alexnet_edge.bench.machine.power_mode" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise AssertionError("no guard")


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


@contextmanager
def running(board: Board) -> Iterator[subprocess.Popen[str]]:
    """A benchmark in a process of its own, inside the block."""
    with board.bench() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        assert board.tools.now == ("1", "locked")
        try:
            yield process
        finally:
            process.kill()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def killed(board: Board) -> Board:
    """Where a benchmark and its guard were killed."""
    with running(board) as process:
        os.kill(board.guard(process.pid), signal.SIGKILL)
        kill(process)
    assert board.tools.now == ("1", "locked")
    assert left_over(state=board.state)
    return board


def wait_for(board: Board, commands: int) -> None:
    """Until the benchmark has begun so many commands: it stores the clocks, sets the mode, locks the clocks."""
    deadline = time.monotonic() + 30
    while len(board.tools.get("calls").splitlines()) < commands:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("mode", ["15W", "15w", "1", 1])
def test_a_mode_by_name_or_number(board: Board, mode: str | int) -> None:
    with board.set(mode) as setting:
        assert board.tools.get("mode") == "1"
        assert str(setting) == "15W (1)"
        assert str(setting.before) == "30W (2)"
        assert left_over(state=board.state)
    assert board.is_as_before


def test_names_come_from_the_boards_own_list(board: Board) -> None:
    conf = board.root / "etc/nvpmodel.conf"
    conf.parent.mkdir()
    conf.write_text("< POWER_MODEL ID=0 NAME=MAXN_SUPER >\n")
    with board.set("MAXN_SUPER"):
        assert board.tools.get("mode") == "0"
    with pytest.raises(UserError, match=r"no such power mode: 15W; one of 0 MAXN_SUPER"), board.set("15W"):
        pass


@pytest.mark.parametrize(
    ("mode", "clocks", "inside", "words"),
    [
        ("MAXN", True, ("0", "locked"), "MAXN (0), clocks locked"),
        (None, True, ("2", "locked"), "30W (2), clocks locked"),
        ("15W", False, ("1", "free"), "15W (1)"),  # setting a mode sets its own limits: those of the user come back
    ],
)
def test_mode_and_clocks_are_put_back(
    board: Board, mode: str | None, clocks: bool, inside: tuple[str, str], words: str
) -> None:
    with board.set(mode, clocks=clocks) as setting:
        assert board.tools.now == inside
        assert str(setting) == words
    assert board.is_as_before
    assert ("-m" in board.tools.get("calls")) == (mode is not None)


def test_clocks_stored_by_a_benchmark_that_was_killed_before_its_journal_are_stored_anew(board: Board) -> None:
    board.state.mkdir()
    (board.state / "clocks.conf").write_text("of long ago\n")
    with board.set("15W", clocks=True):
        pass
    assert board.tools.now == BEFORE


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_puts_it_back_and_goes_on(board: Board, error: type[BaseException]) -> None:
    with pytest.raises(error), board.set("15W", clocks=True):
        raise error
    assert board.is_as_before


def test_governors_elsewhere(tmp_path: Path) -> None:
    root = grow("x86", tmp_path)
    files = [root / f"sys/devices/system/cpu/cpufreq/policy{number}/scaling_governor" for number in range(2)]

    def go(mode: str | None, *, clocks: bool = False) -> AbstractContextManager[Setting]:
        return power_mode(mode, clocks=clocks, root=root, path=str(tmp_path), euid=0)

    for mode, clocks in (("performance", False), (None, True)):
        with go(mode, clocks=clocks) as setting:
            assert [file.read_text() for file in files] == ["performance", "performance"]
            assert str(setting) == "governor performance"
        assert [file.read_text() for file in files] == ["powersave", "powersave"]
    with pytest.raises(UserError, match="no such frequency governor: fast; one of performance, powersave"), go("fast"):
        pass
    assert not left_over(root)


def test_a_mode_that_needs_a_reboot_is_refused_and_nothing_changed(board: Board) -> None:
    with (
        pytest.raises(UserError, match=r"this power mode needs a reboot: 7W \(3\); run `sudo nvpmodel -m 3`"),
        board.set("7W", clocks=True),
    ):
        raise AssertionError
    assert board.is_as_before
    assert module._REBOOT in (DATA / "nvpmodel-reboot.txt").read_text()  # what a real one said


def test_a_mode_that_the_board_does_not_take_is_an_error_and_put_back(board: Board) -> None:
    board.tools.set("refused", "1")
    with pytest.raises(AlexNetEdgeError, match="did not set power mode 15W"), board.set("15W"):
        raise AssertionError
    assert board.is_as_before


@pytest.mark.parametrize(
    ("tools", "arguments", "message"),
    [
        ((), {"euid": 1000}, "only root can set the power mode; run the benchmark with sudo"),
        ((), {}, "nvpmodel is not on PATH, and the kernel has no frequency governors"),
        ((), {"mode": None}, "no power mode; name one"),
        (("nvpmodel",), {"clocks": True}, "jetson_clocks is not on PATH"),
        (("nvpmodel",), {"mode": "99W"}, r"no such power mode: 99W; one of 0 MAXN, 1 15W, 2 30W, 3 7W"),
    ],
)
def test_what_is_missing_is_one_line(
    tmp_path: Path, tools: tuple[str, ...], arguments: dict[str, Any], message: str
) -> None:
    commands = Tools(tmp_path, only=tools)
    options = {"mode": "15W", "root": tmp_path, "path": commands.path, "euid": 0, **arguments}
    with pytest.raises(UserError, match=message), power_mode(**options):
        raise AssertionError
    assert commands.now == BEFORE


def test_a_second_benchmark_is_refused_and_does_not_take_the_firsts_mode_for_the_original(board: Board) -> None:
    with board.set("15W"):
        with pytest.raises(UserError, match="another benchmark has set the power mode: process"), board.set("MAXN"):
            raise AssertionError
        assert board.restore() is None  # it is in use
        assert board.tools.get("mode") == "1"
    assert board.tools.now == BEFORE
    with board.set("MAXN"):
        pass
    assert board.tools.now == BEFORE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, None)])
def test_signals_put_it_back_before_the_process_ends(board: Board, number: signal.Signals, code: int | None) -> None:
    with running(board) as process:
        process.send_signal(number)
        ended = process.wait(timeout=20)
        assert ended in ((code,) if code is not None else (-signal.SIGINT, 130))
        assert board.is_as_before


def test_a_signal_while_it_is_being_restored_waits(board: Board) -> None:
    board.tools.set("pause", "0.2")
    with running(board) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        assert board.tools.now == BEFORE
        assert board.tools.get("calls").count("clocks --restore") == 2  # not begun anew by the guard
        assert not left_over(state=board.state)


def test_killed_inside_the_guard_puts_it_back(board: Board) -> None:
    with running(board) as process:
        kill(process)
        board.settle()
        assert board.is_as_before


def test_the_guard_outlives_the_terminals_signals(board: Board) -> None:
    with running(board) as process:
        guard = board.guard(process.pid)
        assert os.getsid(guard) == guard  # a session of its own
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guard, number)
        kill(process)
        board.settle()
        assert board.tools.now == BEFORE


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """20 times: while it starts, while it stores the clocks, sets the mode, and locks the clocks or is inside."""
    chance = random.Random(20)
    moments = [(index % 4, chance.uniform(0.0, 0.1)) for index in range(20)]

    def once(index: int) -> tuple[bool, tuple[str, str]]:
        board = Board(tmp_path / str(index))
        board.tools.set("pause", "0.03")
        commands, delay = moments[index]
        with board.bench() as process:
            wait_for(board, commands)
            time.sleep(delay)
            changed = board.tools.now != BEFORE
            process.kill()
        if board.state.exists():
            board.settle()
        board.restore()  # what the next benchmark does first
        assert not left_over(state=board.state)
        return changed, board.tools.now

    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(once, range(20)))
    assert [now for _, now in ended] == [BEFORE] * 20
    assert any(changed for changed, _ in ended)
    assert not all(changed for changed, _ in ended)


def test_killed_while_a_command_still_runs(board: Board) -> None:
    """The orphaned command sets the mode after its caller is dead: the guard waits for it."""
    board.tools.set("slow", "1")
    with board.bench() as process:
        wait_for(board, 2)
        kill(process)
        assert board.tools.get("mode") == "2"  # it has not come to that yet
        board.settle()
        assert "-m 2" in board.tools.get("calls")
        time.sleep(1.0)
        assert board.tools.now == BEFORE


def test_guard_killed_too_the_next_start_puts_it_back(killed: Board) -> None:
    assert killed.restore() == "power mode 30W (2) put back"
    assert killed.is_as_before
    assert killed.restore() is None


def test_a_benchmark_that_starts_after_both_were_killed_knows_the_original(killed: Board) -> None:
    with killed.set("MAXN") as setting:
        assert str(setting.before) == "30W (2)"
        assert killed.tools.get("mode") == "0"
    assert killed.tools.now == BEFORE


def test_after_a_reboot_only_the_mode_is_left(killed: Board) -> None:
    killed.boot("second")
    killed.tools.set("clocks", "fresh from the boot")
    assert killed.restore() == "power mode 30W (2) put back"
    assert killed.tools.get("mode") == "2"
    assert "clocks --restore" not in killed.tools.get("calls")


def test_what_cannot_be_put_back_is_said_and_kept(board: Board) -> None:
    with pytest.raises(UserError, match=r"the power mode is not back: nvpmodel -m 2: NVPM ERROR"), board.set("15W"):
        board.tools.set("refused", "2")
    assert left_over(state=board.state)
    board.tools.set("refused", "none")
    assert board.restore() == "power mode 30W (2) put back"
    assert board.tools.now == BEFORE


def test_a_damaged_journal_is_one_line(board: Board) -> None:
    board.state.mkdir()
    for text in ("", "{}", json.dumps({"root": "/"}), "[1]"):
        (board.state / "journal.json").write_text(text)
        with pytest.raises(UserError, match="the power mode to go back to is damaged"):
            board.restore()


def test_the_guard_leaves_nothing_running(board: Board) -> None:
    with board.set("15W"):
        guard = board.guard(os.getpid())
    assert not Path(f"/proc/{guard}").exists()
