"""Checkpoints: whole or refused in one line, whatever happens to the file."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import random
import re
import signal
import struct
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models

from alexnet_edge import records
from alexnet_edge.errors import CheckpointError
from alexnet_edge.images.preprocess import preset
from alexnet_edge.network import download, load
from alexnet_edge.network.checkpoint import (
    CheckpointInfo,
    check_weights,
    parameter_shapes,
    read_info,
    read_weight,
    save_checkpoint,
)
from alexnet_edge.network.layers import Architecture, architecture
from alexnet_edge.network.load import (
    fit_weights,
    import_weights,
    load_checkpoint,
    newest_checkpoint,
    read_caffe_filters,
    recognise,
    torchvision_weights,
)
from alexnet_edge.progress import QuietReporter

TWO_TOWER = architecture("two-tower", 4)
NARROW = architecture("narrow-two-tower", 4)
INFO = CheckpointInfo(
    architecture=NARROW.name,
    classes=("daisy", "Löwenzahn", "a b", "tulip"),
    preprocessing=preset("caffe-227"),
    recipe={"epochs": 3, "lr": 0.01},
    data={"source": {"kind": "synthetic"}, "hash": "ab" * 32},
    metrics={"top1": 0.5},
    tools={"torch": "2.15.0"},
)

MakeCheckpoint = Callable[..., Path]


def constant_weights(value: float, arch: Architecture = NARROW) -> dict[str, np.ndarray]:
    return {name: np.full(shape, value, np.float32) for name, shape in parameter_shapes(arch).items()}


def refusal(path: Path | str, read: Callable[..., object], *arguments: object) -> str:
    """The line that refuses `read(*arguments)`, by default `read(path)`."""
    with pytest.raises(CheckpointError) as error:
        read(*(arguments or (path,)))
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    assert "; " in text, "no fix in the message"
    assert error.value.exit_code == 2
    return text


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint alone in its folder, every weight 1."""
    path = tmp_path / "saved" / "model.safetensors"
    save_checkpoint(path, constant_weights(1), INFO)
    return path


def test_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in parameter_shapes(NARROW).items()}
    path = tmp_path / "new" / "folder" / "model.safetensors"
    save_checkpoint(path, weights, INFO)
    loaded = load_checkpoint(path)
    assert loaded.info == INFO
    assert read_info(path) == INFO
    with pytest.raises(CheckpointError, match=r"conv9\.weight cannot be read \(KeyError"):
        read_weight(path, "conv9.weight")
    assert loaded.info.arch == NARROW
    assert list(loaded.weights) == sorted(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(loaded.weights[name], value, strict=True)
        np.testing.assert_array_equal(read_weight(path, name), value, strict=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]
    # other tools open it too
    with safetensors.safe_open(path, framework="np") as file:
        assert json.loads(file.metadata()["alexnet-edge"])["classes"] == list(INFO.classes)


def test_header_is_read_without_torch_or_safetensors(tiny_checkpoint: MakeCheckpoint) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['safetensors'] = None\n"
        "from pathlib import Path; from alexnet_edge.network.checkpoint import read_info\n"
        "print(read_info(Path(sys.argv[1])).architecture)"
    )
    command = [sys.executable, "-c", code, str(tiny_checkpoint())]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "narrow-two-tower\n"


WRITER = """
import sys
import numpy as np
from dataclasses import replace
from pathlib import Path
from alexnet_edge.network.checkpoint import parameter_shapes, read_info, save_checkpoint

path, start = Path(sys.argv[1]), int(sys.argv[2])
info = read_info(path)
for value in range(start, start + 1000):
    weights = {name: np.full(shape, value, np.float32) for name, shape in parameter_shapes(info.arch).items()}
    print("writing", flush=True)
    save_checkpoint(path, weights, replace(info, recipe={"value": value}))
"""


