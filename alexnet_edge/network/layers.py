"""The eight layers of each architecture, as data.

The model, the ONNX writer, the cost table, the roofline and the precision proof all read this one table.

Letters: N batch, C channels, H height, W width, K classes.

Sources: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (NIPS 2012),
sections 3.3-3.5 and figure 2; `torchvision.models.alexnet` ("One weird trick", arXiv:1404.5997).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from alexnet_edge.errors import UserError

DEFAULT_ARCHITECTURE = "one-tower"
"""The architecture used where none is named."""

LAYER_NAMES = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
"""The eight layers with weights, in order; also the prefixes of the state dict's keys and of ONNX node names."""

LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 1e-4, 0.75, 2.0
"""Local response normalisation: b = a / (k + alpha / size * sum a^2) ** beta.

PyTorch, the ONNX `LRN` operator and Caffe divide alpha by the window size as written here; section 3.3 of the paper does
not. This package follows the frameworks.
"""

POOL_KERNEL, POOL_STRIDE = 3, 2
"""Overlapping max pooling (section 3.4 of the paper)."""

DROPOUT = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """One layer with weights, and what follows it."""

    name: str
    """One of `LAYER_NAMES`."""
    kind: Literal["conv", "fc"]
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = True
    relu: bool = True
    """ReLU follows."""
    lrn: bool = False
    """Local response normalisation follows the ReLU."""
    pool: bool = False
    """3x3/2 max pooling follows."""
    dropout: Literal["none", "before", "after"] = "none"
    """Where dropout stands in training; it does nothing in evaluation."""

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """`(out, in / groups, kernel, kernel)` of a convolution, `(out, in)` of a fully connected layer."""
        if self.kind == "fc":
            return (self.out_channels, self.in_channels)
        return (self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel)

    @property
    def weights(self) -> int:
        """Number of weights, without the bias."""
        count = 1
        for extent in self.weight_shape:
            count *= extent
        return count

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return self.weights + (self.out_channels if self.bias else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A network: its input, its eight layers (for 1000 classes) and its head."""

    name: str
    input_size: int
    """Height and width of the RGB input, in pixels."""
    layers: tuple[LayerSpec, ...]
    head: Literal["logits", "probabilities"] = "logits"
    """What the network returns; only the notebook ends in a softmax."""
    preprocessing: str
    """Name of the preset in `alexnet_edge.images.preprocess.PRESETS` that training uses by default."""
    summary: str

    def with_classes(self, num_classes: int) -> Architecture:
        """The same network with `num_classes` outputs.

        Raises:
            UserError: when `num_classes` is not positive.
        """
        if num_classes < 1:
            raise UserError("a network needs at least one class", value=num_classes, fix="give 1 or more")
        last = replace(self.layers[-1], out_channels=num_classes)
        return replace(self, layers=(*self.layers[:-1], last))

    @property
    def num_classes(self) -> int:
        return self.layers[-1].out_channels


def _conv(name: str, in_channels: int, out_channels: int, kernel: int, **options: object) -> LayerSpec:
    return LayerSpec(
        name=name,
        kind="conv",
        in_channels=in_channels,
        out_channels=out_channels,
        kernel=kernel,
        **options,  # type: ignore[arg-type]
    )


def _fc(name: str, in_channels: int, out_channels: int, **options: object) -> LayerSpec:
    return LayerSpec(name=name, kind="fc", in_channels=in_channels, out_channels=out_channels, **options)  # type: ignore[arg-type]


def _towers(groups: int) -> tuple[LayerSpec, ...]:
    return (
        _conv("conv1", 3, 96, 11, stride=4, lrn=True, pool=True),
        _conv("conv2", 96, 256, 5, padding=2, groups=groups, lrn=True, pool=True),
        _conv("conv3", 256, 384, 3, padding=1),
        _conv("conv4", 384, 384, 3, padding=1, groups=groups),
        _conv("conv5", 384, 256, 3, padding=1, groups=groups, pool=True),
        _fc("fc6", 9216, 4096, dropout="after"),
        _fc("fc7", 4096, 4096, dropout="after"),
        _fc("fc8", 4096, 1000, relu=False),
    )


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="one-tower",
            input_size=227,
            preprocessing="imagenet-227",
            summary="the paper's network on one device: no groups",
            layers=_towers(groups=1),
        ),
        Architecture(
            name="two-tower",
            input_size=227,
            preprocessing="imagenet-227",
            summary="the paper's two-GPU network: two groups in conv2, conv4 and conv5",
            layers=_towers(groups=2),
        ),
        Architecture(
            name="torchvision",
            input_size=224,
            preprocessing="imagenet-224",
            summary="torchvision.models.alexnet: 64-192-384-256-256, no LRN",
            layers=(
                _conv("conv1", 3, 64, 11, stride=4, padding=2, pool=True),
                _conv("conv2", 64, 192, 5, padding=2, pool=True),
                _conv("conv3", 192, 384, 3, padding=1),
                _conv("conv4", 384, 256, 3, padding=1),
                _conv("conv5", 256, 256, 3, padding=1, pool=True),
                _fc("fc6", 9216, 4096, dropout="before"),
                _fc("fc7", 4096, 4096, dropout="before"),
                _fc("fc8", 4096, 1000, relu=False),
            ),
        ),
        Architecture(
            name="notebook",
            input_size=227,
            head="probabilities",
            preprocessing="notebook-227",
            summary="the seed notebook as written, faults included, so that its checkpoints load",
            # Its "same" padding with stride 4 is (in * 4 - in + kernel - 4) // 2: mostly zeros, see docs/architecture.md.
            layers=(
                _conv("conv1", 3, 96, 11, stride=4, bias=False, lrn=True, pool=True),
                _conv("conv2", 96, 256, 5, stride=4, padding=41, lrn=True, pool=True),
                _conv("conv3", 256, 384, 3, stride=4, padding=19, bias=False),
                _conv("conv4", 384, 384, 3, stride=4, padding=19),
                _conv("conv5", 384, 256, 3, stride=4, padding=19, pool=True),
                _fc("fc6", 9216, 4096, relu=False, dropout="after"),
                _fc("fc7", 4096, 4096, relu=False, dropout="after"),
                _fc("fc8", 4096, 1000, relu=False),
            ),
        ),
    )
}


def architecture(name: str, num_classes: int = 1000) -> Architecture:
    """The architecture called `name` with `num_classes` outputs.

    Raises:
        UserError: when there is no such architecture or `num_classes` is not positive.
    """
    if name not in ARCHITECTURES:
        raise UserError("no such architecture", value=name, fix=f"choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name].with_classes(num_classes)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """What one layer, with the LRN and pooling that follow it, costs for a batch.

    Bytes are those that must cross memory at least once: weights and bias, input, output.
    """

    name: str
    output_shape: tuple[int, ...]
    """After the layer itself: `(C, H, W)`, or `(K,)` for a fully connected layer."""
    passed_on_shape: tuple[int, ...]
    """After the LRN and pooling that follow: the next layer's input."""
    parameters: int
    multiply_adds: int
    weight_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes


def layer_costs(
    arch: Architecture, *, batch: int = 1, weight_bytes: float = 4, activation_bytes: float = 4
) -> list[LayerCost]:
    """The cost of each of the eight layers.

    Args:
        arch: the network.
        batch: images per inference, 1 or more.
        weight_bytes: bytes per weight (4 for FP32, 2 for FP16, 1 for INT8, 0.5 for INT4).
        activation_bytes: bytes per activation element.

    Raises:
        UserError: when `batch` is not positive.
    """
    if batch < 1:
        raise UserError("batch must be 1 or more", value=batch, fix="give a positive batch size")
    costs = []
    shape: tuple[int, ...] = (3, arch.input_size, arch.input_size)
    for spec in arch.layers:
        elements_in = _elements(shape)
        if spec.kind == "conv":
            side = (shape[1] + 2 * spec.padding - spec.kernel) // spec.stride + 1
            output: tuple[int, ...] = (spec.out_channels, side, side)
            multiply_adds = spec.weights * side * side
        else:
            assert elements_in == spec.in_channels, (arch.name, spec.name, shape)
            output = (spec.out_channels,)
            multiply_adds = spec.weights
        shape = output
        if spec.pool:
            pooled = (output[1] - POOL_KERNEL) // POOL_STRIDE + 1
            shape = (spec.out_channels, pooled, pooled)
        costs.append(
            LayerCost(
                name=spec.name,
                output_shape=output,
                passed_on_shape=shape,
                parameters=spec.parameters,
                multiply_adds=multiply_adds * batch,
                weight_bytes=int(spec.parameters * weight_bytes),
                activation_bytes=int((elements_in + _elements(shape)) * batch * activation_bytes),
            )
        )
    return costs


def fc6_inputs(arch: Architecture, size: int) -> int:
    """How many values reach fc6 from an image of `size` pixels; 0 where a kernel is larger than what it reads."""
    channels = 3
    for spec in arch.layers:
        if spec.kind == "fc":
            break
        channels, size = spec.out_channels, (size + 2 * spec.padding - spec.kernel) // spec.stride + 1
        size = (size - POOL_KERNEL) // POOL_STRIDE + 1 if spec.pool else size
        if size < 1:
            return 0
    return channels * size * size


def count_parameters(arch: Architecture) -> int:
    """Weights and biases of the whole network."""
    return sum(spec.parameters for spec in arch.layers)


def _elements(shape: Iterable[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
