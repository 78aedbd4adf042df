"""All pairs of directions looked at once, in tiles on and above the diagonal: what a cover and its neighbours need.

    closeness(x, epsilons)    how many each row covers at every epsilon, its nearest other row, and the close pairs

Close pairs are few in a healthy run and kept; a row that covers many is `heavy`: it is looked at again when it is its
turn, and of such rows a cover needs few. So memory is a tile and at most `budget` pairs, whatever k.

k rows (unit vectors), e epsilons from the smallest on, p directed pairs.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

BORDERLINE = 1e-6  # rounding of a float32 product may turn distances that lie as close to epsilon

_BLOCK = 1024  # 4 MiB of float32 products at a time: a CPU's cache
_BLOCK_GPU = 8192
_PAIRS = 2**22  # directed ones that are kept, unless there are more rows than a 16th of that
_LEAST, _MOST = 16, 128  # pairs that are kept of a row
_FEW = 0.05  # share of a tile's pairs up to which they are listed; more are counted only
_FEW_IN_A_ROW = 16  # of a tile, up to which they are listed all the same


@dataclass(frozen=True, eq=False)
class Pairs:
    """Directed pairs of rows, `level` being the first epsilon at which the source covers the target.

    All pairs of row i whose level is below `complete[i]` are here; of the others some are missing.
    """

    source: Int[Tensor, " p"]
    target: Int[Tensor, " p"]
    level: UInt8[Tensor, " p"]
    complete: Int[Tensor, " k"]

    def at(self, level: int) -> tuple[Int[Tensor, " q"], Int[Tensor, " q"]]:
        """Sources and targets of the pairs at an epsilon, of rows that have all of theirs."""
        here = (self.level <= level) & (self.complete[self.source] > level)
        return self.source[here].long(), self.target[here].long()


@dataclass(frozen=True, eq=False)
class Closeness:
    """What one look at all pairs gives. `degrees` count the row itself, `borderline` undirected pairs."""

    epsilons: tuple[float, ...]
    degrees: Int[Tensor, "e k"]
    borderline: tuple[int, ...]
    nearest: Int[Tensor, " k"] | None
    pairs: Pairs


def closeness(x: Float[Tensor, "k d"], epsilons: tuple[float, ...], *, neighbors: bool = False) -> Closeness:
    """K^2 D / 2 multiply-adds in float32; `neighbors` asks for the nearest other row too. Epsilons rise."""
    if any(b - a <= 2 * BORDERLINE for a, b in pairwise(epsilons)):
        raise ValueError(f"epsilons that differ by less than {2 * BORDERLINE:g} cannot be told apart, got {epsilons}")
    sweep = _Sweep(x, epsilons, neighbors)
    block = sweep.block
    scratch = x.new_empty(block**2)
    for row in range(0, len(x), block):
        rows = slice(row, min(row + block, len(x)))
        for column in range(row, len(x), block):
            columns = slice(column, min(column + block, len(x)))
            shape = rows.stop - row, columns.stop - column
            tile = torch.mm(x[rows], x[columns].T, out=scratch[: shape[0] * shape[1]].view(shape))
            if row == column:
                tile.fill_diagonal_(-torch.inf)
            sweep.take(tile, rows, columns)
    return sweep.result()


class _Sweep:
    """Takes tiles in, one after the other."""

    def __init__(self, x: Tensor, epsilons: tuple[float, ...], neighbors: bool):
        k, device = len(x), x.device
        self.epsilons, self.thresholds = epsilons, [1 - epsilon for epsilon in epsilons]
        self.degrees = torch.ones(len(epsilons), k, dtype=torch.int32, device=device)
        self.borderline = torch.zeros(len(epsilons), dtype=torch.long, device=device)
        self.x, self.neighbors = x, neighbors
        self.best, self.where = x.new_full((k,), -torch.inf), torch.zeros(k, dtype=torch.long, device=device)
        self.complete = torch.full((k,), len(epsilons), dtype=torch.long, device=device)
        bounds = [-(threshold + side) for threshold in self.thresholds for side in (BORDERLINE, -BORDERLINE)]
        self.bounds = torch.tensor(bounds, dtype=x.dtype, device=device)
        self.exact = torch.tensor([*self.thresholds, -torch.inf], dtype=x.dtype, device=device)
        self.block = block = min(_BLOCK_GPU if x.is_cuda else _BLOCK, k)
        self.mask, self.ones = x.new_empty(block**2), x.new_ones(block)
        self.most = min(max(_LEAST, _PAIRS // k), _MOST)  # pairs that a row may have and still be complete
        none = torch.empty(0, dtype=torch.int32, device=device)
        self.stored = [(none, none, none.to(torch.uint8))]
        self.fresh = 0

    def take(self, tile: Tensor, rows: slice, columns: slice) -> None:
        same = rows == columns
        if self.neighbors:
            top = float(self._improve(tile.amax(1), rows, columns.start))
            if not same:
                self._improve(tile.amax(0), columns, rows.start)
        else:
            top = float(tile.max())
        level = len(self.epsilons) - 1
        while level >= 0 and top > self.thresholds[level] - BORDERLINE:
            where = _above(tile, self.thresholds[level] - BORDERLINE, max(_FEW * tile.numel(), len(tile)))
            if where is not None:
                self._list(tile, where, rows, columns, level)
                return
            self._count(tile, level, rows, columns)
            level -= 1

    def _improve(self, top: Tensor, part: slice, tile: int) -> Tensor:
        """Remembers of each row in which tile its nearest was, and gives the largest of all; see `_nearest`."""
        better = top > self.best[part]
        self.where[part] = torch.where(better, tile, self.where[part])
        torch.maximum(self.best[part], top, out=self.best[part])
        return top.max()

    def _nearest(self) -> Int[Tensor, " k"]:
        """The nearest rows, by one more product of each row with the tile in which its nearest was."""
        index = torch.zeros_like(self.where)
        order = self.where.argsort(stable=True)
        tiles, counts = self.where.unique(return_counts=True)
        for start, rows in zip(tiles.tolist(), order.split(counts.tolist()), strict=True):
            others = self.x[start : start + self.block]
            for few in rows.split(self.block):
                cosines = self.x[few] @ others.T
                own = ((few >= start) & (few < start + len(others))).nonzero().flatten()
                cosines[own, few[own] - start] = -torch.inf
                index[few] = cosines.argmax(1) + start
        return index

    def _count(self, tile: Tensor, level: int, rows: slice, columns: slice) -> None:
        """Degrees at an epsilon at which there are many pairs; those are kept of which a side has few."""
        threshold, same = self.thresholds[level], rows == columns
        covered = self.mask[: tile.numel()].view_as(tile)
        ones = self.ones[: tile.shape[1]], self.ones[: len(tile)]
        if float(torch.sub(tile, threshold, out=covered).abs_().min()) < BORDERLINE:
            near = _count_below(covered, BORDERLINE)
            self.borderline[level] += near // 2 if same else near
        torch.gt(tile, threshold, out=covered)
        found = covered @ ones[0], covered.T @ ones[1]  # products with ones are the fastest sums
        for part, count in zip((rows, columns)[: 1 if same else 2], found, strict=False):
            self.degrees[level, part] += count.to(torch.int32)
            many = count > _FEW_IN_A_ROW
            self.complete[part] = torch.where(many, self.complete[part].clamp(max=level), self.complete[part])
        few = [((count > 0) & (count <= _FEW_IN_A_ROW)).nonzero().flatten() for count in found]
        self._keep_exactly(tile[few[0]], few[0] + rows.start, columns.start, level)
        if not same:
            self._keep_exactly(tile.T[few[1]], few[1] + columns.start, rows.start, level)

    def _keep_exactly(self, cosines: Tensor, rows: Tensor, start: int, level: int) -> None:
        """Pairs of these rows with this level; closer ones come with their own epsilon."""
        covered = cosines > self.thresholds[level]
        if level:
            covered &= cosines <= self.thresholds[level - 1]
        row, column = covered.nonzero(as_tuple=True)
        self._keep(rows[row], column + start, torch.full_like(row, level, dtype=torch.uint8), level)

    def _list(self, tile: Tensor, where: Tensor, rows: slice, columns: slice, level: int) -> None:
        """Degrees and pairs at this epsilon and all smaller ones."""
        same = rows == columns
        cosines = tile.flatten()[where]
        row, column = where // tile.shape[1], where % tile.shape[1]
        levels, near = self._levels(cosines)
        self.borderline[: level + 1] += (near // 2 if same else near)[: level + 1]
        for part, local in ((rows, row), (columns, column))[: 1 if same else 2]:
            counts = torch.bincount(local * (len(self.epsilons) + 1) + levels, minlength=self._bins(part))
            counts = counts.view(part.stop - part.start, -1).cumsum(1)[:, : level + 1]
            self.degrees[: level + 1, part] += counts.T.to(torch.int32)
            light = (self.degrees[:, part] - 1 <= self.most).sum(0)  # degrees rise with epsilon
            self.complete[part] = torch.minimum(self.complete[part], light)
        row, column, levels = row + rows.start, column + columns.start, levels.to(torch.uint8)
        self._keep(row, column, levels, level)
        if not same:
            self._keep(column, row, levels, level)

    def _bins(self, part: slice) -> int:
        return (part.stop - part.start) * (len(self.epsilons) + 1)

    def _levels(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        """The first epsilon that covers each pair, their number where none does; and borderline pairs of each."""
        bins = torch.bucketize(-cosines, self.bounds, right=True)  # even: between two epsilons, odd: on one
        near = torch.bincount(bins, minlength=len(self.bounds) + 1)[1::2]
        levels = bins >> 1
        if bool(near.any()):
            levels += (bins & 1).bool() & (cosines <= self.exact[levels])
        return levels, near

    def _keep(self, source: Tensor, target: Tensor, levels: Tensor, level: int) -> None:
        wanted = (levels <= level) & (levels < self.complete[source])
        found = source[wanted].to(torch.int32), target[wanted].to(torch.int32), levels[wanted]
        if len(found[0]):
            self.stored.append(found)
            self.fresh += len(found[0])
        if self.fresh > _PAIRS // 2:
            self._compact()

    def _compact(self) -> None:
        """Lets go of pairs of rows that have become heavy."""
        kept = []
        while self.stored:
            source, target, levels = self.stored.pop()
            wanted = levels < self.complete[source]
            kept.append((source[wanted], target[wanted], levels[wanted]))
        source, target, levels = (torch.cat(parts) for parts in zip(*kept, strict=True))
        self.stored, self.fresh = [(source, target, levels)], 0

    def result(self) -> Closeness:
        self._compact()
        pairs = Pairs(*self.stored[0], self.complete)
        nearest = self._nearest() if self.neighbors else None
        return Closeness(self.epsilons, self.degrees, tuple(self.borderline.tolist()), nearest, pairs)


def _above(tile: Tensor, threshold: float, most: float) -> Int[Tensor, " q"] | None:
    """Where a tile's numbers exceed the threshold; none where more than `most` do."""
    if tile.is_cuda:
        close = tile > threshold
        return close.flatten().nonzero().flatten() if int(close.sum()) <= most else None
    close = tile.numpy() > threshold  # several times as fast as torch at this
    return torch.from_numpy(np.flatnonzero(close)) if np.count_nonzero(close) <= most else None


def _count_below(tile: Tensor, threshold: float) -> int:
    return int((tile < threshold).sum()) if tile.is_cuda else int(np.count_nonzero(tile.numpy() < threshold))
