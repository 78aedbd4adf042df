r"""Triton kernels: attention of one side's vectors over the other's, with softmax replaced by plain exponentials.

Queries q and keys k are rows and prototypes, or prototypes and rows (`BY_ROWS` says which); their logit is

    l_qk = <q, k> / temperature + offset,     or clamp(boost (scale <q, k> / temperature + offset), -bound, bound),

where offset and scale belong to the prototype of the two, and the boost to one winning prototype per row.

    attend      per query  sum_k e_qk,  sum_k e_qk v_k,  sum_k e_qk x_k,   e_qk = exp(l_qk - s_q - s_k) (g_q + g_k)
    largest     per query  the largest l_qk - s_k, and the first key that has it

All sums are plain: logits are bounded, or what is subtracted makes them so. A program owns some queries and a span of
the keys; spans are added up outside, in a fixed order. Products are summed in float32. Unused pointers are null.
"""

from typing import no_type_check

import triton
import triton.language as tl


@no_type_check
@triton.jit
def _rows(POINTER, index, inside, d, dims, EVEN: tl.constexpr):
    """The vectors at `index`, zeros outside."""
    places = POINTER + index.to(tl.int64)[:, None] * d + dims[None, :]
    mask = inside[:, None] if EVEN else inside[:, None] & (dims[None, :] < d)
    return tl.load(places, mask=mask, other=0.0)