@pytest.mark.slow
def test_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    start = replace(INFO, architecture="two-tower", recipe={"value": 0})
    save_checkpoint(path, constant_weights(0, TWO_TOWER), start)
    pauses = random.Random(0)
    cut_short = 0
    for attempt in range(8):
        command = [sys.executable, "-c", WRITER, path, str(1000 * attempt + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            time.sleep(pauses.uniform(0, 0.4))
            writer.send_signal(signal.SIGKILL)
        unfinished = [entry for entry in tmp_path.iterdir() if entry != path]
        cut_short += bool(unfinished)
        for entry in unfinished:
            assert entry.name.startswith("."), "what a killed writer leaves must not look like a checkpoint"
            entry.unlink()
        loaded = load_checkpoint(path)
        value = np.float32(loaded.info.recipe["value"])
        assert all((weight == value).all() for weight in loaded.weights.values()), "old and new are mixed"
    assert cut_short >= 2, "the writer was hardly ever killed while it wrote: nothing was shown"


def test_failed_save_keeps_the_old_file(saved: Path) -> None:
    before = saved.stat()
    broken = constant_weights(2)
    broken["fc7.bias"][5] = np.nan
    with pytest.raises(CheckpointError, match=r"fc7\.bias holds values that are not finite"):
        save_checkpoint(saved, broken, INFO)
    assert saved.stat() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_file_of_another_length_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    size, header = len(whole), 8 + struct.unpack("<Q", whole[:8])[0]
    saved.write_bytes(whole + b"\0")
    assert "truncated or damaged" in refusal(saved, load_checkpoint)
    lengths = (
        size - 1,
        size - 4,
        size - 4096,
        size // 2,
        header + 1,
        header,
        header - 1,
        header // 2,
        100,
        9,
        8,
        7,
        1,
        0,
    )
    for length in lengths:
        saved.write_bytes(whole[:length])
        refusal(saved, load_checkpoint)


def test_any_flipped_header_byte_is_refused_or_harmless(saved: Path) -> None:
    """A flip in the JSON may change a text (a class name); it may never raise anything but CheckpointError."""
    original = saved.read_bytes()
    header = 8 + struct.unpack("<Q", original[:8])[0]
    places = sorted({*range(12), *random.Random(0).sample(range(header), 60)})
    refused = 0
    for place in places:
        saved.write_bytes(original[:place] + bytes([original[place] ^ 0x55]) + original[place + 1 :])
        try:
            assert read_info(saved).architecture == NARROW.name
        except CheckpointError:
            refused += 1
    assert refused >= len(places) // 4


def header_only(path: Path, text: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"", b"null", b"[]", b"5", b'"text"', b"{", b"\xff\xfe", b"[" * 100_000,
        *(b'{"__metadata__": %s}' % metadata for metadata in (
            b"null", b"[1]", b'{"alexnet-edge": 5}', b'{"alexnet-edge": "5"}',
            b'{"alexnet-edge": "[]"}', b'{"alexnet-edge": "{}"}',
        )),
    ],
)  # fmt: skip
def test_hostile_headers(tmp_path: Path, header: bytes) -> None:
    path = header_only(tmp_path / "model.safetensors", header)
    for read in (read_info, load_checkpoint):
        refusal(path, read)


def test_huge_header_length_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    assert "not a readable safetensors file" in refusal(path, read_info)


SOUND = records.to_builtins(INFO.preprocessing)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"schema": None},
        {"classes": []},
        {"classes": "abc", "schema": "1"},
        {"classes": [1, 2]},
        {"classes": None},
        {"architecture": "vgg16"},
        {"architecture": None},
        {"preprocessing": None},
        {"preprocessing": {**SOUND, "resize": float("inf")}},
        {"preprocessing": {**SOUND, "crop": 0}},
        {"preprocessing": {**SOUND, "mean": [float("nan"), 0, 0]}},
        {"preprocessing": {**SOUND, "mean": [0, 0]}},
        {"preprocessing": {**SOUND, "std": [1, 0, 1]}},
        {"recipe": 5},
        {"metrics": "many"},
    ],
)
def test_damaged_info(tmp_path: Path, change: dict[str, Any]) -> None:
    text = json.dumps({**records.to_builtins(INFO), **change})
    header = json.dumps({"__metadata__": {"alexnet-edge": text}}).encode()
    path = header_only(tmp_path / "model.safetensors", header)
    assert "header is damaged" in refusal(path, read_info)


def test_missing_file(tmp_path: Path) -> None:
    for read in (load_checkpoint, read_info, import_weights):
        for path in (tmp_path / "none.safetensors", tmp_path):
            assert "no such" in refusal(path, read)


