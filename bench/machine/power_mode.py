"""Set a board's power mode and lock its clocks for a benchmark, and restore both however it ends.

Every change is written to a journal first. Then one of these restores it:

- leaving the block, an exception, Ctrl-C, SIGTERM and SIGHUP restore in this process;
- SIGKILL of it: a guard, a process in a session of its own, so that it outlives the terminal, waits for the end of a
  pipe that only this process and the commands it runs hold, and restores;
- the guard killed too, or the board switched off: the journal is still there, and `restore_left_over` restores at the
  next start. After a reboot clocks and governors are back by themselves; the power mode is not, as nvpmodel keeps it.

A lock, which the guard holds as well, keeps a second benchmark from taking the first one's mode for the original.

On a Jetson the mode is one of nvpmodel's, and clocks are locked by jetson_clocks; elsewhere the mode is a frequency
governor of the processors, and locking clocks means `performance`.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from alexnet_edge import records
from alexnet_edge.bench.machine.jetson import (
    PowerMode,
    ToolAnswer,
    find_tool,
    modes_of,
    parse_mode,
    parse_modes,
    run_tool,
)
from alexnet_edge.environment import ROOT, read_text
from alexnet_edge.errors import AlexNetEdgeError, UserError
from alexnet_edge.files import write_json

STATE = "var/lib/alexnet-edge/power"
"""Folder of the journal, under `root`; it must outlive a reboot, as /run does not."""

_JOURNAL = "journal.json"
_LOCK = "lock"
_CLOCKS = "clocks.conf"
_GUARD_S = 30.0
"""How long a guard may take to start, or to restore."""
_BOOT = "proc/sys/kernel/random/boot_id"
_POLICIES = "sys/devices/system/cpu/cpufreq"
_REBOOT = "eboot required"
"""In nvpmodel's answer, before it asks for YES; with any other answer it changes nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What was set before, what is set now, and what restoring needs."""

    root: str
    boot_id: str
    owner: int
    """The process that changed it."""
    before: PowerMode | None = None
    """None when the mode is left as it is."""
    mode: PowerMode | None = None
    governor: str | None = None
    """Set instead of a mode on a machine without nvpmodel."""
    governors: Mapping[str, str] = field(default_factory=dict)
    """By file under `root`: what it held before."""
    clocks: bool = False
    """Whether clocks are to be locked."""
    clocks_file: str | None = None
    """What `jetson_clocks --store` wrote; None where there is no jetson_clocks."""
    nvpmodel: str | None = None
    """Path of the command."""
    jetson_clocks: str | None = None

    def __str__(self) -> str:
        """What was set, as results record it: `15W (1), clocks locked`."""
        parts = [str(self.mode)] if self.mode is not None else []
        parts += [f"governor {self.governor}"] if self.governor is not None else []
        parts += ["clocks locked"] if self.clocks and self.jetson_clocks is not None else []
        return ", ".join(parts)


@contextmanager
def power_mode(
    mode: str | int | None = None,
    *,
    clocks: bool = False,
    root: Path = ROOT,
    state: Path | None = None,
    path: str | None = None,
    euid: int | None = None,
) -> Iterator[Setting]:
    """Inside the block the machine is in `mode`, with its clocks locked if `clocks`; afterwards it is as it was.

    `mode` is the number or name of one of nvpmodel's modes; on a machine without it, a frequency governor. Clocks are locked
    at the mode's highest (`jetson_clocks`); on other machines by the governor `performance`. `/sys`, `/etc`, `/proc` and
    `/var` are looked for under `root`, the journal is in `state`, by default `STATE` under `root`, and the commands are
    looked up in `path`, by default `PATH`. Only root (0) may, by default `euid` is this process's user.

    Raises:
        UserError: when this is not root, another benchmark holds the mode, there is no such mode or no such command, or
            the mode needs a reboot. Nothing is changed then.
        AlexNetEdgeError: when the machine did not take the mode; what was changed is put back.
    """
    state = root / STATE if state is None else state
    if mode is None and not clocks:
        raise UserError("no power mode", fix="name one, or ask for locked clocks")
    if (os.geteuid() if euid is None else euid) != 0:
        raise UserError("only root can set the power mode", fix="run the benchmark with sudo, or without a power mode")
    with ExitStack() as stack:
        # SIGTERM and SIGHUP end the block as Ctrl-C does
        stack.enter_context(_handled((signal.SIGTERM, signal.SIGHUP), _leave, only_default=True))
        lock = stack.enter_context(_locked(state))
        _restore_journal(state, [lock])
        setting = _plan(mode, clocks=clocks, root=root, state=state, path=path)
        write_json(state / _JOURNAL, records.to_builtins(setting))
        guard: _Guard | None = None
        try:
            guard = _Guard(state, lock)
            _apply(setting, guard.hold)
            yield setting
        finally:
            with _undisturbed():
                try:
                    _restore_journal(state, [lock] if guard is None else guard.hold)
                finally:
                    if guard is not None:
                        guard.dismiss()


