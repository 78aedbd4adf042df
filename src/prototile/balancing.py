r"""Balancers: targets in, targets out whose marginal follows a prior. None of them sees an n x k matrix.

    balancer                 changes                      state, over prototypes            does the marginal follow?
    Sharpen                  temperature                  -                                 not at all
    Sinkhorn                 offset, solved per batch     -                                 up to its column error
    Centering                offset -c / temperature      running mean score c              loosely: mean scores do
    ProbabilityCentering     offset -c                    running log mean assignment c     in the long run, loosely
    ExplicitBalancing        scale, offset, clamp         running cluster sizes s           by feedback on sizes

    DINO, iBOT = Centering;  DINO-vMF, iBOT-vMF = ProbabilityCentering;  SwAV, DINOv2 = Sinkhorn;
    MSN, PMSN = Sharpen, then Sinkhorn(start="probabilities");  ExCB = ExplicitBalancing.

Every one takes any prior; with a uniform one it equals the official code. A prior enters an offset as
log(K pi_k), which is zero for the uniform one. Sequences compose: `Sequential(Sharpen(...), Sinkhorn(...))`.

n rows, d dims, k prototypes.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prototile import distributed
from prototile.assignments import Adjustment, Assignments
from prototile.precision import KeepsDtype
from prototile.priors import checked_prior


class Balancer(KeepsDtype, ABC):
    """Adjusts the targets so that their marginal follows the prior: assignments in, assignments out.

    Its state is a few vectors over prototypes, kept in buffers, *used before it is updated* and the same on all
    ranks. In evaluation mode the state is used and stays as it is. The result is a constant.
    """

    @abstractmethod
    def forward(self, teacher: Assignments, observed: Assignments | None = None) -> Assignments:
        """The balanced `teacher`.

        `observed` are the rows from which the marginal is measured, where these are not the teacher's own: a
        queue together with the batch (SwAV), or all patches where only masked ones are targets (iBOT).
        """


class Sequential(Balancer):
    """One balancer after another; what an earlier one changed holds for the `observed` rows too.

    One that adjusts more than temperature and offset (`ExplicitBalancing`) can only be the last.
    """

    def __init__(self, *balancers: Balancer):
        super().__init__()
        self.balancers = nn.ModuleList(balancers)

    def forward(self, teacher: Assignments, observed: Assignments | None = None) -> Assignments:
        teacher = teacher.detach()
        for balancer in self.balancers:
            if teacher.adjustment is not None:
                raise ValueError("explicit balancing must come last in a sequence: nothing can follow its clamp")
            teacher = balancer(teacher, observed)
            if observed is not None:
                observed = replace(observed, temperature=teacher.temperature, offset=teacher.offset)
        return teacher


class Sharpen(Balancer):
    """p^(1/T), renormalised: the same as a temperature of T times the old one (Assran et al. 2022, equation 2)."""

    def __init__(self, factor: float = 0.25):
        super().__init__()
        if not factor > 0:
            raise ValueError(f"the sharpening factor must be positive, got {factor}")
        self.factor = factor

    def forward(self, teacher: Assignments, observed: Assignments | None = None) -> Assignments:
        teacher = teacher.detach()
        offset = None if teacher.offset is None else teacher.offset / self.factor
        return replace(teacher, temperature=teacher.temperature * self.factor, offset=offset)


class Sinkhorn(Balancer):
    r"""Alternately scales columns to the prior and rows to one (Cuturi 2013; Caron et al. 2020, SwAV).

    With u and g the log scalings of rows and columns, `iterations` times

        g_k = log(N pi_k) - logsumexp_n(l_nk + u_n),    u_n = -logsumexp_k(l_nk + g_k),

    over the rows of all ranks. The last row step is the softmax itself, so the result is `teacher` with the
    offset g: rows sum to one exactly, columns to the prior only approximately, and three iterations are far from
    converged (`column_error` measures it). A prototype with prior zero is never a target.

    `start="logits"` begins at exp(logits) (SwAV, DINOv2), `"probabilities"` at its row-normalised form (MSN). One
    iteration from probabilities is probability centring with momentum 0. `views` is the number of views that are
    balanced separately (SwAV 2; all others jointly). The temperature is the assignments'.
    """

    def __init__(
        self,
        prior: Float[Tensor, " k"],
        *,
        iterations: int = 3,
        start: Literal["logits", "probabilities"] = "logits",
        views: int = 1,
    ):
        super().__init__()
        if iterations < 0 or views < 1:
            raise ValueError(f"iterations must be at least 0 and views at least 1, got {iterations} and {views}")
        if start not in ("logits", "probabilities"):
            raise ValueError(f"start must be 'logits' or 'probabilities', got {start!r}")
        self.iterations, self.start, self.views = iterations, start, views
        self.prior: Tensor
        self.register_buffer("prior", checked_prior(prior).clone())

    @torch.no_grad()
    def forward(self, teacher: Assignments, observed: Assignments | None = None) -> Assignments:
        teacher = teacher.detach()
        if self.iterations == 0:
            return teacher
        if observed is None:
            teacher = observed = teacher.hold_within_budget()
        else:
            observed = observed.detach().hold_within_budget()
        offsets = [self._potential(observed.view(i, self.views)) for i in range(self.views)]
        return teacher.shift(offsets[0] if self.views == 1 else torch.stack(offsets))

    def _potential(self, observed: Assignments) -> Float[Tensor, " k"]:
        rows = _num_rows(observed)
        if rows == 0:
            return torch.zeros_like(_of(self.prior, observed))
        log_mass = (_of(self.prior, observed).double().log() + math.log(rows)).to(observed.dtype)
        potential = -observed.row_logsumexp() if self.start == "probabilities" else None
        return observed.column_potential(log_mass, self.iterations, potential)

    @torch.no_grad()
    def column_error(self, targets: Assignments) -> Float[Tensor, ""]:
        """How far the marginal of balanced targets is from the prior: the largest |p_bar_k / pi_k - 1|.

        Of each view that was balanced separately, and of the targets alone where others were observed too.
        """
        prior = _of(self.prior, targets)
        seen = prior > 0
        errors = [targets.view(i, self.views).mean()[seen] / prior[seen] - 1 for i in range(self.views)]
        return torch.stack(errors).abs().max()


class Centering(Balancer):
    r"""Subtracts the running mean score before the temperature (Caron et al. 2021, DINO, equation 4).

        targets = softmax((scores - c) / temperature + log(K pi)),    c <- m c + (1 - m) mean(scores),

    over all rows of all ranks; the mean score is the score of the mean embedding, so no scores are formed. It
    evens out mean *scores*: what the prior adds is the wished log-odds between prototypes of equal mean score,
    which the marginal of the targets follows only loosely.
    """

    def __init__(self, prior: Float[Tensor, " k"], *, momentum: float = 0.9):
        super().__init__()
        self.momentum = _momentum(momentum)
        self.prior: Tensor
        self.center: Tensor
        self.register_buffer("prior", checked_prior(prior).clone())
        self.register_buffer("center", torch.zeros_like(prior, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, teacher: Assignments, observed: Assignments | None = None) -> Assignments:
        teacher = teacher.detach()
        tilt = _log_ratio(self.prior, teacher)
        balanced = teacher.shift(tilt - _of(self.center, teacher) / teacher.temperature)
        observed = teacher if observed is None else observed.detach()
        if self.training and _num_rows(observed):
            self.center.lerp_(observed.mean_similarity().to(self.center), 1 - self.momentum)
        return balanced


class ProbabilityCentering(Balancer):
    r"""Subtracts the running log mean assignment (Govindarajan et al. 2023, DINO-vMF, equation 4).

        targets = softmax(logits - c + log(K pi)),    c <- m c + (1 - m) log mean(softmax(logits)),

    where the mean is that of the *uncentred* assignments over all ranks, and of its logarithm the running mean is
    taken. c lives behind the temperature, unlike the centre of `Centering`. With m = 0 and c updated before its use it
    would be one Sinkhorn iteration from probabilities. A prototype that nobody uses has a log mean that drags c
    down without end: `floor` is the smallest mean that counts; None leaves the formula as printed.
    """

    def __init__(self, prior: Float[Tensor, " k"], *, momentum: float = 0.9, floor: float | None = 1e-12):
        super().__init__()
        if floor is not None and not floor > 0:
            raise ValueError(f"the floor of a mean must be positive, or None, got {floor}")
        self.momentum, self.floor = _momentum(momentum), floor
        self.prior: Tensor
        self.center: Tensor
        self.register_buffer("prior", checked_prior(prior).clone())
        self.register_buffer("center", torch.zeros_like(prior, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, teacher: Assignments, observed: Assignments | None = None) -> Assignments:
        teacher = teacher.detach()
        balanced = teacher.shift(_log_ratio(self.prior, teacher) - _of(self.center, teacher))
        observed = teacher if observed is None else observed.detach()
        if self.training and _num_rows(observed):
            log_mean = observed.log_mean()
            if self.floor is not None:
                log_mean = log_mean.clamp(min=math.log(self.floor))
            self.center.lerp_(log_mean.to(self.center), 1 - self.momentum)
        return balanced


class ExplicitBalancing(Balancer):
    r"""Balances clusters by their measured relative sizes (ExCB, Maniadis Metaxas et al. 2024).

    With r_k = s_k / pi_k the relative size against the prior (s K for the uniform one), a cosine z becomes

        1 - (1 - z) r       where r < 1: the distances of small clusters shrink,
        (1 + z) / r - 1     where r > 1: the similarities of large ones do,

    the largest entry of each row is multiplied by `boost`, and all are clamped to [-1, 1]. Sizes are a running
    share of hard assignments over all ranks, s <- m s + (1 - m) share, counted after balancing, as in the official
    code (`count="raw"`: before, as in the paper's pseudo-code). Clusters of size exactly zero get a size in
    [0, 0.001], drawn anew at every call, the same on all ranks, so that they do not all tie.

    Needs cosines: unit embeddings and prototypes, no offset. The boost lowers a negative largest entry, as in the
    official code. A prior of zero makes a cluster infinitely large: its balanced cosine is -1.
    """

    def __init__(
        self,
        prior: Float[Tensor, " k"],
        *,
        momentum: float = 0.999,
        boost: float = 1.01,
        count: Literal["balanced", "raw"] = "balanced",
    ):
        super().__init__()
        if count not in ("balanced", "raw"):
            raise ValueError(f"count must be 'balanced' or 'raw', got {count!r}")
        self.momentum, self.boost, self.count = _momentum(momentum), boost, count
        self.prior: Tensor
        self.sizes: Tensor
        self.calls: Tensor
        self.register_buffer("prior", checked_prior(prior).clone())
        self.register_buffer("sizes", prior.clone().double())
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, teacher: Assignments, observed: Assignments | None = None) -> Assignments:
        teacher = teacher.detach()
        balanced = self.balance(teacher)
        if self.training:
            counted = teacher if observed is None else observed.detach()
            if self.count == "balanced":
                counted = balanced if observed is None else self.balance(counted)
            self.update(counted.hard())
        return balanced

    def balance(self, teacher: Assignments) -> Assignments:
        """The balanced teacher under the present sizes; the state stays."""
        if teacher.offset is not None or teacher.adjustment is not None:
            raise ValueError("explicit balancing works on cosines: the teacher must not have an offset")
        low, high = (_of(multiplier, teacher) for multiplier in self.multipliers())
        bound = 1 / teacher.temperature
        adjustment = Adjustment(scale=low * high, bound=bound)
        balanced = replace(teacher, offset=((2 - low) * high - 1) * bound, adjustment=adjustment)
        if self.boost == 1:
            return balanced
        winner = balanced.hard()
        return replace(balanced, adjustment=replace(adjustment, winner=winner, boost=self.boost))

    def multipliers(self) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
        """min(1, r) for the distances and min(1, 1 / r) for the similarities."""
        sizes, prior = self.sizes.double(), self.prior.double()
        relative = torch.where(prior > 0, sizes / sizes.sum() / prior, torch.inf)
        low, high = relative.clamp(max=1), (1 / relative).clamp(max=1)
        if bool((low == 0).any()):
            low = torch.where(low == 0, 1e-3 * self._draw(), low)
        return low, high

    def _draw(self) -> Float[Tensor, " k"]:
        generator = torch.Generator().manual_seed(int(self.calls))
        return torch.rand(self.sizes.shape, generator=generator, dtype=torch.float64).to(self.sizes.device)

    @torch.no_grad()
    def update(self, assignments: Int[Tensor, " n"]) -> None:
        """The running sizes after these hard assignments of this rank."""
        counts = distributed.sum(torch.bincount(assignments, minlength=len(self.sizes)))
        total = counts.sum()
        if total > 0:
            self.sizes.lerp_(counts.to(self.sizes) / total, 1 - self.momentum)
        self.calls += 1


class Queue(nn.Module):
    """The newest embeddings of earlier batches, per view; what Sinkhorn observes beside a small batch (SwAV).

    `observe` gives the rows to balance: the batch alone until the queue is full, then queue and batch, view by
    view. `push` comes afterwards, so that no embedding meets itself.

    Every rank has rows of its own: with DistributedDataParallel pass `broadcast_buffers=False`, and save every rank's.
    """

    def __init__(self, length: int, dims: int, *, views: int = 2):
        super().__init__()
        if length < 1 or views < 1:
            raise ValueError(f"the length and the views of a queue must be positive, got {length} and {views}")
        self.embeddings: Tensor
        self.filled: Tensor
        self.register_buffer("embeddings", torch.zeros(views, length, dims))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @property
    def full(self) -> bool:
        return int(self.filled) >= self.embeddings.shape[1]

    def observe(self, teacher: Assignments) -> Assignments:
        """The teacher's rows together with the queue's, in each view; the teacher alone until the queue is full."""
        if not self.full:
            return teacher
        views = self.embeddings.shape[0]
        batch = teacher.embeddings.detach().unflatten(0, (views, -1))
        rows = torch.cat([self.embeddings.to(batch), batch], 1).flatten(0, 1)
        return replace(teacher, embeddings=rows)

    @torch.no_grad()
    def push(self, teacher: Assignments) -> None:
        """Puts this rank's batch in front; the oldest rows fall out."""
        views, length, _ = self.embeddings.shape
        batch = teacher.embeddings.detach().unflatten(0, (views, -1)).to(self.embeddings)
        self.embeddings.copy_(torch.cat([batch, self.embeddings], 1)[:, :length])
        self.filled.add_(batch.shape[1]).clamp_(max=length)


def _num_rows(assignments: Assignments) -> int:
    """Over all ranks: where there are none, a state stays as it is."""
    return distributed.count(len(assignments), assignments.embeddings.device)


def _momentum(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"a momentum lies in [0, 1], got {value}")
    return value


def _of(vector: Tensor, assignments: Assignments) -> Tensor:
    """A vector over prototypes in the assignments' dtype, or an error where their number differs."""
    if len(vector) != assignments.num_prototypes:
        raise ValueError(
            f"the balancer was made for {len(vector)} prototypes, the assignments have {assignments.num_prototypes}"
        )
    return vector.to(assignments.embeddings.device, assignments.dtype)


def _log_ratio(prior: Tensor, assignments: Assignments) -> Float[Tensor, " k"]:
    """log(K pi): what a prior adds to logits; zero for a uniform one."""
    _of(prior, assignments)
    return (prior.double() * len(prior)).log().to(assignments.embeddings.device, assignments.dtype)
