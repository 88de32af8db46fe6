"""Training with rounded weights: fc6 to fc8 compute with the values that an export stores.

The forward pass rounds each weight exactly as `alexnet_edge.network.quantize` does for a processor. The backward pass gives
the gradient to the unrounded weight (the straight-through estimator), so small steps add up until a rounded value changes.
The rounded weights are validated and kept. An export rounds them again, which changes nothing: the FP32 checkpoint answers
as its INT4 or INT8 export does.

Sources: Y. Bengio, N. Leonard, A. Courville, "Estimating or Propagating Gradients Through Stochastic Neurons"
(arXiv:1308.3432); B. Jacob et al., "Quantization and Training of Neural Networks" (arXiv:1712.05877).
"""

from __future__ import annotations

from typing import Any, cast

from alexnet_edge.errors import needs
from alexnet_edge.network.quantize import INT4_BLOCK, INT4_MAX, INT4_MIN, INT8_MAX
from alexnet_edge.training.recipe import Qat

with needs("train"):
    import torch
    from torch import Tensor, nn
    from torch.func import functional_call

    from alexnet_edge.network.model import AlexNet


class Rounding(nn.Module):
    """Calls `inner`, whose network is `inner.model`, with the weights of fc6 to fc8 rounded."""

    def __init__(self, inner: nn.Module, kind: Qat) -> None:
        super().__init__()
        self.inner = inner
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        weights = _classifier_weights(cast("AlexNet", self.inner.get_submodule("model")))
        straight = {f"model.{name}": _Straight.apply(value, self.kind) for name, value in weights.items()}
        return cast("Tensor", functional_call(self.inner, straight, (x,)))


def rounded_weights(model: AlexNet, kind: Qat) -> dict[str, Tensor]:
    """The rounded weights of fc6 to fc8, by name; none where `kind` rounds none."""
    if kind == "none":
        return {}
    return {name: rounded(value.detach(), kind) for name, value in _classifier_weights(model).items()}


def _classifier_weights(model: AlexNet) -> dict[str, nn.Parameter]:
    names = [f"{spec.name}.weight" for spec in model.arch.layers if spec.kind == "fc"]
    return {name: model.get_parameter(name) for name in names}


def rounded(weight_OI: Tensor, kind: Qat) -> Tensor:
    """A weight `(C_out, C_in)` as it comes back from `quantize_weight` (INT8) or `quantize_blocks_full` (INT4)."""
    tiny = torch.finfo(torch.float32).tiny
    if kind == "int8":
        largest = torch.full((), float(INT8_MAX), device=weight_OI.device)  # a plain number is multiplied by on a GPU
        scale = weight_OI.abs().amax(dim=1, keepdim=True) / largest
        scale = torch.where(scale >= tiny, scale, 1.0)
        return (weight_OI / scale).round_().clamp_(-INT8_MAX, INT8_MAX).mul_(scale)
    blocks = weight_OI.reshape(len(weight_OI), -1, INT4_BLOCK)
    scale = blocks.gather(2, blocks.abs().argmax(dim=2, keepdim=True)) / INT4_MIN
    scale = torch.where(scale.abs() >= tiny, scale, 1.0)
    return (blocks / scale).round_().clamp_(INT4_MIN, INT4_MAX).mul_(scale).reshape(weight_OI.shape)


class _Straight(torch.autograd.Function):
    """Rounds forwards, passes the gradient backwards."""

    @staticmethod
    def forward(context: Any, weight_OI: Tensor, kind: Qat) -> Tensor:
        return rounded(weight_OI, kind)

    @staticmethod
    def backward(context: Any, gradient_OI: Tensor) -> tuple[Tensor, None]:
        return gradient_OI, None
