"""Parts of labelled images: what semi-supervised protocols learn from, and what hyper-parameters are chosen on.

    stratified(source, share)    the same share of every class: 1%, 10%
    held_out(source, share)      what is left to train on, and a part to validate on
    named(source, ids)           the images of a list, such as ImageNet's official 1%
    listed(file)                 the ids that a file names
    numbers_of(wanted, ids)      the numbers of images by their ids
    some_of(source, limit)       at most so many images, whatever their labels
    drawn(labels, seed)          the images of each class, in the order that all of these take them

Axes: n images, m of them that are kept, c classes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int

from prototile.data.longtail import class_labels
from prototile.data.source import Source, Subset
from prototile.views.randomness import Stream, generator

_SHOWN = 5  # names in a message


def stratified(source: Source, share: float, *, seed: int = 0) -> Subset:
    """`share` of the images of every class, rounded, but one at least; in the order of `source`.

    Only `seed` decides in which order a class's images come, so that a larger share has all of a smaller one's.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share lies in (0, 1], got {share}: 0.01 is one image in a hundred")
    labels = class_labels(source.labels)
    kept = [images[: max(1, round(share * len(images)))] for images in drawn(labels, seed)]
    return Subset(source, np.sort(np.concatenate(kept)))


def held_out(source: Source, share: float, *, seed: int = 0) -> tuple[Subset, Subset]:
    """The images to train on, and `share` of every class that has two, one at least, to validate on."""
    if not 0 < share < 1:
        raise ValueError(f"the share that is held out lies in (0, 1), got {share}")
    labels = class_labels(source.labels)
    held = np.zeros(len(labels), bool)
    for images in drawn(labels, seed):
        if len(images) > 1:
            held[images[len(images) - min(max(1, round(share * len(images))), len(images) - 1) :]] = True
    if not held.any():
        raise ValueError("every class has one image only: none can be held out, so give images to validate on")
    return Subset(source, ~held), Subset(source, held)


def named(source: Source, ids: Iterable[str]) -> Subset:
    """The images with these ids, in the order of `source`; the last part of a path is enough where it is unique."""
    return Subset(source, numbers_of(ids, [source.id(i) for i in range(len(source))]))


def listed(file: Path) -> list[str]:
    """The ids that a file names, one a line."""
    lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [line.strip() for line in lines if line.strip()]


def numbers_of(wanted: Iterable[str], ids: Sequence[str]) -> Int[np.ndarray, " m"]:
    """The numbers, in order, of the images that are wanted among those with these ids; names of files are enough.

    ImageNet's lists name files (n01440764_10026.JPEG), ids are paths (n01440764/n01440764_10026.JPEG).
    """
    wanted = list(dict.fromkeys(wanted))
    if not wanted:
        raise ValueError("the list names no images")
    whole = {id: number for number, id in enumerate(ids)}
    names = Counter(PurePosixPath(id).name for id in whole)
    short = {PurePosixPath(id).name: number for id, number in whole.items()}
    if twice := [id for id in wanted if id not in whole and names[id] > 1]:
        raise ValueError(f"several images are called {', '.join(twice[:_SHOWN])}: give their whole ids")
    if missing := [id for id in wanted if id not in whole and id not in short]:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} images of the list are not in this data: {', '.join(missing[:_SHOWN])}; "
            f"ids look like {ids[0] if ids else '(there are none)'}"
        )
    return np.array(sorted({whole.get(id, short.get(id, -1)) for id in wanted}), np.int64)


def some_of(source: Source, limit: int | None, seed: int = 0) -> Source:
    """At most so many images, drawn at random and kept in order."""
    if limit is None or limit >= len(source):
        return source
    return Subset(source, np.sort(np.random.default_rng(seed).permutation(len(source))[:limit]))


def drawn(labels: Int[np.ndarray, " n"], seed: int) -> Iterator[Int[np.ndarray, " _m"]]:
    """The images of each class that has some, in an order that only the seed decides; -1 is no class."""
    known = np.flatnonzero(labels >= 0)
    order = known[np.argsort(labels[known], kind="stable")]
    classes, counts = np.unique(labels[order], return_counts=True)
    for k, images in zip(classes, np.split(order, np.cumsum(counts))[: len(classes)], strict=True):
        yield generator(seed, Stream.SUBSET, 0, int(k)).permutation(images)
