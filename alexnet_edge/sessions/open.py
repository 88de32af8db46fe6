"""Open the session that runs a checkpoint or an artifact."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_edge.artifact import SUFFIXES, Artifact, Format, Manifest, load_artifact, manifest_path, waiting_name
from alexnet_edge.environment import cpu_features
from alexnet_edge.errors import ArtifactError, UserError
from alexnet_edge.network.load import CHECKPOINT_SUFFIXES
from alexnet_edge.sessions.base import ArtifactSession, Device, Session

if TYPE_CHECKING:
    from alexnet_edge.network.checkpoint import Checkpoint


def open_artifact(path: Path, *, trust: bool = False) -> Artifact:
    """The artifact at `path`, checked against the manifest beside it.

    With `trust` also an engine that has no manifest. It is loaded on the GPU to read its input and output, so whoever wrote
    it decides what that does. A file that has a manifest is checked all the same.

    Raises:
        ArtifactError: see `load_artifact`.
        MissingComponentError: for an engine without manifest, when its library or a GPU is missing.
    """
    sidecar = manifest_path(path)
    has_manifest = sidecar.exists() or waiting_name(sidecar).exists()
    if trust and path.suffix == SUFFIXES["trt"] and path.is_file() and not has_manifest:
        from alexnet_edge.sessions.engine_file import trusted_engine

        return trusted_engine(path)
    return load_artifact(path)


def open_session(
    source: Path | Artifact, *, device: Device | None = None, threads: int | None = None, trust: bool = False
) -> Session:
    """The session that runs `source`: an artifact, its path, or a checkpoint (`.safetensors`, `.pt`, `.pth`).

    Args:
        source: what to run.
        device: where to run it; the session refuses to open when it would run elsewhere. None for the GPU with an engine,
            the processor with everything else.
        threads: processor threads; by default every processor this process may use.
        trust: accept an engine without manifest, see `open_artifact`.

    Raises:
        ArtifactError, CheckpointError: when the file is missing or damaged, or is an engine for another machine.
        MissingComponentError: when its runtime or the device is missing.
        UserError: when `threads` is not positive, or the format does not run on the device.
    """
    if device not in (None, "cpu", "cuda"):
        raise UserError("no such device", value=device, fix="choose cpu or cuda")
    if isinstance(source, Path):
        if source.suffix in CHECKPOINT_SUFFIXES:
            from alexnet_edge.sessions.torch import CheckpointSession

            return CheckpointSession(source, device=device or "cpu", threads=threads)
        source = open_artifact(source, trust=trust)
    manifest = source.manifest
    on_gpu = manifest.format == "trt"
    session = _session_class(manifest.format)(source, device=device or ("cuda" if on_gpu else "cpu"), threads=threads)
    reason = runnable(source)
    if reason is not None:
        raise ArtifactError(reason, value=source.path, fix=_instead(manifest), manifest=manifest if on_gpu else None)
    return session


def _session_class(format: Format) -> type[ArtifactSession]:
    """Each runtime is imported only for its own format."""
    if format == "trt":
        from alexnet_edge.sessions.tensorrt import TensorRTSession

        return TensorRTSession
    if format == "onnx":
        from alexnet_edge.sessions.onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession
    if format == "openvino":
        from alexnet_edge.sessions.openvino import OpenVINOSession

        return OpenVINOSession
    if format == "torchscript":
        from alexnet_edge.sessions.torchscript import TorchScriptSession

        return TorchScriptSession
    from alexnet_edge.sessions.torch import ExportedProgramSession

    return ExportedProgramSession


def reference_session(checkpoint: Checkpoint | Path, *, threads: int | None = None) -> Session:
    """The session whose answers others are compared with: the checkpoint (loaded, or its path) in PyTorch, or, where an
    FP32 ONNX file is the source of exports, as on a board, that file.

    Raises:
        ArtifactError, CheckpointError: when the file is missing or damaged.
        MissingComponentError: when its runtime is missing.
    """
    path = checkpoint if isinstance(checkpoint, Path) else checkpoint.path
    if path.suffix == SUFFIXES["onnx"]:
        return open_session(path, threads=threads)
    from alexnet_edge.sessions.torch import CheckpointSession

    return CheckpointSession(checkpoint, threads=threads)


def _instead(manifest: Manifest) -> str:
    """What to do about a file that this machine cannot run."""
    if manifest.format == "trt":
        return "run it where it was built, or rebuild it"
    if "target" in manifest.build:
        return "export it here, or for this machine with --target"
    if manifest.precision == "bf16":
        return "build an engine: `alexnet-edge export --format trt --bf16`"
    return "run the FP32 one"


def runnable(artifact: Artifact) -> str | None:
    """Why `artifact` cannot be run on this machine, or None when nothing is known that speaks against it.

    For an engine it looks for the library and the GPU, and compares them with the manifest's record of the build. A BF16
    ONNX file is a source for engines only. A graph lowered for a target needs its instructions, and OpenVINO's INT8 a
    processor whose sums do not overflow.
    """
    manifest = artifact.manifest
    target = manifest.lowered_for
    if target is not None and target.instructions:
        machine = platform.machine().lower()
        missing = sorted(set(target.instructions) - set(cpu_features()))
        if machine not in target.machines:
            return f"it is lowered for {target.name}, and this machine is {machine}"
        if missing:
            return f"it is lowered for {target.name}, and this processor has no {', '.join(missing)}"
        return None
    if manifest.format == "trt":
        from alexnet_edge.sessions.engine_file import not_runnable

        return not_runnable(artifact)
    if manifest.format == "openvino" and manifest.precision == "int8":
        from alexnet_edge.sessions.openvino import int8_overflows

        return int8_overflows()
    if manifest.format == "onnx" and manifest.precision == "bf16":
        return "ONNX Runtime has no BF16 convolution for processors: the graph is for TensorRT"
    return None
