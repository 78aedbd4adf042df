"""Optimisers of large-batch training, gradient clipping of both kinds, and freezing of the last layer.

Two rules to adapt a tensor's step to its norm are in use, and they differ in more than a name:

    optimiser   ratio                                     tensors of one dim            a norm of zero
    LARS        eta |p| / |g + wd p|                      neither adapted nor decayed   not adapted (VICReg, DINO, ExCB)
    LARC        eta |p| / (|g| + wd |p| + 1e-8)           like all others               not even decayed (SwAV)

`timm.optim.Lars` has LARC's ratio, but decays a tensor whose gradient is zero, which LARC does not.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prototile import distributed


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling as in VICReg's, DINO's and ExCB's code (You et al. 2017).

    dp = g + wd p, scaled by eta |p| / |dp|; mu = m mu + dp; p -= lr mu, so that the learning rate acts on the whole
    buffer at once. With `exclude_vectors` (VICReg's filters, always on in DINO) biases and norms are neither
    adapted nor decayed.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        exclude_vectors: bool = True,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        super().__init__(params, _checked(defaults) | {"exclude_vectors": exclude_vectors})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        loss = _evaluated(closure)
        for group, p, gradient in _with_gradient(self.param_groups):
            step = gradient
            if not (group["exclude_vectors"] and p.ndim == 1):
                step = step + group["weight_decay"] * p
                norms = _norm(p), _norm(step)
                ratio = group["eta"] * norms[0] / norms[1]
                step = step * torch.where((norms[0] > 0) & (norms[1] > 0), ratio, torch.ones_like(ratio))
            p.sub_(group["lr"] * _momentum(self.state[p], step, group["momentum"]))
        return loss


class LARC(Optimizer):
    """SGD with momentum and layer-wise adaptive rate *control*, as SwAV uses it (NVIDIA apex).

    Every tensor, biases too: g <- (g + wd p) a with a = eta |p| / (|g| + wd |p| + eps). With `clip`, a = min(a /
    lr, 1): the adapted rate is then an upper bound of the given one. Where either norm is zero, the gradient is
    used as it is.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        clip: bool = False,
        eps: float = 1e-8,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        super().__init__(params, _checked(defaults) | {"clip": clip, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        loss = _evaluated(closure)
        for group, p, gradient in _with_gradient(self.param_groups):
            norms, decay = (_norm(p), _norm(gradient)), group["weight_decay"]
            ratio = group["eta"] * norms[0] / (norms[1] + decay * norms[0] + group["eps"])
            if group["clip"]:
                ratio = (ratio / group["lr"]).clamp(max=1)
            step = torch.where((norms[0] > 0) & (norms[1] > 0), (gradient + decay * p) * ratio, gradient)
            p.sub_(group["lr"] * _momentum(self.state[p], step, group["momentum"]))
        return loss


@torch.no_grad()
def clip_each_(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scales every parameter's gradient by itself to at most `max_norm` (DINO, iBOT, EsViT, ExCB).

    For one norm over all parameters (MSN, DINOv2, data2vec) there is `torch.nn.utils.clip_grad_norm_`.
    """
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        if p.grad is not None:
            p.grad.mul_((max_norm / (p.grad.norm() + 1e-6)).clamp(max=1))


def drop_gradients_(module: nn.Module) -> None:
    """Sets a module's gradients to None, so that an optimiser leaves it alone, momentum and decay included.

    What DINO does to its last layer for the first epochs and SwAV to its prototypes for the first steps, after
    clipping. (DINOv2 gives the last layer a learning rate of zero instead, which keeps its moments moving.)
    """
    for p in module.parameters():
        p.grad = None


def _checked(defaults: dict[str, float]) -> dict[str, Any]:
    for name, value in defaults.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    return dict(defaults)


def _evaluated(closure):
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _norm(x: Tensor) -> Tensor:
    """Of all of it, where ranks have parts."""
    return distributed.whole(x.norm())


def _with_gradient(groups: list[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], Tensor, Tensor]]:
    return ((group, p, p.grad) for group in groups for p in group["params"] if p.grad is not None)


def _momentum(state: dict[str, Any], step: Tensor, momentum: float) -> Tensor:
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(step)
    return state["momentum_buffer"].mul_(momentum).add_(step)