def left_over(root: Path = ROOT, state: Path | None = None) -> bool:
    """Whether a benchmark that was killed, or one that runs now, has changed the power mode."""
    return ((root / STATE if state is None else state) / _JOURNAL).exists()


def restore_left_over(root: Path = ROOT, state: Path | None = None) -> str | None:
    """Put back what a killed benchmark and its killed guard left; to be called when a benchmark starts.

    Returns:
        What was put back, in words; None when there was nothing, or it belongs to a benchmark that still runs.

    Raises:
        UserError: when it cannot be put back, such as by a user who is not root.
    """
    state = root / STATE if state is None else state
    if not left_over(root, state):
        return None
    if not os.access(state, os.W_OK):
        if _alive(_owner(state)):
            return None
        raise UserError("a benchmark was killed and left its power mode", value=state, fix="measure again with sudo")
    try:
        with _locked(state) as lock:
            return _restore_journal(state, [lock])
    except BusyError:
        return None


class BusyError(UserError):
    """Another benchmark holds the power mode."""


def _plan(mode: str | int | None, *, clocks: bool, root: Path, state: Path, path: str | None) -> Setting:
    nvpmodel, jetson_clocks = find_tool("nvpmodel", path), find_tool("jetson_clocks", path)
    setting = Setting(root=str(root), boot_id=read_text(root / _BOOT) or "", owner=os.getpid(), clocks=clocks)
    if nvpmodel is None:
        if jetson_clocks is not None or not any((root / _POLICIES).glob("policy*/scaling_governor")):
            more = ", and the kernel has no frequency governors" if jetson_clocks is None else ""
            raise UserError(
                f"the power mode cannot be set: nvpmodel is not on PATH{more}",
                fix="on a Jetson: sudo apt-get install nvidia-l4t-nvpmodel; elsewhere measure without a power mode",
            )
        governor = "performance" if mode is None else str(mode)
        return replace(setting, governor=governor, governors=_governors(governor, root))
    if clocks and jetson_clocks is None:
        raise UserError("clocks cannot be locked: jetson_clocks is not on PATH", fix="install nvidia-l4t-tools")
    before = parse_mode(run_tool(nvpmodel, "-q").text)
    if before is None:
        raise UserError("nvpmodel -q does not tell the power mode", fix="run it by hand and see why")
    chosen = before if mode is None else _find_mode(str(mode), nvpmodel, root)
    clocks_file = None
    if jetson_clocks is not None:
        clocks_file = state / _CLOCKS
        clocks_file.unlink(missing_ok=True)  # jetson_clocks asks before it overwrites one
        answer = run_tool(jetson_clocks, "--store", str(clocks_file))
        if not clocks_file.exists():
            raise UserError(f"jetson_clocks --store failed: {answer.last_line}", fix="run it by hand and see why")
        with clocks_file.open("rb") as file:
            os.fsync(file.fileno())
    return replace(
        setting,
        before=before,
        mode=chosen,
        nvpmodel=nvpmodel,
        jetson_clocks=jetson_clocks,
        clocks_file=None if clocks_file is None else str(clocks_file),
    )


