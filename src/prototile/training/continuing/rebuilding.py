"""What a file lacks is made anew on the user's own images, while the backbone rests.

    start_prototypes_(method, ...)   spherical k-means of what the projector makes of images
    Unfreezing                       a callback: first the heads alone, then the backbone from its last layers on
    take_state_(optimizer, state)    the optimiser's memory, where it fits

n images, d dims.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from prototile.data.source import Source
from prototile.evaluation import Crop
from prototile.evaluation.features import Shown, device_of, evaluating
from prototile.kmeans import spherical_kmeans
from prototile.methods import Method, Prototypical
from prototile.training.module import Training
from prototile.training.optimizers import drop_gradients_

logger = logging.getLogger(__name__)

_OLD_NAMES = {"mu": "momentum_buffer"}  # of momentum, in VICReg's and DINO's LARS


@torch.no_grad()
def start_prototypes_(
    method: Prototypical, source: Source, crop: Crop, rebuilt: Sequence[str], *, batch: int = 256, seed: int = 0
) -> None:
    """Puts the prototypes that are rebuilt where images are; student and teacher get the same."""
    backbone, head, patch_head = method.student.backbone, method.student.head, method.student.patch_head
    if "prototypes" in rebuilt:
        rows = _projected(backbone, head.projector, source, crop, batch, patches=False)
        _place_(method, rows, "head", seed)
    own = patch_head is not None and patch_head.prototypes is not head.prototypes
    if own and ("prototypes" in rebuilt or "head of patches" in rebuilt):
        assert patch_head is not None
        rows = _projected(backbone, patch_head.projector, source, crop, batch, patches=True)
        _place_(method, rows, "patch_head", seed)


def _projected(
    backbone: nn.Module, projector: nn.Module, source: Source, crop: Crop, batch: int, *, patches: bool
) -> Float[Tensor, "n d"]:
    """Projections of all images (of one patch of each); a projector's batch norm sees batches, as in training."""
    modes = {module: module.training for module in projector.modules()}
    found = []
    with evaluating(backbone):
        for i, images in enumerate(Shown(source, crop, batch=batch, device=device_of(backbone))):
            features = backbone(images, patches=patches)
            rows = features.pooled
            if patches:
                places = (torch.arange(len(images)) + i) * 2654435761 % features.patches.shape[1]
                rows = features.patches[torch.arange(len(images)), places]
            if len(rows) > 1:
                projector.train()
                found.append(projector(rows).float())
    for module, training in modes.items():
        module.training = training
    return torch.cat(found)


def _place_(method: Prototypical, rows: Tensor, head: str, seed: int) -> None:
    prototypes = getattr(method.student, head).prototypes
    if len(rows) < len(prototypes.vectors):
        raise ValueError(
            f"{len(prototypes.vectors):,} prototypes cannot be started from {len(rows):,} images: give more images, or "
            "fewer prototypes, num_prototypes"
        )
    centers = spherical_kmeans(rows, len(prototypes.vectors), seed=seed)
    for network in (method.student, method.teacher):
        if network is not None:
            getattr(network, head).prototypes.vectors.copy_(centers)
            if head == "head":
                network.head.projector.load_state_dict(method.student.head.projector.state_dict())


class Unfreezing(pl.Callback):
    """The backbone rests for `warmup` epochs; then its layers learn in `stages` of an epoch each, the last ones first.

    Layers that rest have no gradients, and their batch norms keep their statistics, in the teacher too.
    """

    def __init__(self, warmup: int, stages: int):
        if warmup < 0 or stages < 1:
            raise ValueError(f"warm-up takes zero or more epochs, and stages are one at least, got {warmup}, {stages}")
        self._warmup, self._stages = warmup, stages

    def resting(self, method: Method, epoch: int) -> list[list[nn.Module]]:
        """Of each backbone, the student's first, the layers that rest in this epoch."""
        return [list(backbone.layers)[: self._count(len(backbone.layers), epoch)] for backbone in method.backbones]

    def _count(self, layers: int, epoch: int) -> int:
        stage = epoch - self._warmup + 1  # 0 in warm-up, then 1, 2, ...
        return layers if stage < 1 else max(layers - round(layers * stage / self._stages), 0)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        assert isinstance(pl_module, Training)
        method = pl_module.method
        for backbone, resting in zip(method.backbones, self.resting(method, trainer.current_epoch), strict=True):
            backbone.train()
            for layer in resting:
                layer.eval()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(pl_module, Training)
        for layer in self.resting(pl_module.method, trainer.current_epoch)[0]:
            drop_gradients_(layer)


class Remembering(pl.Callback):
    """Gives the optimiser what the file says that it remembered, before the first step; `said` is what came of it."""

    def __init__(self, state: Mapping[str, Any] | None):
        self.said = ""
        self._state = state

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training)
        if trainer.global_step:
            return
        optimizer = trainer.optimizers[0]
        inner: Any = getattr(optimizer, "optimizer", optimizer)
        self.said = take_state_(inner, pl_module.method, self._state)
        logger.info("%s", self.said)

    def state_dict(self) -> dict[str, Any]:
        return {"said": self.said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.said = state_dict["said"]


def take_state_(optimizer: torch.optim.Optimizer, method: nn.Module, state: Mapping[str, Any] | None) -> str:
    """Takes an optimiser's state where it is of the same kind and of parameters of the same shapes in the same order;
    what was done, in words.
    """
    if state is None:
        return "the optimiser begins afresh: the file has no state of one"
    groups = state.get("param_groups")
    listed = [i for group in groups for i in group.get("params", ())] if isinstance(groups, list) else []
    theirs = [_renamed(state["state"][i]) for i in listed if isinstance(state["state"].get(i), Mapping)]
    for order in (_in_groups(optimizer), [p for p in method.parameters() if p.requires_grad]):
        if len(theirs) == len(order) and all(_fits(x, p, optimizer) for x, p in zip(theirs, order, strict=True)):
            for x, p in zip(theirs, order, strict=True):
                optimizer.state[p] = {name: _moved(name, value, p) for name, value in x.items()}
            return f"the optimiser goes on with the file's state of {len(order)} tensors"
    return "the optimiser begins afresh: the file's state is of another one, or of other parameters"


def _renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    return {_OLD_NAMES.get(name, name): value for name, value in state.items() if value is not None}


def _in_groups(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _fits(state: Mapping[str, Any], p: Tensor, optimizer: torch.optim.Optimizer) -> bool:
    adam = isinstance(optimizer, torch.optim.AdamW)
    names = {"exp_avg", "exp_avg_sq", "step"} if adam else {"momentum_buffer"}
    shapes = [x.shape for name, x in state.items() if isinstance(x, Tensor) and name != "step"]
    return set(state) == names and all(shape == p.shape for shape in shapes) and len(shapes) == len(names - {"step"})


def _moved(name: str, value: Any, p: Tensor) -> Tensor:
    """A tensor of its own, where the parameter is; counters are float32."""
    if name == "step":
        return torch.as_tensor(value, dtype=torch.float32).clone()
    return value.detach().to(p).clone()
