r"""Objectives: what a clustering student has to predict of its teacher, with the balancer of its targets.

    objective        predicted                                        of                           used by
    ClassTokens      the assignment of another view                   pooled features              DINO, SwAV, MSN ..
    MaskedPatches    the teacher's assignment of a hidden patch       patches, the same view       iBOT, DINOv2
    Regions          the assignment of the most similar region        patches, another view        EsViT
    ExplicitClusters ClassTokens, twice: by projector and predictor   pooled features              ExCB

Every one is made of a prior and a balancer for it, and a weight. The sum of their losses is a method's.

n rows, b images, t teacher's and s student's views, p patches, d dims, k prototypes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prototile.assignments import Assignments, Pairs, cross_entropy, cross_entropy_and_mean
from prototile.balancing import Balancer, Queue
from prototile.heads import ExCBHead, Head
from prototile.methods.method import Clusters
from prototile.methods.network import Encoded
from prototile.regularizers import MatchPrior
from prototile.schedules import Progress, Schedule
from prototile.sphere import normalize
from prototile.types import Features, Views


@dataclass(frozen=True)
class Outcome:
    """Parts of a loss by name, their weights, and the clusters behind them."""

    parts: dict[str, Float[Tensor, ""]]
    weights: dict[str, float]
    clusters: dict[str, Clusters] = field(default_factory=dict)

    @property
    def loss(self) -> Float[Tensor, ""]:
        return torch.stack([self.weights[name] * x for name, x in self.parts.items()]).sum()


class Objective(nn.Module, ABC):
    """From what student and teacher made of their views to a loss; `views` are the student's."""

    tokens: str  # what its clusters are called

    @abstractmethod
    def forward(self, student: Encoded, teacher: Encoded, views: tuple[Views, ...], progress: Progress) -> Outcome: ...


@dataclass(frozen=True)
class Temperatures:
    """Of the student, and of the teacher over the run."""

    student: float
    teacher: Schedule

    def __post_init__(self) -> None:
        if not self.student > 0:
            raise ValueError(f"a temperature must be positive, got {self.student} for the student")


class ClassTokens(Objective):
    """Every view of the student predicts the targets of the teacher's views.

    `pairs` "cross" leaves out a view's own target (DINO, SwAV), "every" takes all (MSN: the target's view is not among
    the anchors). With `match_weight` the student's marginal is drawn to the prior, too (MSN, PMSN). A `queue` widens
    what the balancer sees, from the epoch `queue_from` on (SwAV). `weight` multiplies the cross-entropy.
    """

    tokens = "cls"

    def __init__(
        self,
        prior: Float[Tensor, " k"],
        balancer: Balancer,
        temperatures: Temperatures,
        *,
        pairs: Literal["cross", "every"] = "cross",
        match_weight: float = 0.0,
        entropy_weight: float = 0.0,
        weight: float = 1.0,
        queue: Queue | None = None,
        queue_from: int = 0,
    ):
        super().__init__()
        self.balancer, self.temperatures, self.pairs = balancer, temperatures, pairs
        self.match, self.match_weight = MatchPrior(prior), match_weight
        self.entropy_weight, self.weight = entropy_weight, weight
        self.queue, self.queue_from = queue, queue_from

    def forward(self, student: Encoded, teacher: Encoded, views: tuple[Views, ...], progress: Progress) -> Outcome:
        predicted, scored = self._assignments(student, teacher, self.temperatures.teacher(progress))
        targets = self._balanced(scored, progress)
        pairs = Pairs.cross if self.pairs == "cross" else Pairs.every
        parts = _parts(
            predicted, targets, pairs(teacher.count, student.count), self.match if self.match_weight else None
        )
        if self.entropy_weight:
            parts["entropy"] = predicted.entropy()
        weights = {"cross_entropy": self.weight, "match_prior": self.match_weight, "entropy": self.entropy_weight}
        return Outcome(parts, weights, {self.tokens: seen(predicted, targets, self.match.prior)})

    def _assignments(self, student: Encoded, teacher: Encoded, temperature: float) -> tuple[Assignments, Assignments]:
        """The student's, and the teacher's before they are balanced; a student that teaches itself multiplies once."""
        predicted = student.assignments(self.temperatures.student)
        if teacher.network is not student.network:
            return predicted, teacher.assignments(temperature).detach()
        predicted = predicted.hold()
        own = predicted if teacher.count == student.count else predicted.leading(teacher.count, student.count)
        offset = teacher.network.head.prototypes.offset(temperature)
        return predicted, replace(own, temperature=temperature, offset=offset).detach()

    def _balanced(self, scored: Assignments, progress: Progress) -> Assignments:
        if self.queue is None or progress.epoch < self.queue_from:
            return self.balancer(scored)
        targets = self.balancer(scored, self.queue.observe(scored) if self.queue.full else None)
        if self.training:
            self.queue.push(scored)
        return targets


