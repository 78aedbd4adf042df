"""How a method is optimised, as data: what a recipe says, and what it makes of a method's parameters.

    Optimization    optimiser, learning rate, weight decay, clipping, and what is special about some parts
    Special         what is special about one part of a method: its prototypes, its predictor

Every parameter that requires a gradient is in exactly one group; groups that would be treated alike are one. Learning
rate and weight decay of a group are written into it before every step:

    lr            schedule x batch scaling x layer-wise decay
    weight decay  schedule x factor, or zero for biases and other parameters of one dimension
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from prototile import distributed
from prototile.methods import Method
from prototile.schedules import Constant, Progress, Schedule
from prototile.training.optimizers import LARC, LARS, clip_each_, drop_gradients_

SCALINGS = {
    "none": lambda batch: 1.0,
    "linear": lambda batch: batch / 256,
    "sqrt": lambda batch: math.sqrt(batch / 1024),
}


@dataclass(frozen=True)
class Special:
    """What is special about one of a method's `roles`; what is not given is as for all parameters.

    `decay_factor` multiplies the weight decay (ExCB's prototypes: from 10 to 1), `clip=False` leaves the part out of
    clipping (MSN's prototypes). A frozen part has no gradients for the first epochs or steps, whichever are longer
    (DINO's last layer for an epoch, SwAV's prototypes for 313 steps): it is clipped with the others, and then dropped.
    """

    lr: Schedule | None = None
    weight_decay: Schedule | None = None
    decay_factor: Schedule | None = None
    clip: bool = True
    freeze_epochs: float = 0
    freeze_steps: int = 0

    def __post_init__(self) -> None:
        if self.freeze_epochs < 0 or self.freeze_steps < 0:
            raise ValueError(f"a part is frozen for zero or more epochs and steps, got {self}")

    def frozen(self, progress: Progress) -> bool:
        return progress.step < max(self.freeze_steps, self.freeze_epochs * progress.steps_per_epoch)


@dataclass(frozen=True, kw_only=True)
class Optimization:
    r"""An optimiser, its schedules and what is done to gradients before it sees them.

    `lr_scaling` multiplies the learning rates by B / 256 ("linear": DINO, VICReg) or $\sqrt{B / 1024}$ ("sqrt":
    DINOv2), B being the images of an optimiser step; with "none" they are meant as they stand (MSN, ExCB). It
    multiplies whole schedules, their final values too.

    `clip` is the largest norm of all gradients together (`clip_by="total"`: MSN, DINOv2, data2vec) or of each
    parameter's ("tensor": DINO, iBOT, EsViT). `layer_decay` multiplies the learning rates of a backbone's L layers by
    its powers, from 1 for the last to L for the first, which has tokens and positions (DINOv2: 0.9; its final norm,
    here in the last layer, has power 0 there). `patch_embed_factor` multiplies that of the patch embedding once more
    (DINOv2: 0.2). With `decay_vectors`, biases
    and norms decay like all others (SimSiam, SwAV). `momentum` is for sgd, lars and larc, `betas` and `eps` for adamw,
    `eta` for lars and larc, `exclude_vectors` for lars.
    """

    lr: Schedule
    optimizer: Literal["adamw", "sgd", "lars", "larc"] = "adamw"
    weight_decay: Schedule = Constant(0.0)
    lr_scaling: Literal["none", "linear", "sqrt"] = "linear"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eta: float = 0.001
    exclude_vectors: bool = True
    clip: float | None = None
    clip_by: Literal["total", "tensor"] = "total"
    layer_decay: float = 1.0
    patch_embed_factor: float = 1.0
    decay_vectors: bool = False
    roles: Mapping[str, Special] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd", "lars", "larc"):
            raise ValueError(f"optimizer must be 'adamw', 'sgd', 'lars' or 'larc', got {self.optimizer!r}")
        if self.lr_scaling not in SCALINGS:
            raise ValueError(f"lr_scaling must be one of {', '.join(SCALINGS)}, got {self.lr_scaling!r}")
        if self.clip_by not in ("total", "tensor"):
            raise ValueError(f"clip_by must be 'total' or 'tensor', got {self.clip_by!r}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"the norm to clip at must be positive, got {self.clip}: for no clipping give None")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay lies in (0, 1], got {self.layer_decay}")

    def groups(self, method: Method, batch: int) -> list[dict[str, Any]]:
        """The parameter groups of a method that is trained on `batch` images a step, as plain values."""
        base = SCALINGS[self.lr_scaling](batch)
        factors, roles = self._layer_factors(method), self._role_of(method)
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for name, p in method.named_parameters():
            if p.requires_grad:
                decays = self.decay_vectors or not (p.ndim <= 1 or name.endswith(".bias"))
                key = (roles.get(p, ""), base * factors.get(p, 1.0), decays)
                settings = dict(zip(("role", "lr_scale", "decays"), key, strict=True))
                groups.setdefault(key, {"params": [], "lr": 0.0, "weight_decay": 0.0, **settings})["params"].append(p)
        if not groups:
            raise ValueError("this method has nothing to train: none of its parameters requires a gradient")
        return list(groups.values())

    def build(self, method: Method, batch: int, *, fused: bool = False) -> Optimizer:
        """The optimiser of this method; `set_values_` gives it learning rates before every step."""
        groups = self.groups(method, batch)
        if self.optimizer == "adamw":
            return AdamW(groups, lr=0.0, betas=self.betas, eps=self.eps, fused=fused or None)
        if self.optimizer == "sgd":
            return SGD(groups, lr=0.0, momentum=self.momentum)
        if self.optimizer == "lars":
            exclude = self.exclude_vectors and not self.decay_vectors
            return LARS(groups, lr=0.0, momentum=self.momentum, eta=self.eta, exclude_vectors=exclude)
        return LARC(groups, lr=0.0, momentum=self.momentum, eta=self.eta)

    def set_values_(self, optimizer: Optimizer, progress: Progress) -> None:
        """Writes this moment's learning rates and weight decays into the groups."""
        for group in optimizer.param_groups:
            special = self.roles.get(group["role"], Special())
            group["lr"] = (special.lr or self.lr)(progress) * group["lr_scale"]
            decay = (special.weight_decay or self.weight_decay)(progress) if group["decays"] else 0.0
            group["weight_decay"] = decay * (special.decay_factor(progress) if special.decay_factor else 1.0)

    def clip_(self, method: Method) -> None:
        """Clips the gradients of all parameters but those of parts that are left out."""
        if self.clip is None:
            return
        left_out = {p for part in self._parts(method, lambda special: not special.clip) for p in part.parameters()}
        clipped = [p for p in method.parameters() if p not in left_out]
        if self.clip_by == "tensor":
            clip_each_(clipped, self.clip)
        else:
            _clip_total_([p.grad for p in clipped if p.grad is not None], self.clip)

    def drop_frozen_(self, method: Method, progress: Progress) -> None:
        """Drops the gradients of parts that are frozen at this moment; comes after clipping."""
        for part in self._parts(method, lambda special: special.frozen(progress)):
            drop_gradients_(part)

    def _parts(self, method: Method, wanted) -> Iterator[nn.Module]:
        return (method.roles[name] for name, special in self.roles.items() if wanted(special))

    def _role_of(self, method: Method) -> dict[Tensor, str]:
        """The role of each parameter that has its own lr or weight decay; of roles treated alike the first."""
        unknown = sorted(set(self.roles) - set(method.roles))
        if unknown:
            raise ValueError(
                f"the optimization treats {', '.join(unknown)} apart, and this method has no such part; "
                f"it has: {', '.join(method.roles) or 'none'}"
            )
        found: dict[Tensor, str] = {}
        first: dict[tuple[Any, ...], str] = {(None, None, None): ""}
        for role, special in self.roles.items():
            name = first.setdefault((special.lr, special.weight_decay, special.decay_factor), role)
            for p in method.roles[role].parameters():
                if p in found:
                    raise ValueError(f"a parameter belongs to more than one of the roles {', '.join(self.roles)}")
                found[p] = name
        return found

    def _layer_factors(self, method: Method) -> dict[Tensor, float]:
        """What the learning rates of the student's backbone are multiplied by."""
        if self.layer_decay == 1 and self.patch_embed_factor == 1:
            return {}
        layers = method.backbones[0].layers
        factors: dict[Tensor, float] = {}
        for depth, layer in enumerate(layers):
            factors |= dict.fromkeys(layer.parameters(), self.layer_decay ** (len(layers) - depth))
        for module in layers[0].modules():
            if isinstance(module, nn.Conv2d):  # what makes patches of pixels; tokens and positions are not meant
                factors |= {p: factors[p] * self.patch_embed_factor for p in module.parameters()}
        return factors


@torch.no_grad()
def _clip_total_(grads: list[Tensor], max_norm: float) -> None:
    """Scales all gradients by one factor so that their norm together is at most `max_norm`."""
    kinds = [[grad for grad in grads if distributed.is_sharded(grad) is sharded] for sharded in (False, True)]
    norms = [distributed.whole(nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    if norms:
        factor = (max_norm / (torch.stack(norms).norm() + 1e-6)).clamp(max=1)
        for kind in kinds:
            if kind:
                torch._foreach_mul_(kind, factor)  # type: ignore[reportPrivateImportUsage]
