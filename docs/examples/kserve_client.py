"""Ask a server that speaks KServe's open inference protocol (version 2, HTTP) what is in an image.

    python kserve_client.py http://127.0.0.1:8000 alexnet_int8 photo.jpg

Needs numpy, pillow and this package for the preprocessing; the rest is Python's own. How to prepare an image, the server says
itself: `alexnet-edge export --format triton` writes it into the model's configuration, which Triton gives out. With a server
that gives out none, name the preprocessing: `--preprocessing imagenet-227`.

The tensor travels as raw bytes (the protocol's binary extension, which Triton has) or, with `--json`, as numbers in JSON, which
every server reads and which is some ten times as long.

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

from alexnet_edge.errors import AlexNetEdgeError
from alexnet_edge.images.preprocess import Preprocessing, preprocess_file, preset


def ask(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[bytes, Any]:
    """The body and the headers of the answer; a server's refusal ends the program with its own words."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=60) as answer:
            return answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.code} {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{url}: {getattr(error, 'reason', error)}")


def preprocessing_of(model_url: str) -> Preprocessing:
    config = json.loads(ask(f"{model_url}/config")[0])
    told = config.get("parameters", {}).get("alexnet_edge.preprocessing")
    if told is None:
        sys.exit(f"{model_url}: the server does not say how to prepare an image; name it with --preprocessing")
    return Preprocessing.from_json(json.loads(told["string_value"]))


def infer(model_url: str, x_NCHW: np.ndarray, *, top: int, binary: bool) -> list[list[str]]:
    """For each image the `top` classes as `VALUE:INDEX:NAME`, best first."""
    facts = json.loads(ask(model_url)[0])
    tensor: dict[str, Any] = {"name": facts["inputs"][0]["name"], "shape": list(x_NCHW.shape), "datatype": "FP32"}
    raw = x_NCHW.astype("<f4").tobytes() if binary else b""
    if binary:
        tensor["parameters"] = {"binary_data_size": len(raw)}
    else:
        tensor["data"] = x_NCHW.ravel().tolist()
    wanted = {"name": facts["outputs"][0]["name"], "parameters": {"classification": top}}
    head = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
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
    parser.add_argument("--preprocessing", help="as imagenet-227 [what the server says]")
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="send numbers as JSON")
    given = parser.parse_args()
    model_url = f"{given.server.rstrip('/')}/v2/models/{given.model}"
    try:
        spec = preset(given.preprocessing) if given.preprocessing else preprocessing_of(model_url)
        x_NCHW = np.stack([preprocess_file(path, spec) for path in given.images])
    except AlexNetEdgeError as error:
        sys.exit(str(error))
    for path, guesses in zip(given.images, infer(model_url, x_NCHW, top=given.top, binary=not given.json), strict=True):
        print(
            f"{path}: "
            + ", ".join(f"{name} {float(value):.3f}" for value, _, name in (g.split(":", 2) for g in guesses))
        )


if __name__ == "__main__":
    main()
