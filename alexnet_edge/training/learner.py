"""One step of training, over all processes and in the chosen precision, and the state that it leaves.

PyTorch's own parts do the work: `DistributedDataParallel`, `autocast`, `GradScaler`, `AveragedModel`, `torch.compile`, the
fused SGD. What each returns is the same for every process.

Letters: N batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from alexnet_edge.environment import cpu_features
from alexnet_edge.errors import MissingComponentError, needs
from alexnet_edge.training.distributed import World
from alexnet_edge.training.lrn import TrainingLRN
from alexnet_edge.training.recipe import Precision, Recipe

with needs("train"):
    import torch
    from torch import Tensor, nn
    from torch.func import functional_call
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from alexnet_edge.network.model import AlexNet
    from alexnet_edge.training.rounding import Rounding, rounded_weights

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The figures of one step, over all processes."""

    loss: float
    """Mean over the batch, with dropout and label smoothing."""
    correct: int
    """Images with the right answer."""
    count: int
    """Images in the batch; 0 when every one of them was skipped, and nothing was learned."""
    gradient_norm: float
    """Euclidean norm of the whole gradient, before it is clipped."""
    flags: tuple[float, ...]
    """Sums of the flags of all processes."""


class _Trained(nn.Module):
    """The part of the network that is trained, from what the feed brings to logits `(N, K)`."""

    def __init__(self, model: AlexNet, *, classifier_only: bool) -> None:
        super().__init__()
        self.model = model
        self.classifier_only = classifier_only

    def forward(self, x: Tensor) -> Tensor:
        return self.model.classifier(x) if self.classifier_only else self.model.logits(x)


