r"""The two passes on which everything over shards of prototypes stands: sums of exponentials, by row and by prototype.

    over_rows         sum over this rank's prototypes k, for every row n      weight_nk = exp(l_nk - subtract_n) gain_k
    over_prototypes   sum over all rows n, for every prototype k of this rank
                                                               weight_nk = exp(l_nk - subtract_n) (alpha_n + gain_k)

Here l are the true logits, as `Assignments.logits` has them: what `Logits.write` gives, with its `base` added back.
Passes of several ranks over their parts of the prototypes therefore fit together whenever their `subtract` is the same.
They are made in tiles, or by kernels where these serve.

n rows (v views x b images, view-major), d dims, k prototypes.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from prototile.assignments import fused
from prototile.assignments.plan import fuses
from prototile.assignments.tiles import Exponentials, Logits, images_within, spans
from prototile.kernels import Sums
from prototile.precision import no_autocast

_TILE_NUMBERS = 2**22  # 16 MiB in float32


@torch.no_grad()
@no_autocast
def over_rows(
    logits: Logits,
    *,
    subtract: Float[Tensor, " n"],
    values: Float[Tensor, "k d"] | None = None,
    extra: Float[Tensor, " k"] | None = None,
    gain: Float[Tensor, " k"] | None = None,
) -> Sums:
    """For every row, sums over the prototypes of weights exp(logit - subtract), times the prototypes' gain."""
    if fuses(logits.rows, logits.products):
        return fused.over_rows(logits, subtract=subtract, values=values, extra=extra, gain=gain)
    sums = _zeros(logits, len(subtract), values, extra)
    logits = _less(logits, subtract)
    for start, stop in spans(logits.images, images_within(logits, _TILE_NUMBERS)):
        exponentials = Exponentials(logits.block(start, stop))
        found = _zeros(logits, exponentials.num_rows, values, extra)
        for a, b in exponentials.tiles:
            weight = exponentials.tile(a, b)
            if gain is not None:
                weight.mul_(gain[a:b])
            found.total.add_(weight.sum(1))
            if values is not None and found.products is not None:
                found.products.addmm_(weight, values[a:b])
            if extra is not None and found.extra is not None:
                found.extra.addmv_(weight, extra[a:b])
        for whole, part in ((sums.total, found.total), (sums.products, found.products), (sums.extra, found.extra)):
            if whole is not None and part is not None:
                whole.unflatten(0, (logits.views, -1))[:, start:stop] = part.unflatten(0, (logits.views, -1))
        del exponentials  # hands its scratch memory on to the next block
    return sums


@torch.no_grad()
@no_autocast
def over_prototypes(
    logits: Logits,
    *,
    subtract: Float[Tensor, " n"],
    values: Float[Tensor, "n d"] | None = None,
    extra: Float[Tensor, " n"] | None = None,
    gain: Float[Tensor, " k"] | None = None,
    alpha: Float[Tensor, " n"] | None = None,
) -> Sums:
    """For every prototype, sums over the rows of weights exp(logit - subtract), times alpha + gain where given."""
    if fuses(logits.rows, logits.products):
        return fused.over_prototypes(logits, subtract=subtract, values=values, extra=extra, gain=gain, alpha=alpha)
    sums = _zeros(logits, logits.num_prototypes, values, extra)
    logits = _less(logits, subtract)

    def by_image(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.unflatten(0, (logits.views, -1))

    values, extra, alpha = by_image(values), by_image(extra), by_image(alpha)
    for start, stop in spans(logits.images, images_within(logits, _TILE_NUMBERS)):
        exponentials = Exponentials(logits.block(start, stop))
        rows, more, factor = (None if x is None else x[:, start:stop].flatten(0, 1) for x in (values, extra, alpha))
        for a, b in exponentials.tiles:
            weight = exponentials.tile(a, b)
            if factor is not None:
                weight.mul_(factor[:, None] if gain is None else factor[:, None] + gain[a:b])
            elif gain is not None:
                weight.mul_(gain[a:b])
            sums.total[a:b] += weight.sum(0)
            if rows is not None and sums.products is not None:
                sums.products[a:b].addmm_(weight.T, rows)
            if more is not None and sums.extra is not None:
                sums.extra[a:b].addmv_(weight.T, more)
        del exponentials  # hands its scratch memory on to the next block
    return sums


def _less(logits: Logits, subtract: Tensor) -> Logits:
    """The same rows, written as the true logits less `subtract`."""
    return replace(logits, shift=subtract[:, None] - logits.peak)


def _zeros(logits: Logits, count: int, values: Tensor | None, extra: Tensor | None) -> Sums:
    like = logits.rows
    products = None if values is None else like.new_zeros(count, values.shape[1])
    return Sums(like.new_zeros(count), products, None if extra is None else like.new_zeros(count))