def test_foreign_safetensors_points_to_init(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    assert "--init" in refusal(path, load_checkpoint)


def test_wrong_architecture_names_the_layers(tmp_path: Path) -> None:
    weights = constant_weights(1)
    weights["conv2.weight"] = np.zeros((8, 8, 5, 5), np.float32)
    del weights["fc8.bias"]
    weights["conv6.weight"] = np.zeros(1, np.float32)
    text = refusal(tmp_path, check_weights, weights, NARROW, tmp_path)
    for fault in ("fc8.bias is missing", "conv6.weight is unknown", "conv2.weight is [8, 8, 5, 5], not [8, 4, 5, 5]"):
        assert fault in text


def test_other_class_count_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps({**records.to_builtins(INFO), "classes": list("abcde")})
    safetensors.numpy.save_file(constant_weights(1), path, metadata={"alexnet-edge": text})
    assert "fc8.weight is [4, 128], not [5, 128], fc8.bias is [4], not [5]" in refusal(path, load_checkpoint)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    weights = constant_weights(1)
    weights["conv3.weight"][0, 0, 0, 0] = value
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(weights, path, metadata={"alexnet-edge": json.dumps(records.to_builtins(INFO))})
    assert "conv3.weight holds values that are not finite" in refusal(path, load_checkpoint)


# --- importing ------------------------------------------------------------------------------------------------------------

LAYERS = [layer.name for layer in NARROW.layers]
TORCHVISION_KEYS = [f"features.{index}" for index in (0, 3, 6, 8, 10)] + [f"classifier.{index}" for index in (1, 4, 6)]
NOTEBOOK_KEYS = [f"conv{index}.0" for index in range(1, 6)] + [f"fc{index}.0" for index in range(1, 4)]


def state_dict(arch_name: str, keys: list[str] = LAYERS, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Weights of an architecture with 4 classes, every value of the parameter at position i equal to i, under other keys."""
    prefixes = dict(zip(LAYERS, keys, strict=True))
    state = {}
    for index, (name, shape) in enumerate(parameter_shapes(architecture(arch_name, 4)).items()):
        layer, _, leaf = name.partition(".")
        state[f"{prefixes[layer]}.{leaf}"] = torch.full((1,), index, dtype=dtype).expand(shape).clone()
    return state


@pytest.mark.parametrize(
    ("arch_name", "keys", "wrap", "prefix"),
    [
        ("one-tower", LAYERS, None, ""),
        ("two-tower", LAYERS, "state_dict", "module."),
        ("torchvision", TORCHVISION_KEYS, None, ""),
        ("torchvision", TORCHVISION_KEYS, "model_state_dict", "module._orig_mod."),
        ("notebook", NOTEBOOK_KEYS, "model", ""),
        ("notebook", NOTEBOOK_KEYS, None, "_orig_mod."),
        ("notebook", NOTEBOOK_KEYS, None, "_orig_mod.module."),
    ],
)
def test_dialects(tmp_path: Path, arch_name: str, keys: list[str], wrap: str | None, prefix: str) -> None:
    state: Any = {prefix + name: value for name, value in state_dict(arch_name, keys).items()}
    path = tmp_path / "weights.pth"
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    loaded = load_checkpoint(path)
    assert loaded.info.architecture == arch_name
    assert loaded.info.classes == ("class 0", "class 1", "class 2", "class 3")
    for index, name in enumerate(parameter_shapes(architecture(arch_name, 4))):
        assert (loaded.weights[name] == index).all(), name


def test_state_dicts_as_torch_leaves_them(tmp_path: Path) -> None:
    """What DistributedDataParallel, an average of weights and a compiled part really call their entries."""
    network = models.alexnet(num_classes=4)
    expected = network.state_dict()
    compiled = models.alexnet(num_classes=4)
    compiled.load_state_dict(expected)
    compiled.features = torch.compile(compiled.features)  # not run: only its names count
    averaged = AveragedModel(network)  # type: ignore[no-untyped-call]
    with init_process_group(tmp_path):
        parallel = nn.parallel.DistributedDataParallel(network).state_dict()
    reference = {"model": expected, "optimizer": {"lr": 0.1}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    for name, state in (
        ("parallel", parallel),
        ("compiled", compiled.state_dict()),
        ("averaged", averaged.state_dict()),
        ("reference", reference),  # as torchvision's reference script writes it
    ):
        path = tmp_path / f"{name}.pth"
        torch.save(state, path)
        weights = import_weights(path)
        assert recognise(weights, path).name == "torchvision", name
        assert np.array_equal(weights["conv1.weight"], expected["features.0.weight"].numpy()), name
        assert np.array_equal(weights["fc8.bias"], expected["classifier.6.bias"].numpy()), name


@contextmanager
def init_process_group(folder: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_weights_that_do_not_fit_are_named_layer_by_layer(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state_dict("torchvision", TORCHVISION_KEYS), path)
    text = refusal(path, fit_weights, import_weights(path), architecture("one-tower", 4), path)
    assert "conv1.weight is [64, 3, 11, 11], not [96, 3, 11, 11], conv1.bias is [64], not [96]" in text
    assert "conv2.weight is [192, 64, 5, 5], not [256, 96, 5, 5]" in text
    assert "conv3.weight is [384, 192, 3, 3], not [384, 256, 3, 3]" in text
    assert not re.search("fc[678]", text), "what fits is not named"


def test_other_classes_leave_fc8_out_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state_dict("two-tower"), path)
    weights = import_weights(path)
    same, note = fit_weights(weights, TWO_TOWER, path)
    assert (same.keys(), note) == (weights.keys(), "")
    fitted, note = fit_weights(weights, architecture("two-tower", 7), path)
    assert weights.keys() - fitted.keys() == {"fc8.weight", "fc8.bias"}
    assert f"fc8 of {path} has 4 outputs, not 7" in note
    del weights["fc6.bias"]
    with pytest.raises(CheckpointError, match=r"fc6\.bias is missing"):
        fit_weights(weights, architecture("two-tower", 7), path)


def test_torchvisions_weights_are_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = tmp_path / "alexnet-owt.pth"
    torch.save(state_dict("torchvision", TORCHVISION_KEYS), published)
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(load, "TORCHVISION_URL", published.as_uri())
    monkeypatch.setattr(load, "_TORCHVISION_SHA256", "0" * 8)
    with pytest.raises(CheckpointError, match=r"not the published file: its SHA-256 begins .*--init FILE"):
        torchvision_weights(QuietReporter())
    assert list((tmp_path / "hub/checkpoints").iterdir()) == [], "a file that is not the published one is not kept"

    monkeypatch.setattr(load, "_TORCHVISION_SHA256", digest[:8])
    path = torchvision_weights(QuietReporter())
    assert path.read_bytes() == published.read_bytes()
    published.unlink()
    assert torchvision_weights(QuietReporter()) == path, "the second time from the cache"
    path.write_bytes(b"damaged")
    assert "damaged: its SHA-256 does not begin with" in refusal(path, torchvision_weights, QuietReporter())


def test_torchvisions_weights_without_a_network_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(download, "urlopen", Mock(side_effect=urllib.error.URLError("no route to host")))
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    published = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    text = refusal(published, torchvision_weights, QuietReporter())
    assert f"cannot be downloaded (no route to host): {published}" in text
    assert text.endswith("fetch the file on another machine and give it with --init FILE")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_import_from_safetensors_of_another_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state_dict("torchvision", TORCHVISION_KEYS, dtype), path)
    weights = import_weights(path)
    assert recognise(weights, path).name == "torchvision"
    for index, name in enumerate(parameter_shapes(architecture("torchvision", 4))):
        assert weights[name].dtype == np.float32
        assert (weights[name] == index).all(), name


class Payload:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("way", ["torch", "torch-nested", "pickle"])
def test_pickle_that_runs_code_is_refused(tmp_path: Path, way: str) -> None:
    path, trap = tmp_path / "weights.pth", tmp_path / "it ran"
    if way == "pickle":
        path.write_bytes(pickle.dumps(Payload(trap), protocol=2))
    else:
        torch.save(Payload(trap) if way == "torch" else {"state_dict": {"a": Payload(trap)}}, path)
    assert "could run code" in refusal(path, load_checkpoint)
    assert not trap.exists()


def test_whole_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(nn.Linear(2, 2), path)
    assert "state_dict()" in refusal(path, load_checkpoint)


ZEROS = torch.zeros(2)


@pytest.mark.parametrize(
    "content",
    [
        {}, {"a": ZEROS}, {0: ZEROS}, {"a": 5}, [ZEROS], ZEROS, {"state_dict": 5},
        {"a": ZEROS.to(torch.int64)}, {"a": ZEROS.to(torch.complex64)}, {"a": torch.zeros(2, 2).to_sparse()},
    ],
)  # fmt: skip
def test_not_a_state_dict_of_this_network(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    refusal(path, load_checkpoint)


@pytest.mark.parametrize("shape", [(), (0, 4096), (4,), (4, 100)])
def test_last_layer_of_an_odd_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weights = constant_weights(1)
    weights["fc8.weight"] = np.zeros(shape, np.float32)
    assert f"fc8 {list(shape)}" in refusal(tmp_path, recognise, weights, tmp_path)


@pytest.mark.parametrize("length", [0, 1, 10, 1000, -1])
def test_truncated_torch_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:length])
    refusal(path, load_checkpoint)


# --- Caffe filters --------------------------------------------------------------------------------------------------------


def caffe_filters(**change: np.ndarray | None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    filters = {layer.name: rng.standard_normal(layer.weight_shape, np.float32) for layer in TWO_TOWER.layers[:5]}
    return {name: value for name, value in {**filters, **change}.items() if value is not None}


def test_filters_see_rgb(tmp_path: Path) -> None:
    filters = caffe_filters()
    path = tmp_path / "filters.npz"
    np.savez(path, **filters)
    weights = read_caffe_filters(path, TWO_TOWER)
    np.testing.assert_array_equal(weights["conv1.weight"], filters["conv1"][:, [2, 1, 0]])
    for name in ("conv2", "conv3", "conv4", "conv5"):
        np.testing.assert_array_equal(weights[f"{name}.weight"], filters[name])
        assert not weights[f"{name}.bias"].any()
    assert set(weights) == {f"conv{index}.{leaf}" for index in range(1, 6) for leaf in ("weight", "bias")}
    # The meaning of it: a filter on B, G, R pixels answers as the converted one does on R, G, B pixels.
    bgr_CHW = np.random.default_rng(4).random((3, 11, 11), np.float32)
    caffes = np.tensordot(filters["conv1"], bgr_CHW, 3)
    np.testing.assert_allclose(np.tensordot(weights["conv1.weight"], bgr_CHW[::-1], 3), caffes, rtol=1e-4, atol=1e-4)


def test_real_filters(data_root: Path) -> None:
    weights = read_caffe_filters(data_root / "bvlc_alexnet_conv_filters.npz", TWO_TOWER)
    # Many of the first layer's filters are gray edges: their R, G, B weights agree far more than chance would have it.
    conv1 = weights["conv1.weight"].reshape(96, 3, -1)
    agreement = [np.corrcoef(kernel)[0, 1] for kernel in conv1 if np.all(kernel.std(axis=1) > 1e-3)]
    assert np.median(agreement) > 0.5
    with pytest.raises(CheckpointError, match=r"conv2 is \[256, 48, 5, 5\], one-tower needs \[256, 96, 5, 5\]"):
        read_caffe_filters(data_root / "bvlc_alexnet_conv_filters.npz", architecture("one-tower"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"conv3": None}, "conv3 is missing, two-tower needs [384, 256, 3, 3]"),
        (
            {"conv4": np.zeros((384, 384, 3, 3), np.float32)},
            "conv4 is [384, 384, 3, 3], two-tower needs [384, 192, 3, 3]",
        ),
        ({"conv5": np.full((256, 192, 3, 3), np.nan, np.float32)}, "conv5.weight holds values that are not finite"),
        ({"conv1": np.array([object()])}, "not a readable .npz file"),
        ({"conv1": np.array(["text"])}, "not a readable .npz file"),
    ],
)
def test_filters_that_do_not_fit(tmp_path: Path, change: dict[str, np.ndarray | None], expected: str) -> None:
    path = tmp_path / "filters.npz"
    np.savez(path, **caffe_filters(**change))  # type: ignore[arg-type]
    assert expected in refusal(path, read_caffe_filters, path, TWO_TOWER)


def test_damaged_filters(tmp_path: Path) -> None:
    path = tmp_path / "filters.npz"
    assert "no such filters file" in refusal(path, read_caffe_filters, path, TWO_TOWER)
    np.savez_compressed(path, **caffe_filters())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[120] ^= 255
    flipped[len(whole) // 2] ^= 255
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    cut = (whole[:-1], whole[: len(whole) // 2], whole[:100])
    for content in (*cut, b"", b"PK\x03\x04", b"text", bytes(flipped), array.getvalue()):
        path.write_bytes(content)
        assert "not a readable .npz file" in refusal(path, read_caffe_filters, path, TWO_TOWER)


def test_newest_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        newest_checkpoint(tmp_path)
    for age, name in ((30, "first"), (10, "last"), (20, "middle")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"")
        moment = time.time() - age
        os.utime(folder / "model.safetensors", (moment, moment))
    assert newest_checkpoint(tmp_path) == tmp_path / "last" / "model.safetensors"
