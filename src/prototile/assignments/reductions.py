"""Reductions over tiles of logits. None of them holds an n x k matrix, none is differentiable."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile import distributed
from prototile.assignments.scratch import borrow
from prototile.assignments.tiles import Exponentials, Logits, images_within, spans

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
def sinkhorn(
    logits: Logits, log_mass: Float[Tensor, " k"], iterations: int, potential: Float[Tensor, " n"] | None
) -> Float[Tensor, " k"]:
    """The column potentials after so many Sinkhorn iterations: columns to `log_mass`, then rows to one.

    `potential` are the rows' potentials to start from (none: start from the logits). One rank makes one pass
    over the prototypes per iteration: a column's scaling is complete within its tile, so the row sums under the
    new scaling are gathered on the same visit. Several ranks need two.
    """
    offset = torch.zeros_like(log_mass)
    for i in range(iterations):
        last = i == iterations - 1
        if distributed.world_size() == 1:
            offset, potential = _columns_then_rows(logits, log_mass, potential, last)
        else:
            offset = log_mass - distributed.logsumexp(column_logsumexp(logits, potential))
            if not last:
                potential = -_row_logsumexp_under(logits, offset)
    return offset


def _columns_then_rows(
    logits: Logits, log_mass: Tensor, potential: Tensor | None, last: bool
) -> tuple[Tensor, Tensor | None]:
    columns = _Columns(logits, potential)
    offset, rows = torch.empty_like(log_mass), torch.zeros_like(logits.base[:, 0])
    mass = log_mass.exp()
    for start, stop in columns.tiles:
        peak, tile = columns.exponentials(start, stop)
        total = tile.sum(0)
        offset[start:stop] = log_mass[start:stop] - total.log() - peak
        if not last:
            rows.addmv_(tile, mass[start:stop] / total)
    if last:
        return offset, None
    if not bool((rows > 0).all()):  # a row so far below the others that its exponentials vanish: rare, done safely
        return offset, -_row_logsumexp_under(logits, offset)
    potential = torch.zeros_like(rows) if potential is None else potential
    return offset, potential - rows.log()


def _row_logsumexp_under(logits: Logits, offset: Tensor) -> Tensor:
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


class _Columns:
    """exp(logit + potential - peak) of all rows, tile by tile, where the peak is the column's maximum."""

    def __init__(self, logits: Logits, potential: Tensor | None):
        num_rows = logits.rows.shape[0]
        tile = max(16, min(logits.num_prototypes, 1024, 2 * _TILE_NUMBERS // max(num_rows, 1)))
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