class OfPatches(Objective):
    """What objectives over patches have in common."""

    tokens = "patches"

    def __init__(self, prior: Float[Tensor, " k"], balancer: Balancer, temperatures: Temperatures, *, weight: float):
        super().__init__()
        self.register_buffer("prior", prior, persistent=False)
        self.prior: Tensor
        self.balancer, self.temperatures, self.weight = balancer, temperatures, weight


class MaskedPatches(OfPatches):
    """The student predicts of every hidden patch what the teacher, who sees it, assigns to it (Zhou et al. 2022).

    Averaged over an image's hidden patches, then over images; one without hidden patches counts as zero. The balancer
    observes "all" of the teacher's patches (iBOT) or the "masked" ones (DINOv2).
    """

    def __init__(
        self,
        prior: Float[Tensor, " k"],
        balancer: Balancer,
        temperatures: Temperatures,
        *,
        observed: Literal["all", "masked"] = "all",
        weight: float = 1.0,
    ):
        super().__init__(prior, balancer, temperatures, weight=weight)
        self.observed = observed

    def forward(self, student: Encoded, teacher: Encoded, views: tuple[Views, ...], progress: Progress) -> Outcome:
        mask = views[0].mask
        if mask is None:
            raise ValueError("masked patches are predicted, but the first views have no mask: give them `masks`")
        mask = mask.flatten(0, 1)
        predicted = _patch_assignments(student, self.temperatures.student, mask)
        temperature = self.temperatures.teacher(progress)
        if self.observed == "all":
            everything = _patch_assignments(teacher, temperature, torch.ones_like(mask)).detach()
            targets = self.balancer(everything.take(mask.flatten()), everything)
        else:
            targets = self.balancer(_patch_assignments(teacher, temperature, mask).detach())
        loss = cross_entropy(predicted, targets, Pairs.masked(mask))
        clusters = {self.tokens: seen(predicted, targets, self.prior)} if len(predicted) else {}
        return Outcome({"cross_entropy_patches": loss}, {"cross_entropy_patches": self.weight}, clusters)


class Regions(OfPatches):
    """Every region of the student predicts the target of the most similar region in another of the teacher's views.

    Similar are backbone features before the head, without gradient (Li et al. 2022, EsViT, equation 4); mean over a
    view's regions, then over pairs of views.
    """

    def forward(self, student: Encoded, teacher: Encoded, views: tuple[Views, ...], progress: Progress) -> Outcome:
        regions = [
            view for group, v in zip(student.features, student.views, strict=True) for view in _regions(group, v)
        ]
        taught = _regions(teacher.features[0], teacher.count)
        temperature = self.temperatures.teacher(progress)
        head = _patch_head(teacher)
        targets = self.balancer(head(taught.flatten(0, 2), temperature).detach())
        projected = _patch_head(student).projector(torch.cat([view.flatten(0, 1) for view in regions]))
        spans = torch.arange(len(projected), device=projected.device).split(
            [len(view.flatten(0, 1)) for view in regions]
        )
        pairs = len(taught) * len(regions) - min(len(taught), len(regions))
        loss = projected.new_zeros(())
        for t in range(len(taught)):
            others = [s for s in range(len(regions)) if s != t]
            match = torch.cat([nearest_regions(regions[s], taught[t]) for s in others])
            weights = torch.cat([_each(regions[s], 1 / pairs) for s in others])
            predicted = _patch_head(student).prototypes(
                projected[torch.cat([spans[s] for s in others])], self.temperatures.student
            )
            # Pairs' rows of one view: every region of the student with the one target that it has
            loss = loss + cross_entropy(
                predicted, targets.take(t * taught[t].flatten(0, 1).shape[0] + match), Pairs.same().weighing(weights)
            )
        everyone = _patch_head(student).prototypes(projected.detach(), self.temperatures.student)
        clusters = {self.tokens: seen(everyone, targets, self.prior)}
        return Outcome({"cross_entropy_regions": loss}, {"cross_entropy_regions": self.weight}, clusters)