def _governors(governor: str, root: Path) -> dict[str, str]:
    """What each processor's governor is now, by file."""
    files = sorted((root / _POLICIES).glob("policy*/scaling_governor"))
    offered = set.intersection(
        *(set((read_text(file.with_name("scaling_available_governors")) or "").split()) for file in files)
    )
    if governor not in offered:
        raise UserError("no such frequency governor", value=governor, fix=f"one of {', '.join(sorted(offered))}")
    return {str(file.relative_to(root)): read_text(file) or "" for file in files}


def _find_mode(name: str, nvpmodel: str, root: Path) -> PowerMode:
    modes = modes_of(root) or parse_modes(run_tool(nvpmodel, "-p", "--verbose").text)
    for mode in modes:
        if name == str(mode.id) or (mode.name is not None and name.lower() == mode.name.lower()):
            return mode
    known = ", ".join(f"{mode.id} {mode.name}" for mode in modes)
    raise UserError("no such power mode", value=name, fix=f"one of {known}")


def _apply(setting: Setting, hold: Sequence[int]) -> None:
    """Do what was planned. Commands hold `hold`, so that a guard does not restore while one still runs.

    Raises:
        UserError: when the mode needs a reboot.
        AlexNetEdgeError: when the machine did not take it.
    """
    root = Path(setting.root)
    for file in setting.governors:
        try:
            (root / file).write_text(setting.governor or "", encoding="ascii")
        except OSError as error:
            raise AlexNetEdgeError(f"cannot set the frequency governor ({error.strerror}): {root / file}") from error
    if setting.mode is not None and setting.mode != setting.before:
        assert setting.nvpmodel is not None
        done, answer = _set_mode(setting.nvpmodel, setting.mode, hold)
        if _REBOOT in answer.text:
            raise UserError(
                "this power mode needs a reboot",
                value=setting.mode,
                fix=f"run `sudo nvpmodel -m {setting.mode.id}`, reboot, and measure without a power mode",
            )
        if not done:
            raise AlexNetEdgeError(f"nvpmodel did not set power mode {setting.mode}: {answer.last_line}")
    if setting.clocks and setting.jetson_clocks is not None:
        answer = run_tool(setting.jetson_clocks, hold=hold)
        if answer.code != 0:
            raise AlexNetEdgeError(f"jetson_clocks did not lock the clocks: {answer.last_line}")


def _set_mode(nvpmodel: str, mode: PowerMode, hold: Sequence[int]) -> tuple[bool, ToolAnswer]:
    """Whether the board is in this mode now, and what nvpmodel answered."""
    answer = run_tool(nvpmodel, "-m", str(mode.id), answer="no\n", hold=hold)
    now = parse_mode(run_tool(nvpmodel, "-q").text)
    return now is not None and now.id == mode.id, answer


