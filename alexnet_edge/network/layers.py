"""The eight layers of each architecture, as data.

The model, the ONNX writer, the cost table, the roofline and the precision proof all read this one table.

Letters: N batch, C channels, H height, W width, K classes.

Sources: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (NIPS 2012),
sections 3.3-3.5 and figure 2; `torchvision.models.alexnet` ("One weird trick", arXiv:1404.5997).
"""

from __future__ import annotations

import math
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


@dataclass(frozen=True, slots=True)
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
        return math.prod(self.weight_shape)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return self.weights + (self.out_channels if self.bias else 0)

    def sides(self, side: int) -> tuple[int, int]:
        """Height and width behind this convolution and behind its pooling, for an input of `side` by `side`."""
        own = (side + 2 * self.padding - self.kernel) // self.stride + 1
        return own, (own - POOL_KERNEL) // POOL_STRIDE + 1 if self.pool else own


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


def _towers(groups: int) -> tuple[LayerSpec, ...]:
    return (
        LayerSpec("conv1", "conv", 3, 96, 11, stride=4, lrn=True, pool=True),
        LayerSpec("conv2", "conv", 96, 256, 5, padding=2, groups=groups, lrn=True, pool=True),
        LayerSpec("conv3", "conv", 256, 384, 3, padding=1),
        LayerSpec("conv4", "conv", 384, 384, 3, padding=1, groups=groups),
        LayerSpec("conv5", "conv", 384, 256, 3, padding=1, groups=groups, pool=True),
        LayerSpec("fc6", "fc", 9216, 4096, dropout="after"),
        LayerSpec("fc7", "fc", 4096, 4096, dropout="after"),
        LayerSpec("fc8", "fc", 4096, 1000, relu=False),
    )


_TORCHVISION = (
    LayerSpec("conv1", "conv", 3, 64, 11, stride=4, padding=2, pool=True),
    LayerSpec("conv2", "conv", 64, 192, 5, padding=2, pool=True),
    LayerSpec("conv3", "conv", 192, 384, 3, padding=1),
    LayerSpec("conv4", "conv", 384, 256, 3, padding=1),
    LayerSpec("conv5", "conv", 256, 256, 3, padding=1, pool=True),
    LayerSpec("fc6", "fc", 9216, 4096, dropout="before"),
    LayerSpec("fc7", "fc", 4096, 4096, dropout="before"),
    LayerSpec("fc8", "fc", 4096, 1000, relu=False),
)

# Its "same" padding with stride 4 is (in * 4 - in + kernel - 4) // 2: mostly zeros, see docs/architecture.md.
_NOTEBOOK = (
    LayerSpec("conv1", "conv", 3, 96, 11, stride=4, bias=False, lrn=True, pool=True),
    LayerSpec("conv2", "conv", 96, 256, 5, stride=4, padding=41, lrn=True, pool=True),
    LayerSpec("conv3", "conv", 256, 384, 3, stride=4, padding=19, bias=False),
    LayerSpec("conv4", "conv", 384, 384, 3, stride=4, padding=19),
    LayerSpec("conv5", "conv", 384, 256, 3, stride=4, padding=19, pool=True),
    LayerSpec("fc6", "fc", 9216, 4096, relu=False, dropout="after"),
    LayerSpec("fc7", "fc", 4096, 4096, relu=False, dropout="after"),
    LayerSpec("fc8", "fc", 4096, 1000, relu=False),
)

ARCHITECTURES: dict[str, Architecture] = {
    name: Architecture(
        name=name,
        input_size=input_size,
        layers=layers,
        head="probabilities" if name == "notebook" else "logits",
        preprocessing=preprocessing,
        summary=summary,
    )
    for name, input_size, layers, preprocessing, summary in (
        ("one-tower", 227, _towers(1), "imagenet-227", "the paper's network on one device: no groups"),
        (
            "two-tower",
            227,
            _towers(2),
            "imagenet-227",
            "the paper's two-GPU network: two groups in conv2, conv4 and conv5",
        ),
        ("torchvision", 224, _TORCHVISION, "imagenet-224", "torchvision.models.alexnet: 64-192-384-256-256, no LRN"),
        (
            "notebook",
            227,
            _NOTEBOOK,
            "notebook-227",
            "the seed notebook as written, faults included, so that its checkpoints load",
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

    `weight_bytes` is that of one weight (4 for FP32, 2 for FP16, 1 for INT8, 0.5 for INT4), `activation_bytes` that of
    one element.

    Raises:
        UserError: when `batch` is not positive.
    """
    if batch < 1:
        raise UserError("batch must be 1 or more", value=batch, fix="give a positive batch size")
    costs = []
    shape: tuple[int, ...] = (3, arch.input_size, arch.input_size)
    for spec in arch.layers:
        elements_in = math.prod(shape)
        output: tuple[int, ...] = (spec.out_channels,)
        passed_on = output
        if spec.kind == "conv":
            own, pooled = spec.sides(shape[1])
            output, passed_on = (spec.out_channels, own, own), (spec.out_channels, pooled, pooled)
        else:
            assert elements_in == spec.in_channels, (arch.name, spec.name, shape)
        costs.append(
            LayerCost(
                name=spec.name,
                output_shape=output,
                passed_on_shape=passed_on,
                parameters=spec.parameters,
                multiply_adds=spec.weights * math.prod(output[1:]) * batch,
                weight_bytes=int(spec.parameters * weight_bytes),
                activation_bytes=int((elements_in + math.prod(passed_on)) * batch * activation_bytes),
            )
        )
        shape = passed_on
    return costs


def fc6_inputs(arch: Architecture, size: int) -> int:
    """How many values reach fc6 from an image of `size` pixels; 0 where a kernel is larger than what it reads."""
    convolutions = [spec for spec in arch.layers if spec.kind == "conv"]
    for spec in convolutions:
        _, size = spec.sides(size)
        if size < 1:
            return 0
    return convolutions[-1].out_channels * size * size


def count_parameters(arch: Architecture) -> int:
    """Weights and biases of the whole network."""
    return sum(spec.parameters for spec in arch.layers)
