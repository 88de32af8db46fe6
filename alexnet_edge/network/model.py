"""AlexNet in one file, for PyTorch. Shapes in the comments are those of `one-tower`.

Letters: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import Literal

from alexnet_edge.errors import needs
from alexnet_edge.network import layers
from alexnet_edge.network.layers import DROPOUT, Architecture, LayerSpec

with needs("train"):
    import torch
    from torch import Tensor, nn

Init = Literal["kaiming", "paper"]


class AlexNet(nn.Module):
    """The network of `arch`; parameters are named `conv1.weight` ... `fc8.bias` in every architecture.

    `forward(x_NCHW) -> y_NK` takes float32 `(N, 3, S, S)` with `S = arch.input_size` and returns logits, or, for the
    `notebook` architecture, the probabilities its softmax head gives. `logits` returns the values before that head.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        spec = {layer.name: layer for layer in arch.layers}
        self.conv1, self.norm1 = _convolution(spec["conv1"]), _normalisation(spec["conv1"])
        self.conv2, self.norm2 = _convolution(spec["conv2"]), _normalisation(spec["conv2"])
        self.conv3 = _convolution(spec["conv3"])
        self.conv4 = _convolution(spec["conv4"])
        self.conv5 = _convolution(spec["conv5"])
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(layers.POOL_KERNEL, layers.POOL_STRIDE)
        self.before6, self.fc6, self.after6 = _fully_connected(spec["fc6"])
        self.before7, self.fc7, self.after7 = _fully_connected(spec["fc7"])
        self.fc8 = nn.Linear(spec["fc8"].in_channels, spec["fc8"].out_channels)

    def features(self, x_NCHW: Tensor) -> Tensor:
        """The convolutional part: images `(N, 3, S, S)` to pool5, flattened to `(N, 9216)`."""
        x = self.pool(self.norm1(self.relu(self.conv1(x_NCHW))))  # N,3,227,227 -> N,96,55,55 -> N,96,27,27
        x = self.pool(self.norm2(self.relu(self.conv2(x))))  # N,96,27,27 -> N,256,27,27 -> N,256,13,13
        x = self.relu(self.conv3(x))  # N,256,13,13 -> N,384,13,13
        x = self.relu(self.conv4(x))  # N,384,13,13 -> N,384,13,13
        x = self.pool(self.relu(self.conv5(x)))  # N,384,13,13 -> N,256,13,13 -> N,256,6,6
        return torch.flatten(x, 1)  # N,256,6,6 -> N,9216

    def classifier(self, x_NF: Tensor) -> Tensor:
        """The fully connected part: pool5 `(N, 9216)` to logits `(N, K)`."""
        x = self.after6(self.fc6(self.before6(x_NF)))  # N,9216 -> N,4096
        x = self.after7(self.fc7(self.before7(x)))  # N,4096 -> N,4096
        return self.fc8(x)  # type: ignore[no-any-return]  # N,4096 -> N,K

    def logits(self, x_NCHW: Tensor) -> Tensor:
        """Images `(N, 3, S, S)` to logits `(N, K)`, whatever the head."""
        return self.classifier(self.features(x_NCHW))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NK = self.logits(x_NCHW)  # N,3,227,227 -> N,K
        return torch.softmax(y_NK, dim=1) if self.arch.head == "probabilities" else y_NK  # N,K -> N,K


def initialise(model: AlexNet, scheme: Init, *, seed: int) -> None:
    """Fill the parameters, reproducibly for a `seed`.

    `paper` is section 5 of the paper: weights N(0, 0.01), biases 1 in conv2, conv4, conv5, fc6 and fc7 and 0 elsewhere;
    it is meant for mean-subtracted inputs on the 0-255 scale and large batches. `kaiming` is He et al. 2015
    (arXiv:1502.01852), fan-in for ReLU, biases 0: it trains from any input scale.
    """
    generator = torch.Generator().manual_seed(seed)
    for spec in model.arch.layers:
        layer = model.get_submodule(spec.name)
        weight = layer.get_parameter("weight")
        with torch.no_grad():
            if scheme == "paper":
                weight.normal_(0.0, 0.01, generator=generator)
            else:
                nn.init.kaiming_normal_(weight, nonlinearity="relu" if spec.relu else "linear", generator=generator)
            if spec.bias:
                ones = scheme == "paper" and spec.name in {"conv2", "conv4", "conv5", "fc6", "fc7"}
                layer.get_parameter("bias").fill_(1.0 if ones else 0.0)


def _convolution(spec: LayerSpec) -> nn.Conv2d:
    return nn.Conv2d(
        spec.in_channels,
        spec.out_channels,
        spec.kernel,
        stride=spec.stride,
        padding=spec.padding,
        groups=spec.groups,
        bias=spec.bias,
    )


def _normalisation(spec: LayerSpec) -> nn.Module:
    if not spec.lrn:
        return nn.Identity()
    return nn.LocalResponseNorm(layers.LRN_SIZE, layers.LRN_ALPHA, layers.LRN_BETA, layers.LRN_K)


def _fully_connected(spec: LayerSpec) -> tuple[nn.Module, nn.Linear, nn.Module]:
    before = nn.Dropout(DROPOUT) if spec.dropout == "before" else nn.Identity()
    activation: nn.Module = nn.ReLU() if spec.relu else nn.Identity()
    after = nn.Sequential(activation, nn.Dropout(DROPOUT)) if spec.dropout == "after" else activation
    return before, nn.Linear(spec.in_channels, spec.out_channels, bias=spec.bias), after
