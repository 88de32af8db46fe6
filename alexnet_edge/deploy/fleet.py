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

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from alexnet_edge import records
from alexnet_edge.deploy.link import LinkSettings, printable
from alexnet_edge.errors import AlexNetEdgeError, DeviceError, GateError, UserError
from alexnet_edge.progress import QuietReporter, Reporter
from alexnet_edge.records import NEWER

Result = TypeVar("Result")

MOST_DEVICES = 256
MOST_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One device of a fleet."""

    name: str
    link: LinkSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class _Device:
    """What the file says of one; None where the option of the same name holds."""

    host: str
    name: str | None = field(default=None, metadata=NEWER)
    python: str | None = field(default=None, metadata=NEWER)
    root: str | None = field(default=None, metadata=NEWER)
    container: str | None = field(default=None, metadata=NEWER)


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    device: Annotated[tuple[_Device, ...], msgspec.Meta(min_length=1, max_length=MOST_DEVICES)]


def read_fleet(path: Path, settings: Callable[..., LinkSettings]) -> list[Member]:
    """The devices of a TOML file; `settings` makes the `LinkSettings` of a host, with the fields that the file gives it.
    UserError when the file cannot be read, names no device, one twice, or a field that is not known."""
    fix = 'write it as in: [[device]] host = "user@board"'
    try:
        devices = records.convert(_File, msgspec.toml.decode(path.read_bytes())).device
    except OSError as error:
        raise UserError(f"the fleet cannot be read ({error.strerror})", value=path, fix="check the path") from error
    except records.RecordError as error:
        raise UserError(f"the fleet is malformed ({printable(error)})", value=path, fix=fix) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UserError(f"the fleet is no TOML file ({error})", value=path, fix=fix) from error
    members: list[Member] = []
    for device in devices:
        own = {name: value for name, value in asdict(device).items() if value is not None}
        name, host = own.pop("name", device.host), own.pop("host")
        members.append(Member(name=printable(name, 60), link=settings(host, **own)))
    names, links = [member.name for member in members], [member.link for member in members]
    for index, member in enumerate(members):
        if member.name in names[:index] or member.link in links[:index]:
            raise UserError("a device of the fleet is named twice", value=member.name, fix="name each once")
    return members


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
    """Raise GateError when a device's artifact was not proved, DeviceError when one could not be reached or refused."""
    failed = {name: value for name, value in results.items() if isinstance(value, AlexNetEdgeError)}
    if failed:
        kind = GateError if any(isinstance(error, GateError) for error in failed.values()) else DeviceError
        text = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise kind(f"{len(failed)} of {len(results)} devices failed: {text}")


def as_json(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results by device, an error as `{"error": ...}`."""

    def shown(value: Any) -> Any:
        if isinstance(value, AlexNetEdgeError):
            return {"error": str(value)}
        return value if isinstance(value, dict) else value.to_json()

    return {name: shown(value) for name, value in results.items()}


class NamedReporter(QuietReporter):
    """The results of one device among several: its lines begin with its name, and there is no bar."""

    _writing = threading.Lock()

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter = reporter
        self._name = name
        self._description = ""

    def start(self, description: str, total: int | None) -> None:
        self._description = description

    def finish(self, detail: str = "") -> None:
        self.note(f"{self._description}: {detail}")

    def note(self, text: str) -> None:
        with self._writing:
            self._reporter.note(f"[{self._name}] {text}")
