"""Several processes that train one network, as `torchrun` starts them: NCCL between GPUs, Gloo between processors.

`torchrun` gives each process its place in the environment: https://docs.pytorch.org/docs/stable/elastic/run.html. Without
it there is one process, and every exchange returns that process's own value.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

from alexnet_edge.errors import AlexNetEdgeError, MissingComponentError, UserError, needs

with needs("train"):
    import torch
    from torch import Tensor
    from torch import distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore, Store
    from torch.distributed.rendezvous import rendezvous

Value = TypeVar("Value")

JOIN_TIMEOUT_S = 600.0
"""How long processes that start together wait for the slowest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process's place among those that train together."""

    rank: int = 0
    """From 0; the process with rank 0 writes and reports."""
    size: int = 1
    local_rank: int = 0
    """Place among the processes on this machine, which is also the number of its GPU."""
    local_size: int = 1
    launched: bool = False
    """Whether a launcher started it: then processes are joined, even if it is only one."""
    restarts: int = 0
    """Times that the launcher has started the processes again; the same number in all of them."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, begin: int, end: int) -> range:
        """This process's part of the places from `begin` to `end`; the parts in order of the ranks make up the whole."""
        count = end - begin
        return range(begin + count * self.rank // self.size, begin + count * (self.rank + 1) // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in float64."""
        total = values.detach().to(torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def sums(self, values: Sequence[float]) -> list[float]:
        return [float(value) for value in self.sum(torch.tensor(values, dtype=torch.float64, device=self.device))]

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Call `make` in the first process alone; every process returns its value, or raises its error."""
        if self.size == 1:
            return make()
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = make()
            except AlexNetEdgeError as error:
                answer[1] = (type(error), str(error), error.exit_code)
        dist.broadcast_object_list(answer, src=0, device=self.device)
        if answer[1] is not None:
            kind, text, exit_code = answer[1]
            error_of_first = kind(text)
            error_of_first.exit_code = exit_code
            raise error_of_first
        return answer[0]  # type: ignore[no-any-return]

    def gather(self, value: Value) -> list[Value]:
        """The value of every process, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that the launcher started, and leave them at the end. `device` is `auto`, `cpu` or `cuda`.

    Raises:
        UserError: when the launcher's environment is incomplete, there are fewer GPUs than processes on this machine, or
            other processes do not come.
        MissingComponentError: when a GPU is required and this machine has none.
    """
    world = _world_from_environment(device)
    if not world.launched:
        yield world
        return
    cuda = world.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(world.device)
    store, _, _ = next(iter(rendezvous("env://")))
    token, restarts = meet(PrefixStore("alexnet-edge", store), world)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=PrefixStore(token, store),
        rank=world.rank,
        world_size=world.size,
        device_id=world.device if cuda else None,
    )
    try:
        yield replace(world, restarts=restarts)
    finally:
        dist.destroy_process_group()


def meet(store: Store, world: World) -> tuple[str, int]:
    """Agree on a name that no earlier start had, and on the number of restarts.

    `torchrun` keeps one store through its restarts (seen in torch 2.15). A killed process leaves its address there. Until its
    successor writes a new one, quicker processes read the old one and cannot connect. So the first process makes up a name,
    every other one answers it with a number of its own, and believes a name only when that number comes back.
    Each machine's launcher counts restarts by itself: the highest number is everyone's.

    Raises:
        UserError: when other processes do not come.
    """
    others = range(1, world.size)
    if not world.first:
        return _answer(store, world)
    token = uuid.uuid4().hex
    store.set("token", token)
    answers = [f"{token}/{rank}" for rank in others]
    try:
        if answers:
            store.wait(answers, timedelta(seconds=JOIN_TIMEOUT_S))
    except RuntimeError as error:
        missing = [rank for rank, key in zip(others, answers, strict=True) if not store.check([key])]
        raise _alone(missing, world) from error
    processes = [json.loads(store.get(key)) for key in answers]
    restarts = max([world.restarts, store.add("starts", 1) - 1, *(count for _, count in processes)])
    for rank, (own, _) in zip(others, processes, strict=True):
        store.set(f"{token}/{rank}/{own}", str(restarts))
    return token, restarts


def _answer(store: Store, world: World) -> tuple[str, int]:
    """`meet`, in every process but the first."""
    own, until = uuid.uuid4().hex, time.monotonic() + JOIN_TIMEOUT_S
    while time.monotonic() < until:
        if store.check(["token"]):
            token = store.get("token").decode()  # of an earlier start, perhaps: then nobody replies
            store.set(f"{token}/{world.rank}", json.dumps([own, world.restarts]))
            if store.check([f"{token}/{world.rank}/{own}"]):
                return token, int(store.get(f"{token}/{world.rank}/{own}"))
        time.sleep(0.05)
    raise _alone([0], world)


def _alone(missing: Sequence[int], world: World) -> UserError:
    return UserError(
        f"of {world.size} processes that should train together some did not come within {JOIN_TIMEOUT_S:.0f} s",
        value=f"rank {', '.join(map(str, missing))}",
        fix="see in the launcher's log why they ended, and that all machines run the same command",
    )


def rank_from_environment() -> int:
    """The rank that a launcher gave this process, or 0: for what must be known before processes are joined."""
    value = os.environ.get("RANK", "0")
    return int(value) if value.isdecimal() else 0


_VARIABLES = {
    "rank": ("RANK", "0"),
    "size": ("WORLD_SIZE", "1"),
    "local_rank": ("LOCAL_RANK", "0"),
    "local_size": ("LOCAL_WORLD_SIZE", "1"),
    "restarts": ("TORCHELASTIC_RESTART_COUNT", "0"),
}
"""Fields of `World`: the launcher's variable and its default."""


def _world_from_environment(device: str) -> World:
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingComponentError("torch sees no CUDA GPU here", fix="use --device cpu")
    cuda = device != "cpu" and torch.cuda.is_available()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(device=torch.device("cuda" if cuda else "cpu"))
    numbers = {}
    for field_name, (name, default) in _VARIABLES.items():
        value = os.environ.get(name, default)
        if not value.isdecimal():
            raise UserError(f"{name} must be a whole number", value=value or "''", fix="start the run with torchrun")
        numbers[field_name] = int(value)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        problem = f"RANK and WORLD_SIZE are set, {missing[0]} is not"
        raise UserError(problem, fix="start the run with torchrun, or unset them")
    local_rank = numbers["local_rank"]
    if cuda and local_rank >= torch.cuda.device_count():
        problem, count = f"process {local_rank} on this machine has no GPU of its own", torch.cuda.device_count()
        fix = "start as many processes as there are GPUs, or use --device cpu"
        raise UserError(problem, value=f"{count} GPUs", fix=fix)
    return World(**numbers, launched=True, device=torch.device("cuda", local_rank) if cuda else torch.device("cpu"))
