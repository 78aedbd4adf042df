"""Sums, means, log-sum-exps and gathers over ranks; the identity where there is one process.

The only module that imports `torch.distributed`. One convention makes two ranks equal one: every rank
returns a loss whose *mean over ranks* is the loss of the whole batch, which is what DistributedDataParallel
assumes when it averages gradients. `sum`, `gather` and `concatenate` are differentiable in that convention: their
backward sums the incoming gradients over ranks. (`torch.distributed.nn.functional` did this, and is deprecated.)

So what flows back is the gradient of the *sum* of all ranks' losses. A parameter that every rank holds gets the mean of
its ranks' gradients. A parameter of which each rank holds its part (`Shard`) is averaged by nobody: `own`, through
which it enters a loss, divides by the number of ranks.
"""

import builtins
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """The number of ranks; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 outside a process group."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def launched() -> Iterator[None]:
    """In the process group that torchrun means, where it has started this process; its ranks wait for each other for
    as long as a day.
    """
    if not dist.is_available() or dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1))
    try:
        yield
    finally:
        dist.destroy_process_group()


def sum(x: Tensor) -> Tensor:
    """The sum of `x` over ranks, differentiable."""
    return x if world_size() == 1 else _Sum.apply(x)  # type: ignore[return-value]


def mean_rows(total: Tensor, rows: int) -> Tensor:
    """The mean over all rows of all ranks, from this rank's sum of its `rows` rows; ranks may differ in rows."""
    if world_size() == 1:
        if rows == 0:
            raise ValueError("there are no rows to take a mean of")
        return total / rows
    return sum(total) / sum(torch.tensor(float(rows), dtype=total.dtype, device=total.device))


def mean(x: Tensor) -> Tensor:
    """The mean of `x` over ranks, differentiable."""
    return sum(x) / world_size()


def count(rows: int, device: torch.device) -> int:
    """The number of rows over all ranks."""
    return rows if world_size() == 1 else int(sum(torch.tensor(rows, device=device)))


@torch.no_grad()
def logsumexp(x: Tensor) -> Tensor:
    """log of the sum of exp(x) over ranks, elementwise; not differentiable."""
    if world_size() == 1:
        return x
    peak = x.clone()
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    peak = torch.where(peak.isfinite(), peak, torch.zeros_like(peak))
    return sum((x - peak).exp()).log() + peak


def gather(x: Tensor) -> Tensor:
    """The rows of all ranks, in the order of ranks, differentiable. Ranks must hold equally many rows."""
    if world_size() == 1:
        return x
    extremes = torch.tensor([len(x), -len(x)], device=x.device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    if extremes[0] != -extremes[1]:
        raise ValueError(
            f"ranks hold between {-int(extremes[1])} and {int(extremes[0])} rows and must hold equally many: "
            "drop the last, smaller batch"
        )
    return _Gather.apply(x)  # type: ignore[return-value]


def counts(rows: int, device: torch.device) -> tuple[int, ...]:
    """How many rows each rank has."""
    if world_size() == 1:
        return (rows,)
    parts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(world_size())]
    dist.all_gather(parts, torch.tensor([rows], device=device))
    return tuple(torch.cat(parts).tolist())


