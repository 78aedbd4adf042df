"""Images of an audit: small ones by number, and which are shown.

    Pictures(source)                    thumbnails, as data URIs
    neighbor_sheets(x, labels)          some images and their nearest others

n images, d dims.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.distances import nearest_images
from prototile.data.source import BadImage, Source
from prototile.reports import page

SIDE = 64


class Pictures:
    """Thumbnails of a source's images, at most `side` pixels wide; what cannot be read is left out.

    Audits number images by rows of embeddings: row i is image `rows[i]` of the source, or image i without `rows`.
    """

    def __init__(self, source: Source, *, rows: Int[np.ndarray, " n"] | None = None, side: int = SIDE):
        self._source: Final = source
        self._rows: Final = np.arange(len(source)) if rows is None else np.asarray(rows)
        if len(self._rows) and not (self._rows.min() >= 0 and self._rows.max() < len(source)):
            raise ValueError(
                f"there are images 0 to {len(source) - 1}, but the rows speak of {self._rows.min()} to "
                f"{self._rows.max()}: give the source that the embeddings were made of"
            )
        self._side: Final = side
        self._made: Final[dict[int, str | None]] = {}

    def __len__(self) -> int:
        """How many rows there are, readable or not."""
        return len(self._rows)

    def __getitem__(self, row: int) -> str | None:
        """The image of a row as a data URI; none where it cannot be read."""
        if row not in self._made:
            self._made[row] = self._make(int(self._rows[row]))
        return self._made[row]

    def id(self, row: int) -> str:
        return self._source.id(int(self._rows[row]))

    def label(self, row: int) -> str | None:
        """The name of an image's class, where it has one."""
        labels = self._source.labels
        if labels is None or labels.ndim != 1:
            return None
        label = int(labels[self._rows[row]])
        return self.class_name(label) if label >= 0 else None

    def class_name(self, label: int) -> str:
        names = self._source.classes
        return names[label] if names is not None and label < len(names) else f"class {label}"

    def caption(self, row: int) -> str:
        label = self.label(row)
        return self.id(row) if label is None else f"{label}\n{self.id(row)}"

    @property
    def skipped(self) -> int:
        """Images that were asked for and could not be read."""
        return sum(made is None for made in self._made.values())

    def _make(self, index: int) -> str | None:
        try:
            return page.photo(self._source.image(index), self._side)
        except BadImage:
            return None


@dataclass(frozen=True)
class Sheet:
    """An image and the nearest others, the nearest first; rows of the embeddings."""

    query: int
    nearest: tuple[int, ...]
    cosines: tuple[float, ...]


@torch.no_grad()
def neighbor_sheets(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"] | None = None,
    *,
    number: int = 12,
    neighbors: int = 8,
    seed: int = 0,
) -> tuple[Sheet, ...]:
    """For some images, seeded, the nearest others by cosine; with labels, of as many classes as there are queries."""
    neighbors = min(neighbors, len(x) - 1)
    if neighbors < 1:
        return ()
    queries = torch.tensor(_queries(len(x), labels, number, seed))
    nearest = nearest_images(x, queries, neighbors)
    cosines = torch.cosine_similarity(x[queries][:, None].float(), x[nearest].float(), dim=-1)
    return tuple(
        Sheet(query, tuple(rows), tuple(found))
        for query, rows, found in zip(queries.tolist(), nearest.tolist(), cosines.tolist(), strict=True)
    )


def _queries(images: int, labels: Tensor | None, number: int, seed: int) -> Sequence[int]:
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed)).tolist()
    if labels is None:
        return order[:number]
    known = labels.tolist()
    first: dict[int, int] = {}
    for row in order:
        first.setdefault(known[row], row)
    if len(first) >= number:
        return [first[label] for label in sorted(first)[:: len(first) // number]][:number]
    rest = [row for row in order if row not in set(first.values())]
    return [*(first[label] for label in sorted(first)), *rest[: number - len(first)]]
