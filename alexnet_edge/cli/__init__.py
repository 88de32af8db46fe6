"""The command line: parse, call, print.

Results go to standard output, progress and errors to standard error. Exit code 0: done; 1: a gate failed (parity, precision,
training); 2: a mistake in what was asked for, or something missing, said in one line; 130: interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Annotated, Any, NoReturn

import typer

from alexnet_edge import __version__
from alexnet_edge.cli import deploying, exporting, measuring, quantising, training, using
from alexnet_edge.errors import AlexNetEdgeError

app = typer.Typer(
    name="alexnet-edge",
    help="Train, export, prove and measure AlexNet for edge devices.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

_CLICK_ERROR: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""typer's own errors; older releases take the class from click, newer ones bring it."""


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


COMMANDS: dict[str, Callable[..., None]] = {
    "train": training.train_command,
    "evaluate": training.evaluate_command,
    "export": exporting.export_command,
    "calibrate": quantising.calibrate_command,
    "check": exporting.check_command,
    "bench": measuring.bench_command,
    "compare": measuring.compare_command,
    "report": measuring.report_command,
    "deploy": deploying.deploy_command,
    "predict": using.predict_command,
    "inspect": exporting.inspect_command,
    "doctor": using.doctor_command,
    "demo": using.demo_command,
}
"""In the order of `--help`."""

for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit the process with its code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    if "TORCHELASTIC_RUN_ID" in os.environ:  # under torchrun
        # Now and then (seen in torch 2.15) a thread of PyTorch's outlives the process group and aborts the interpreter's
        # own end: a finished run would count as failed.
        os._exit(code)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    with ExitStack() as stack:
        stack.callback(_flush)
        try:
            code = app(args=arguments, prog_name="alexnet-edge", standalone_mode=False)
        except AlexNetEdgeError as error:
            from alexnet_edge.cli.rebuild import with_rebuild_command

            return _fail(with_rebuild_command(error), error.exit_code)
        except _CLICK_ERROR as error:
            message = " ".join(error.format_message().split()).rstrip(".") + _received(error, arguments)
            return _fail(f"{message}; see: alexnet-edge --help" if message else "see: alexnet-edge --help", 2)
        except (KeyboardInterrupt, typer.Abort):
            return _fail("interrupted", 130)
        except (BrokenPipeError, SystemExit) as end:  # the reader of our output has left, as `head` does
            if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
                raise  # typer and rich turn a broken pipe into an exit with code 1
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return code if isinstance(code, int) else 0


def _received(error: Any, arguments: Sequence[str]) -> str:
    """The value of the option that typer complains of: not every release says it."""
    for option in getattr(getattr(error, "param", None), "opts", ()):
        if option in arguments[:-1]:
            return f" (received {arguments[arguments.index(option) + 1]})"
    return ""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str, code: int) -> int:
    print(f"alexnet-edge: {message}", file=sys.stderr)
    return code
