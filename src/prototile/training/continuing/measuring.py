"""Before and after: what a method's features and projections are like, on images that it is not trained on.

n images, d dims.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit import audit_embeddings
from prototile.audit.spectrum import products_of, rankme
from prototile.data.source import Source, Subset
from prototile.data.subsets import some_of, stratified
from prototile.evaluation import Crop, knn, linear
from prototile.evaluation.features import Shown, device_of, evaluating
from prototile.losses.redundancy import covariance
from prototile.methods import Method
from prototile.regularizers import unit_interval
from prototile.training.continuing.criteria import Space
from prototile.training.continuing.restoring import parts_of
from prototile.training.probe import parts

SHARE, DRAWS = 0.01, 3  # of the labels that a linear probe learns from, and how often they are drawn


@dataclass(frozen=True)
class Measures:
    """Of images as they are; what needs labels is none where there are none.

    knn            share of test images right, the better of k = 10 and 20
    linear         the same of a logistic regression on 1% of the labels, the mean over three drawn subsets
    linear_error   its standard error
    entropy        mean m-spacings entropy of projections, mapped as E2MC maps them: 0 where dims are uniform
    covariance     of the same, the mean over dims of squared covariances with the others
    chi_square     of ten pairs of dims on a 10 x 10 grid, per degree of freedom: 1 for uniform ones
    distance       mean Kolmogorov-Smirnov distance of dims to uniform ones
    overlap        of the histograms of distances to the nearest and to a far neighbour, of projections
    auc            chance that one image's far distance exceeds another's near one
    rankme         effective rank of features; `rankme_projections` of projections
    """

    images: int
    knn: float | None
    linear: float | None
    linear_error: float | None
    entropy: float
    covariance: float
    chi_square: float
    distance: float
    overlap: float
    overlap_directions: float
    auc: float
    rankme: float
    rankme_projections: float

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class Bench:
    """The images that measures are taken on, drawn once: `known` to learn from and `asked` to test on."""

    known: Source | None
    subsets: Sequence[Source]  # each of 1% of the labels
    asked: Source
    crop: Crop
    space: Space
    batch: int = 256
    workers: int = 0

    @classmethod
    def of(
        cls,
        train: Source,
        test: Source | None,
        crop: Crop,
        space: Space,
        *,
        limit: int = 5000,
        batch: int = 256,
        workers: int = 0,
    ) -> "Bench":
        """At most `limit` images of each side. Without `test` a fifth of the labelled images is tested on; without
        labels there is nothing but the images themselves.
        """
        if limit < 2:
            raise ValueError(f"what features are worth needs at least two images, got a limit of {limit}")
        if not has_labels(train) or not (test is None or has_labels(test)):
            return cls(None, (), some_of(train if test is None else test, limit), crop, space, batch, workers)
        learnt, tested = parts(train, None, len(train)) if test is None else (_labelled(train), _labelled(test))
        subsets = [stratified(learnt, SHARE, seed=seed) for seed in range(DRAWS)]
        return cls(some_of(learnt, limit), subsets, some_of(tested, limit), crop, space, batch, workers)

    def __call__(self, method: Method) -> Measures:
        features, projections, labels = self._encoded(method, self.asked)
        right, shares = None, []
        if self.known is not None:
            known, _, classes = self._encoded(method, self.known, projected=False)
            ks = tuple(dict.fromkeys(min(k, len(known)) for k in (10, 20)))
            right = knn(known, classes, features, labels, ks).accuracy
            for subset in self.subsets:
                x, _, y = self._encoded(method, subset, projected=False)
                shares.append(linear(x, y, features, labels).accuracy)
        found = audit_embeddings(projections, space=self.space, spaces=("raw", "unit"))
        return Measures(
            images=len(features),
            knn=right,
            linear=statistics.fmean(shares) if shares else None,
            linear_error=statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else None,
            entropy=found.entropy,
            covariance=float(covariance(unit_interval(projections, self.space))),
            chi_square=found.chi_square,
            distance=float(found.marginals.distance.mean()),
            overlap=found.neighbors["raw"].overlap,
            overlap_directions=found.neighbors["unit"].overlap,
            auc=found.neighbors["raw"].auc,
            rankme=rankme(products_of(features)),
            rankme_projections=found.rankme,
        )

    @torch.no_grad()
    def _encoded(
        self, method: Method, source: Source, *, projected: bool = True
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n _p"], Int[Tensor, " n"]]:
        """Features, projections and labels; in evaluation mode, on the CPU."""
        backbone, projector = (parts_of(method)[name] for name in ("backbone", "projector"))
        shown = Shown(source, self.crop, batch=self.batch, workers=self.workers, device=device_of(backbone))
        features, projections = [], []
        with evaluating(backbone), evaluating(projector):
            for images in shown:
                features.append(backbone(images, patches=False).pooled.float())
                if projected:
                    projections.append(projector(features[-1]).float().cpu())
        rows = torch.cat(features).cpu()
        return rows, torch.cat(projections) if projected else rows[:, :0], shown.labels()


def has_labels(source: Source) -> bool:
    """Whether it has one class for images, and for two of them at least."""
    labels = source.labels
    return labels is not None and labels.ndim == 1 and int((labels >= 0).sum()) > 1


def _labelled(source: Source) -> Source:
    labels = source.labels
    assert labels is not None
    return source if bool((labels >= 0).all()) else Subset(source, np.flatnonzero(labels >= 0))
