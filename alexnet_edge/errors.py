"""Every error this package raises on purpose.

::

    AlexNetEdgeError
    ├── UserError                 exit 2: what was asked for cannot be done as asked
    │   ├── ImageError            one image file cannot be used
    │   ├── DataError             a folder of images, a class list
    │   ├── CheckpointError       a checkpoint is missing, damaged or of another network
    │   ├── ArtifactError         an exported file is missing, damaged or does not match its manifest
    │   ├── OutputError           a result cannot be written (read-only, disk full)
    │   ├── MissingComponentError an optional library or device is not here
    │   └── DeviceError           a device refuses a deploy, or answers wrongly
    │       └── DisconnectedError the connection to it cannot be made, or broke
    ├── GateError                 exit 1: the work was done and the result is not good enough
    │   ├── ParityError           the artifact's answers differ from the checkpoint's
    │   ├── PrecisionError        a layer was not built in the precision asked for
    │   └── DivergedError         training ran into a loss that is not finite
    └── InterruptedRunError       exit 130: stopped by Ctrl-C; the message says how to go on

A message is one line with the problem, the value received and the fix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class AlexNetEdgeError(Exception):
    """Base of the tree; `exit_code` is what the command line returns for it."""

    exit_code = 1


class UserError(AlexNetEdgeError):
    """What was asked for cannot be done as asked.

    `problem` says what is wrong, `value` is what was received, `fix` is what to do instead. `manifest` is that of an
    artifact which can be made again.
    """

    exit_code = 2

    def __init__(self, problem: str, *, value: object = None, fix: str = "", manifest: object = None) -> None:
        text = problem if value is None else f"{problem}: {value}"
        super().__init__(" ".join((f"{text}; {fix}" if fix else text).split()))
        self.problem = problem
        self.value = value
        self.fix = fix
        self.manifest = manifest


class ImageError(UserError):
    """One image file cannot be used."""


class DataError(UserError):
    """A folder of images or a class list cannot be used."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another network."""


class ArtifactError(UserError):
    """An exported file is missing, damaged or does not match its manifest."""


class OutputError(UserError):
    """A result cannot be written."""


class MissingComponentError(UserError):
    """An optional library or a device is not here."""


class DeviceError(UserError):
    """A device refuses what a deploy asks of it, or its answer cannot be used; `kind` is the device's word for why."""

    kind = "user"


class DisconnectedError(DeviceError):
    """The connection to a device cannot be made, or broke."""


class GateError(AlexNetEdgeError):
    """The work was done and its result is not good enough."""


class ParityError(GateError):
    """The artifact's answers differ from the checkpoint's by more than the stated tolerance."""


class PrecisionError(GateError):
    """A layer was not built in the precision asked for."""


class DivergedError(GateError):
    """Training ran into a loss that is not finite."""


class InterruptedRunError(AlexNetEdgeError):
    """Long work was stopped by Ctrl-C; the message says how to go on."""

    exit_code = 130


def install_command(extra: str) -> str:
    """The pip command that brings `extra`, ready to paste."""
    return f"pip install 'alexnet-edge[{extra}]'"


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import an optional library inside this block; MissingComponentError with the pip command if it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        raise MissingComponentError(f"{missing} is not installed", fix=f"run: {install_command(extra)}") from error
