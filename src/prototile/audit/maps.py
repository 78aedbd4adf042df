"""Maps: prototypes and images as points of a plane, close ones close (t-SNE, van der Maaten & Hinton 2008).

    map_prototypes(weights, cover)                the unique prototypes
    map_embeddings(embeddings, weights, cover)    images and unique prototypes, together

m images, p prototypes on the map; n images, k prototypes, d dims.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.cover import Unique
from prototile.audit.plain import plain
from prototile.precision import wide
from prototile.sphere import normalize

AT_MOST = 2000  # images, or prototypes, on a map: more take minutes and are no easier to read
PERPLEXITY = 30.0

_LEAST = 5  # points, below which there is nothing to unfold


@dataclass(frozen=True, eq=False)
class Map:
    """Where some of the images and prototypes lie; the same seed gives the same map.

    A map of prototypes alone has no images. `of_images` and `of_prototypes` are how many there were to draw from.
    """

    images: Int[Tensor, " m"]  # which
    image_points: Float[Tensor, "m 2"]
    prototypes: Int[Tensor, " p"]  # which
    prototype_points: Float[Tensor, "p 2"]
    of_images: int
    of_prototypes: int
    perplexity: float
    seed: int

    def as_dict(self) -> dict[str, Any]:
        names = (
            "images", "image_points", "prototypes", "prototype_points", "of_images", "of_prototypes",
            "perplexity", "seed",
        )  # fmt: skip
        return {name: plain(getattr(self, name)) for name in names}

    def __str__(self) -> str:
        return (
            f"map of {len(self.images):,} of {self.of_images:,} images and "
            f"{len(self.prototypes):,} of {self.of_prototypes:,} prototypes"
        )


def map_prototypes(weights: Float[Tensor, "k d"], cover: Unique, *, at_most: int = AT_MOST, seed: int = 0) -> Map:
    """Unique prototypes by cosine distance (Govindarajan et al. 2024, figure 4); of too many some, drawn by `seed`."""
    shown = _some(cover.representatives, at_most, seed)
    points, perplexity = _placed(_directions(weights, shown), seed)
    none = torch.empty(0, dtype=torch.long)
    return Map(none, torch.empty(0, 2), shown, points, 0, cover.count, perplexity, seed)


def map_embeddings(
    embeddings: Float[Tensor, "n d"],
    weights: Float[Tensor, "k d"] | None = None,
    cover: Unique | None = None,
    *,
    images: Int[Tensor, " i"] | None = None,
    at_most: int = AT_MOST,
    seed: int = 0,
) -> Map:
    """Images and unique prototypes together, by cosine distance (Govindarajan et al. 2024, figure 5).

    `images` names those to choose from: of a few classes, say. Of images and of prototypes there are at most `at_most`
    together, half of them prototypes where there are so many; both are drawn by `seed`.
    """
    if (weights is None) != (cover is None):
        raise ValueError("prototypes on a map need both their weights and their cover (`unique(weights)`)")
    among = torch.arange(len(embeddings)) if images is None else images
    prototypes = torch.empty(0, dtype=torch.long) if cover is None else _some(cover.representatives, at_most // 2, seed)
    shown = _some(among, at_most - len(prototypes), seed)
    rows = [_directions(embeddings, shown)]
    rows += [] if weights is None else [_directions(weights, prototypes)]
    points, perplexity = _placed(torch.cat(rows), seed)
    return Map(
        images=shown,
        image_points=points[: len(shown)],
        prototypes=prototypes,
        prototype_points=points[len(shown) :],
        of_images=len(among),
        of_prototypes=0 if cover is None else cover.count,
        perplexity=perplexity,
        seed=seed,
    )


def _some(rows: Int[Tensor, " n"], at_most: int, seed: int) -> Int[Tensor, " m"]:
    """All, or a sample, in their order."""
    if at_most < 1:
        raise ValueError(f"a map needs at least one point of each kind, got at_most = {at_most}")
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:at_most]
    return rows[drawn.sort().values]


def _directions(x: Tensor, rows: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
    return normalize(wide(x[rows.to(x.device)].detach()).cpu())


def _placed(x: Float[Tensor, "m d"], seed: int) -> tuple[Float[Tensor, "m 2"], float]:
    """The points, and the perplexity: 30, or a third of the points where they are few."""
    start = _principal(x, seed)
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    if len(x) < _LEAST:
        return start, max(perplexity, 0.0)
    from sklearn.manifold import TSNE  # its import takes seconds, for which who draws no map need not wait

    start = 1e-4 * start / start[:, 0].std().clamp(min=1e-12)  # as is usual: far smaller than the map
    place: Any = start.numpy()  # scikit-learn takes an array, and says a word
    tsne = TSNE(perplexity=perplexity, metric="cosine", init=place, random_state=seed, n_jobs=1)
    return torch.from_numpy(tsne.fit_transform(x.numpy())), perplexity


def _principal(x: Float[Tensor, "m d"], seed: int) -> Float[Tensor, "m 2"]:
    """Along the first two principal axes, whose signs are fixed; a little noise where there is nothing to see."""
    centred = (x - x.mean(0)).double()
    _, _, axes = torch.linalg.svd(centred.T @ centred)
    axes = axes[:2] * axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()
    places = torch.zeros(len(x), 2, dtype=torch.float64)
    places[:, : len(axes)] = centred @ axes.T
    noise = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (places + 1e-9 * noise).float()
