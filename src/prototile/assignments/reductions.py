"""Reductions over tiles of logits. None of them holds an n x k matrix, none is differentiable."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile import distributed
from prototile.assignments.scratch import borrow, budget
from prototile.assignments.tiles import Exponentials, Logits, images_within, spans
from prototile.precision import no_autocast

_TILE_NUMBERS = 2**22  # 16 MiB in float32


@torch.no_grad()
def row_logsumexp(logits: Logits) -> Float[Tensor, " n"]:
    """log sum_k exp(logit), per row."""
    out = logits.rows.new_empty(logits.views, logits.images)
    for start, stop in spans(logits.images, images_within(logits, _TILE_NUMBERS)):
        block = logits.block(start, stop)
        exponentials = Exponentials(block)
        for _ in exponentials.accumulate():
            pass
        out[:, start:stop] = (exponentials.total.log() + block.base[:, 0]).view(logits.views, -1)
    return out.flatten()


@torch.no_grad()
def argmax(logits: Logits) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The first largest logit of every row: where it is and its value."""
    where = torch.empty(logits.views, logits.images, dtype=torch.long, device=logits.rows.device)
    value = logits.rows.new_empty(logits.views, logits.images)
    for start, stop in spans(logits.images, images_within(logits, _TILE_NUMBERS)):
        block = logits.block(start, stop)
        exponentials = Exponentials(block)
        best = torch.full_like(block.base[:, 0], -torch.inf)
        at = torch.zeros_like(best, dtype=torch.long)
        for a, b in exponentials.tiles:
            top, index = exponentials.logits(a, b).max(1)
            at = torch.where(top > best, index + a, at)
            best = torch.maximum(top, best)
        where[:, start:stop] = at.view(logits.views, -1)
        value[:, start:stop] = (best + block.base[:, 0]).view(logits.views, -1)
    return where.flatten(), value.flatten()


@torch.no_grad()
def column_logsumexp(logits: Logits, potential: Float[Tensor, " n"] | None = None) -> Float[Tensor, " k"]:
    """log sum_n exp(logit + potential_n), per prototype, over this rank's rows."""
    columns = _Columns(logits, potential)
    out = logits.rows.new_full((logits.num_prototypes,), -torch.inf)
    for start, stop in columns.tiles:
        peak, tile = columns.exponentials(start, stop)
        out[start:stop] = tile.sum(0).log() + peak
    return out


@torch.no_grad()
@no_autocast
def sinkhorn(
    logits: Logits, log_mass: Float[Tensor, " k"], iterations: int, potential: Float[Tensor, " n"] | None
) -> Float[Tensor, " k"]:
    """The column potentials after so many Sinkhorn iterations: columns to `log_mass`, then rows to one.

    `potential` are the rows' potentials to start from (none: start from the logits). One rank makes one pass over the
    prototypes per iteration: a column's scaling is complete within its tile, so the row sums under the new scaling are
    gathered on the same visit; tiles that fit the budget are kept for the next. Several ranks, and logits too wide for
    exponentials, need two passes, in the log domain.
    """
    if distributed.world_size() == 1 and logits.shift is None:
        offset = _scaled_columns(logits, log_mass.exp(), iterations, potential)
        if bool((offset.isfinite() | (log_mass == -torch.inf)).all()):
            return offset
    return alternated(
        log_mass,
        iterations,
        potential,
        rows=lambda offset: row_logsumexp_under(logits, offset),
        columns=lambda potential: distributed.logsumexp(column_logsumexp(logits, potential)),
    )


def alternated(
    log_mass: Float[Tensor, " k"],
    iterations: int,
    potential: Float[Tensor, " n"] | None,
    *,
    rows: Callable[[Tensor], Tensor],
    columns: Callable[[Tensor | None], Tensor],
) -> Float[Tensor, " k"]:
    """Sinkhorn in the log domain, from log-sum-exps of rows under columns' potentials, and of columns under rows'."""
    offset = torch.zeros_like(log_mass)
    for i in range(iterations):
        if i > 0:
            potential = -rows(offset)
        total = columns(potential)
        offset = torch.where(total == -torch.inf, total, log_mass - total)  # out of every row's reach: closed
    return offset


def _scaled_columns(logits: Logits, mass: Tensor, iterations: int, potential: Tensor | None) -> Tensor:
    """The same with exponentials that are scaled; not finite where they over- or underflow."""
    num_rows = logits.rows.shape[0]
    keep = budget(logits.prototypes) // (num_rows * mass.element_size())
    exponentials = Exponentials(logits, keep=keep, tile=_columns_per_tile(num_rows))
    base = logits.base[:, 0]
    row_scale = (base - base.max() if potential is None else potential + base).exp()  # a common factor cancels
    column_scale = torch.empty_like(mass)
    for i in range(iterations):
        rows = torch.zeros_like(row_scale)
        for start, stop in exponentials.tiles:
            tile = exponentials.tile(start, stop)
            scale = mass[start:stop] / (tile.T @ row_scale)
            column_scale[start:stop] = torch.where(mass[start:stop] == 0, 0, scale)
            if i < iterations - 1:
                rows.addmv_(tile, column_scale[start:stop])
        exponentials.filled = True
        row_scale = 1 / rows
    return column_scale.log()


def row_logsumexp_under(logits: Logits, offset: Tensor) -> Tensor:
    """The rows' log-sum-exps with `offset` added to the logits, whatever its range."""
    out = logits.rows.new_empty(logits.views, logits.images)
    for start, stop in spans(logits.images, images_within(logits, _TILE_NUMBERS)):
        block = logits.block(start, stop)
        exponentials = Exponentials(block)
        total = torch.full_like(block.base[:, 0], -torch.inf)
        for a, b in exponentials.tiles:
            tile = exponentials.logits(a, b).add_(offset[a:b])
            total = torch.logaddexp(total, tile.logsumexp(1))
        out[:, start:stop] = (total + block.base[:, 0]).view(logits.views, -1)
    return out.flatten()


def _columns_per_tile(num_rows: int) -> int:
    """As many as leave a tile of all rows within scratch memory."""
    return max(16, min(1024, 2 * _TILE_NUMBERS // max(num_rows, 1)))


class _Columns:
    """exp(logit + potential - peak) of all rows, tile by tile, where the peak is the column's maximum."""

    def __init__(self, logits: Logits, potential: Tensor | None):
        num_rows = logits.rows.shape[0]
        tile = min(logits.num_prototypes, _columns_per_tile(num_rows))
        self.tiles = list(spans(logits.num_prototypes, tile)) if num_rows else []
        self._logits = logits
        self._row = logits.base if potential is None else logits.base + potential[:, None]
        self._loan = borrow(num_rows * tile, logits.rows)

    def exponentials(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        num_rows = self._row.shape[0]
        out = self._loan.tensor[: num_rows * (stop - start)].view(num_rows, stop - start)
        tile = self._logits.write(start, stop, out).add_(self._row)
        peak = tile.amax(0).nan_to_num(neginf=0.0)  # a column of -inf stays empty
        return peak, tile.sub_(peak).exp_()
