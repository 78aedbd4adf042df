"""Parts of labelled images by number, drawn by a seed: what is learned from, and what hyper-parameters are chosen on.

    held_out(labels, share)      numbers to train on, and numbers to validate with
    some_of_each(labels, k)      so many images of each class
    share_of_each(labels, share) the same share of each class
    write_ids, read_ids          lists of images that others can use

A seed gives a class's images one order (`prototile.data.subsets.drawn`): a larger part has all of a smaller one's.

n images, m of them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from prototile.data.subsets import drawn, listed, numbers_of
from prototile.views.randomness import Stream, generator

Numbers = Int[Tensor, " _m"]


def held_out(labels: Int[Tensor, " n *c"], share: float = 0.2, *, seed: int = 0) -> tuple[Numbers, Numbers]:
    """Numbers to train on, and of those to validate with: `share` of each class that has two, one at least.

    Images of several classes are drawn without regard to them; those without a label (-1) are in neither.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share that is held out lies in (0, 1), got {share}")
    if labels.ndim == 2:
        order = generator(seed, Stream.SUBSET, 0, 0).permutation(len(labels))
        held = order[len(order) - max(1, round(share * len(order))) :]
        rest = np.setdiff1d(order, held)
    else:
        parts = list(drawn(labels.numpy(), seed))
        cuts = [len(part) - (min(max(1, round(share * len(part))), len(part) - 1)) for part in parts]
        held = np.concatenate([part[cut:] for part, cut in zip(parts, cuts, strict=True)] or [np.empty(0, np.int64)])
        rest = np.concatenate([part[:cut] for part, cut in zip(parts, cuts, strict=True)] or [np.empty(0, np.int64)])
    if len(held) == 0 or len(rest) == 0:
        raise ValueError(
            "no class has two labelled images, so that none can be held out: give images to validate with, or choose "
            'on the test images, select_on="test"'
        )
    return _numbers(rest), _numbers(held)


def some_of_each(labels: Int[Tensor, " n"], count: int, *, seed: int = 0) -> Numbers:
    """`count` images of every class; an error where a class has fewer."""
    if count < 1:
        raise ValueError(f"a class needs at least one image, got {count}")
    parts = list(drawn(labels.numpy(), seed))
    if few := [int(labels[part[0]]) for part in parts if len(part) < count]:
        raise ValueError(
            f"{len(few)} classes have fewer than {count} images, class {few[0]} the first of them: ask for fewer"
        )
    return _numbers(np.concatenate([part[:count] for part in parts]))


def share_of_each(labels: Int[Tensor, " n"], share: float, *, seed: int = 0) -> Numbers:
    """`share` of the images of every class, rounded, but one at least."""
    if not 0 < share <= 1:
        raise ValueError(f"share lies in (0, 1], got {share}: 0.01 is one image in a hundred")
    return _numbers(np.concatenate([part[: max(1, round(share * len(part)))] for part in drawn(labels.numpy(), seed)]))


def write_ids(file: Path, ids: Sequence[str]) -> None:
    """One id a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{id}\n" for id in ids), encoding="utf-8", errors="surrogateescape")


def read_ids(file: Path, ids: Sequence[str]) -> Numbers:
    """The numbers of the images that a list names, among images with these ids; names of files are enough."""
    try:
        return _numbers(numbers_of(listed(file), ids))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _numbers(numbers: Int[np.ndarray, " m"]) -> Numbers:
    return torch.from_numpy(np.sort(numbers).astype(np.int64))
