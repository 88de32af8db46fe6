"""JSON read into dataclasses, and dataclasses written as JSON.

A dataclass is the description of its file: `decode` and `read` check types, ranges (`Count`, `Positive`), choices (`Literal`)
and keys, and what the class's own `__post_init__` checks. Nothing is converted: a text is no number. What is wrong is one
line that begins with its path: `output.shape[0]: expected int, got str`.

Every field must be there, unless its metadata is `NEWER`. A field `schema` is compared before anything else.

Source: https://jcristharif.com/msgspec (`convert`, constraints, dataclasses).
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from alexnet_edge.errors import UserError

Record = TypeVar("Record")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A number from 0."""
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
"""A number from 1."""
Seconds = Annotated[float, msgspec.Meta(ge=0)]

NEWER = {"newer": True}
"""Metadata of a field that files of an earlier version lack; it then has its default."""

_Check = Callable[[Any, str, bool], None]


class RecordError(ValueError):
    """A text or a value is not what its type says; the message begins with the path of what is wrong."""


def parse(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        RecordError: when it is not JSON: cut short, not UTF-8, too deeply nested, with NaN or a number too large for a float.
    """
    try:
        return msgspec.json.decode(text)
    except RecursionError as error:
        raise RecordError("not JSON: too deeply nested") from error
    except (msgspec.MsgspecError, UnicodeError, TypeError) as error:
        raise RecordError(f"not JSON: {_first_lower(str(error).partition(' - at ')[0])}") from error


def decode(kind: type[Record], text: str | bytes) -> Record:
    """The dataclass that a JSON text describes; RecordError when it is not JSON, or does not describe one."""
    return convert(kind, parse(text))


def convert(kind: type[Record], value: Any, *, at: str = "", partial: bool = False) -> Record:
    """The dataclass that a JSON value at the path `at` describes; RecordError when it describes none. `partial` lets fields
    that are missing have their defaults."""
    check = _checker(cast("Any", kind))
    if check is not None:
        check(value, f"{at}." if at else "", partial)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RecordError(_path_first(str(error), at)) from error
    except UserError as error:  # of a class that the command line fills in as well
        raise RecordError(f"{at}: {error.problem}, got {error.value}".removeprefix(": ")) from error


def read(kind: type[Record], path: Path, problem: str, *, error: type[UserError], fix: str) -> Record:
    """The dataclass that a JSON file describes; `error` with `problem`, as `the manifest is damaged`, when it cannot be read."""
    try:
        return decode(kind, path.read_bytes())
    except (OSError, RecordError) as reason:
        text = reason.strerror if isinstance(reason, OSError) else reason
        raise error(f"{problem} ({text})", value=path, fix=fix) from reason


def to_builtins(value: Any) -> Any:
    """A dataclass as what `json.dumps` takes: dictionaries, lists, tuples, texts and numbers; a path becomes a text."""
    return msgspec.to_builtins(value, enc_hook=_encoded, str_keys=True)


def _encoded(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    for kind in (float, int, str):  # a class of its own, as numpy's float64
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


@functools.cache
def _checker(kind: Any) -> _Check | None:
    """What checks the keys of every dataclass inside `kind`, which msgspec does not; None when there is none."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _checker(arguments[0])
    if dataclasses.is_dataclass(kind):
        return _dataclass_checker(kind)
    if origin in (Union, types.UnionType):
        return next(filter(None, map(_checker, arguments)), None)  # a dataclass or None
    if origin is Literal or not arguments:
        return None
    inner = _checker(arguments[-1] if isinstance(origin, type) and issubclass(origin, Mapping) else arguments[0])
    return None if inner is None else functools.partial(_check_entries, inner)


def _dataclass_checker(kind: Any) -> _Check:
    hints = get_type_hints(kind, include_extras=True)
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    schemas = get_args(hints["schema"]) if "schema" in fields else ()
    needed = [name for name, entry in fields.items() if entry.metadata != NEWER]

    def check(value: Any, path: str, partial: bool) -> None:
        if not isinstance(value, Mapping):
            return  # msgspec says what it is instead
        if schemas and value.get("schema", schemas[0]) not in schemas:
            raise RecordError(f"{path}schema: expected {' or '.join(map(str, schemas))}, got {value['schema']}")
        for name in value:
            if name not in fields:
                raise RecordError(f"{path}{name}: unknown, expected one of {', '.join(fields)}")
        for name in needed:
            if name not in value and not partial:
                raise RecordError(f"{path}{name}: missing")
        for name, entry in value.items():
            inner = _checker(hints[name])
            if inner is not None:
                inner(entry, f"{path}{name}.", partial)

    return check


def _check_entries(check: _Check, value: Any, path: str, partial: bool) -> None:
    entries = enumerate(value) if isinstance(value, list | tuple) else ()
    for key, entry in value.items() if isinstance(value, Mapping) else entries:
        check(entry, f"{path.removesuffix('.')}[{key}].", partial)


def _path_first(message: str, at: str) -> str:
    """msgspec's message with its path in front: `layers[0].name: expected str, got int`."""
    text, _, path = message.replace("`", "").rpartition(" - at ")
    place = (at + path.partition("$")[2] if text else at).removeprefix(".")
    return f"{place}: {_first_lower(text or path)}".removeprefix(": ")


def _first_lower(text: str) -> str:
    return re.sub(r"^[A-Z](?=[a-z])", lambda match: match[0].lower(), text)
