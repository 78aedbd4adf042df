"""The numbers that show whether a run is well: of every softmax over prototypes, and of the embeddings.

    of each kind of token (`Clusters`)
      student_entropy, target_entropy         mean entropy of an assignment, in nats; ln K is "says nothing"
      student_confidence, target_confidence   mean probability of the most probable prototype
      marginal_entropy                        entropy of the mean assignment of the student's rows
      marginal_divergence, marginal_distance  KL(marginal || prior) and total variation, of the student's rows
      unique, smallest_norm, largest_norm     of the student's prototypes
    the same, over a window of steps (`Window`)
      target_distance                         total variation between the mean target and the prior
      used, largest                           prototypes that are some target's most probable one; the largest's share
    of embeddings (`Embeddings`)
      spread, cosine                          1 and 0 for directions all over the sphere; 0 and 1 for constant ones

A step has few rows, often fewer than there are prototypes: what is used can only be told from many. All numbers are of
all ranks' rows. n rows, d dims, k prototypes.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile import distributed
from prototile.assignments import Assignments
from prototile.assignments.tiles import spans
from prototile.audit.clusters import left_empty
from prototile.audit.cover import unique
from prototile.precision import full_precision
from prototile.sphere import normalize

ROWS_PER_PROTOTYPE = 8  # two views of an image agree, and of 4 images a prototype random ones leave 2% empty

_NUMBERS = 2**24  # probabilities that are held at a time


@dataclass(frozen=True)
class ClusterHealth:
    """One softmax over prototypes; see the table of the module. `rows` are the targets that the window has seen."""

    prototypes: int
    student_entropy: float
    target_entropy: float
    student_confidence: float
    target_confidence: float
    marginal_entropy: float
    marginal_divergence: float
    marginal_distance: float
    target_distance: float
    rows: int
    used: int
    largest: float
    unique: int
    smallest_norm: float
    largest_norm: float
    largest_prior: float  # the prior's largest share; 1 / K where it is uniform

    @property
    def used_share(self) -> float:
        """Prototypes used, of those that the window's rows could have used: a row uses one."""
        return self.used / max(1, min(self.prototypes, self.rows))

    @property
    def representative(self) -> bool:
        """Whether the window has seen enough rows to tell how prototypes are used."""
        return self.rows >= ROWS_PER_PROTOTYPE * self.prototypes

    def numbers(self) -> dict[str, float]:
        """What changes in a run, by name."""
        constant = ("prototypes", "largest_prior")
        return {x.name: getattr(self, x.name) for x in fields(self) if x.name not in constant} | {
            "used_share": self.used_share
        }

    def __str__(self) -> str:
        return (
            f"{self.used:,} of {self.prototypes:,} prototypes used in {self.rows:,} rows, {self.unique:,} unique, "
            f"the largest has {self.largest:.1%}; entropy {self.student_entropy:.3f} (targets "
            f"{self.target_entropy:.3f}) of {math.log(self.prototypes):.3f}"
        )


@dataclass(frozen=True)
class EmbeddingHealth:
    """Directions of embeddings: `spread` is the mean over dims of their deviation, times sqrt(d)."""

    spread: float
    cosine: float

    def __str__(self) -> str:
        return f"spread {self.spread:.3f}, mean cosine {self.cosine:.3f}"


@dataclass(frozen=True)
class Health:
    """What a run looked like at a step; `clusters` by kind of token."""

    step: int
    loss: float
    embeddings: EmbeddingHealth
    clusters: Mapping[str, ClusterHealth] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """Flat, for a logger: health/spread, health/cls/used_share ..."""
        found = {f"health/{name}": value for name, value in asdict(self.embeddings).items()}
        for token, clusters in self.clusters.items():
            found |= {f"health/{token}/{name}": value for name, value in clusters.numbers().items()}
        return found

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"clusters": {token: asdict(x) for token, x in self.clusters.items()}}

    def __str__(self) -> str:
        lines = [f"step {self.step}: loss {self.loss:.4g}, embeddings: {self.embeddings}"]
        return "\n".join([*lines, *(f"  {token}: {clusters}" for token, clusters in self.clusters.items())])