def _restore_journal(state: Path, hold: Sequence[int]) -> str | None:
    """Put back what the journal says and remove it; the lock is held. None when there is none.

    Raises:
        UserError: when it is not ours, is damaged, or cannot be put back; it stays.
    """
    journal = state / _JOURNAL
    try:
        if journal.stat().st_uid != os.geteuid():  # it names commands to run: those of another user are not run
            raise UserError("the power mode to go back to was written by another user", value=journal, fix="remove it")
        setting = records.decode(Setting, journal.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read the power mode to go back to ({error.strerror})", value=journal) from error
    except records.RecordError as error:
        raise UserError(
            f"the power mode to go back to is damaged ({error})", value=journal, fix="set it and remove it"
        ) from error
    problem = _restore(setting, hold)
    if problem:
        raise UserError(f"the power mode is not back: {problem}", value=journal, fix="set it by hand and remove it")
    journal.unlink()
    (state / _CLOCKS).unlink(missing_ok=True)
    parts = [f"power mode {setting.before}"] if setting.before is not None else []
    parts += [f"governor {', '.join(sorted(set(setting.governors.values())))}"] if setting.governors else []
    return " and ".join(parts) + " put back"


def _restore(setting: Setting, hold: Sequence[int]) -> str:
    """What could not be put back, in words; it does no harm to do it twice."""
    root, problems = Path(setting.root), []
    same_boot = (read_text(root / _BOOT) or "") == setting.boot_id
    if same_boot:
        for file, governor in setting.governors.items():
            try:
                (root / file).write_text(governor, encoding="ascii")
            except OSError as error:
                problems.append(f"{file} ({error.strerror})")

    def restore_clocks() -> None:
        if same_boot and setting.jetson_clocks is not None and setting.clocks_file is not None:
            answer = run_tool(setting.jetson_clocks, "--restore", setting.clocks_file, hold=hold)
            if answer.code != 0:
                problems.append(f"jetson_clocks --restore {setting.clocks_file}: {answer.last_line}")

    restore_clocks()  # first, because locked clocks would keep the mode from setting its own
    if setting.before is not None and setting.nvpmodel is not None and setting.mode != setting.before:
        done, answer = _set_mode(setting.nvpmodel, setting.before, hold)
        if done:
            restore_clocks()  # the mode has set its own limits: those that were there come after it
        else:
            problems.append(f"nvpmodel -m {setting.before.id}: {answer.last_line}")
    return "; ".join(problems)


@contextmanager
def _locked(state: Path) -> Iterator[int]:
    """Hold the lock of `state`; where its owner is dead, wait for the guard that restores. Yields its descriptor.

    Raises:
        BusyError: when a benchmark that is alive holds it.
        UserError: when the folder cannot be used.
    """
    try:
        state.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(state / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"cannot keep the power mode to go back to ({error.strerror})", value=state) from error
    try:
        deadline = time.monotonic() + _GUARD_S
        while not _try_lock(lock):
            owner = _owner(state)
            if _alive(owner) or time.monotonic() > deadline:
                name = f"process {owner}"
                raise BusyError("another benchmark has set the power mode", value=name, fix="wait for its end")
            time.sleep(0.02)
        os.truncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _owner(state: Path) -> int:
    """The process that took the lock last."""
    return int(read_text(state / _LOCK) or 0)


def _alive(process: int) -> bool:
    """Whether it runs; one that has ended and was not waited for does not."""
    text = read_text(Path(f"/proc/{process}/stat"))
    return text is not None and text.rpartition(")")[2].split()[0] not in "ZX"


class _Guard:
    """The process that restores when this one is killed. It shares the lock, so nobody starts before it has ended."""

    def __init__(self, state: Path, lock: int) -> None:
        with (state / "guard.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "alexnet_edge.bench.machine.power_mode", str(state), str(lock)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock,),
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.hold = (lock, self._process.stdin.fileno())
        """What a command that this process runs must hold: the guard waits until nobody does."""
        if self._process.stdout.readline() != b"ready\n":
            self._process.kill()
            self._process.wait()
            raise AlexNetEdgeError(f"the guard of the power mode did not start, see {state / 'guard.log'}")

    def dismiss(self) -> None:
        """Let the guard end, after the restore: the end of its input tells it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=_GUARD_S)


def _guard(state: Path, lock: int) -> None:
    """Wait for the end of standard input and restore, unless there is nothing to restore any more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    _restore_journal(state, [lock])


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """While it is being restored signals wait; SIGKILL does not, and then the guard goes on."""
    came: list[int] = []
    with _handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), lambda number, _frame: came.append(number)):
        yield
    if came:
        signal.raise_signal(came[0])


@contextmanager
def _handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None], *, only_default: bool = False
) -> Iterator[None]:
    """Inside the block these signals run `handler`, or where `only_default`, those for which nobody else has a use."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in the main thread, and only it may set them
        return
    before = {number: signal.getsignal(number) for number in numbers}
    chosen = [number for number in numbers if not only_default or before[number] == signal.SIG_DFL]
    try:
        for number in chosen:
            signal.signal(number, handler)
        yield
    finally:
        for number in chosen:
            signal.signal(number, before[number] or signal.SIG_DFL)


if __name__ == "__main__":
    try:
        _guard(Path(sys.argv[1]), int(sys.argv[2]))
    except AlexNetEdgeError as error:
        sys.exit(str(error))
