"""Several devices side by side: who they are, and what became of each. One that fails does not stop the others.

A fleet is a TOML file:

    [[device]]
    host = "user@board-1"           # as for ssh
    name = "kitchen"                # for the table; the host by default
    python = "python3.12"           # optional, as the options of the same names
    root = "alexnet-edge"
    container = "alexnet-edge:jetpack6"
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alexnet_edge.deploy.link import LinkSettings, printable
from alexnet_edge.errors import AlexNetEdgeError, DeviceError, GateError, UserError
from alexnet_edge.progress import Reporter

Result = TypeVar("Result")

MOST_DEVICES = 256
MOST_AT_ONCE = 16
OWN = ("python", "root", "container")
"""Settings that a device of a fleet may have of its own, named as the options."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One device of a fleet."""

    name: str
    link: LinkSettings


def read_fleet(path: Path, settings: Callable[..., LinkSettings]) -> list[Member]:
    """The devices of a TOML file.

    Args:
        path: the file.
        settings: makes the `LinkSettings` of a host, with the fields that the file gives it.

    Raises:
        UserError: when it cannot be read, names no device, one twice, or a field that is not known.
    """
    fix = 'write it as in: [[device]] host = "user@board"'
    try:
        value = _parsed(path.read_bytes())
    except OSError as error:
        raise UserError(f"the fleet cannot be read ({error.strerror})", value=path, fix="check the path") from error
    except ValueError as error:
        raise UserError(f"the fleet is no TOML file ({error})", value=path, fix=fix) from error
    devices = value.get("device")
    if set(value) - {"device"} or not isinstance(devices, list) or not 0 < len(devices) <= MOST_DEVICES:
        raise UserError(f"a fleet is a list of 1 to {MOST_DEVICES} devices", value=path, fix=fix)
    members: list[Member] = []
    for entry in devices:
        if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
            raise UserError("a device of the fleet is malformed", value=printable(entry, 80), fix=fix)
        unknown = set(entry) - {"host", "name", *OWN}
        if unknown or "host" not in entry:
            problem = f"unknown field {sorted(unknown)[0]!r}" if unknown else "no host"
            raise UserError(f"a device of the fleet has {problem}", value=printable(entry, 80), fix=fix)
        own = {name: entry[name] for name in OWN if name in entry}
        members.append(
            Member(name=printable(entry.get("name", entry["host"]), 60), link=settings(entry["host"], **own))
        )
    for key in ("name", "link"):
        seen: list[Any] = [getattr(member, key) for member in members]
        twice = next((entry for index, entry in enumerate(seen) if entry in seen[:index]), None)
        if twice is not None:
            shown = twice if isinstance(twice, str) else twice.destination
            raise UserError("a device of the fleet is named twice", value=shown, fix="name each once")
    return members


def _parsed(data: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    value: dict[str, Any] = tomllib.loads(data.decode())
    return value


def side_by_side(members: Sequence[Member], work: Callable[[Member], Result]) -> dict[str, Result | AlexNetEdgeError]:
    """`work` for every device at once; an error is the device's own result. One device works in this very thread."""
    if len(members) == 1:
        return {members[0].name: work(members[0])}
    results: dict[str, Result | AlexNetEdgeError] = {}
    turns = threading.Semaphore(MOST_AT_ONCE)

    def work_on(member: Member) -> None:
        with turns:
            try:
                results[member.name] = work(member)
            except AlexNetEdgeError as error:
                results[member.name] = error

    # daemons: Ctrl-C ends this process, with it the SSH clients, and with them what runs on the devices
    threads = [threading.Thread(target=work_on, args=(member,), daemon=True) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lost = DeviceError("the work on this device ended without a result")
    return {member.name: results.get(member.name, lost) for member in members}


def require(results: Mapping[str, Any]) -> None:
    """Raise when a device failed.

    Raises:
        GateError: when one was not proved; DeviceError when one could not be reached or refused.
    """
    failed = {name: value for name, value in results.items() if isinstance(value, AlexNetEdgeError)}
    if failed:
        text = "; ".join(f"{name}: {error}" for name, error in failed.items())
        gate = any(isinstance(error, GateError) for error in failed.values())
        count = f"{len(failed)} of {len(results)} devices failed"
        raise (GateError if gate else DeviceError)(f"{count}: {text}")


def as_json(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results by device, an error as `{"error": ...}`."""
    shown: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, AlexNetEdgeError):
            shown[name] = {"error": str(value)}
        else:
            shown[name] = value if isinstance(value, dict) else value.to_json()
    return shown


class NamedReporter:
    """Progress of one device among several: its lines begin with its name, and there is no bar."""

    _writing = threading.Lock()

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter = reporter
        self._name = name
        self._description = ""

    def start(self, description: str, total: int | None) -> None:
        self._description = description

    def update(self, completed: int, detail: str = "") -> None:
        """A log of several devices shows results only."""

    def finish(self, detail: str = "") -> None:
        self.note(f"{self._description}: {detail}")

    def note(self, text: str) -> None:
        with self._writing:
            self._reporter.note(f"[{self._name}] {text}")
