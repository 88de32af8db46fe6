"""One line for each mistake on the command line: what is wrong, the value, and what to do instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

from cyclopts import App, CoercionError, CycloptsError, MissingArgumentError, UnknownCommandError, UnknownOptionError
from cyclopts.exceptions import UnusedCliTokensError

from alexnet_edge.cli.parsing import members

MOVED = {
    ("bench", "--loader"): "bench loader",
    ("bench", "--workers"): "bench loader --workers",
    ("bench", "--arch"): "bench loader --arch",
    ("check", "--bisect"): "bisect",
    ("deploy", "--rollback"): "deploy rollback DEVICE",
    ("deploy", "--status"): "deploy status DEVICE",
    ("deploy", "--to-release"): "deploy rollback DEVICE --to-release",
    ("export", "--artifact"): "triton --artifact",
    ("export", "--repository"): "triton --repository",
    ("export", "--model-name"): "triton --model-name",
    ("export", "--format triton"): "triton",
}
"""Options that are commands of their own now, by the command that they were options of."""


def line_for(error: CycloptsError, arguments: Sequence[str]) -> str:
    """What a user reads of an error of the parser."""
    command = " ".join(error.command_chain or ())
    for word, value in pairwise((*arguments, "")):
        for option in (word.partition("=")[0], f"{word} {value}", word.replace("=", " ", 1)):
            if (command, option) in MOVED:
                return f"{option} is a command of its own now; write: alexnet-edge {MOVED[command, option]}"
    help_command = " ".join(("alexnet-edge", *(error.command_chain or ()), "--help"))
    if isinstance(error, UnknownCommandError):
        assert error.app is not None
        return _unknown_command(error.app, (error.unused_tokens or ["none"])[0])
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0]
        names = [name for argument in error.argument_collection if argument.parse for name in argument.names]
        return f"no such option: {option}; {_nearest(option, names)}see: {help_command}"
    if isinstance(error, CoercionError) and error.token is not None and error.argument is not None:
        return _wrong_value(error)
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        if error.keyword is None:
            return f"{error.argument.name} is missing; see: {help_command}"
        return f"{error.keyword} needs a value; see: {help_command}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        words = " ".join(error.unused_tokens)
        if command in ("export", "triton"):
            return f"{command} takes one word, `auto`, with --int8: {words}; write --int8 auto, or leave it out"
        return f"{command} does not take so many words: {words}; see: {help_command}"
    return f"{' '.join(str(error).split()).rstrip('.')}; see: {help_command}"


def _unknown_command(app: App, word: str) -> str:
    names = [name for name in app if not name.startswith("-")]
    path = "alexnet-edge" if app.name[0] == "alexnet-edge" else f"alexnet-edge {app.name[0]}"
    return f"no such command: {word}; {_nearest(word, names)}see: {path} --help"


def _wrong_value(error: CoercionError) -> str:
    assert error.token is not None
    assert error.argument is not None
    value = error.token.value
    option = error.token.keyword or error.argument.name
    choices = [choice for choice in _choices(error.argument.hint) if isinstance(choice, str)]
    if choices:
        return f"{option} has no such choice: {value}; {_nearest(value, choices)}choose one of {', '.join(choices)}"
    if error.target_type is bool:
        choice = "--int8 or --int8 auto" if option == "--int8" else option
        return f"{option} takes no such value: {value}; write {choice}"
    takes, example = "another kind of value", "correct it"
    if error.target_type is int:
        takes, example = ("whole numbers", "write them as in 1,8") if _is_list(error) else ("a whole number", "as in 8")
    elif error.target_type is float:
        takes, example = ("numbers", "write them as in 30,60") if _is_list(error) else ("a number", "as in 0.5")
    return f"{option} takes {takes}: {value}; {example}"


def _nearest(word: str, names: Iterable[str]) -> str:
    close = get_close_matches(word, list(names), n=1)
    return f"did you mean {close[0]}? " if close else ""


def _is_list(error: CoercionError) -> bool:
    assert error.argument is not None
    return any(get_origin(part) in (tuple, list) for part in members(error.argument.hint))


def _choices(hint: Any) -> Iterable[Any]:
    for part in members(hint):
        if get_origin(part) is Literal:
            yield from get_args(part)
        elif get_origin(part) in (tuple, list):
            yield from _choices(get_args(part)[0])