@no_type_check
@triton.jit
def _product(a, b, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:  # Triton's interpreter takes bfloat16 for integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@no_type_check
@triton.jit
def _logits(
    q, k, queries, keys, is_query, is_key, OFFSET, SCALE, WINNER, inverse, bound, boost,
    BY_ROWS: tl.constexpr, HAS_OFFSET: tl.constexpr, ADJUSTED: tl.constexpr, HAS_WINNER: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    logits = _product(q, tl.trans(k), PRECISION, WIDEN) * inverse
    if BY_ROWS:
        if ADJUSTED:
            logits *= tl.load(SCALE + keys, mask=is_key, other=0.0)[None, :]
        if HAS_OFFSET:
            logits += tl.load(OFFSET + keys, mask=is_key, other=0.0)[None, :]
        if HAS_WINNER:
            winner = tl.load(WINNER + queries, mask=is_query, other=-1)
            logits = tl.where(winner[:, None] == keys[None, :], logits * boost, logits)
    else:
        if ADJUSTED:
            logits *= tl.load(SCALE + queries, mask=is_query, other=0.0)[:, None]
        if HAS_OFFSET:
            logits += tl.load(OFFSET + queries, mask=is_query, other=0.0)[:, None]
        if HAS_WINNER:
            winner = tl.load(WINNER + keys, mask=is_key, other=-1)
            logits = tl.where(winner[None, :] == queries[:, None], logits * boost, logits)
    if ADJUSTED:
        logits = tl.minimum(tl.maximum(logits, -bound), bound)
    return logits


@no_type_check
@triton.jit
def attend(
    Q, K, V, OFFSET, SCALE, WINNER, SUBTRACT_Q, SUBTRACT_K, GAIN_Q, GAIN_K, EXTRA, TOTAL, PRODUCTS, EXTRAS,
    num_queries, num_keys, d, inverse, bound, boost, span,
    BY_ROWS: tl.constexpr, HAS_OFFSET: tl.constexpr, ADJUSTED: tl.constexpr, HAS_WINNER: tl.constexpr,
    HAS_SUBTRACT_Q: tl.constexpr, HAS_SUBTRACT_K: tl.constexpr, HAS_GAIN_Q: tl.constexpr, HAS_GAIN_K: tl.constexpr,
    HAS_VALUES: tl.constexpr, KEYS_ARE_VALUES: tl.constexpr, HAS_EXTRA: tl.constexpr, ADD: tl.constexpr,
    VALUE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, EVEN: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    queries, dims = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.arange(0, BD)
    is_query = queries < num_queries
    q = _rows(Q, queries, is_query, d, dims, EVEN)
    total = tl.zeros((BQ,), tl.float32)
    extras = tl.zeros((BQ,), tl.float32)
    products = tl.zeros((BQ, BD), tl.float32)
    first = part * span
    last = tl.minimum(first + span, num_keys)
    for start in range(first, last, BK):
        keys = start + tl.arange(0, BK)
        is_key = keys < last
        k = _rows(K, keys, is_key, d, dims, EVEN)
        logits = _logits(
            q, k, queries, keys, is_query, is_key, OFFSET, SCALE, WINNER, inverse, bound, boost,
            BY_ROWS, HAS_OFFSET, ADJUSTED, HAS_WINNER, PRECISION, WIDEN,
        )  # fmt: skip
        if HAS_SUBTRACT_Q:
            logits -= tl.load(SUBTRACT_Q + queries, mask=is_query, other=0.0)[:, None]
        if HAS_SUBTRACT_K:
            logits -= tl.load(SUBTRACT_K + keys, mask=is_key, other=0.0)[None, :]
        weights = tl.exp(tl.where(is_query[:, None] & is_key[None, :], logits, float("-inf")))
        if HAS_GAIN_Q and HAS_GAIN_K:
            gain_q = tl.load(GAIN_Q + queries, mask=is_query, other=0.0)
            gain_k = tl.load(GAIN_K + keys, mask=is_key, other=0.0)
            weights *= gain_q[:, None] + gain_k[None, :]
        elif HAS_GAIN_Q:
            weights *= tl.load(GAIN_Q + queries, mask=is_query, other=0.0)[:, None]
        elif HAS_GAIN_K:
            weights *= tl.load(GAIN_K + keys, mask=is_key, other=0.0)[None, :]
        total += tl.sum(weights, 1)
        if HAS_EXTRA:
            extras += tl.sum(weights * tl.load(EXTRA + keys, mask=is_key, other=0.0)[None, :], 1)
        if HAS_VALUES:
            if KEYS_ARE_VALUES:
                values = k
            else:
                values = _rows(V, keys, is_key, d, dims, EVEN)
            products += _product(weights.to(VALUE), values.to(VALUE), PRECISION, WIDEN)
    place = part.to(tl.int64) * num_queries + queries
    if ADD:
        total += tl.load(TOTAL + place, mask=is_query, other=0.0)
    tl.store(TOTAL + place, total, mask=is_query)
    if HAS_EXTRA:
        if ADD:
            extras += tl.load(EXTRAS + place, mask=is_query, other=0.0)
        tl.store(EXTRAS + place, extras, mask=is_query)
    if HAS_VALUES:
        places = PRODUCTS + place[:, None] * d + dims[None, :]
        inside = is_query[:, None] & (dims[None, :] < d)
        if ADD:
            products += tl.load(places, mask=inside, other=0.0)
        tl.store(places, products, mask=inside)


@no_type_check
@triton.jit
def largest(
    Q, K, OFFSET, SCALE, WINNER, SUBTRACT_K, NEEDED, BEST, WHERE,
    num_queries, num_keys, d, inverse, bound, boost, span,
    BY_ROWS: tl.constexpr, HAS_OFFSET: tl.constexpr, ADJUSTED: tl.constexpr, HAS_WINNER: tl.constexpr,
    HAS_SUBTRACT_K: tl.constexpr, IF_NEEDED: tl.constexpr, OTHERS_ONLY: tl.constexpr, HAS_WHERE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, EVEN: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """`OTHERS_ONLY`: a query is no key of its own. `IF_NEEDED`: where the flag NEEDED is 0, none is looked at."""
    part = tl.program_id(1)
    queries, dims = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.arange(0, BD)
    is_query = queries < num_queries
    first = part * span
    last = tl.minimum(first + span, num_keys)
    if IF_NEEDED:
        last = tl.where(tl.load(NEEDED) != 0, last, first)
    q = _rows(Q, queries, is_query, d, dims, EVEN)
    best = tl.full((BQ,), float("-inf"), tl.float32)
    where = tl.zeros((BQ,), tl.int32)
    for start in range(first, last, BK):
        keys = start + tl.arange(0, BK)
        is_key = keys < last
        k = _rows(K, keys, is_key, d, dims, EVEN)
        logits = _logits(
            q, k, queries, keys, is_query, is_key, OFFSET, SCALE, WINNER, inverse, bound, boost,
            BY_ROWS, HAS_OFFSET, ADJUSTED, HAS_WINNER, PRECISION, WIDEN,
        )  # fmt: skip
        if HAS_SUBTRACT_K:
            logits -= tl.load(SUBTRACT_K + keys, mask=is_key, other=0.0)[None, :]
        logits = tl.where(is_key[None, :], logits, float("-inf"))
        if OTHERS_ONLY:
            logits = tl.where(queries[:, None] == keys[None, :], float("-inf"), logits)
        top = tl.max(logits, 1)
        if HAS_WHERE:
            where = tl.where(top > best, start + tl.argmax(logits, 1), where)
        best = tl.maximum(best, top)
    place = part.to(tl.int64) * num_queries + queries
    tl.store(BEST + place, best, mask=is_query)
    if HAS_WHERE:
        tl.store(WHERE + place, where, mask=is_query)
