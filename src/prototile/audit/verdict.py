"""The verdict on a checkpoint: what its numbers say in plain words, with the evidence and what to do.

A statement says no more than its numbers carry: each threshold is a constant with its reason.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from prototile.audit.clusters import ClusterAudit
from prototile.audit.embeddings import EmbeddingAudit
from prototile.audit.prototypes import PrototypeAudit

Level = Literal["fine", "note", "problem"]


@dataclass(frozen=True)
class Statement:
    """One thing that is seen: `text` says what, `evidence` the numbers, `meaning` what follows, `remedy` what to do."""

    level: Level
    name: str  # "partial prototype collapse"
    part: str  # which head or embeddings: "cls", "features"
    text: str
    evidence: str
    meaning: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        said = f"{self.part}: {self.text} ({self.evidence}). {self.meaning}"
        return said + (f" Try: {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Verdict:
    """All statements, problems first; none where there was nothing to look at."""

    statements: tuple[Statement, ...]

    @property
    def problems(self) -> tuple[Statement, ...]:
        return tuple(x for x in self.statements if x.level == "problem")

    @property
    def headline(self) -> str:
        """The most telling statement, as one sentence."""
        return self.statements[0].text if self.statements else "There is nothing to judge: no prototypes, no images."

    def __iter__(self) -> Iterator[Statement]:
        return iter(self.statements)

    def as_dict(self) -> dict[str, Any]:
        return {"headline": self.headline, "statements": [x.as_dict() for x in self.statements]}

    def __str__(self) -> str:
        return "\n".join(f"{x.level:8} {x}" for x in self.statements) or self.headline


# ------------------------------------------------------------------------------------------------- thresholds
COLLAPSED = 0.5  # share of unique prototypes: published models without KoLeo-proto have 1% to 45%, with it over 90%
DISTINCT = 0.9  # from there on, collapse is nothing to talk about
NOTABLE = 1.1  # counts in the order of indices that exceed M by more are worth knowing before comparing with papers
LOW_RANK = 0.1  # effective rank over dims; random directions have nearly all
ENOUGH = 4  # images a prototype: random ones leave 2% empty, and of fewer chance leaves too many to tell
FEW = 0.5  # share of prototypes that are empty beyond chance, as in `diagnosis`
SOME = 0.1  # the same, worth a note: several times what sampling 4 images a prototype can make
MOST = 0.5  # share of the images in one cluster
UNIFORM = 0.05  # nats below ln K, as in `diagnosis`: a random start has .2
FAR, NEAR = 0.5, 0.2  # mass elsewhere than the prior says; finite samples make up to .2
SKEWED = (
    0.1  # mass that a prior moves away from equal shares; one that moves more is followed by more than equal shares
)
LAWLIKE = 2.0  # times the distance to a power law that sampling alone makes
SURE = 3.0  # standard errors of a rank correlation, which are 1 / sqrt(m - 1) where there is none
UNLIKE = 10  # unique prototypes that differ in redundancy: with a few, a rank correlation is theirs alone
CLEAR = 0.2  # rank correlation that is worth a word, however sure
CONSTANT = 0.05  # spread, as in `diagnosis`: a mean cosine of .998
_ROWS = 32  # a share among fewer images says nothing


def verdict(
    prototypes: Mapping[str, PrototypeAudit],
    clusters: Mapping[str, ClusterAudit] | None = None,
    embeddings: Mapping[str, EmbeddingAudit] | None = None,
) -> Verdict:
    """What these measures say; parts are named as in `Audit`."""
    found: list[Statement] = []
    for part, x in prototypes.items():
        found += _of_prototypes(part, x)
    for part, x in (clusters or {}).items():
        found += _of_clusters(part, x)
    for part, x in (embeddings or {}).items():
        found += _of_embeddings(part, x)
    return Verdict(tuple(sorted(found, key=lambda statement: statement.level != "problem")))


def _of_prototypes(part: str, x: PrototypeAudit) -> Iterator[Statement]:
    yield _uniqueness(part, x)
    without = int((x.norms == 0).sum())
    if without:
        yield Statement(
            "problem",
            "prototypes without a direction",
            part,
            f"{without:,} of {x.prototypes:,} prototypes are all zeros",
            f"{without:,} rows of norm 0",
            "They have no direction: every image is as close to them as any other.",
            "check where they come from: a layer that never trained, or a file that was cut off.",
        )
    if x.in_order > NOTABLE * x.count:
        yield Statement(
            "note",
            "the count depends on the cover",
            part,
            f"In the order of indices the same rule counts {x.in_order:,} unique prototypes",
            f"{x.count:,} from the most redundant one down, {x.in_order:,} by index, epsilon {x.unique.epsilon:g}",
            "Groups are about as wide as epsilon. Published numbers may be of the second kind: compare like with like.",
        )
    most = min(x.prototypes, x.dims)
    if x.count > 1 and x.effective_rank < LOW_RANK * most:
        yield Statement(
            "note",
            "prototypes in few dims",
            part,
            f"Prototypes use about {x.effective_rank:.1f} of {x.dims:,} dims",
            f"effective rank of the directions {x.effective_rank:.1f}",
            "They lie near a small subspace; differences along other dims decide no assignment.",
        )


def _uniqueness(part: str, x: PrototypeAudit) -> Statement:
    text = f"Of {x.prototypes:,} prototypes {x.count:,} are unique ({x.share:.1%})"
    largest = int(x.unique.redundancy.max())
    evidence = (
        f"cosine distance {x.unique.epsilon:g}, {x.duplicates:,} duplicate pairs, the largest group {largest:,}; "
    )
    evidence += "M by epsilon: " + ", ".join(f"{count:,} at {epsilon:g}" for epsilon, count in x.sweep)
    if x.unique.borderline:
        evidence += f"; {x.unique.borderline:,} pairs so close to epsilon that rounding decides"
    if x.prototypes > 1 and x.count == 1:
        return Statement(
            "problem",
            "total prototype collapse",
            part,
            f"All {x.prototypes:,} prototypes point in the same direction",
            evidence,
            "There is one cluster: assignments say nothing about images.",
            "start again with KoLeo on the prototypes (KoLeo-proto, weight .1) and a balancer; check that prototypes "
            "get gradient.",
        )
    if x.share < COLLAPSED:
        return Statement(
            "problem",
            "partial prototype collapse",
            part,
            f"{text}: partial prototype collapse",
            evidence,
            f"The method works with about {x.count:,} clusters, and pays for {x.prototypes:,}.",
            "KoLeo on the prototypes (KoLeo-proto, weight .1; a larger one where it is on), or K of about "
            f"{x.count:,}; where the data's clusters differ in size, a prior that says so (power law).",
        )
    if x.share < DISTINCT:
        return Statement(
            "note",
            "redundant prototypes",
            part,
            text,
            evidence,
            f"{x.prototypes - x.count:,} prototypes repeat others.",
            "KoLeo on the prototypes (KoLeo-proto, weight .1) keeps them apart.",
        )
    return Statement("fine", "distinct prototypes", part, text, evidence, "Prototypes have not collapsed.")


def _of_clusters(part: str, x: ClusterAudit) -> Iterator[Statement]:
    k = x.prototypes
    if k > 1 and x.entropy >= math.log(k) - UNIFORM:
        yield Statement(
            "problem",
            "uniform assignments",
            part,
            "Every image gets every prototype alike",
            f"mean entropy {x.entropy:.4f} of ln K = {math.log(k):.4f} nats, temperature {x.temperature:g}",
            "Assignments say nothing about images. Sizes, of which one decides by chance, mean nothing either.",
            "check that temperature and prototypes are those of the checkpoint; else the run has collapsed (sharper "
            "targets, a lower learning rate).",
        )
        return
    share = float(x.sizes.max()) / x.images
    expected = 1 / k if x.prior is None else float(x.prior.max())
    if k > 1 and x.images >= _ROWS and share > min(0.9, max(MOST, 2 * expected)):
        yield Statement(
            "problem",
            "one cluster",
            part,
            f"{share:.0%} of the images are in one of {k:,} clusters",
            f"{int(x.sizes.max()):,} of {x.images:,} images, {x.largest:,.1f} times the mean size",
            "One prototype takes most images: the others hardly tell them apart.",
            "a balancer (Sinkhorn, explicit balancing or probability centering), a heavier weight on the prior's term.",
        )
    yield _emptiness(part, x)
    yield from _to_the_prior(part, x)
    yield from _law(part, x)
    m = len(x.merged_sizes)
    rank = x.mass.spearman
    others = m - int(torch.bincount(x.redundancy).max())  # unique prototypes of another redundancy than the commonest
    if rank is not None and others >= UNLIKE and abs(rank) > CLEAR and abs(rank) * math.sqrt(m - 1) > SURE:
        more = "more" if rank > 0 else "less"
        slope = "" if x.mass.slope is None else f", log-log slope {x.mass.slope:.2f}"
        yield Statement(
            "note",
            "mass and redundancy",
            part,
            f"Prototypes that stand for many hold {more} of the images",
            f"Spearman correlation of redundancy and share {rank:.2f} over {m:,} unique prototypes{slope}",
            "Redundancy stands in for cluster size: the data's clusters are less equal than the shares asked for."
            if rank > 0
            else "Redundancy does not stand in for cluster size here.",
            "a prior with unequal shares (power law), where the data's clusters are unequal." if rank > 0 else None,
        )


def _emptiness(part: str, x: ClusterAudit) -> Statement:
    k, m = x.prototypes, len(x.merged_sizes)
    evidence = f"{x.images:,} images; {x.empty:,} of {k:,} empty, {x.empty_by_chance:,.1f} by chance"
    if m < k:
        evidence += f"; merged {x.merged_empty:,} of {m:,}, {x.merged_empty_by_chance:,.1f} by chance"
    if x.images < ENOUGH * k:
        return Statement(
            "note",
            "too few images",
            part,
            f"{x.images:,} images are too few to tell which of {k:,} clusters are empty",
            evidence,
            "Shares and sizes are rough, too.",
            f"at least {ENOUGH * k:,} images, {ENOUGH} for each prototype.",
        )
    beyond, merged = (x.empty - x.empty_by_chance) / k, (x.merged_empty - x.merged_empty_by_chance) / m
    if beyond <= SOME:
        text = f"{k - x.empty:,} of {k:,} clusters have images"
        return Statement("fine", "clusters in use", part, text, evidence, "No more are empty than may be.")
    text = f"{x.empty:,} of {k:,} clusters are empty"
    if merged <= SOME:
        return Statement(
            "note",
            "empty by redundancy",
            part,
            text,
            evidence,
            "They repeat others that take their images: unique prototypes are in use, nearly all.",
            f"what keeps prototypes apart (KoLeo-proto), or K of about {m:,}.",
        )
    return Statement(
        "problem" if merged > FEW else "note",
        "empty clusters",
        part,
        text,
        evidence,
        f"Also of the unique prototypes {x.merged_empty:,} have no image: they lie where no data is.",
        f"explicit balancing, Sinkhorn or probability centering to fill them, or K of about {m - x.merged_empty:,}.",
    )


def _to_the_prior(part: str, x: ClusterAudit) -> Iterator[Statement]:
    distance = x.distance_to_prior
    if distance is None or x.images < ENOUGH * x.prototypes:
        return
    evidence = f"total variation {distance:.3f}, KL {x.to_prior:.3f}; sorted, {x.sorted_distance_to_prior:.3f}"
    if distance > FAR:
        yield Statement(
            "problem",
            "far from the prior",
            part,
            f"{distance:.0%} of the marginal's mass lies elsewhere than the prior says",
            evidence,
            "Clusters do not have the shares that the prior wishes.",
            "a balancer that brings targets to the same prior, a heavier weight on its term, or a prior that the data "
            "can follow.",
        )
        return
    skew = float((x.prior - 1 / x.prototypes).abs().sum() / 2) if x.prior is not None else 0.0
    if distance <= (NEAR if skew < SKEWED else min(NEAR, skew / 2)):
        text = f"The marginal follows the prior up to {distance:.0%} of its mass"
        yield Statement("fine", "near the prior", part, text, evidence, "Clusters have the shares that were asked for.")


def _law(part: str, x: ClusterAudit) -> Iterator[Statement]:
    merged = len(x.merged_sizes) < x.prototypes
    fit = x.merged_power if merged else x.power
    if fit is None or fit.error is None or fit.noise is None or x.images < ENOUGH * x.prototypes:
        return
    if fit.distance > LAWLIKE * fit.noise:
        return
    evidence = f"exponent {fit.exponent:.3f} +- {fit.error:.3f}; {fit.distance:.1%} of the mass off the law, "
    evidence += f"{fit.noise:.1%} by sampling alone"
    whose = "Sizes of unique prototypes" if merged else "Sizes"
    if fit.low == 0:
        text, meaning = f"{whose} are as equal as chance allows", "No power law is to be told from equal shares."
    else:
        text = f"{whose} follow a power law of exponent {fit.exponent:.2f}"
        meaning = "The r-th largest cluster has a share proportional to r^-exponent."
    yield Statement("note", "law of sizes", part, text, evidence, meaning)


def _of_embeddings(part: str, x: EmbeddingAudit) -> Iterator[Statement]:
    used = f"RankMe {x.rankme:.1f} of {x.dims:,} dims, spread {x.spread:.3f}, mean cosine {x.cosine:.3f}"
    most = min(x.dims, x.sampled or x.images)
    if x.spread < CONSTANT:
        yield Statement(
            "problem",
            "constant embeddings",
            part,
            "All images have nearly the same direction",
            used,
            "The network has collapsed to a constant, or has not left its start.",
            "a lower learning rate, weaker augmentations, a larger batch; for methods without negatives check the "
            "predictor, the stop-gradient or the variance term.",
        )
    elif x.rankme < LOW_RANK * most:
        yield Statement(
            "note",
            "few dims in use",
            part,
            f"Embeddings use about {x.rankme:.1f} of {most:,} possible dims",
            used,
            "Dimensional collapse costs a linear classifier what the other dims could have told.",
            "a penalty on the spread of embeddings (VCReg, EffectiveEntropy) in a few epochs of continued training.",
        )
    else:
        text = f"Embeddings use about {x.rankme:.0f} of {most:,} possible dims"
        yield Statement("fine", "dims in use", part, text, used, "They have not collapsed.")
