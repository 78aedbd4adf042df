"""Logits and their exponentials, one tile of prototypes at a time.

n rows = v views x b images (view-major), d dims, k prototypes; a tile is the columns [start, stop).

Unit vectors bound their logits by 1 / temperature, so exp needs no running maximum: sums over tiles are plain
sums. Where the bound is too wide for the dtype, the rows are shifted by their maximum (one more pass).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.assignments.scratch import Loan, borrow
from prototile.distributed import Shard


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What a balancer may change beyond an offset, on the way from a score to a logit; for targets only.

    logit = clamp(boost * (scale_k * score / temperature + offset_k), -bound, bound), where the boost applies to
    one `winner` per row, if any. Explicit balancing (ExCB) needs it.
    """

    scale: Float[Tensor, " k"]
    bound: float
    winner: Int[Tensor, " n"] | None = None
    boost: float = 1.0

    def of(self, shard: Shard) -> "Adjustment":
        """Of a rank's prototypes; winners that others hold lie outside."""
        winner = None if self.winner is None else self.winner - shard.start
        return replace(self, scale=shard.cut(self.scale), winner=winner)


@dataclass(frozen=True, eq=False)
class Logits:
    """The logits of some rows, written tile by tile. Detached, in float32 or float64; made by `Assignments`."""

    rows: Float[Tensor, "n d"]  # embeddings / temperature
    prototypes: Float[Tensor, "k d"]
    offset: Float[Tensor, "u k"] | None  # one row, or one per view; less its maximum
    peak: Float[Tensor, "n 1"]  # that maximum
    views: int = 1
    adjustment: Adjustment | None = None
    scores: Float[Tensor, "v b k"] | None = None  # held products <embedding, prototype>
    temperature: float = 1.0
    shift: Float[Tensor, "n 1"] | None = None  # subtracted from every row, where its logits are wide
    widest: float = 0.0  # a bound of what is written, either way
    loan: Loan | None = None  # keeps the held products from being lent to others
    products: torch.dtype | None = None  # in which kernels multiply

    @property
    def base(self) -> Float[Tensor, "n 1"]:
        """What the written logits lack."""
        return self.peak if self.shift is None else self.peak + self.shift

    @property
    def images(self) -> int:
        return self.rows.shape[0] // self.views

    @property
    def num_prototypes(self) -> int:
        return self.prototypes.shape[0]

    def block(self, start: int, stop: int) -> "Logits":
        """The rows of the images [start, stop), in each view."""
        if (start, stop) == (0, self.images):
            return self

        def take(x: Tensor) -> Tensor:
            return x.unflatten(0, (self.views, -1))[:, start:stop].flatten(0, 1)

        adjustment = self.adjustment
        if adjustment is not None and adjustment.winner is not None:
            adjustment = replace(adjustment, winner=take(adjustment.winner))
        scores = None if self.scores is None else self.scores[:, start:stop]
        return replace(
            self,
            rows=take(self.rows),
            peak=take(self.peak),
            adjustment=adjustment,
            scores=scores,
            shift=None if self.shift is None else take(self.shift),
        )

    def write(self, start: int, stop: int, out: Tensor) -> Tensor:
        """The tile [start, stop) of the logits, less `base`, written into `out`."""
        offset = None if self.offset is None else self.offset[:, start:stop]
        scale = None if self.adjustment is None else self.adjustment.scale[start:stop]
        by_view = out.view(self.views, -1, stop - start)
        if self.scores is not None and offset is not None and scale is None:
            torch.add(offset[:, None], self.scores[:, :, start:stop], alpha=1 / self.temperature, out=by_view)
            offset = None
        elif self.scores is not None:
            torch.mul(self.scores[:, :, start:stop], 1 / self.temperature, out=by_view)
        elif offset is not None and offset.shape[0] == 1 and scale is None:
            torch.addmm(offset[0], self.rows, self.prototypes[start:stop].T, out=out)
            offset = None
        else:
            torch.mm(self.rows, self.prototypes[start:stop].T, out=out)
        if scale is not None:
            out.mul_(scale)
        if offset is not None:
            by_view.add_(offset[:, None])
        if self.adjustment is not None:
            self._boost(start, stop, out)
            out.clamp_(-self.adjustment.bound, self.adjustment.bound)
        if self.shift is not None:
            out.sub_(self.shift)
        return out

    def _boost(self, start: int, stop: int, out: Tensor) -> None:
        assert self.adjustment is not None
        winner = self.adjustment.winner
        if winner is not None:
            here = torch.nonzero((winner >= start) & (winner < stop)).flatten()
            out[here, winner[here] - start] *= self.adjustment.boost

    def shifted_by_maximum(self) -> "Logits":
        """The same logits with every row's maximum subtracted: the safe form for wide logits."""
        if self.shift is not None:
            return self
        shift = torch.empty_like(self.peak)
        for start, stop in spans(self.images, images_within(self, 2**20)):
            exponentials = Exponentials(self.block(start, stop))
            best = torch.full_like(exponentials.total, -math.inf)
            for a, b in exponentials.tiles:
                best = torch.maximum(best, exponentials.logits(a, b).amax(1))
            best.clamp_(min=torch.finfo(best.dtype).min)  # a rank may hold none but closed prototypes
            shift.unflatten(0, (self.views, -1))[:, start:stop] = best.view(self.views, -1, 1)
        return replace(self, shift=shift, widest=0.0)  # every row's exponentials sum to between 1 and k


