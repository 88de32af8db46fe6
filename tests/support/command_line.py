"""The options that the command line has."""

from __future__ import annotations

from alexnet_edge.cli import app


def options_of(*commands: str) -> set[str]:
    """The options of a command, `--no-...` included; of a command's own command with two names."""
    arguments = app[commands[0]] if len(commands) == 1 else app[commands[0]][commands[1]]
    return {
        "--help",
        *(
            name
            for argument in arguments.assemble_argument_collection()
            if argument.parse and argument.show
            for name in argument.names
        ),
    }


def command_names() -> list[str]:
    """The commands, in the order of the help."""
    return [name for name in app if not name.startswith("-")]
