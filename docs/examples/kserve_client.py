"""Classify images with a server that speaks KServe's open inference protocol (version 2, HTTP).

    python kserve_client.py http://127.0.0.1:8000 alexnet_int8 photo.jpg

Needs numpy, pillow and this package for the preprocessing. The server says how to prepare an image: `alexnet-edge export --format
triton` writes it into the model's configuration. For another server name it: `--preprocessing imagenet-227`.

The tensor is sent as raw bytes (the protocol's binary extension, which Triton has) or, with `--json`, as numbers in JSON, which every
server reads and which is about ten times as long.

Source: https://github.com/kserve/open-inference-protocol, and Triton's extensions "binary tensor data", "classification" and
"model configuration".
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge import records
from alexnet_edge.errors import AlexNetEdgeError
from alexnet_edge.images.preprocess import Preprocessing, load_rgb, preprocess_image, preset


def ask(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[bytes, Any]:
    """Body and headers of the answer; ends the program with the server's message if it refuses."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=60) as answer:
            return answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.code} {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{url}: {getattr(error, 'reason', error)}")


def preprocessing_of(model_url: str) -> Preprocessing:
    config = json.loads(ask(f"{model_url}/config")[0])
    parameter = config.get("parameters", {}).get("alexnet_edge.preprocessing")
    if parameter is None:
        sys.exit(f"{model_url}: the server gives no preprocessing; name it with --preprocessing")
    return records.decode(Preprocessing, parameter["string_value"])


def infer(model_url: str, x_NCHW: np.ndarray, *, top: int, binary: bool) -> list[list[str]]:
    """For each image the `top` classes as `VALUE:INDEX:NAME`, best first."""
    facts = json.loads(ask(model_url)[0])
    tensor: dict[str, Any] = {"name": facts["inputs"][0]["name"], "shape": list(x_NCHW.shape), "datatype": "FP32"}
    raw = x_NCHW.astype("<f4").tobytes() if binary else b""
    if binary:
        tensor["parameters"] = {"binary_data_size": len(raw)}
    else:
        tensor["data"] = x_NCHW.ravel().tolist()
    output = {"name": facts["outputs"][0]["name"], "parameters": {"classification": top}}
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    kind = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    answer, _ = ask(f"{model_url}/infer", head + raw, kind if binary else {"Content-Type": "application/json"})
    entries = json.loads(answer)["outputs"][0]["data"]
    return [entries[start : start + top] for start in range(0, len(entries), top)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Classify images by a server that speaks KServe's protocol, version 2."
    )
    parser.add_argument("server", help="its address, as http://127.0.0.1:8000")
    parser.add_argument("model", help="the model's name")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--preprocessing", help="such as imagenet-227 [the server's]")
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="send numbers as JSON")
    arguments = parser.parse_args()
    model_url = f"{arguments.server.rstrip('/')}/v2/models/{arguments.model}"
    try:
        spec = preset(arguments.preprocessing) if arguments.preprocessing else preprocessing_of(model_url)
        x_NCHW = np.stack([preprocess_image(load_rgb(path), spec, path=path) for path in arguments.images])
    except AlexNetEdgeError as error:
        sys.exit(str(error))
    for path, guesses in zip(
        arguments.images, infer(model_url, x_NCHW, top=arguments.top, binary=not arguments.json), strict=True
    ):
        print(
            f"{path}: "
            + ", ".join(f"{name} {float(value):.3f}" for value, _, name in (g.split(":", 2) for g in guesses))
        )


if __name__ == "__main__":
    main()
