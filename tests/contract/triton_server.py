"""NVIDIA's Triton Inference Server on this machine, as far as the package index has it: the real server, for processors.

`nvidia-pytriton` brings the server's own program and its Python backend, not the C++ backends of ONNX Runtime, TensorRT and
OpenVINO. Triton lets a backend be written in Python, so `onnxruntime` is one here: `onnxruntime_backend.py` runs the model
with the ONNX Runtime of this environment. What reads the repository, checks the configuration, warms up, batches and speaks
KServe's protocol is the real server. The message classes of `config.pbtxt` are `tritonclient`'s.

Wheels are kept where those of `bindings.py` are, and unpacked by content.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from contract.bindings import BindingsError, fetch, unpacked

SERVER = ("nvidia-pytriton", "0.7.0")
CLIENT = ("tritonclient", "2.73.0")
BACKEND = Path(__file__).with_name("onnxruntime_backend.py")


def model_config() -> ModuleType:
    """The module with Triton's message classes: `ModelConfig` is what `config.pbtxt` holds.

    Raises:
        BindingsError: when the wheel cannot be had.
    """
    path = unpacked(fetch(*CLIENT)) / "tritonclient" / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # written for protobuf 6, which version 7 reads as well, with a warning
        spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A server that is ready."""

    url: str
    log: Path

    def get(self, path: str) -> dict[str, object]:
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=30) as answer:
            found: dict[str, object] = json.loads(answer.read())
            return found


@contextmanager
def triton_server(repository: Path, folder: Path) -> Iterator[Running]:
    """Start a server on `repository` and end it; `folder` gets its backends and its log.

    Raises:
        BindingsError: when it cannot be had or started here, with the reason.
    """
    root = unpacked(fetch(*SERVER)) / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise BindingsError(f"Triton's Python backend is not built for Python {version}")
    program = root / "bin" / "tritonserver"
    for path in (program, stub):
        path.chmod(0o755)
        missing = [line.split()[0] for line in _output("ldd", path).splitlines() if "not found" in line]
        if missing:
            raise BindingsError(f"{path.name} needs {', '.join(missing)}, which this system lacks")
    backends = folder / "backends"
    shutil.copytree(root / "backends" / "python", backends / "python")
    (backends / "python" / stub.name).symlink_to(stub)  # a link: it finds its libraries by where it really is
    (backends / "onnxruntime").mkdir()
    places = [entry for entry in sys.path if entry.endswith("site-packages")]
    code = f"import sys\nsys.path[:0] = {places!r}\n" + BACKEND.read_text(encoding="utf-8")
    (backends / "onnxruntime" / "model.py").write_text(code, encoding="utf-8")
    log = folder / "server.log"
    port = _free_port()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                *(program, "--model-repository", repository, "--backend-directory", backends),
                *("--http-address", "127.0.0.1", "--http-port", str(port), "--allow-grpc", "false"),
                *("--allow-metrics", "false", "--exit-timeout-secs", "5", "--model-control-mode", "poll"),
                *("--repository-poll-secs", "1", "--strict-readiness", "true", "--exit-on-error", "true"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        running = Running(url=f"http://127.0.0.1:{port}", log=log)
        _wait(process, running)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def _wait(process: subprocess.Popen[bytes], running: Running, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{running.url}/v2/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the server did not become ready: {running.log.read_text(encoding='utf-8')[-4000:]}")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _output(*command: object) -> str:
    return subprocess.run(
        list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    ).stdout
