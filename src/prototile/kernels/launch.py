"""Launching the kernels: which tiles a GPU has room for, how many programs share the keys, and null pointers.

Where there are fewer blocks of queries than a GPU has processors, several programs share a block's keys, each with a
span of them; their sums are added up afterwards in a fixed order, so that results are the same on every call.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from prototile.kernels import Sums, code, tf32_allowed

_MOST_PARTS = 64
_attend: Any = code.attend  # what Triton makes of functions has no type to check against
_largest_of: Any = code.largest


@dataclass(frozen=True)
class Tiles:
    """Queries and keys of a tile, and how a program works through them."""

    queries: int
    keys: int
    warps: int
    stages: int

    def shared_bytes(self, dims: int, itemsize: int, *, values: bool) -> int:
        """The shared memory that a program takes: queries once, keys and values once per stage, the halves of numbers
        that three TF32 products need, and what Triton adds to it.
        """
        vectors = self.queries + self.stages * self.keys * (2 if values else 1)
        halves = self.queries + self.keys if itemsize == 4 else 0
        return (vectors + halves) * padded(dims) * itemsize + 2048


@functools.cache
def tiles(dims: int, itemsize: int, *, values: bool, room: int) -> Tiles | None:
    """The largest tiles that fit in so many bytes of shared memory, if any do.

    128 queries of 256 dims in half precision, with 64 keys, are as many as the registers of eight warps hold.
    """
    queries = min(128, max(32, 2**16 // (padded(dims) * itemsize)))
    keys = min(64 if padded(dims) >= 256 else 128, queries)
    choice = Tiles(queries, keys, warps=8 if queries >= 64 else 4, stages=4)
    while choice.shared_bytes(dims, itemsize, values=values) > room:
        if choice.stages > 2:
            choice = replace(choice, stages=choice.stages - 1)
        elif choice.keys > 32:
            choice = replace(choice, keys=choice.keys // 2)
        elif choice.stages > 1:
            choice = replace(choice, stages=1)
        elif choice.queries > 32:
            choice = replace(choice, queries=choice.queries // 2)
        else:
            return None
    return choice


def padded(dims: int) -> int:
    """Triton's tiles have a power of two of dims, and its products at least 16."""
    return max(16, triton.next_power_of_2(dims))


@functools.cache
def _device(device: torch.device) -> tuple[int, int]:
    """Shared memory of a program, and processors; in the interpreter more than enough, and two."""
    if device.type == "cpu":
        return 2**20, 2
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin, properties.multi_processor_count


def fits(device: torch.device, dims: int, itemsize: int) -> bool:
    """Whether vectors of so many dims fit into shared memory."""
    most = 512 if device.type == "cpu" else 1024 // itemsize  # beyond, tiles are too small to be fast
    return dims <= most and tiles(dims, itemsize, values=True, room=_device(device)[0]) is not None


