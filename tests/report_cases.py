"""Audits of planted prototypes and handwritten digits, put together by hand: what their report shows is known."""

import math
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from prototile.audit.clusters import ClusterAudit, MassByRedundancy, PowerFit
from prototile.audit.compare import Changes, Comparison, Merge, Row, Split
from prototile.audit.cover import unique
from prototile.audit.embeddings import EmbeddingAudit, Marginals, NeighborDistances
from prototile.audit.labels import GroupAudit, LabelAudit
from prototile.audit.maps import Map
from prototile.audit.plain import Histogram
from prototile.audit.prototypes import SWEEP, PrototypeAudit
from prototile.audit.result import Audit
from prototile.audit.verdict import Statement, Verdict
from prototile.data.source import Arrays
from prototile.sphere import normalize

DIMS = 32
STATEMENTS = (
    Statement(
        "problem",
        "partial prototype collapse",
        "cls",
        "Only one prototype in six is real: the others are copies",
        "M = 700 of K = 4,096 at a cosine distance of 0.025; one direction is shared by 351 prototypes",
        "The model has far fewer clusters than it was given. Copies let it match a uniform marginal without uniform "
        "clusters.",
        "raise the weight of KoLeo-proto (λ), or lower K to about 700",
    ),
    Statement(
        "note",
        "empty clusters",
        "cls",
        "Many clusters hold no image, and it is copies that make them look empty",
        "86.1 % are empty, 0.3 % among the unique ones",
        "Of copies the first takes all images.",
    ),
    Statement(
        "fine", "embeddings", "features", "Embeddings fill their space", "RankMe 21.4 of 32", "No dims have collapsed."
    ),
)