class ExplicitClusters(Objective):
    r"""ExCB's two cross-entropies: projections predict other views, predictions all of them (supplementary material).

    `variant` "paper" gives them half of the weight each. In the official code ("code") projections of global crops
    alone are used, and every pair counts the same, which leaves the projector one ninth with 2 + 6 views.
    """

    tokens = "cls"

    def __init__(
        self,
        prior: Float[Tensor, " k"],
        balancer: Balancer,
        temperatures: Temperatures,
        *,
        variant: Literal["paper", "code"] = "paper",
        match_weight: float = 0.0,
    ):
        super().__init__()
        if variant not in ("paper", "code"):
            raise ValueError(f"variant must be 'paper' or 'code', got {variant!r}")
        self.balancer, self.temperatures = balancer, temperatures
        self.variant: Literal["paper", "code"] = variant
        self.match, self.match_weight = MatchPrior(prior), match_weight

    def forward(self, student: Encoded, teacher: Encoded, views: tuple[Views, ...], progress: Progress) -> Outcome:
        head, temperature = student.network.head, self.temperatures.student
        assert isinstance(head, ExCBHead)
        given = head.assigned(student.projections, len(student.features[0].pooled), temperature)
        targets = self.balancer(teacher.assignments(self.temperatures.teacher(progress)).detach())
        t, s = teacher.count, student.count
        projector, predictor = excb_pairs(t, s, self.variant)
        projected = cross_entropy(given.learning, targets, Pairs.weighted(projector[:, :t]))
        if self.variant == "paper" and s > t:
            projected = projected + cross_entropy(given.local, targets, Pairs.weighted(projector[:, t:]))
        matched = self.match if self.match_weight else None
        parts = {"cross_entropy_projector": projected}
        parts |= _parts(given.predicted, targets, Pairs.weighted(predictor), matched)
        weights = {"cross_entropy_projector": 1.0, "cross_entropy": 1.0, "match_prior": self.match_weight}
        return Outcome(parts, weights, {self.tokens: seen(given.predicted, targets, self.match.prior)})


def excb_pairs(
    teacher_views: int, student_views: int, variant: Literal["paper", "code"]
) -> tuple[Float[Tensor, "t s"], Float[Tensor, "t s"]]:
    """The weights of the projector's and the predictor's pairs; all add up to one."""
    other = 1 - torch.eye(teacher_views, student_views, dtype=torch.float64)
    every = torch.ones(teacher_views, student_views, dtype=torch.float64)
    if variant == "paper":
        return other / (2 * other.sum()), every / (2 * every.sum())
    other[:, teacher_views:] = 0
    total = other.sum() + every.sum()
    return other / total, every / total


def nearest_regions(student: Float[Tensor, "b p d"], teacher: Float[Tensor, "b q d"]) -> Int[Tensor, " n"]:
    """For every region of the student's view the row of the teacher's region that has the largest cosine with it."""
    with torch.no_grad():
        a, b = (normalize(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in (student, teacher))
        best = torch.einsum("bpd,bqd->bpq", a, b).argmax(-1)
    return (best + teacher.shape[1] * torch.arange(len(best), device=best.device)[:, None]).flatten()


def seen(student: Assignments, targets: Assignments, prior: Float[Tensor, " k"]) -> Clusters:
    """What a monitor gets: constants that keep no products alive."""
    return Clusters(replace(student.detach(), held=None), replace(targets, held=None), prior)


def _parts(
    student: Assignments, targets: Assignments, pairs: Pairs, match: MatchPrior | None
) -> dict[str, Float[Tensor, ""]]:
    """The cross-entropy, and how far the student's marginal is from the prior where that is asked for."""
    if match is None:
        return {"cross_entropy": cross_entropy(student, targets, pairs)}
    loss, mean = cross_entropy_and_mean(student, targets, pairs)
    return {"cross_entropy": loss, "match_prior": match(mean)}


def _patch_head(encoded: Encoded) -> Head:
    head = encoded.network.patch_head
    assert head is not None  # the method's function made one
    return head


def _patch_assignments(encoded: Encoded, temperature: float, mask: Tensor) -> Assignments:
    """Of the patches of the first group where `mask` is true, image after image."""
    patches = encoded.features[0].patches
    assert patches is not None  # checked when the method was made
    if patches.shape[:2] != mask.shape:
        raise ValueError(
            f"the mask is over {mask.shape[1]} patches, and the backbone gives {patches.shape[1]} for an image: "
            "the views' `patch` must be the backbone's"
        )
    return _patch_head(encoded)(patches[mask], temperature)


def _regions(features: Features, views: int) -> Float[Tensor, "v b p d"]:
    assert features.patches is not None
    return features.patches.unflatten(0, (views, -1))


def _each(regions: Float[Tensor, "b p d"], weight: float) -> Float[Tensor, " n"]:
    """A view's weight, spread over its regions."""
    count = regions.shape[0] * regions.shape[1]
    return torch.full((count,), weight / count, dtype=torch.float64, device=regions.device)
