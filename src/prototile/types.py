"""What flows between data, views, backbones and methods.

    Views     equally large views of the images of a batch: one forward pass
    Batch     the groups of views of one batch, with labels where there are any, and where the images came from
    Features  what a backbone makes of images

Axes: b images, v views, c channels, h w pixels, n patches, m patches that are kept; of features: n rows (v x b images),
p patches, t tokens, d dims.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

D = TypeVar("D")


@dataclass(frozen=True)
class Views:
    """Equally large views of the images of a batch, view after view, and what hides which patches of them.

    `mask` says which patches a mask token replaces (iBOT, DINOv2, data2vec); `keep` names the patches that alone are
    encoded (MSN, MAE), in the order drawn. Patches are counted row by row.
    """

    images: Float[Tensor, "v b c h w"]
    mask: Bool[Tensor, "v b n"] | None = None
    keep: Int[Tensor, "v b m"] | None = None

    def to(self, device: torch.device | str) -> "Views":
        return mapped(self, lambda x: moved(x, device))

    def pin_memory(self) -> "Views":
        return mapped(self, Tensor.pin_memory)


@dataclass(frozen=True)
class Batch:
    """A batch of views; `indices` are the images' places in their source, `labels` are -1 where there is none."""

    views: tuple[Views, ...]
    indices: Int[Tensor, " b"]
    labels: Int[Tensor, " b *classes"] | None = None

    def to(self, device: torch.device | str) -> "Batch":
        labels = None if self.labels is None else moved(self.labels, device)
        return replace(self, views=tuple(x.to(device) for x in self.views), labels=labels)


@dataclass(frozen=True)
class Features:
    """What a backbone makes of images.

    `pooled` is what heads take and evaluations use: the class token, or the mean over space. `cls` and `patches` are
    the normalised output tokens of a transformer; with patches that were kept only those, in their order. `blocks` are
    the tokens after each of the last blocks that were asked for, oldest first, before the final norm, with the class
    token in front where there is one.
    """

    pooled: Float[Tensor, "n d"]
    cls: Float[Tensor, "n d"] | None = None
    patches: Float[Tensor, "n p d"] | None = None
    blocks: tuple[Float[Tensor, "n _t _d"], ...] = ()


def mapped(x: D, function: Callable[[Tensor], Tensor]) -> D:
    """The dataclass with `function` applied to each of its tensors."""
    tensors = {name: function(value) for name, value in vars(x).items() if isinstance(value, Tensor)}
    return replace(x, **tensors)  # type: ignore[type-var]


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """On the device. Only copies to a GPU go on by themselves: one from there would be read before it is done."""
    return x.to(device, non_blocking=torch.device(device).type == "cuda")