@dataclass(frozen=True, eq=False)
class Form:
    """How a product of a row with a prototype becomes a logit; see `code`."""

    inverse: float  # 1 / temperature
    offset: Tensor | None = None  # per prototype
    scale: Tensor | None = None  # per prototype; with it the clamp to [-bound, bound]
    winner: Tensor | None = None  # per row
    bound: float = 0.0
    boost: float = 1.0

    def numbers(self) -> tuple[float, float, float]:
        return self.inverse, self.bound, self.boost

    def pointers(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        winner = None if self.winner is None else self.winner.to(torch.int32)
        return self.offset, self.scale, winner

    def flags(self, by_rows: bool) -> dict[str, bool]:
        return {
            "BY_ROWS": by_rows,
            "HAS_OFFSET": self.offset is not None,
            "ADJUSTED": self.scale is not None,
            "HAS_WINNER": self.winner is not None,
        }


def attend(
    queries: Tensor,
    keys: Tensor,
    form: Form,
    *,
    by_rows: bool,
    subtract_queries: Tensor | None = None,
    subtract_keys: Tensor | None = None,
    gain_queries: Tensor | None = None,
    gain_keys: Tensor | None = None,
    values: Tensor | None = None,
    extra: Tensor | None = None,
    into: Sums | None = None,
) -> Sums:
    """Sums of weights, of weighted values and weighted extra numbers, per query; added to those of `into`, in place."""
    count, d = queries.shape
    chosen = tiles(d, queries.element_size(), values=values is not None and values is not keys, room=_room(queries))
    assert chosen is not None
    parts, span = _parts(count, len(keys), chosen, queries.device)
    if into is not None and parts == 1:
        sums, add = into, True
    else:
        part = queries.new_empty((parts, count), dtype=torch.float32)
        products = None if values is None else part.new_empty(parts, count, d)
        sums, add = Sums(part, products, None if extra is None else torch.empty_like(part)), False
    if count:
        _attend[(triton.cdiv(count, chosen.queries), parts)](
            queries, keys, values, *form.pointers(),
            subtract_queries, subtract_keys, gain_queries, gain_keys, extra, *sums,
            count, len(keys), d, *form.numbers(), span,
            **form.flags(by_rows),
            HAS_SUBTRACT_Q=subtract_queries is not None, HAS_SUBTRACT_K=subtract_keys is not None,
            HAS_GAIN_Q=gain_queries is not None, HAS_GAIN_K=gain_keys is not None,
            HAS_VALUES=values is not None, KEYS_ARE_VALUES=values is keys, HAS_EXTRA=extra is not None,
            ADD=add,
            VALUE=tl.float32 if queries.dtype == torch.float32 else tl.bfloat16,
            **_tiling(chosen, queries, exact=not tf32_allowed()),
        )  # fmt: skip
    if add:
        return sums
    sums = sums.each(lambda x: x[0] if parts == 1 else x.sum(0))
    if into is None:
        return sums
    for x, y in zip(into, sums, strict=True):
        if x is not None and y is not None:
            x.add_(y)
    return into


def largest(
    queries: Tensor,
    keys: Tensor,
    form: Form,
    *,
    by_rows: bool = True,
    subtract_keys: Tensor | None = None,
    others_only: bool = False,
    exact: bool = False,
) -> tuple[Tensor, Tensor]:
    """Per query the largest logit, and the first key that has it; `exact`: whatever torch allows."""
    best, where = _largest(queries, keys, form, by_rows, subtract_keys, None, others_only, exact, places=True)
    assert where is not None
    top = best.amax(0)
    first = torch.where(best == top, where, torch.iinfo(torch.int32).max).amin(0)
    return top, first.long()


def peaks(
    queries: Tensor, keys: Tensor, form: Form, needed: Tensor, *, by_rows: bool, subtract_keys: Tensor | None = None
) -> Tensor:
    """Per query the largest logit where the flag `needed` is set, on the device; 0 where not, at no cost."""
    flag = needed.to(torch.int32)
    best, _ = _largest(queries, keys, form, by_rows, subtract_keys, flag, False, False, places=False)
    return torch.where(needed, best.amax(0).nan_to_num(neginf=0.0), 0.0)


def _largest(
    queries: Tensor,
    keys: Tensor,
    form: Form,
    by_rows: bool,
    subtract_keys: Tensor | None,
    needed: Tensor | None,
    others_only: bool,
    exact: bool,
    *,
    places: bool,
) -> tuple[Tensor, Tensor | None]:
    count, d = queries.shape
    chosen = tiles(d, queries.element_size(), values=False, room=_room(queries))
    assert chosen is not None
    parts, span = _parts(count, len(keys), chosen, queries.device)
    best = queries.new_zeros((parts, count), dtype=torch.float32)
    where = torch.zeros_like(best, dtype=torch.int32) if places else None
    if count:
        _largest_of[(triton.cdiv(count, chosen.queries), parts)](
            queries, keys, *form.pointers(), subtract_keys, needed, best, where,
            count, len(keys), d, *form.numbers(), span,
            **form.flags(by_rows), HAS_SUBTRACT_K=subtract_keys is not None, IF_NEEDED=needed is not None,
            OTHERS_ONLY=others_only, HAS_WHERE=places,
            **_tiling(chosen, queries, exact=exact or not tf32_allowed()),
        )  # fmt: skip
    return best, where


@torch.no_grad()
def trial(device: torch.device, dims: int, dtype: torch.dtype) -> str | None:
    """The kernels on a few vectors, beside plain PyTorch: what is wrong with them there, if anything is."""
    generator = torch.Generator().manual_seed(0)
    q, k = (
        torch.nn.functional.normalize(torch.randn(count, dims, generator=generator), dim=1).to(device, dtype)
        for count in (70, 150)
    )
    try:
        sums = attend(q, k, Form(10.0), by_rows=True, values=k)
        top, where = largest(q, k, Form(1.0))
    except Exception as error:  # of Triton, of its compiler, of the driver
        return f"Triton fails here ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
    cosines = q.double() @ k.double().T
    weights = (10 * cosines).exp()
    assert sums.products is not None
    pairs = (
        (sums.total, weights.sum(1)),
        (sums.products, weights @ k.double()),
        (top, cosines.amax(1)),
        (cosines.gather(1, where[:, None])[:, 0], cosines.amax(1)),
    )
    error = max(float((x.double() - y).abs().max() / y.abs().max()) for x, y in pairs)
    return None if error < 2e-2 else f"they give wrong numbers on this device (deviation {error:.1e})"


def _parts(queries: int, keys: int, chosen: Tiles, device: torch.device) -> tuple[int, int]:
    """Among how many programs the keys of a block are shared, and how many of them each has."""
    blocks, most = max(1, math.ceil(queries / chosen.queries)), max(1, math.ceil(keys / chosen.keys))
    parts = min(most, _MOST_PARTS, max(1, math.ceil(2 * _device(device)[1] / blocks)))
    span = math.ceil(most / parts) * chosen.keys
    return max(1, math.ceil(keys / span)), span


def _room(x: Tensor) -> int:
    return _device(x.device)[0]


def _tiling(chosen: Tiles, vectors: Tensor, *, exact: bool) -> dict[str, object]:
    d = vectors.shape[1]
    return {
        "PRECISION": "tf32x3" if exact else "tf32",
        "WIDEN": vectors.device.type == "cpu" and vectors.dtype != torch.float32,
        "EVEN": d == padded(d),
        "BQ": chosen.queries,
        "BK": chosen.keys,
        "BD": padded(d),
        "num_warps": chosen.warps,
        "num_stages": chosen.stages,
        "enable_fp_fusion": True,
    }