class Window:
    """Targets of the latest steps, summed: at least 8 rows a prototype once they were there, at most twice as many.

    Two sums take turns, so that memory is K numbers whatever the number of steps.
    """

    def __init__(self, num_prototypes: int):
        self._enough = ROWS_PER_PROTOTYPE * num_prototypes
        # this and the one before: rows with this most probable prototype, and summed probabilities
        self._sums = torch.zeros(2, 2, num_prototypes, dtype=torch.float64)

    def add(self, counts: Int[Tensor, " k"], mass: Float[Tensor, " k"]) -> None:
        """The targets of a step: how many have each prototype as their most probable one, and their sum."""
        if float(self._sums[0, 0].sum()) >= self._enough:
            self._sums = torch.stack([torch.zeros_like(self._sums[0]), self._sums[0]])
        self._sums[0] += torch.stack([counts, mass]).to(self._sums)

    @property
    def counts(self) -> Float[Tensor, " k"]:
        return self._sums[:, 0].sum(0)

    @property
    def marginal(self) -> Float[Tensor, " k"]:
        """The mean target."""
        mass = self._sums[:, 1].sum(0)
        return mass / mass.sum().clamp(min=1)

    def summary(self, prior: Float[Tensor, " k"]) -> dict[str, Any]:
        """How these targets spread over prototypes, under the names that `ClusterAudit` gives such numbers."""
        counts, marginal, pi = self.counts, self.marginal, prior.detach().to("cpu", torch.float64)
        rows, k = int(counts.sum()), len(counts)
        entropy = float(-torch.xlogy(marginal, marginal).sum())
        return {
            "images": rows,
            "prototypes": k,
            "empty": int((counts == 0).sum()),
            "empty_by_chance": k * left_empty(rows, k),
            "largest": float(counts.max()) * k / max(rows, 1),
            "marginal_entropy": entropy,
            "effective": math.exp(entropy),
            "distance_to_prior": _distance(marginal, pi),
            "sizes": counts.long().tolist(),
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self._sums.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state["sums"].shape != self._sums.shape:
            raise ValueError(
                f"this window is of {state['sums'].shape[-1]} prototypes, and there are {self._sums.shape[-1]}: "
                "resume with as many prototypes as before"
            )
        self._sums = state["sums"].clone()


@dataclass(frozen=True, eq=False)
class _Sums:
    """What one pass over the rows of assignments gives, of all ranks."""

    rows: int
    counts: Int[Tensor, " k"]
    mass: Float[Tensor, " k"]
    entropy: float
    confidence: float

    @property
    def marginal(self) -> Float[Tensor, " k"]:
        return self.mass / self.mass.sum().clamp(min=1)  # rounding may leave rows that do not sum to one


@torch.no_grad()
def cluster_health(
    student: Assignments,
    targets: Assignments,
    prior: Float[Tensor, " k"],
    prototypes: Float[Tensor, "k d"],
    window: Window | None = None,
) -> ClusterHealth:
    """The health of one softmax; `window` takes this step in (none: the step alone).

    Three products of rows and prototypes and a look at all prototypes (`unique`, by index): with K = 65,536 of 256 dims
    the latter is seconds on a CPU, so ask every hundred steps there; on a GPU neither is felt. Sharded prototypes are
    gathered, for the length of the look.
    """
    student, targets = student.unsharded(), targets.unsharded()
    window = Window(student.num_prototypes) if window is None else window
    predicted, wanted = _summed(student), _summed(targets)
    window.add(wanted.counts, wanted.mass)
    pi = prior.detach().to("cpu", torch.float64)
    marginal, counts = predicted.marginal, window.counts
    norms = torch.linalg.vector_norm(student.prototypes.detach().float(), dim=1)
    rows = int(counts.sum())
    return ClusterHealth(
        prototypes=student.num_prototypes,
        student_entropy=predicted.entropy,
        target_entropy=wanted.entropy,
        student_confidence=predicted.confidence,
        target_confidence=wanted.confidence,
        marginal_entropy=float(-torch.xlogy(marginal, marginal).sum()),
        marginal_divergence=float((torch.xlogy(marginal, marginal) - torch.xlogy(marginal, pi)).sum().clamp(min=0)),
        marginal_distance=_distance(marginal, pi),
        target_distance=_distance(window.marginal, pi),
        rows=rows,
        used=int((counts > 0).sum()),
        largest=float(counts.max()) / max(rows, 1),
        unique=unique(prototypes, mode="index").count if bool(prototypes.isfinite().all()) else 0,
        smallest_norm=float(norms.min()),
        largest_norm=float(norms.max()),
        largest_prior=float(pi.max()),
    )


@torch.no_grad()
@full_precision
def embedding_health(embeddings: Float[Tensor, "n d"]) -> EmbeddingHealth:
    """How far the directions of embeddings are spread, over the rows of all ranks. NaN for fewer than two rows."""
    unit = normalize(embeddings).double()
    rows = distributed.count(len(unit), unit.device)
    if rows < 2:
        return EmbeddingHealth(math.nan, math.nan)
    total = distributed.sum(unit.sum(0))
    mean = total / rows
    deviation = (distributed.sum((unit - mean).square().sum(0)) / rows).sqrt()
    lengths = distributed.sum(unit.square().sum())  # the pairs of a row with itself
    cosine = (total.square().sum() - lengths) / (rows * (rows - 1))
    return EmbeddingHealth(float(deviation.mean()) * math.sqrt(unit.shape[1]), float(cosine))


def _distance(marginal: Tensor, prior: Tensor) -> float:
    """Total variation: the share of mass that lies elsewhere."""
    return float((marginal - prior).abs().sum() / 2)


def _summed(assignments: Assignments) -> _Sums:
    k, device = assignments.num_prototypes, assignments.embeddings.device
    counts = torch.zeros(k, dtype=torch.long, device=device)
    mass = torch.zeros(k, dtype=torch.float64, device=device)
    scalars = torch.zeros(3, dtype=torch.float64, device=device)  # rows, entropy, confidence
    scalars[0] = len(assignments)
    for block in _blocks(assignments, max(1, _NUMBERS // k)):
        log_p = block.log_probabilities()
        p = log_p.exp()
        top, where = log_p.max(1)
        counts += torch.bincount(where, minlength=k)
        mass += p.sum(0, dtype=torch.float64)
        # a closed prototype, of log-probability -inf, counts 0
        scalars[1] -= (p * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(dtype=torch.float64)
        scalars[2] += top.exp().sum(dtype=torch.float64)
    counts, mass, scalars = distributed.sum(counts), distributed.sum(mass), distributed.sum(scalars)
    rows, entropy, confidence = scalars.tolist()
    return _Sums(int(rows), counts.cpu(), mass.cpu(), entropy / max(rows, 1), confidence / max(rows, 1))


def _blocks(assignments: Assignments, rows: int):
    """The same assignments, so many rows at a time; adjusted ones too."""
    offset, adjustment = assignments.offset, assignments.adjustment
    views = 1 if offset is None or offset.ndim == 1 else len(offset)
    size = len(assignments) // views
    for view in range(views):
        for start, stop in spans(size, rows):
            part = slice(view * size + start, view * size + stop)
            winner = None if adjustment is None or adjustment.winner is None else adjustment.winner[part]
            yield replace(
                assignments,
                embeddings=assignments.embeddings[part],
                offset=offset if views == 1 or offset is None else offset[view],
                adjustment=None if adjustment is None else replace(adjustment, winner=winner),
            )