def resolved_precision(precision: Precision, device: torch.device) -> Precision:
    """What `auto` means on `device`.

    BF16 on a processor pays only with the instructions for it; without them oneDNN converts back and forth.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if {"avx512_bf16", "bf16"} & set(cpu_features()) else "fp32"


class Learner:
    """The network with its optimizer, loss scaler and averaged weights."""

    def __init__(self, model: AlexNet, recipe: Recipe, world: World, *, seed: int, steps: int) -> None:
        """Train the parameters of `model` that have gradients, from its present weights.

        `seed` is that of dropout; `steps` is the length of the whole run: `recipe.ema` averages over a share of it.
        """
        self.recipe, self.world, self.seed = recipe, world, seed
        self.model = model
        self.precision = resolved_precision(recipe.precision, world.device)
        trained = _Trained(model, classifier_only=recipe.freeze == "features").to(world.device)
        self._layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        if recipe.channels_last:
            trained.to(memory_format=self._layout)
        self._network: nn.Module = trained if recipe.qat == "none" else Rounding(trained, recipe.qat)
        self._kept_weights: dict[str, Tensor] | None = None
        if world.size > 1:
            self._network = DistributedDataParallel(
                self._network,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )
        self._call: Any = torch.compile(self._network) if recipe.compile else self._network
        features = [value for name, value in self.trainable().items() if name.startswith("conv")]
        classifier = [value for name, value in self.trainable().items() if not name.startswith("conv")]
        groups = [{"params": features, "share": recipe.features_lr}, {"params": classifier, "share": 1.0}]
        self.optimizer = torch.optim.SGD(
            [group for group in groups if group["params"]],
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,  # one pass over weights, gradient and momentum: a step's cost is memory traffic
        )
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.precision == "fp16")
        self._average: AveragedModel | None = None
        if recipe.ema > 0:
            decay = 1 - 1 / max(1.0, recipe.ema * steps)
            self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    @property
    def kept(self) -> AlexNet:
        """The network that is validated and kept: the average where one is taken."""
        return cast("AlexNet", self._average.module) if self._average is not None else self.model

    def kept_weights(self) -> dict[str, Tensor]:
        """The weights of `kept`; those of fc6 to fc8 are rounded where they are trained rounded."""
        if self._kept_weights is None:
            with torch.no_grad():
                weights = {name: value.detach() for name, value in self.kept.named_parameters()}
                self._kept_weights = weights | rounded_weights(self.kept, self.recipe.qat)
        return self._kept_weights

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def finite(self) -> bool:
        """Whether every weight is finite."""
        return all(bool(torch.isfinite(value).all()) for value in self.model.parameters())

    def step(
        self,
        x: Tensor,
        labels_N: Tensor,
        *,
        count: int,
        rate: float,
        place: tuple[int, int],
        flags: tuple[float, ...] = (),
    ) -> Step:
        """Learn from one batch, of which this process has `x` (perhaps none); a step that is not finite changes no weight.

        `count`, 1 or more, is of the whole batch. `place` is the epoch and the step within it: dropout depends on seed, place
        and rank alone. `flags` are this process's own numbers; the step returns their sums over all processes.

        Raises:
            MissingComponentError: when `torch.compile` cannot compile here.
        """
        self._kept_weights = None
        self.model.train()
        entropy = np.random.SeedSequence((self.seed, *place, self.world.rank))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        self.optimizer.zero_grad()
        sums = self._gradients(x.to(self.world.device), labels_N.to(self.world.device), count)
        self.scaler.unscale_(self.optimizer)
        parameters = list(self.trainable().values())
        norm = nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])
        own = torch.tensor(flags, dtype=torch.float64, device=self.world.device)
        totals = torch.cat([self.world.sum(torch.cat([sums, own])), norm.to(torch.float64)[None]])
        loss, correct, *all_flags, gradient_norm = totals.tolist()
        step = Step(
            loss=loss / count, correct=int(correct), count=count, gradient_norm=gradient_norm, flags=tuple(all_flags)
        )
        finite = math.isfinite(step.loss) and math.isfinite(gradient_norm)
        if finite or (self.scaler.is_enabled() and math.isfinite(step.loss)):  # the scaler drops a step that overflowed
            if self.recipe.clip > 0 and finite:
                nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["share"]
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self._average is not None:
                self._average.update_parameters(self.model)
        return step

    def _gradients(self, x: Tensor, labels_N: Tensor, count: int) -> Tensor:
        """Add up the gradients of the mean loss over the batch; this process's summed loss and right answers, in float64."""
        device, share = self.world.device, 1.0
        if not len(x):  # all processes must meet in the backward pass
            x, labels_N, share = x.new_zeros((1, *x.shape[1:])), labels_N.new_zeros(1), 0.0
        if x.dim() == 4:
            x = x.contiguous(memory_format=self._layout)
        size = -(-len(x) // self.recipe.accumulate)
        parts = list(zip(torch.split(x, size), torch.split(labels_N, size), strict=True))
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        for number, (x_n, labels_n) in enumerate(parts):
            waits = isinstance(self._network, DistributedDataParallel) and number + 1 < len(parts)
            with self._network.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with torch.autocast(device.type, dtype=_TYPES.get(self.precision), enabled=self.precision in _TYPES):
                    y_NK = self._forward(x_n).float()
                    loss = F.cross_entropy(y_NK, labels_n, label_smoothing=self.recipe.label_smoothing, reduction="sum")
                # DistributedDataParallel takes the mean over the processes: times their number it is the sum
                scaled = self.scaler.scale(loss * (share * self.world.size / count))
                scaled.backward()  # type: ignore[no-untyped-call]
            right = (y_NK.detach().argmax(dim=1) == labels_n).sum()
            sums += torch.stack([loss.detach().double(), right.double()]) * share
        return sums

    def _forward(self, x: Tensor) -> Tensor:
        if not self.recipe.compile:
            return cast("Tensor", self._call(x))
        try:
            return cast("Tensor", self._call(x))
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise MissingComponentError(
                f"torch.compile does not work here ({reason})", fix="install a C++ compiler, or leave --compile out"
            ) from error

    def logits(self, x: Tensor) -> Tensor:
        """Logits of the network that is kept, in FP32, without dropout."""
        network = self.kept.eval()
        x = x.to(self.world.device)
        classifier_only = self.recipe.freeze == "features"
        x = x if classifier_only else x.contiguous(memory_format=self._layout)
        weights = {f"model.{name}": value for name, value in self.kept_weights().items()}
        with torch.inference_mode():
            return cast("Tensor", functional_call(_Trained(network, classifier_only=classifier_only), weights, (x,)))

    def tensors(self) -> dict[str, Tensor]:
        """Weights, momentum and averaged weights, by name; `restore` takes these and `state`."""
        named = {f"weights/{name}": value.detach() for name, value in self.model.named_parameters()}
        for name, parameter in self.trainable().items():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                named[f"momentum/{name}"] = buffer
        if self._average is not None:
            named |= {f"average/{name}": value.detach() for name, value in self.kept.named_parameters()}
        return named

    def state(self) -> dict[str, Any]:
        """The rest of the state, as JSON."""
        averaged = int(self._average.n_averaged) if self._average is not None else 0
        return {"scaler": self.scaler.state_dict(), "averaged": averaged}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue from the values of `tensors` and `state`.

        Raises:
            KeyError, ValueError, RuntimeError: when something is missing or of the wrong shape.
        """
        self._kept_weights = None
        restore_weights(self.model, tensors)
        for name, parameter in self.trainable().items():
            if f"momentum/{name}" in tensors:
                buffer = torch.empty_like(parameter, requires_grad=False)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(tensors[f"momentum/{name}"])
        self.scaler.load_state_dict(dict(state["scaler"]))
        if self._average is not None:
            restore_weights(self.kept, tensors, prefix="average")
            self._average.n_averaged.fill_(int(state["averaged"]))


def restore_weights(model: AlexNet, tensors: Mapping[str, Tensor], *, prefix: str = "weights") -> None:
    """Fill `model` from the entries `prefix/NAME`.

    Raises:
        KeyError, RuntimeError: when one is missing or of the wrong shape.
    """
    model.load_state_dict({name: tensors[f"{prefix}/{name}"] for name, _ in model.named_parameters()})


def prepare_network(model: AlexNet, recipe: Recipe, device: torch.device) -> None:
    """Prepare `model` for training: set its dropout, replace LRN on a processor, freeze layers as the recipe says."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = recipe.dropout
    if device.type == "cpu":
        for name, layer in (("norm1", model.arch.layers[0]), ("norm2", model.arch.layers[1])):
            if layer.lrn:
                setattr(model, name, TrainingLRN(layer.out_channels))
    if recipe.freeze == "features" or recipe.features_lr == 0:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith("conv"))
