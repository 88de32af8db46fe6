"""The command that makes an artifact again, added to errors that carry its manifest."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from alexnet_edge.artifact import SUFFIXES, Manifest
from alexnet_edge.errors import AlexNetEdgeError

NOT_REBUILT = ("compute_capabilities", "stripped", "timing_cache", "timing_cache_mode")
"""Build options that a rebuild on another machine does not take over: what they hold for is gone, or is the fault."""


def with_rebuild_command(error: AlexNetEdgeError) -> str:
    """The message of an error; where it is about an artifact that can be made again, with the command."""
    manifest: Manifest | None = getattr(error, "manifest", None)
    if manifest is None or manifest.build.get("trusted"):  # without a manifest file nobody knows how it was made
        return str(error)
    return f"{error}: {rebuild_command(manifest)}"


def rebuild_command(manifest: Manifest) -> str:
    """The command that makes the artifact again; an engine is then built for the machine it is run on.

    `FOLDER` stands for images that the manifest does not name.
    """
    words = [f"alexnet-edge export --format {manifest.format}"]
    if manifest.precision == "mixed":
        words.append("--int8 auto")
    elif manifest.precision != "fp32":
        words.append(f"--{manifest.precision}")
    corrections = manifest.build.get("corrections")
    if isinstance(corrections, Mapping):
        words += ["--equalise"] if "equalised" in corrections else []
        words += ["--correct-bias"] if "bias" in corrections else []
    if manifest.lowered_for is not None:
        words.append(f"--target {manifest.lowered_for.name}")
    if manifest.format == "trt":
        named = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}.get(manifest.runtime, "tensorrt")
        words.append(f"--runtime {'trtexec' if manifest.build.get('builder') == 'trtexec' else named}")
        options = manifest.build.get("options")
        for name, value in (options if isinstance(options, Mapping) else {}).items():
            if name not in NOT_REBUILT:
                words += _as_words(str(name), value)
    if manifest.checkpoint:
        source = "--onnx" if manifest.checkpoint.endswith(SUFFIXES["onnx"]) else "--checkpoint"
        words.append(f"{source} {shlex.quote(manifest.checkpoint)}")
        if source == "--onnx":  # which records no images
            words.append("--images FOLDER")
            words += ["--calibration FOLDER"] if manifest.calibration is not None else []
    return " ".join(words)


def _as_words(name: str, value: Any) -> list[str]:
    """A field of `EngineOptions` in the command line's spelling."""
    flag = "--" + name.removesuffix("_mib").replace("_", "-")
    if isinstance(value, Mapping):  # memory pools
        return [f"{flag.removesuffix('s')} {key}={entry}" for key, entry in value.items()]
    if isinstance(value, bool):
        return [flag] if value else []
    return [f"{flag} {value}"]
