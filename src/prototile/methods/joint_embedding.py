"""Joint embedding: two or more views of an image shall have like projections, and different images unlike ones.

v views, b images, d dims.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prototile.backbones import Backbone
from prototile.methods.addons import AddOn, AddOns
from prototile.methods.method import Method, Terms
from prototile.methods.network import by_view, features_of
from prototile.schedules import Progress
from prototile.types import Batch, Views
from prototile.views import Augmentation

# From projections, and the predictor's outputs (the same where there is none), to the loss and its named parts.
Criterion = Callable[[Float[Tensor, "v b d"], Float[Tensor, "v b d"]], tuple[Tensor, dict[str, Tensor]]]


class Siamese(nn.Module):
    """A backbone, a projector, and perhaps a predictor behind it."""

    def __init__(self, backbone: Backbone, projector: nn.Module, predictor: nn.Module | None = None):
        super().__init__()
        self.backbone, self.projector, self.predictor = backbone, projector, predictor


class JointEmbedding(Method):
    """The family without prototypes: SimCLR, VICReg, Barlow Twins, SimSiam, MMCR differ in the `criterion`.

    Views of one group pass the network together, view by view where `apart` (batch norm then sees one view at a time).
    `pairs` says that the criterion compares exactly two views.
    """

    student: Siamese

    def __init__(
        self,
        student: Siamese,
        criterion: Criterion,
        *,
        pairs: bool = True,
        apart: bool = False,
        add_ons: Sequence[AddOn] = (),
    ):
        super().__init__()
        self.student, self.criterion, self.pairs, self.apart = student, criterion, pairs, apart
        self.add_ons = AddOns(add_ons)

    def forward(self, views: tuple[Views, ...], progress: Progress) -> Terms:
        count = len(views[0].images)
        if self.apart:
            features, projections, predictions = (
                torch.cat(x) for x in zip(*(self._embedded(Views(view[None])) for view in views[0].images), strict=True)
            )
        else:
            features, projections, predictions = self._embedded(views[0])
        features, projections = by_view(features, count), by_view(projections, count)
        loss, parts = self.criterion(projections, by_view(predictions, count))
        extra, more = self.add_ons([], features, projections)
        return Terms(
            loss + extra,
            {name: x.detach() for name, x in (parts | more).items()},
            features.flatten(0, 1).detach(),
        )

    def _embedded(self, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        features = features_of(self.student.backbone, [views])[0].pooled
        projections = self.student.projector(features)
        predictor = self.student.predictor
        return features, projections, projections if predictor is None else predictor(projections)

    def after_step(self, progress: Progress) -> None:
        """Nothing: there is no teacher."""

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Nothing: all starts at random."""

    def check(self, augmentation: Augmentation) -> None:
        views = len(augmentation.groups[0].views)
        if len(augmentation.groups) != 1 or views < 2 or (self.pairs and views != 2):
            sizes = ", ".join(f"{len(group.views)} of {group.size} pixels" for group in augmentation.groups)
            raise ValueError(
                f"this method compares {'two views' if self.pairs else 'views'} of one size, and the augmentation "
                f"makes {sizes}: use prototile.views.preset('simclr'), or another of its two-view presets"
            )
        if augmentation.groups[0].masks is not None:
            raise ValueError("this method looks at whole views: leave out the masks of the augmentation")

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        return (self.student.backbone,)

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        return {} if self.student.predictor is None else {"predictor": self.student.predictor}
