"""Rows on one side, prototypes on the other: the passes of the kernels over either, view by view.

n rows = v views x b images (view-major), k prototypes, d dims. Nothing is read back from the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prototile.assignments.tiles import Logits, widest_logit
from prototile.kernels import Sums, launch
from prototile.kernels.launch import Form


@dataclass(frozen=True, eq=False)
class Side:
    """What the logits of some rows are made of."""

    rows: Tensor  # n x d, in the dtype of the products
    prototypes: Tensor  # k x d, likewise
    temperature: float
    offset: Tensor | None = None  # v x k, less its maximum
    peak: Tensor | None = None  # v x 1, that maximum
    scale: Tensor | None = None  # k: adjusted logits, see `tiles.Adjustment`
    winner: Tensor | None = None  # n
    bound: float = 0.0
    boost: float = 1.0

    @classmethod
    def of(
        cls,
        dtype: torch.dtype,
        rows: Tensor,
        prototypes: Tensor,
        temperature: float,
        offset: Tensor | None = None,
        scale: Tensor | None = None,
        winner: Tensor | None = None,
        bound: float = 0.0,
        boost: float = 1.0,
    ) -> "Side":
        """From numbers of any dtype."""
        operands = rows.detach().to(dtype).contiguous(), prototypes.detach().to(dtype).contiguous()
        side = cls(*operands, temperature, winner=winner, bound=bound, boost=boost)
        if scale is not None:
            assert offset is not None
            return replace(side, offset=offset.float().reshape(1, -1), scale=scale.float().contiguous())
        return side if offset is None else side.under(offset.detach())

    @classmethod
    def of_logits(cls, logits: Logits) -> "Side":
        """From what other backends read; `Logits.peak` is left to who subtracts."""
        dtype, adjustment = logits.products or torch.float32, logits.adjustment
        side = cls(logits.rows.to(dtype).contiguous(), logits.prototypes.to(dtype).contiguous(), 1.0)
        side = replace(side, offset=None if logits.offset is None else logits.offset.float())
        if adjustment is None:
            return side
        scale = adjustment.scale.float().contiguous()
        return replace(side, scale=scale, winner=adjustment.winner, bound=adjustment.bound, boost=adjustment.boost)

    def as_values(self, x: Tensor | None) -> Tensor | None:
        """What is multiplied with weights: bfloat16 where operands are half precision, for float16 lacks the range."""
        if x is None:
            return None
        return x.to(torch.float32 if self.rows.dtype == torch.float32 else torch.bfloat16).contiguous()

    def under(self, offset: Tensor) -> "Side":
        """With this as the offset, one row for all views or one row each."""
        offset = offset.float().reshape(-1, len(self.prototypes))
        peak = offset.amax(1, keepdim=True)
        return replace(self, offset=offset - peak, peak=peak)

    def parts(self) -> Iterator[tuple[slice, Form]]:
        """The rows that share an offset, and how their products become logits."""
        offsets = [None] if self.offset is None else list(self.offset.contiguous())
        step = len(self.rows) // len(offsets)
        for i, offset in enumerate(offsets):
            rows = slice(i * step, (i + 1) * step)
            winner = None if self.winner is None else self.winner[rows]
            yield rows, Form(1 / self.temperature, offset, self.scale, winner, self.bound, self.boost)

    def row_peaks(self) -> Tensor:
        """n: what the passes' logits lack."""
        if self.peak is None:
            return self.rows.new_zeros((), dtype=torch.float32).expand(len(self.rows))
        return self.peak.flatten().repeat_interleave(len(self.rows) // len(self.peak))

    def widest(self) -> Tensor:
        """A bound of the logits' cosines / temperature, on the device; 0 where there is nothing."""
        if self.scale is not None:
            return self.rows.new_full((), self.bound, dtype=torch.float32)
        norms = (torch.linalg.vector_norm(x, dim=1, dtype=torch.float32) for x in (self.rows, self.prototypes))
        largest = [norm.max() if len(norm) else norm.new_zeros(()) for norm in norms]
        return largest[0] * largest[1] / self.temperature


def over_rows(
    side: Side,
    *,
    subtract: Tensor,
    values: Tensor | None = None,
    extra: Tensor | None = None,
    gain: Tensor | None = None,
) -> Sums:
    """Per row, over the prototypes: weights exp(logit_nk - subtract_n) gain_k, and their products."""
    parts = [
        launch.attend(
            side.rows[part],
            side.prototypes,
            form,
            by_rows=True,
            subtract_queries=subtract[part],
            gain_keys=gain,
            values=values,
            extra=extra,
        )
        for part, form in side.parts()
    ]
    if len(parts) == 1:
        return parts[0]
    products = [part.products for part in parts if part.products is not None]
    extras = [part.extra for part in parts if part.extra is not None]
    return Sums(
        torch.cat([part.total for part in parts]),
        torch.cat(products) if products else None,
        torch.cat(extras) if extras else None,
    )


def over_prototypes(
    side: Side,
    *,
    subtract: Tensor,
    values: Tensor | None = None,
    extra: Tensor | None = None,
    alpha: Tensor | None = None,
    gain: Tensor | None = None,
    into: Sums | None = None,
) -> Sums:
    """Per prototype, over the rows: weights exp(logit_nk - subtract_n) (alpha_n + gain_k), and their products.

    They are added to those of `into`, in place, where it is given.
    """
    for part, form in side.parts():
        rows = side.rows[part]
        into = launch.attend(
            side.prototypes,
            rows,
            form,
            by_rows=False,
            subtract_keys=subtract[part],
            gain_keys=None if alpha is None else alpha[part],
            gain_queries=gain,
            values=None if values is None else rows if values is side.rows else values[part],
            extra=None if extra is None else extra[part],
            into=into,
        )
    assert into is not None
    return into


def normalizers(side: Side, *, values: Tensor | None = None, extra: Tensor | None = None) -> tuple[Tensor, Sums]:
    """Per row the log of the sum of exponentials, and what is expected of values and extra numbers.

    Where vectors are not short enough for plain sums, the rows' maxima are found first.
    """
    needed = side.widest() > widest_logit(len(side.prototypes), torch.float32)
    shift = torch.cat(
        [launch.peaks(side.rows[part], side.prototypes, form, needed, by_rows=True) for part, form in side.parts()]
    )
    sums = over_rows(side, subtract=shift, values=values, extra=extra)
    expected = Sums(
        sums.total,
        None if sums.products is None else sums.products.div_(sums.total[:, None]),
        None if sums.extra is None else sums.extra.div_(sums.total),
    )
    return sums.total.log() + shift, expected


def column_logsumexp(side: Side, potential: Tensor | None) -> Tensor:
    """Per prototype log sum_n exp(logit_nk + potential_n), over this rank's rows."""
    added = side.row_peaks() if potential is None else side.row_peaks() + potential
    largest = added.abs().max() if len(added) else added.new_zeros(())
    needed = side.widest() + largest > widest_logit(max(len(added), 1), torch.float32)
    columns = []
    for part, form in side.parts():
        rows, subtract = side.rows[part], -added[part]
        shift = launch.peaks(side.prototypes, rows, form, needed, by_rows=False, subtract_keys=subtract)
        sums = launch.attend(side.prototypes, rows, form, by_rows=False, subtract_queries=shift, subtract_keys=subtract)
        columns.append(sums.total.log() + shift)
    return columns[0] if len(columns) == 1 else torch.stack(columns).logsumexp(0)


def largest(side: Side) -> tuple[Tensor, Tensor]:
    """Per row the first prototype with the largest logit, and that logit."""
    found = [launch.largest(side.rows[part], side.prototypes, form) for part, form in side.parts()]
    return torch.cat([where for _, where in found]), torch.cat([top for top, _ in found]) + side.row_peaks()
