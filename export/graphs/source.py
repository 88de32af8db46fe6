"""An FP32 `.onnx` artifact as the source of further exports, where the checkpoint or PyTorch is not at hand.

A board that builds its own engines then needs one file and its manifest. The weights are the checkpoint's, bit for bit, so
everything derived from them is what it would have been from the checkpoint, and carries the checkpoint's checksum.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_edge.artifact import load_artifact
from alexnet_edge.errors import ArtifactError, needs
from alexnet_edge.network.checkpoint import Checkpoint, CheckpointInfo, Weights, check_weights
from alexnet_edge.network.layers import ARCHITECTURES, Architecture, LayerSpec

if TYPE_CHECKING:
    import onnx

_FIX = "give the alexnet_fp32.onnx that `alexnet-edge export --format onnx` wrote"


def checkpoint_from_onnx(path: Path) -> Checkpoint:
    """Read the weights and description back from an FP32 ONNX artifact of this package, its manifest beside it.

    Returns:
        A checkpoint whose `path` is that of the ONNX file and whose `sha256` is that of the checkpoint it was exported from.
        It records neither recipe nor data.

    Raises:
        ArtifactError: when the file is missing, damaged, not FP32 or of another network, with the first layer that differs.
        CheckpointError: when a weight is not finite.
        MissingComponentError: when the onnx package is not installed.
    """
    with needs("export"):
        import onnx

    manifest = load_artifact(path).manifest
    if manifest.format != "onnx" or manifest.precision != "fp32":
        raise ArtifactError(
            f"only an FP32 ONNX file holds the checkpoint's weights, this is {manifest.format} {manifest.precision}",
            value=path,
            fix=_FIX,
        )
    if manifest.architecture not in ARCHITECTURES:
        raise ArtifactError(
            f"the manifest names an unknown architecture ({manifest.architecture})", value=path, fix=_FIX
        )
    info = CheckpointInfo(
        architecture=manifest.architecture, classes=manifest.classes, preprocessing=manifest.preprocessing
    )
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf has an error class of its own for each of its back ends
        raise ArtifactError(f"not a readable ONNX file ({error})", value=path, fix=_FIX) from error
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    known = onnx.defs.onnx_opset_version()
    if not 0 < opset <= known:
        raise ArtifactError(
            f"its operator set is {opset or 'not given'}, this onnx package {onnx.__version__} knows 1 to {known}",
            value=path,
            fix="install a newer onnx package, or export the file again",
        )
    weights = _weights(model.graph, info.arch, path)
    check_weights(weights, info.arch, path)
    return Checkpoint(path=path, sha256=manifest.checkpoint_sha256, info=info, weights=weights)


def _weights(graph: onnx.GraphProto, arch: Architecture, path: Path) -> Weights:
    """The weights and biases of the eight layers, each layer compared with the architecture's."""
    from onnx import TensorProto, numpy_helper

    from alexnet_edge.export.graphs.onnx import layer_inputs

    nodes = {node.name: node for node in graph.node}
    tensors = {entry.name: entry for entry in graph.initializer}
    sources = layer_inputs(arch)
    weights: Weights = {}
    for spec in arch.layers:
        shapes = {f"{spec.name}.weight": spec.weight_shape}
        if spec.bias:
            shapes[f"{spec.name}.bias"] = (spec.out_channels,)
        fault = _fault(nodes.get(spec.name), spec, [sources[spec.name], *shapes])
        for name, shape in shapes.items():
            entry = tensors.get(name)
            if fault:
                break
            if entry is None:
                fault = f"{name} is missing"
            elif tuple(entry.dims) != shape:
                fault = f"{name} is {list(entry.dims)}, not {list(shape)}"
            elif entry.data_type != TensorProto.FLOAT:
                fault = f"{name} is {TensorProto.DataType.Name(entry.data_type)}, not FLOAT"
            else:
                try:
                    weights[name] = numpy_helper.to_array(entry)
                except ValueError as error:  # fewer bytes than the shape says, or kept in another file
                    fault = f"{name} cannot be read: {error}"
        if fault:
            raise ArtifactError(f"not {arch.name} with {arch.num_classes} classes ({fault})", value=path, fix=_FIX)
    return weights


def _fault(node: onnx.NodeProto | None, spec: LayerSpec, inputs: list[str]) -> str:
    """What keeps a node from being this layer; empty when it is it."""
    from onnx import helper

    from alexnet_edge.export.graphs.graph import convolution

    if node is None:
        return f"{spec.name} is missing"
    operator = "Conv" if spec.kind == "conv" else "Gemm"
    if node.op_type != operator:
        return f"{spec.name} is {node.op_type}, not {operator}"
    if list(node.input) != inputs:
        return f"{spec.name} reads {', '.join(node.input)}, not {', '.join(inputs)}"
    expected = convolution(spec) if spec.kind == "conv" else {"transB": 1}
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    for name in sorted({*expected, *attributes}):
        if attributes.get(name) != expected.get(name):
            return f"{spec.name} has {name} {attributes.get(name)}, not {expected.get(name)}"
    return ""