class Exponentials:
    """exp(logits) of a block of rows, tile by tile. Tiles of the first `keep` prototypes are computed once."""

    def __init__(self, logits: Logits, *, keep: int = 0, tile: int | None = None):
        num_prototypes = logits.num_prototypes
        tile = min(tile or tile_size(logits.rows.device), num_prototypes)
        self.source = logits
        self.num_rows = logits.rows.shape[0]
        self.tiles = list(spans(num_prototypes, tile))
        self.kept = num_prototypes if keep >= num_prototypes else keep // tile * tile
        self.filled = False
        self.total = logits.rows.new_zeros(self.num_rows)  # the normaliser, once every tile was visited
        spare = 0 if self.kept == num_prototypes else tile
        self._loan = borrow(self.num_rows * (self.kept + spare), logits.rows)

    def logits(self, start: int, stop: int) -> Tensor:
        """A tile of logits, where its exponentials belong: exponentiate it in place."""
        return self.source.write(start, stop, self._slot(start, stop))

    def tile(self, start: int, stop: int) -> Tensor:
        """A tile of exponentials."""
        if self.filled and start < self.kept:
            return self._slot(start, stop)
        return self.logits(start, stop).exp_()

    def accumulate(self) -> Iterator[tuple[int, int, Tensor]]:
        """The first visit of every tile: its exponentials; `total` is complete afterwards."""
        for start, stop in self.tiles:
            tile = self.logits(start, stop).exp_()
            self.total += tile.sum(1)
            yield start, stop, tile
        self.filled = True

    def fill(self) -> None:
        """Compute the kept tiles anew, for a visit after the scratch memory was used for another block."""
        if not self.filled:
            for start, stop in self.tiles:
                if start < self.kept:
                    self.logits(start, stop).exp_()
            self.filled = True

    def _slot(self, start: int, stop: int) -> Tensor:
        first = self.num_rows * min(start, self.kept)  # tiles that are not kept share the place behind the others
        return self._loan.tensor[first : first + self.num_rows * (stop - start)].view(self.num_rows, stop - start)


def spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    """[0, step), [step, 2 step), ... up to `length`."""
    for start in range(0, length, step):
        yield start, min(start + step, length)


def tile_size(device: torch.device) -> int:
    """Prototypes per tile: a tile of a few hundred rows should stay in a CPU's cache, or fill a GPU."""
    return 1024 if device.type == "cpu" else 8192


def images_within(logits: Logits, numbers: int) -> int:
    """The images of which one tile has at most so many numbers (at least one image)."""
    tile = min(tile_size(logits.rows.device), logits.num_prototypes)
    return max(1, numbers // (tile * logits.views))


def widest_logit(num_prototypes: int, dtype: torch.dtype) -> float:
    """The largest |logit| for which sums of exponentials over all prototypes neither over- nor underflow."""
    return math.log(torch.finfo(dtype).max) - math.log(num_prototypes) - 1
