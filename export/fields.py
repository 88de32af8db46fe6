"""Options as fields of a dataclass: their spelling on the command line, those that were changed, their choices."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from alexnet_edge.errors import UserError


def flag(name: str) -> str:
    """A field's option on the command line: `--opt-batch` for `opt_batch`."""
    return f"--{name.replace('_', '-')}"


def changed_fields(options: Any) -> list[str]:
    """Names of the fields that are not at their defaults, in order; a nested dataclass counts by its own fields."""
    names = []
    for entry in fields(options):
        value = getattr(options, entry.name)
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if is_dataclass(value):
            names += changed_fields(value)
        elif value != default:
            names.append(entry.name)
    return names


def refuse_changed(options: Any, problem: str, *, fix: str, allowed: tuple[str, ...] = ()) -> None:
    """Refuse the first changed field that is not among `allowed`.

    Raises:
        UserError: with `problem` and the option's spelling.
    """
    for name in changed_fields(options):
        if name not in allowed:
            raise UserError(problem, value=flag(name), fix=fix)


def require_choices(options: Any) -> None:
    """Check every field whose type is a `Literal`, or one that may be None.

    Raises:
        UserError: for another value.
    """
    kind: Any = type(options)
    for name, choices in _choices(kind).items():
        value = getattr(options, name)
        if value not in choices:
            names = ", ".join(str(choice) for choice in choices if choice is not None)
            raise UserError(f"{flag(name)} has no such choice", value=value, fix=f"choose one of {names}")


@cache
def _choices(kind: Any) -> dict[str, tuple[Any, ...]]:
    choices = {}
    for name, hint in get_type_hints(kind).items():
        parts = [hint] if get_origin(hint) is Literal else list(get_args(hint))
        literals = [part for part in parts if get_origin(part) is Literal]
        if literals:
            others = (None,) if type(None) in parts else ()
            choices[name] = (*others, *(choice for literal in literals for choice in get_args(literal)))
    return choices
