"""The command line's application: how options are read, and which of them were given."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from cyclopts import App, ArgumentCollection, Parameter

from alexnet_edge.errors import UserError

SPELLINGS = {
    "batches": "batch",
    "min_seconds": "seconds",
    "pinned_cpus": "pin",
    "connect_s": "connect-seconds",
    "silence_s": "silence-seconds",
    "reconnect_s": "reconnect-seconds",
}
"""Options that are not spelled as their fields are."""

given_options: dict[str, str] = {}
"""How each option on the command line is spelled, by the name of its field; of the command that is parsed last."""


def spelled(name: str) -> str:
    """The option of a field, without its dashes."""
    return SPELLINGS.get(name, name.replace("_", "-"))


def shown(default: Any) -> str | None:
    """How help shows a default; None for what goes without saying."""
    if default is None or default is False or default == ():
        return None
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def read_options(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Note which options were given, and take lists apart at their commas."""
    given_options.clear()
    for argument in arguments:
        if not argument.tokens or argument.tokens[0].keyword is None:
            continue
        option = argument.tokens[0].keyword
        given_options[argument.field_info.name] = option
        if _takes_commas(argument.hint):
            argument.tokens = [
                token.evolve(value=word.strip(), index=0)
                for token in argument.tokens
                for word in token.value.split(",")
                if word.strip()
            ]
            if not argument.tokens:
                raise UserError(f"{option} names no {_noun(argument.hint)}", value=",", fix="write it as in 1,8")


def make_app(name: str, **settings: Any) -> App:
    """An application that reads options as every command here does."""
    return App(
        name=name,
        help_format="markdown",
        version_flags=(),
        default_parameter=Parameter(
            allow_repeating=True,
            consume_multiple=False,
            name_transform=spelled,
            negative_bool=(),
            negative_iterable=(),
            show_default=shown,
        ),
        config=read_options,
        **settings,
    )


def arranged(arguments: Sequence[str]) -> list[str]:
    """The arguments as the parser takes them: `--int8 auto` as two options, and `-` (standard input) behind `--`."""
    words: list[str] = []
    for word in arguments:
        if word == "--int8=auto":
            words += ["--int8", "--auto"]
        else:
            words.append("--auto" if word == "auto" and words[-1:] == ["--int8"] else word)
    if "-" in words and "--" not in words:
        streams = [word for word in words if word == "-"]
        words = [*(word for word in words if word != "-"), "--", *streams]
    return words


def members(hint: Any) -> Iterator[Any]:
    """The types of a union, or the type itself."""
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from members(part)
    else:
        yield hint


def _takes_commas(hint: Any) -> bool:
    return any(get_origin(part) is tuple for part in members(hint))


def _noun(hint: Any) -> str:
    elements = [get_args(part)[0] for part in members(hint) if get_origin(part) is tuple]
    return "number" if elements[0] in (int, float) else "choice" if get_origin(elements[0]) is Literal else "value"
