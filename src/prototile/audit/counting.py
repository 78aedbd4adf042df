"""Counting images into clusters, some at a time: a million images over any number of prototypes.

    audit_clusters(embeddings, weights, temperature)    of embeddings that lie in memory, or on disk
    ClusterCounter                                      the same as they come

n images, r of them at a time, k prototypes, m unique ones, d dims.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.clusters import ClusterAudit
from prototile.audit.cover import Unique, unique
from prototile.audit.labels import LabelAudit, audit_labels
from prototile.audit.mass import mass_by_redundancy
from prototile.audit.plain import Histogram
from prototile.audit.power import PowerFit, fit_power, nearest_power
from prototile.precision import no_autocast, no_tf32, wide
from prototile.priors import checked_prior
from prototile.sphere import normalize

_NUMBERS = 2**22  # logits that are held at a time, twice
_ROWS = 4096
_LOWEST = -1e4  # below a row's maximum: e to this is 0, and 0 times it is 0

Groups = Mapping[str, Int[Tensor, " _"] | Int[np.ndarray, " _"]]


class ClusterCounter:
    r"""Takes embeddings in, as the projector gives them, and counts $\mathrm{softmax}(z \cdot w_k / \tau + o_k)$.

    Embeddings are normalised here; `weights` have the norms that the method gives them, `offset` is what the method
    adds to logits (vMF: the normaliser, log C_d). Nothing is balanced and no centre subtracted: pass them as an offset
    to see the targets. `unique` (found, where it is not given) says which prototypes are merged. Memory is two blocks
    of logits and a few numbers for each prototype and image.
    """

    def __init__(
        self,
        weights: Float[Tensor, "k d"],
        temperature: float,
        *,
        offset: Float[Tensor, " k"] | None = None,
        unique: Unique | None = None,
        prior: Float[Tensor, " k"] | None = None,
    ):
        if not 0 < temperature < math.inf:
            raise ValueError(f"a temperature must be a positive number, got {temperature}")
        for name, given in (("offset", offset), ("prior", prior), ("cover", None if unique is None else unique.labels)):
            if given is not None and len(given) != len(weights):
                raise ValueError(f"there are {len(weights)} prototypes but the {name} is of {len(given)}")
        self.unique = _found(weights) if unique is None else unique
        self.weights, self.temperature = wide(weights.detach()), temperature
        self.offset = None if offset is None else offset.detach().to(self.weights)
        self.prior = None if prior is None else checked_prior(prior).detach().cpu().double()
        k, device = len(weights), weights.device
        self._representatives = self.unique.representatives.to(device)
        self._labels = self.unique.labels.to(device)
        self._merging = len(self._representatives) < k
        self._mass = torch.zeros(k, dtype=torch.float64, device=device)
        self._merged_mass = torch.zeros(len(self._representatives), dtype=torch.float64, device=device)
        self._rows = max(1, min(_ROWS, _NUMBERS // k))
        self._logits, self._probabilities = (self.weights.new_empty(self._rows, k) for _ in range(2))
        self._parts: list[tuple[Tensor, ...]] = []  # of each image: assigned, merged, probability, entropy
        self.images = 0

    @torch.no_grad()
    @no_autocast
    @no_tf32
    def add(self, embeddings: Float[Tensor, "r d"]) -> None:
        """Any number of images."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.weights.shape[1]:
            raise ValueError(
                f"embeddings must be rows of {self.weights.shape[1]} dims, as the prototypes, got "
                f"{tuple(embeddings.shape)}: pass what the projector gives"
            )
        for part in embeddings.split(self._rows):
            z = wide(part.detach().to(self.weights.device))
            finite = z.isfinite().all(1)
            if not bool(finite.all()):
                row = self.images + int((~finite).nonzero()[0])
                raise ValueError(f"the embedding of image {row} is not finite: the network has diverged")
            self._take(normalize(z))
            self.images += len(z)

    def _take(self, z: Float[Tensor, "r d"]) -> None:
        logits = self._logits[: len(z)]
        torch.mm(z / self.temperature, self.weights.T, out=logits)
        if self.offset is not None:
            logits += self.offset
        top, assigned = logits.max(1)
        entropy, confidence = self._softmax(logits, top, self._mass, self._probabilities[: len(z)])
        if self._merging:
            few = logits[:, self._representatives]  # less `top` by now
            best, merged = few.max(1)
            self._softmax(few, best, self._merged_mass, torch.empty_like(few))
        else:
            merged = self._labels[assigned]
        small = torch.int32
        self._parts.append((assigned.to(small).cpu(), merged.to(small).cpu(), confidence.cpu(), entropy.cpu()))

    @staticmethod
    def _softmax(logits: Tensor, top: Tensor, mass: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """The rows' entropies and largest probabilities; `mass` receives the columns' sums, `logits` less their top."""
        logits.sub_(top[:, None]).clamp_(min=_LOWEST)
        p = torch.exp(logits, out=out)
        total = p.sum(1)
        share = 1 / total
        mass += (share @ p).double()
        return total.log() - torch.linalg.vecdot(p, logits) * share, share

    def result(self, labels: Int[Tensor, " n"] | None = None, *, groups: Groups | None = None) -> ClusterAudit:
        """Of all images so far; `labels` are theirs, in order, -1 for none; see `audit_labels` for `groups`."""
        if not self.images:
            raise ValueError("there are no images to audit clusters with")
        assigned, merged, scores, entropies = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        assigned, merged = assigned.long(), merged.long()
        k, m = len(self.weights), len(self._representatives)
        sizes, merged_sizes = torch.bincount(assigned, minlength=k), torch.bincount(merged, minlength=m)
        marginal = (self._mass / self._mass.sum()).cpu()
        merged_marginal = (
            (self._merged_mass / self._merged_mass.sum()).cpu()
            if self._merging
            else marginal[self.unique.representatives]
        )
        redundancy = self.unique.redundancy
        flat = k == 1
        return ClusterAudit(
            images=self.images,
            prototypes=k,
            temperature=self.temperature,
            marginal=marginal,
            sizes=sizes,
            entropy=float(entropies.double().mean()),
            confidence=float(scores.double().mean()),
            entropies=Histogram.of(entropies / (1 if flat else math.log(k)), 50, 0, 1),
            confidences=Histogram.of(scores, 50, 0, 1),
            assigned=assigned,
            scores=scores,
            prior=self.prior,
            power=_law_of(sizes),
            marginal_power=None if flat else nearest_power(marginal),
            representatives=self.unique.representatives,
            redundancy=redundancy,
            merged_assigned=merged,
            merged_sizes=merged_sizes,
            merged_marginal=merged_marginal,
            mass=mass_by_redundancy(merged_sizes / self.images, redundancy),
            soft_mass=mass_by_redundancy(merged_marginal, redundancy),
            labels=_labels_of(assigned, labels, k, groups),
            merged_labels=_labels_of(merged, labels, m, groups),
            merged_power=_law_of(merged_sizes),
        )


def audit_clusters(
    embeddings: Float[Tensor, "n d"],
    weights: Float[Tensor, "k d"],
    temperature: float,
    *,
    offset: Float[Tensor, " k"] | None = None,
    unique: Unique | None = None,
    prior: Float[Tensor, " k"] | None = None,
    labels: Int[Tensor, " n"] | None = None,
    groups: Groups | None = None,
) -> ClusterAudit:
    """How these images spread over the prototypes; see `ClusterCounter`. Embeddings may be mapped from a file."""
    counter = ClusterCounter(weights, temperature, offset=offset, unique=unique, prior=prior)
    counter.add(embeddings)
    return counter.result(labels, groups=groups)


def _found(weights: Tensor) -> Unique:
    return unique(weights)


def _law_of(sizes: Tensor) -> PowerFit | None:
    """None where fewer than three clusters have images: any two sizes lie on a law, and one has none."""
    return fit_power(sizes) if int((sizes > 0).sum()) > 2 else None


def _labels_of(assigned: Tensor, labels: Tensor | None, clusters: int, groups: Groups | None) -> LabelAudit | None:
    return None if labels is None else audit_labels(assigned, labels, clusters, groups=groups)
