"""`alexnet-edge triton`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from alexnet_edge.cli.common import Printing, fields_of, print_result
from alexnet_edge.cli.export import write
from alexnet_edge.export.request import ExportRequest
from alexnet_edge.export.triton import TritonOptions

EXPORT_FIELDS = (
    "request fp16 bf16 int8 fp8 int4_fc int8_int4_fc checkpoint onnx out images limit class_list on_bad_image "
    "calibration calibration_images method calibration_table table_for corrections equalise correct_bias "
    "engine max_batch threads runs"
)


def triton(
    *,
    options: Annotated[TritonOptions, fields_of("The model repository")] = TritonOptions(),
    request: Annotated[
        ExportRequest, fields_of("The export, unless --artifact names one", only=EXPORT_FIELDS)
    ] = ExportRequest(),
    printing: Annotated[Printing, fields_of()] = Printing(),
) -> None:
    """Write a model repository for NVIDIA's Triton server, from a proved artifact or from an export to ONNX."""
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.cli.show.export import show_triton_model
    from alexnet_edge.export.triton import write_triton_model

    request = replace(request, triton=options)
    if options.artifact is not None:
        artifact = load_artifact(options.artifact)
    else:
        written = write(request, printing)[0].artifact
        assert written is not None, "what kept it from being written was raised"
        artifact = written
    model = write_triton_model(artifact, options, request.engine.max_batch)
    print_result(printing.json, model.to_json(), lambda: show_triton_model(model))
