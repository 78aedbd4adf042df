"""A classifier on a backbone, trained as a whole: features, perhaps the first layer of a projector, a linear head.

n images, d dims, c classes.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers.drop import DropPath
from torch import Tensor, nn

from prototile.backbones import Backbone
from prototile.backbones.readout import final_norm
from prototile.evaluation.features import evaluating
from prototile.methods import Supervised, Terms
from prototile.precision import wide
from prototile.schedules import Progress
from prototile.training.finetuning.mixing import Mixing
from prototile.types import Batch, Views
from prototile.views import Augmentation

Pooling = Literal["pooled", "patches"]
_PATHS = ("drop_path1", "drop_path2")  # as timm names them in the blocks of transformers


class Classifier(Supervised):
    """Logits of images, and the cross-entropy with their labels, which `mixing` may have mixed and softened.

    `pooling` says what the head sees: the backbone's pooled features (class token, or mean over space), or the mean of
    its patches. The linear layer's weights start from a normal of deviation `head_std` (and no bias), or as torch makes
    them. Parameters of the backbone that logits do not depend on (a mask token) are frozen, the others are trained
    as they were before. `drop_path` grows over the depth of a transformer from 0 to this.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        projection: nn.Module | None = None,
        pooling: Pooling = "pooled",
        head_std: float | None = None,
        drop_path: float = 0.0,
        mixing: Mixing | None = None,
    ):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"a classifier needs at least two classes, got {num_classes}")
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
        if pooling == "patches" and backbone.patch is None:
            raise ValueError(f"a {type(backbone).__name__} has no patches: take pooling='pooled'")
        self.encoder = backbone
        self.projection = nn.Identity() if projection is None else projection
        self.head = nn.Linear(_width(self.projection, backbone.dims), num_classes)
        if head_std is not None:
            nn.init.normal_(self.head.weight, std=head_std)
            nn.init.zeros_(self.head.bias)
        self.mixing = mixing
        self.pooling: Pooling = pooling
        set_drop_path_(backbone, drop_path)
        self.train()  # imported networks come in evaluation mode

    def forward(self, views: tuple[Views, ...], progress: Progress, labels: Int[Tensor, " b"]) -> Terms:
        images = views[0].images[0]
        if self.mixing is None:
            features = self.features(images)
            loss = F.cross_entropy(wide(self.classified(features)), labels)
        else:
            mixed, targets = self.mixing(images, labels, self.head.out_features)
            features = self.features(mixed)
            loss = soft_cross_entropy(self.classified(features), targets)
        return Terms(loss, {"cross_entropy": loss.detach()}, features.detach())

    def logits(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c"]:
        return self.classified(self.features(images))

    def features(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        if self.pooling == "pooled":
            return self.encoder(images, patches=False).pooled
        patches = self.encoder(images).patches
        assert patches is not None
        return patches.mean(1)

    def classified(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        return self.head(self.projection(features))

    def after_step(self, progress: Progress) -> None:
        """Nothing follows."""

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Nothing needs to see data."""

    def check(self, augmentation: Augmentation) -> None:
        groups = augmentation.groups
        if len(groups) != 1 or len(groups[0].views) != 1 or groups[0].masks is not None:
            raise ValueError("a classifier sees one view of each image, with all of its patches")

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        return (self.encoder,)

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        """The linear layer; tokens and positions, which do not decay; a transformer's final norm (see `Recipe`)."""
        tokens = [part for part in self.encoder.layers[0].modules() if isinstance(part, nn.ParameterList)]
        return {"head": self.head, "tokens": nn.ModuleList(tokens), "norm": nn.ModuleList(_norms(self.encoder))}


def soft_cross_entropy(logits: Float[Tensor, "n c"], targets: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    r"""$-\frac1n \sum_{ik} t_{ik} \log p_{ik}$, at least in float32."""
    return -(targets * wide(logits).log_softmax(1)).sum(1).mean()


def freeze_unused_(classifier: Classifier, size: int) -> tuple[str, ...]:
    """Freezes what the logits of images of this size do not depend on; gives the names."""
    with evaluating(classifier), torch.enable_grad():
        classifier.logits(torch.zeros(2, 3, size, size, device=classifier.head.weight.device)).sum().backward()
    unused = [(name, p) for name, p in classifier.named_parameters() if p.requires_grad and p.grad is None]
    for _, p in unused:
        p.requires_grad_(False)
    classifier.zero_grad(set_to_none=True)
    return tuple(name for name, _ in unused)


def set_drop_path_(backbone: Backbone, rate: float) -> None:
    """Lets each block's residuals be left out at random, from never in the first to `rate` of the time in the last."""
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path lies in [0, 1), got {rate}")
    blocks = [part for part in backbone.modules() if any(name in _PATHS for name, _ in part.named_children())]
    for depth, block in enumerate(blocks):
        for name, _ in list(block.named_children()):
            if name in _PATHS:
                setattr(block, name, DropPath(rate * depth / max(len(blocks) - 1, 1)) if rate else nn.Identity())


def first_layer(projector: nn.Module) -> nn.Sequential:
    """A projector's first linear layer, with what follows it up to its activation (SimCLRv2, iBOT)."""
    parts = list(projector.children())
    linear = [i for i, part in enumerate(parts) if isinstance(part, nn.Linear)]
    if not isinstance(projector, nn.Sequential) or len(linear) < 2:
        raise ValueError(
            "fine-tuning from the first layer of a projector needs one of two layers at least, and this checkpoint's "
            f"has {len(linear)}: leave the projection out"
        )
    return nn.Sequential(*parts[: linear[1]])


def _width(projection: nn.Module, dims: int) -> int:
    """Of what leaves the projection."""
    linear = [part for part in projection.modules() if isinstance(part, nn.Linear)]
    if linear and linear[0].in_features != dims:
        raise ValueError(f"the projection takes {linear[0].in_features} dims, and the backbone gives {dims}")
    return linear[-1].out_features if linear else dims


def _norms(backbone: Backbone) -> list[nn.Module]:
    """The final norm of a transformer; none of other networks."""
    try:
        return [final_norm(backbone)]
    except ValueError:
        return []
