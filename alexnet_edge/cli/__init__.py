"""The command line: parse, call, print.

Results go to standard output, progress and errors to standard error. Exit code 0: done; 1: a gate failed (parity, precision,
training); 2: a mistake in what was asked for, or something missing, said in one line; 130: interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NoReturn

from cyclopts import CycloptsError

from alexnet_edge import __version__
from alexnet_edge.cli.mistakes import line_for
from alexnet_edge.cli.parsing import arranged, given_options, make_app
from alexnet_edge.errors import AlexNetEdgeError

app = make_app("alexnet-edge", help="Train, export, prove and measure AlexNet for edge devices.", version=__version__)
app.version_flags = ("--version",)
app.register_install_completion_command(help="Install completion for bash, zsh or fish.")

COMMANDS = {
    "train": "Train a network; its best weights go to runs/NAME/model.safetensors. Several processes: start it with torchrun.",
    "evaluate": "Accuracy, confusions and calibration of a checkpoint or artifact, over all and per class.",
    "export": "Write a checkpoint in another format, and prove it gives the same answers.",
    "calibrate": "Compare INT8 calibrations by the answers of the network: methods, numbers of images and sets.",
    "check": "Prove again that artifacts give their checkpoint's answers, on any images.",
    "bisect": "Name the first layer of an artifact that is out of tolerance, and what to do about it.",
    "bench": "Measure latency and throughput, each subject in processes of its own, interleaved.",
    "compare": "Say what became slower between two results; exit code 1 when something did.",
    "report": "Make the Markdown, CSV and HTML again from a results file.",
    "deploy": "Build, prove and measure an artifact on a device over SSH, and let it serve there.",
    "triton": "Write a model repository for NVIDIA's Triton server from a proved artifact.",
    "predict": "Name what is in an image, a folder, a camera's frame or a stream: the most probable classes.",
    "inspect": "Shapes, parameters, multiply-adds and bytes per layer; of a file also where it comes from.",
    "doctor": "What this machine can train, export and run, and the command that adds what is missing.",
    "demo": "The whole path on built-in images: train, export to everything, prove, measure, report. Four to nine minutes.",
}
"""Each command and its line in `--help`, in that order; its module in this folder has its name."""

for _order, (_name, _help) in enumerate(COMMANDS.items()):
    _function = "app" if _name in ("bench", "deploy") else _name  # these two have commands of their own
    app.command(f"alexnet_edge.cli.{_name}:{_function}", name=_name, help=_help, sort_key=_order)


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
            call, bound, ignored = app.parse_args(arranged(arguments), print_error=False, exit_on_error=False)
            call(*bound.args, **bound.kwargs, **({"given": dict(given_options)} if "given" in ignored else {}))
        except AlexNetEdgeError as error:
            from alexnet_edge.cli.rebuild import with_rebuild_command

            return _fail(with_rebuild_command(error), error.exit_code)
        except CycloptsError as error:
            return _fail(line_for(error, arguments), 2)
        except KeyboardInterrupt:
            return _fail("interrupted", 130)
        except (BrokenPipeError, SystemExit) as end:  # the reader of our output has left, as `head` does
            if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
                return end.code if isinstance(end.code, int) else 0  # rich turns a broken pipe into an exit with code 1
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str, code: int) -> int:
    print(f"alexnet-edge: {message}", file=sys.stderr)
    return code
