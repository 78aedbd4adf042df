"""Assignments: rows of softmax over prototypes that are never a matrix unless somebody reads them.

n rows (v views x b images, view-major), d dims, k prototypes (`own`: those that this rank holds; all, as a rule).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prototile import distributed
from prototile.assignments import coupled, fused, plan, reductions, sharded
from prototile.assignments.scratch import Loan, borrow, budget
from prototile.assignments.sharded import Rows
from prototile.assignments.tiles import Adjustment, Logits, spans, widest_logit
from prototile.distributed import Shard
from prototile.precision import no_autocast, products_dtype


@dataclass(frozen=True, eq=False)
class Held:
    """The products <embedding, prototype> of these very tensors, kept in scratch memory."""

    embeddings: Tensor
    prototypes: Tensor
    scores: Float[Tensor, "n k"]
    loan: Loan


@dataclass(frozen=True, eq=False)
class Assignments:
    """Lazily: rows of softmax(embeddings @ prototypes.T / temperature + offset).

    Every target and prediction of the clustering family has this form: DINO's centre, probability centring,
    Sinkhorn's column potentials and the vMF normaliser are offsets, sharpening is a temperature.

    The rows are view-major where there are several views. `offset` has one number per prototype, or one row of
    numbers per view (views balanced separately, as in SwAV). Nothing is normalised here: pass unit vectors for
    cosines. A zero row is as close to one prototype as to another; non-finite numbers are refused where they
    are used. Half precision is computed in float32, whatever the autocast; but see `fused` for GPUs.

    With a `shard` the prototypes are shared out over ranks: `prototypes` are this rank's, everything else is of all of
    them, vectors over prototypes too, and results are those of whole prototypes (see `sharded`). All ranks must then
    ask for the same thing at the same time. Dense results gather the prototypes, and nothing is held.
    """

    embeddings: Float[Tensor, "n d"]
    prototypes: Float[Tensor, "own d"]
    temperature: float
    offset: Float[Tensor, "v k"] | Float[Tensor, " k"] | None = None
    adjustment: Adjustment | None = None
    held: Held | None = field(default=None, repr=False)
    shard: Shard | None = None

    def __post_init__(self) -> None:
        for name in ("embeddings", "prototypes"):
            shape = getattr(self, name).shape
            if len(shape) != 2:
                raise ValueError(f"{name} must be a matrix, rows x dims, got shape {tuple(shape)}: flatten the views")
        if self.embeddings.shape[-1] != self.prototypes.shape[-1]:
            raise ValueError(
                f"embeddings have {self.embeddings.shape[-1]} dims but prototypes have "
                f"{self.prototypes.shape[-1]}; the head's output size must be the prototypes'"
            )
        if self.shard is not None and len(self.shard) != len(self.prototypes):
            raise ValueError(f"the shard has {len(self.shard)} prototypes, and there are {len(self.prototypes)}")
        if isinstance(self.temperature, Tensor) or not self.temperature > 0:
            raise ValueError(f"a temperature must be a positive number, got {self.temperature}")
        if self.offset is not None and self.offset.shape[-1] != self.num_prototypes:
            raise ValueError(f"the offset has {self.offset.shape[-1]} entries for {self.num_prototypes} prototypes")
        if self.offset is not None and self.offset.ndim == 2 and len(self) % self.offset.shape[0]:
            raise ValueError(f"{len(self)} rows do not divide into the {self.offset.shape[0]} views of the offset")
        held = self.held
        if held is not None and not (held.embeddings is self.embeddings and held.prototypes is self.prototypes):
            object.__setattr__(self, "held", None)  # `replace` gave other tensors: these products are not theirs

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    @property
    def _fused(self) -> bool:
        return self.shard is None and plan.fuses(self.embeddings)

    @property
    def num_prototypes(self) -> int:
        """Of all ranks."""
        return self.prototypes.shape[0] if self.shard is None else self.shard.total

    # ------------------------------------------------------------------ other assignments of the same rows
    def detach(self) -> "Assignments":
        """The same assignments as constants."""
        offset = None if self.offset is None else self.offset.detach()
        held = self.held
        constant = replace(
            self, embeddings=self.embeddings.detach(), prototypes=self.prototypes.detach(), offset=offset
        )
        if held is not None:
            held = replace(held, embeddings=constant.embeddings, prototypes=constant.prototypes)
        return replace(constant, held=held)

    def shift(self, offset: Tensor) -> "Assignments":
        """With this added to the offset."""
        if self.adjustment is not None:
            raise ValueError("adjusted assignments cannot be shifted: their clamp comes last")
        offset = offset.to(self.dtype)
        return replace(self, offset=offset if self.offset is None else self.offset.to(self.dtype) + offset)

    def view(self, index: int, views: int) -> "Assignments":
        """The rows of one of so many views."""
        if len(self) % views:
            raise ValueError(f"{len(self)} rows do not divide into {views} views")
        if not 0 <= index < views:
            raise ValueError(f"there is no view {index} of {views}")
        size, offset = len(self) // views, self.offset
        if offset is not None and offset.ndim == 2:
            if len(offset) % views:
                raise ValueError(f"the offset of {len(offset)} views cannot be split into {views}")
            offset = offset[index * len(offset) // views : (index + 1) * len(offset) // views]
        return self._rows(slice(index * size, (index + 1) * size), offset)

    def leading(self, views: int, of: int) -> "Assignments":
        """The rows of the first `views` out of `of` views (SwAV: the global ones, which are also targets)."""
        if self.offset is not None and self.offset.ndim == 2:
            raise ValueError("only assignments with one offset for all views have leading views")
        if len(self) % of or not 0 < views <= of:
            raise ValueError(f"{len(self)} rows have no {views} leading views of {of}")
        return self._rows(slice(0, len(self) // of * views), self.offset)

    def take(self, rows: Int[Tensor, " m"] | Bool[Tensor, " n"]) -> "Assignments":
        """These rows, in their order (or where a mask is true), under the same offset."""
        if self.offset is not None and self.offset.ndim == 2:
            raise ValueError("rows are taken of assignments with one offset for all views")
        adjustment = self.adjustment
        if adjustment is not None and adjustment.winner is not None:
            adjustment = replace(adjustment, winner=adjustment.winner[rows])
        return replace(self, embeddings=self.embeddings[rows], adjustment=adjustment)

    def unsharded(self) -> "Assignments":
        """The same with the prototypes of all ranks on each, K x d numbers; differentiable."""
        if self.shard is None:
            return self
        return replace(self, prototypes=distributed.concatenate(self.prototypes, self.shard.counts), shard=None)

    def _rows(self, rows: slice, offset: Tensor | None) -> "Assignments":
        if self.adjustment is not None:
            raise ValueError("adjusted assignments cannot be split into views")
        part = replace(self, embeddings=self.embeddings[rows], offset=offset)
        if self.held is None:
            return part
        return replace(part, held=replace(self.held, embeddings=part.embeddings, scores=self.held.scores[rows]))

    def hold(self) -> "Assignments":
        """With the products <embedding, prototype> kept, n x k numbers, until nobody uses them any more.

        All that is derived from the result (another temperature or offset, leading views) uses them too instead
        of multiplying again. Worth it where targets and predictions share their logits (SwAV), and in Sinkhorn,
        which holds by itself what fits the scratch budget. Where prototypes are sharded nothing is kept, and fused
        kernels multiply again rather than read.
        """
        if self.held is not None or self.shard is not None or self._fused:
            return self
        z, w = self._operands()
        loan = borrow(len(self) * self.num_prototypes, z)
        scores = torch.mm(z, w.T, out=loan.tensor.view(len(self), self.num_prototypes))
        return replace(self, held=Held(self.embeddings, self.prototypes, scores, loan))

    def hold_within_budget(self) -> "Assignments":
        """Held, if that takes at most half of the scratch budget: who reads the products needs some, too."""
        size = len(self) * self.num_prototypes * self.dtype.itemsize
        return self.hold() if 2 * size <= budget(self.prototypes) else self

    # ---------------------------------------------------------------------------- without a matrix
    def mean(self) -> Float[Tensor, " k"]:
        """The marginal: the mean assignment over the rows of all ranks. Differentiable, unless it is adjusted."""
        if self._fused:
            return distributed.mean_rows(fused.column_sums(self), len(self))
        if plan.forced_backend() == "naive":
            return distributed.mean_rows(self.probabilities().sum(0), len(self))
        if self.shard is not None:
            return sharded.mean(*self.differentiable(), *self.everywhere(), self.shard)
        z, w, offset = self.differentiable()
        return distributed.mean_rows(coupled.column_sums(z, w, offset, self.tiled()), len(self))

    @no_autocast
    def mean_similarity(self) -> Float[Tensor, " k"]:
        """The mean product <embedding, prototype> over the rows of all ranks. Not differentiable."""
        z, w = self._operands()
        mean = w @ distributed.mean_rows(z.sum(0), len(z))
        return mean if self.shard is None else distributed.concatenate(mean, self.shard.counts)

    def row_logsumexp(self) -> Float[Tensor, " n"]:
        """log sum_k exp(logit), per row. Not differentiable."""
        if self._fused:
            return fused.row_logsumexp(self)
        if self.shard is None:
            return reductions.row_logsumexp(self.tiled())
        logits, rows = self.everywhere()
        return rows.own(sharded.row_logsumexp(logits))

    def column_logsumexp(self, potential: Float[Tensor, " n"] | None = None) -> Float[Tensor, " k"]:
        """log sum_n exp(logit + potential_n), per prototype, over the rows of all ranks. Not differentiable.

        With minus the rows' log-sum-exps as potential: the log of the summed assignments, exact where a sum of
        probabilities would underflow.
        """
        if self._fused:
            return distributed.logsumexp(fused.column_logsumexp(self, potential))
        if self.shard is None:
            return distributed.logsumexp(reductions.column_logsumexp(self.tiled(), potential))
        logits, rows = self.everywhere()
        return sharded.column_logsumexp(logits, None if potential is None else rows.gather(potential), self.shard)

    @torch.no_grad()
    def column_potential(
        self, log_mass: Float[Tensor, " k"], iterations: int, potential: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, " k"]:
        """Sinkhorn's potentials of the columns, over the rows of all ranks (`reductions.sinkhorn`)."""
        if self._fused:
            return fused.sinkhorn(self, log_mass, iterations, potential)
        if self.shard is None:
            return reductions.sinkhorn(self.tiled(), log_mass, iterations, potential)
        logits, rows = self.everywhere()
        potential = None if potential is None else rows.gather(potential)
        return sharded.sinkhorn(logits, log_mass, iterations, potential, self.shard)

    def log_mean(self) -> Float[Tensor, " k"]:
        """log of `mean`, computed as log-sum-exps. Not differentiable."""
        rows = distributed.count(len(self), self.embeddings.device)
        if rows == 0:
            raise ValueError("there are no rows to take a mean of")
        return self.column_logsumexp(-self.row_logsumexp()) - math.log(rows)

    def hard(self) -> Int[Tensor, " n"]:
        """The most probable prototype of every row (the first, among equals)."""
        return self._argmax()[0]

    def counts(self) -> Int[Tensor, " k"]:
        """How many rows of all ranks have each prototype as their most probable one."""
        return distributed.sum(torch.bincount(self.hard(), minlength=self.num_prototypes))

    def entropy(self) -> Float[Tensor, ""]:
        """The mean entropy of an assignment, over all ranks. Differentiable (block by block, recomputed)."""
        if self.shard is not None:
            return self.unsharded().entropy()
        if self.adjustment is not None:
            raise ValueError("the entropy of adjusted assignments is not defined here; use `probabilities`")
        rows = max(1, budget(self.prototypes) // (8 * 4 * self.num_prototypes))
        views = 1 if self.offset is None or self.offset.ndim == 1 else len(self.offset)
        total = torch.zeros((), dtype=self.dtype, device=self.embeddings.device)
        for view in (self.view(i, views) for i in range(views)):
            for start, stop in spans(len(view), rows):
                block = replace(view, embeddings=view.embeddings[start:stop])
                total = total + checkpoint(_summed_entropy, block, use_reentrant=False)
        return distributed.mean_rows(total, len(self))

    def confidence(self) -> Float[Tensor, ""]:
        """The mean probability of the most probable prototype, over all ranks. Not differentiable."""
        if self.shard is None and not self._fused:
            logits = self.tiled()
            log_top = reductions.argmax(logits)[1] - reductions.row_logsumexp(logits)
        else:
            log_top = self._argmax()[1] - self.row_logsumexp()
        return distributed.mean_rows(log_top.exp().sum(), len(self))

    def _argmax(self) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        if self._fused:
            return fused.argmax(self)
        if self.shard is None:
            return reductions.argmax(self.tiled())
        logits, rows = self.everywhere()
        where, value = sharded.argmax(logits, self.shard)
        return rows.own(where), rows.own(value)

    def everywhere(self, views: int = 1, dtype: torch.dtype | None = None) -> tuple[Logits, Rows]:
        """Of sharded prototypes what the passes read: the rows of all ranks, on the prototypes of this one."""
        views = self.offset.shape[0] if self.offset is not None and self.offset.ndim == 2 else views
        rows = Rows.of(len(self), views, self.embeddings.device)
        adjustment = self.adjustment
        if adjustment is not None and adjustment.winner is not None:
            adjustment = replace(adjustment, winner=rows.gather(adjustment.winner))
        gathered = replace(self, embeddings=rows.gather(self.embeddings.detach()), adjustment=adjustment)
        return gathered.tiled(views, dtype), rows

    def tiled(self, views: int = 1, dtype: torch.dtype | None = None) -> Logits:
        """What the backends read: detached logits, written tile by tile; `views` says how the rows divide."""
        z, w = self._operands(dtype)
        views = self.offset.shape[0] if self.offset is not None and self.offset.ndim == 2 else views
        offset, peak, adjustment = None, z.new_zeros(len(self), 1), self.adjustment
        widest = _widest(z, w, everywhere=self.shard is not None) / self.temperature
        if self.offset is not None:
            offset = self.offset.detach().to(z).reshape(-1, self.num_prototypes)
            if self.adjustment is None:
                highest = offset.amax(1, keepdim=True)
                if not bool(highest.isfinite().all()):
                    raise ValueError("the offset holds NaN or infinity, or closes every prototype")
                offset = offset - highest
                peak = highest.repeat_interleave(len(self) // len(highest), 0)
        if adjustment is not None:
            widest = adjustment.bound
        if self.shard is not None:
            offset = None if offset is None else self.shard.cut(offset)
            adjustment = None if adjustment is None else adjustment.of(self.shard)
        scores = None if self.held is None else self.held.scores.to(z.dtype).unflatten(0, (views, -1))
        logits = Logits(
            rows=z / self.temperature,
            prototypes=w,
            offset=offset,
            peak=peak,
            views=views,
            adjustment=adjustment,
            scores=scores,
            temperature=self.temperature,
            widest=widest,
            loan=None if self.held is None else self.held.loan,
            products=products_dtype(self.embeddings, self.prototypes),
        )
        safe = widest <= widest_logit(self.num_prototypes, z.dtype)
        return logits if safe else logits.shifted_by_maximum()

    def differentiable(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The operands with their graph, in the dtype in which they are computed."""
        dtype = self.dtype
        offset = None if self.offset is None else self.offset.to(dtype)
        if offset is not None and offset.ndim == 2:
            offset = offset.detach()
        # without gradients the backends are spared from forming them in their forward pass
        if self.adjustment is not None or not torch.is_grad_enabled():
            return *self._operands(), None if offset is None else offset.detach()
        return self.embeddings.to(dtype), self.prototypes.to(dtype), offset

    def _operands(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        dtype = dtype or self.dtype
        return self.embeddings.detach().to(dtype), self.prototypes.detach().to(dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which these assignments are computed: at least float32."""
        return torch.promote_types(torch.promote_types(self.embeddings.dtype, self.prototypes.dtype), torch.float32)

    # ------------------------------------------------------------------------- dense: to read, plot and test
    @no_autocast
    def similarities(self) -> Float[Tensor, "n k"]:
        """The products <embedding, prototype>: cosines, for unit vectors. Dense and differentiable."""
        z, w, _ = self.unsharded().differentiable()
        return z @ w.T

    def logits(self) -> Float[Tensor, "n k"]:
        """Dense and differentiable."""
        logits = self.similarities() / self.temperature
        adjustment = self.adjustment
        if adjustment is not None:
            logits = logits * adjustment.scale
        if self.offset is not None:
            offset = self.offset.to(logits).reshape(-1, self.num_prototypes)
            logits = (logits.unflatten(0, (len(offset), -1)) + offset[:, None]).flatten(0, 1)
        if adjustment is not None and adjustment.winner is not None:
            won = torch.arange(self.num_prototypes, device=logits.device) == adjustment.winner[:, None]
            logits = torch.where(won, logits * adjustment.boost, logits)
        return logits if adjustment is None else logits.clamp(-adjustment.bound, adjustment.bound)

    def log_probabilities(self) -> Float[Tensor, "n k"]:
        """Dense and differentiable."""
        return self.logits().log_softmax(-1)

    def probabilities(self) -> Float[Tensor, "n k"]:
        """Dense and differentiable."""
        return self.log_probabilities().exp()


def dense(scores: Float[Tensor, "n k"], temperature: float = 1.0) -> Assignments:
    """Assignments whose logits are a given matrix of scores (an outside model's outputs, say) / temperature.

    The scores stand as embeddings on one-hot prototypes, k x k numbers more; the gradient reaches them.
    """
    prototypes = torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device)
    return Assignments(scores, prototypes, temperature)


def smooth(assignments: Assignments, amount: float) -> Assignments:
    """Dense assignments with probabilities (1 - amount) p + amount / K: label smoothing, as MSN's code has it."""
    if not 0 <= amount < 1:
        raise ValueError(f"the amount of smoothing lies in [0, 1), got {amount}")
    p = assignments.probabilities()
    return dense(((1 - amount) * p + amount / p.shape[-1]).log())


def _summed_entropy(block: Assignments) -> Tensor:
    log_p = block.log_probabilities()
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum()  # a closed prototype counts 0


def _widest(z: Tensor, w: Tensor, *, everywhere: bool) -> float:
    """A bound of |<z_n, w_k>|, or an error where a number is not finite; `everywhere`, the same on all ranks."""
    norms = z.new_zeros(2)
    for i, x in enumerate((z, w)):
        for part in _parts(x):
            norms[i] = torch.maximum(norms[i], torch.linalg.vector_norm(part, dim=1).max())
    norms = norms.nan_to_num(nan=torch.inf, posinf=torch.inf)
    if everywhere:
        norms = distributed.max(norms)
    bounds = norms.tolist()
    for name, bound in zip(("embeddings", "prototypes"), bounds, strict=True):
        if bound == math.inf:
            raise ValueError(f"the {name} hold numbers that are not finite (NaN or infinity), or too large to multiply")
    return math.prod(bounds)


def _parts(x: Tensor) -> Iterator[Tensor]:
    for start, stop in spans(x.shape[0], 65536):
        yield x[start:stop]