def weights(prototypes: int, groups: int, centres: torch.Tensor, seed: int = 0, jitter: float = 0.01) -> torch.Tensor:
    """Groups of a long tail of sizes around unit vectors, in random order."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.arange(1, groups + 1, dtype=torch.float64) ** -0.8
    extra = torch.multinomial(shares, prototypes, replacement=True, generator=generator)[: prototypes - groups]
    owner = torch.cat([torch.arange(groups), extra])[torch.randperm(prototypes, generator=generator)]
    noise = torch.randn(prototypes, centres.shape[1], generator=generator)
    return normalize(centres[owner] + jitter * normalize(noise))


def prototype_audit(w: torch.Tensor, *, norms: torch.Tensor | None = None) -> PrototypeAudit:
    cosines = (w @ w.T).fill_diagonal_(-2)
    nearest, index = cosines.max(1)
    singular = torch.linalg.svdvals(w.double())
    p = singular / singular.sum()
    return PrototypeAudit(
        prototypes=len(w),
        dims=w.shape[1],
        unique=unique(w),
        in_order=unique(w, mode="index").count,
        sweep=tuple((epsilon, unique(w, epsilon).count) for epsilon in SWEEP),
        nearest=(1 - nearest).clamp(min=0),
        nearest_index=index,
        duplicates=int((1 - cosines < 1e-6).sum()) // 2,
        effective_rank=float(torch.exp(-torch.xlogy(p, p).sum())),
        norms=torch.ones(len(w)) if norms is None else norms,
        temperature=0.1,
    )


def label_audit(assigned: torch.Tensor, k: int, labels: torch.Tensor) -> LabelAudit:
    table = torch.zeros(k, int(labels.max()) + 1).index_put_(
        (assigned, labels), torch.ones(len(labels)), accumulate=True
    )
    sizes, top = table.sum(1), table.max(1)
    return LabelAudit(
        images=len(labels),
        classes=table.shape[1],
        clusters=int((sizes > 0).sum()),
        nmi=float(normalized_mutual_info_score(labels, assigned)),
        ari=float(adjusted_rand_score(labels, assigned)),
        purity=float(top.values.sum() / len(labels)),
        accuracy=0.8,
        matched=0.35,
        groups={
            "head": GroupAudit(3, len(labels) // 2, 0.9),
            "middle": GroupAudit(3, len(labels) // 3, 0.7),
            "tail": GroupAudit(4, 0, None),
        },
        majority=torch.where(sizes > 0, top.indices, -1),
        share=torch.where(sizes > 0, top.values / sizes, 0.0),
    )


def mass(redundancy: torch.Tensor, share: torch.Tensor) -> MassByRedundancy:
    power = torch.floor(torch.log2(redundancy.double())).long()
    bins = power.unique()
    return MassByRedundancy(
        low=2**bins,
        high=2 ** (bins + 1) - 1,
        mean=torch.stack([share[power == b].double().mean() for b in bins]),
        prototypes=torch.stack([(power == b).sum() for b in bins]),
        spearman=0.62,
        slope=0.55,
    )


def cluster_audit(
    x: torch.Tensor, w: torch.Tensor, found: PrototypeAudit, labels: torch.Tensor | None, prior: torch.Tensor | None
) -> ClusterAudit:
    k, temperature = len(w), 0.1
    p = (x @ w.T / temperature).softmax(1)
    scores, assigned = p.max(1)
    entropies = -torch.xlogy(p, p).sum(1)
    representatives = found.unique.representatives
    merged = (x @ w[representatives].T / temperature).softmax(1)
    merged_assigned = merged.argmax(1)
    merged_sizes = torch.bincount(merged_assigned, minlength=len(representatives))
    redundancy = found.unique.redundancy
    return ClusterAudit(
        images=len(x),
        prototypes=k,
        temperature=temperature,
        marginal=p.double().mean(0),
        sizes=torch.bincount(assigned, minlength=k),
        entropy=float(entropies.mean()),
        confidence=float(scores.mean()),
        entropies=Histogram.of(entropies / math.log(k), 40, 0, 1),
        confidences=Histogram.of(scores, 40, 0, 1),
        assigned=assigned,
        scores=scores,
        prior=prior,
        power=PowerFit(0.71, 0.02, 0.67, 0.75, 0.21, 0.05),
        marginal_power=PowerFit(0.35, None, None, None, 0.08, None),
        representatives=representatives,
        redundancy=redundancy,
        merged_assigned=merged_assigned,
        merged_sizes=merged_sizes,
        merged_marginal=merged.double().mean(0),
        mass=mass(redundancy, merged_sizes / len(x)),
        soft_mass=mass(redundancy, merged.double().mean(0)),
        labels=None if labels is None else label_audit(assigned, k, labels),
        merged_labels=None if labels is None else label_audit(merged_assigned, len(representatives), labels),
    )


def embedding_audit(x: torch.Tensor, views: bool = False) -> EmbeddingAudit:
    n, d = x.shape
    distances = torch.cdist(x, x).fill_diagonal_(torch.inf).sort(1).values
    rank = min(10, n - 1)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T.double())).flip(0).clamp(min=0)
    p = eigenvalues.sqrt() / eigenvalues.sqrt().sum()
    cube = torch.special.ndtr((x - x.mean(0)) / x.std(0).clamp(min=1e-6))
    pairs = torch.randperm(d, generator=torch.Generator().manual_seed(0))[:20].view(-1, 2)
    grids = torch.stack([
        torch.bincount((10 * cube[:, a].clamp(0, 0.999)).long() * 10 + (10 * cube[:, b].clamp(0, 0.999)).long(),
                       minlength=100).view(10, 10)
        for a, b in pairs.tolist()
    ])  # fmt: skip
    even = n / 100
    return EmbeddingAudit(
        images=n,
        dims=d,
        neighbors={"unit": NeighborDistances(rank, n, distances[:, 0], distances[:, rank - 1], 0.43, 0.81, 0.12)},
        marginals=Marginals(
            "hypersphere", n, -cube.std(0), cube.std(0) / 5, pairs, grids, ((grids - even) ** 2 / even).sum((1, 2)) / 99
        ),
        rankme=float(torch.exp(-torch.xlogy(p, p).sum())),
        alpha_req=1.24,
        alpha_range=(3, d // 2),
        eigenvalues=eigenvalues,
        uniformity=-2.31,
        spread=0.93,
        cosine=0.05,
        correlation=0.11,
        norms=x.norm(dim=1) * (1 + torch.rand(n, generator=torch.Generator().manual_seed(1))),
        alignment=0.41 if views else None,
        lidar=17.2 if views else None,
        agreement=0.954,
        seed=0,
    )


@cache
def digits(images: int, classes: bool = True) -> tuple[Arrays, torch.Tensor, torch.Tensor]:
    """Digits, shifted where more are asked for than there are; embeddings of them, and labels."""
    found = load_digits()
    generator = np.random.default_rng(0)
    which = generator.permutation(len(found.images))
    which = np.resize(which, images)
    pixels = np.stack([np.roll(found.images[i], generator.integers(-1, 2, 2), (0, 1)) for i in which])
    labels = torch.from_numpy(found.target[which])
    flat = torch.from_numpy(pixels.reshape(images, -1)).float()
    flat = flat - flat.mean(0)
    x = normalize(flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:DIMS].T)
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    source = Arrays(
        (255 - pixels * (255 / 16)).astype(np.uint8), labels.numpy() if classes else None, names if classes else None
    )
    return source, x, labels


def with_verdict(audit: Audit, statements: tuple[Statement, ...] = STATEMENTS) -> Audit:
    audit.__dict__["verdict"] = Verdict(statements)  # where the cached property keeps it
    return audit


def circle(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) * 20


def audit(
    prototypes: int = 64,
    groups: int = 20,
    images: int = 120,
    *,
    name: str = "checkpoint.pth",
    seed: int = 0,
    heads: tuple[str, ...] = ("cls",),
    norms: bool = False,
    labels: bool = True,
    points: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Audit:
    """All that can be measured, of digits; without images prototypes alone."""
    _, x, y = digits(max(images, 2 * groups))
    found, clusters = {}, {}
    for i, head in enumerate(heads):
        w = weights(prototypes, groups, normalize(x[:groups] + 0.1 * x[-groups:]), seed + i)
        generator = torch.Generator().manual_seed(seed)
        lengths = 1 + torch.rand(prototypes, generator=generator) if norms or i else None
        found[head] = prototype_audit(w, norms=lengths)
        prior = torch.arange(1, prototypes + 1, dtype=torch.float64) ** -0.25
        if images:
            clusters[head] = cluster_audit(
                x[:images], w, found[head], y[:images] if labels else None, prior / prior.sum()
            )
    m = found[heads[0]].count
    maps = {}
    if images:
        shown = torch.arange(min(images, 2000))
        on_map = (circle(len(shown), 1), circle(m, 2)) if points is None else points
        maps = {
            "prototypes": Map(
                shown[:0], on_map[0][:0], found[heads[0]].unique.representatives, on_map[1], images, m, 30, 0
            ),
            "images": Map(
                shown, on_map[0], found[heads[0]].unique.representatives[:50], on_map[1][:50], images, m, 30, 0
            ),
        }
    return with_verdict(
        Audit(
            name=name,
            layout="DINO",
            evidence=("keys begin with “teacher” and “student”", "head.last_layer.weight_v has a norm of its own"),
            network="teacher",
            prototypes=found,
            clusters=clusters,
            embeddings={"features": embedding_audit(x[:images], views=True)} if images else {},
            maps=maps,
        )
    )


def comparison(*names: str) -> Comparison:
    merges, splits, nowhere = (Merge((1, 5, 7), 2, 12),), (Split(3, (4, 9), 8),), torch.zeros(20, dtype=torch.long)
    changes = Changes("prototypes", 64, 20, 18, 15, merges, splits, 0.91, nowhere)
    values = tuple(float(10 + i) for i in range(len(names)))
    rows = (
        Row("unique prototypes", "cls", values, ",.0f"),
        Row("empty share", "cls", (None, *values[1:]), ".1%"),
    )
    return Comparison(tuple(names), rows, (("cls", names[0], names[1], changes),))