def concatenate(x: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks, in the order of ranks, differentiable; each rank has as many as `counts` says."""
    return x if world_size() == 1 else _Concatenate.apply(x, tuple(counts))  # type: ignore[return-value]


@torch.no_grad()
def max(x: Tensor) -> Tensor:
    """The maximum over ranks, elementwise; not differentiable."""
    return _extreme(x, "MAX")


@torch.no_grad()
def min(x: Tensor) -> Tensor:
    """The minimum over ranks, elementwise; not differentiable."""
    return _extreme(x, "MIN")


def gather_objects(value: Any) -> list[Any]:
    """Any value of every rank, in the order of ranks; tensors in it should be on the CPU."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(*flags: bool, device: torch.device) -> tuple[bool, ...]:
    """For each flag whether it is set on some rank: all ranks get the same answer."""
    if world_size() == 1:
        return flags
    said = torch.tensor([float(flag) for flag in flags], device=device)
    dist.all_reduce(said, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in said.tolist())


@torch.no_grad()
def average_gradients_(parameters: Iterable[Tensor]) -> None:
    """Gives all ranks the mean of their gradients; parameters without one must have none on any rank."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if world_size() == 1 or not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Overwrites the tensors by rank 0's."""
    if world_size() > 1:
        for x in tensors:
            dist.broadcast(x, 0)


@dataclass(frozen=True)
class Shard:
    """Which rows of a matrix are this rank's: [start, stop) of `total`, in parts as `torch.chunk` makes them."""

    start: int
    stop: int
    total: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def counts(self) -> tuple[int, ...]:
        """How many rows each rank has."""
        return _chunks(self.total)

    def cut(self, x: Tensor) -> Tensor:
        """This rank's part of a tensor whose last axis runs over all rows."""
        return x[..., self.start : self.stop]


def shard_of(rows: int) -> Shard:
    """What this rank holds of so many rows."""
    sizes = _chunks(rows)
    start = builtins.sum(sizes[: rank()])
    return Shard(start, start + sizes[rank()], rows)


def shard_(modules: Iterable[torch.nn.Module]) -> None:
    """Splits the modules' parameters over all ranks, as one unit that is gathered and let go together (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    if unit := list(modules):
        device = next(unit[0].parameters()).device
        fully_shard(unit, mesh=_mesh(device), reshard_after_forward=True)  # no backward follows a teacher's forward


@torch.no_grad()
def split_(module: torch.nn.Module) -> bool:
    """Splits the rows of a module's own parameters over all ranks, for good: what reads them sees its `own` rows.

    They stay as they are where a rank would be left without a row; says whether they were split.
    """
    from torch.distributed.tensor import Shard as ByRows
    from torch.distributed.tensor import distribute_tensor

    parameters = dict(module.named_parameters(recurse=False))
    if any(0 in _chunks(len(p)) for p in parameters.values()):
        return False
    for name, p in parameters.items():
        part = distribute_tensor(p.detach(), _mesh(p.device), [ByRows(0)])
        setattr(module, name, torch.nn.Parameter(part, requires_grad=p.requires_grad))
    return True


def is_sharded(x: Any) -> bool:
    """Whether this is one rank's part of a tensor."""
    module = sys.modules.get("torch.distributed.tensor")  # takes long to import; before that there are no parts
    return module is not None and isinstance(x, module.DTensor)


def own(x: Tensor) -> Tensor:
    """This rank's part of a tensor, differentiable: the gradient is that of the mean of all ranks' losses.

    A tensor that is no part is given back as it is.
    """
    return _Own.apply(x.to_local()) if is_sharded(x) else x  # type: ignore[attr-defined, return-value]


def whole(x: Any) -> Any:
    """All of a tensor of which ranks have parts, on every rank; anything else as it is.

    Differentiable where all ranks do the same with it: each keeps its part of the gradient that all of them have.
    """
    return x.full_tensor() if is_sharded(x) else x


def like(x: Any, reference: Any) -> Any:
    """This rank's part of `x`, cut as the reference is, where that is one."""
    if not is_sharded(reference) or not isinstance(x, Tensor) or x.shape != reference.shape:
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(reference.device), reference.device_mesh, reference.placements)


def _chunks(rows: int) -> tuple[int, ...]:
    """How `torch.chunk` deals out so many rows: equally, but for the last ranks, which may have fewer or none."""
    size = -(-rows // world_size())
    edges = [size * i if size * i < rows else rows for i in range(world_size() + 1)]
    return tuple(stop - start for start, stop in itertools.pairwise(edges))


def _mesh(device: torch.device) -> Any:
    """All ranks in a row."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (world_size(),))


def _extreme(x: Tensor, which: str) -> Tensor:
    if world_size() > 1:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, getattr(dist.ReduceOp, which))
    return x


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Concatenate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts, longest = counts, builtins.max(counts)
        padded = x.contiguous()
        if len(x) < longest:  # what is gathered must be equally long
            padded = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:rows] for part, rows in zip(parts, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.split(ctx.counts)[rank()], None


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad / world_size()
