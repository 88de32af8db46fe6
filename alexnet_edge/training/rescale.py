"""First weights fitted to the data: every new layer answers a sample of it with mean 0 and variance 1.

With weights from a distribution alone, the activations of images with large even areas differ little from one another and
grow or shrink with depth; plain SGD then stands still for hundreds of steps. One forward pass sets that right.

Sources: Mishkin and Matas, "All you need is a good init" (arXiv:1511.06422); Krähenbühl et al., "Data-dependent
Initializations of Convolutional Neural Networks" (arXiv:1511.06856).

Letters: N batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from alexnet_edge.errors import needs

with needs("train"):
    import torch
    from torch import Tensor, nn

    from alexnet_edge.network.model import AlexNet

LAST_DEVIATION = 0.1
"""Standard deviation of the first logits: small, so that the first loss is that of an even guess."""


def rescale(model: AlexNet, forward: Callable[[Tensor], Tensor], x_N: Tensor, layers: Collection[str]) -> None:
    """Scale the weights and shift the biases of `layers`, from the first to the last, on one batch.

    A convolution gets mean 0 and variance 1 in each channel, a fully connected layer mean 0 in each unit and variance 1
    over all of them; a layer without bias keeps its mean. `forward` must lead through all of `layers`.
    """
    handles = [
        model.get_submodule(name).register_forward_hook(_fit(LAST_DEVIATION if name == "fc8" else 1.0))
        for name in layers
    ]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            forward(x_N)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)


def _fit(target: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(module, nn.Conv2d | nn.Linear), type(module)
        convolution = output.dim() == 4
        over = (0, 2, 3) if convolution else (0,)
        mean_C = output.mean(over)
        shape = (1, -1, 1, 1) if convolution else (1, -1)
        centred = output - mean_C.view(shape)
        variance_C = centred.square().mean(over)
        if not convolution:
            variance_C = variance_C.mean().expand_as(mean_C)
        gain_C = target / variance_C.sqrt().clamp(min=1e-6)
        module.weight.mul_(gain_C.view(-1, *[1] * (module.weight.dim() - 1)))
        if module.bias is None:
            return output * gain_C.view(shape)
        module.bias.sub_(mean_C).mul_(gain_C)
        return centred * gain_C.view(shape)

    return hook
