"""A method's training steps as one of several ranks, for tests that two ranks equal one."""

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from method_cases import CASES, batch
from prototile import distributed
from prototile.heads import Prototypes
from prototile.schedules import Progress

if TYPE_CHECKING:  # it imports Lightning, which most ranks can do without
    from prototile.training.optimization import Optimization

IMAGES, STEPS = 8, 3
FIXED = {
    "dinov2": {"koleo_weight": 0.0},  # as published, KoLeo sees its own rank's rows
    "swav": {"queue": 16},  # over all ranks
}


class SyncedNorm(nn.Module):
    """Batch norm over the rows of all ranks. torch's own synchronised one runs on GPUs alone."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        rows = x.movedim(1, -1).flatten(0, -2)
        mean = distributed.mean_rows(rows.sum(0), len(rows))
        variance = distributed.mean_rows((rows - mean).square().sum(0), len(rows))
        shape = (-1, *[1] * (x.ndim - 2))
        x = (x - mean.view(shape)) / (variance + self.eps).sqrt().view(shape)
        return x if self.weight is None else x * self.weight.view(shape) + self.bias.view(shape)


def synced(module: nn.Module) -> nn.Module:
    """With every batch norm replaced."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, SyncedNorm(child))
        else:
            synced(child)
    return module


def training(
    rank: int,
    world: int,
    name: str,
    options: dict[str, Any] | None = None,
    optimization: "Optimization | None" = None,
) -> dict[str, Tensor]:
    """Loss, parameters and state after some whole steps; with `options`, prototypes are split over ranks."""
    torch.manual_seed(1)
    made = FIXED.get(name, {}) | deepcopy(options or {})  # what came from another process may lie in shared memory
    if "queue" in made:
        made["queue"] //= world
    method = synced(CASES[name].make(**made)).double()
    layers = [module for module in method.modules() if isinstance(module, Prototypes)]
    if world > 1 and options is not None:
        for layer in layers:
            layer.split_()
            assert distributed.is_sharded(layer.vectors)
    trained = [p for p in method.parameters() if p.requires_grad]
    if optimization is None:
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    else:
        optimizer = optimization.build(method, IMAGES)
    losses = []
    for i in range(STEPS):
        progress = Progress(i, 10, 2)
        views = batch(name, IMAGES, step=i, rank=rank, world=world).views
        terms = method(tuple(replace(v, images=v.images.double()) for v in views), progress)
        optimizer.zero_grad()
        terms.loss.backward()
        distributed.average_gradients_(p for p in trained if not distributed.is_sharded(p))
        if optimization is not None:
            optimization.clip_(method)
            optimization.drop_frozen_(method, progress)
            optimization.set_values_(optimizer, progress)
        optimizer.step()
        method.after_step(progress)
        losses.append(terms.loss.detach())
    state = {key: distributed.whole(x) for key, x in method.state_dict().items() if "queue" not in key}
    return {"loss": torch.stack(losses)} | state


def prepared(rank: int, world: int, split: bool) -> Tensor:
    """ExCB's prototypes of k-means, and what the teacher has of them."""
    torch.manual_seed(1)
    method = CASES["excb"].make(num_prototypes=5, kmeans_images=16)
    if split:
        for module in method.modules():
            if isinstance(module, Prototypes):
                module.split_()
    method.prepare(batch("excb", IMAGES, step=i, rank=rank, world=world) for i in range(10))
    student, teacher = (distributed.whole(x.head.prototypes.vectors.detach()) for x in (method.student, method.teacher))
    assert torch.equal(student, teacher)
    return student
