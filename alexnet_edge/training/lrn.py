"""Local response normalisation for training on a processor: the values of `torch.nn.LocalResponseNorm` in a third of its time.

PyTorch builds the operation from a three-dimensional average pooling and a power, which take more than half of an AlexNet
training step on a processor. Here the window sum is a 1x1 convolution with a banded matrix, `s ** -0.75` is two square
roots, and the gradient is written out. It computes in the precision of its input, whatever autocast says.

Letters: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

from alexnet_edge.errors import needs
from alexnet_edge.network.layers import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE

with needs("train"):
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

assert LRN_BETA == 0.75, "the square roots below compute s ** -0.75"


class _Normalise(torch.autograd.Function):
    """y = x * s ** -0.75 with s = k + alpha / size * (sum of x ** 2 over the window)."""

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, band: Tensor) -> Tensor:
        s_NCHW = F.conv2d(x_NCHW * x_NCHW, band).add_(LRN_K)
        power_NCHW = s_NCHW.sqrt().mul_(s_NCHW).rsqrt_()
        ctx.save_for_backward(x_NCHW, s_NCHW, power_NCHW, band)
        return x_NCHW * power_NCHW

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x_NCHW, s_NCHW, power_NCHW, band = ctx.saved_tensors
        # dy_j/dx_i = [i = j] s_i ** -0.75 - 2 * 0.75 * alpha / size * x_i x_j s_j ** -1.75 for i in the window of j
        direct_NCHW = gradients[0] * power_NCHW
        through_NCHW = F.conv2d((direct_NCHW * x_NCHW).div_(s_NCHW), band)
        return direct_NCHW.addcmul_(through_NCHW, x_NCHW, value=-2 * LRN_BETA), None


class TrainingLRN(nn.Module):
    """Takes the place of `nn.LocalResponseNorm` during training; has no parameters.

    Its band is no buffer: a constant, which `DistributedDataParallel` need not send around in every step.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        distance = torch.arange(channels)[:, None] - torch.arange(channels)[None, :]
        inside = (distance.abs() <= LRN_SIZE // 2).to(torch.float32)
        self.band = (LRN_ALPHA / LRN_SIZE * inside)[:, :, None, None]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        with torch.autocast(x_NCHW.device.type, enabled=False):
            y_NCHW: Tensor = _Normalise.apply(x_NCHW, self.band.to(x_NCHW.dtype))
        return y_NCHW
