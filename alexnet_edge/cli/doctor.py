"""`alexnet-edge doctor`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from alexnet_edge.cli.common import Json, print_result

Capability = Literal["train", "export-onnx", "build-engines", "export-openvino", "run-engines"]


def doctor(
    *,
    capability: Annotated[Capability | None, Parameter(name="--require", help="Exit with 2 unless it can.")] = None,
    json: Json = False,
) -> None:
    """What this machine can train, export and run, and the command that adds what is missing."""
    from alexnet_edge import records
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.doctor import examine, require
    from alexnet_edge.environment import describe

    components, machine = examine(), describe()
    value = {"environment": machine, "components": records.to_builtins(components)}
    print_result(json, value, lambda: console.show_doctor(machine, components))
    if capability is not None:
        require(capability, components)
