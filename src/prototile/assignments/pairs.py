"""Which teacher view teaches which student view, and how much every row counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """Weights of the cross-entropies between views: sum over t, s, b of views[t][s] rows[b] H(q_tb, p_sb).

    `views` has one row per teacher view and one column per student view. `rows` weighs the images (or masked
    patches); without it every row of a view counts 1 / b, a mean.
    """

    views: tuple[tuple[float, ...], ...]
    rows: Float[Tensor, " b"] | None = None

    def __post_init__(self) -> None:
        lengths = {len(row) for row in self.views}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"pairs must be a teacher x student table of weights, got {self.views!r}")
        if not all(0 <= weight < float("inf") for row in self.views for weight in row):
            raise ValueError(f"the weights of pairs must be finite and not negative, got {self.views!r}")

    @classmethod
    def cross(cls, teacher_views: int, student_views: int) -> "Pairs":
        """Every teacher view with every *other* student view, equally (DINO, SwAV, iBOT's cls token)."""
        count = teacher_views * student_views - min(teacher_views, student_views)
        if count <= 0:
            raise ValueError(
                f"{teacher_views} teacher and {student_views} student views have no pair of different views"
            )
        return cls(
            tuple(tuple(0.0 if s == t else 1 / count for s in range(student_views)) for t in range(teacher_views))
        )

    @classmethod
    def every(cls, teacher_views: int, student_views: int) -> "Pairs":
        """Every teacher view with every student view, equally (MSN: one target view, all anchors)."""
        if teacher_views < 1 or student_views < 1:
            raise ValueError(f"there must be views to pair, got {teacher_views} and {student_views}")
        weight = 1 / (teacher_views * student_views)
        return cls(((weight,) * student_views,) * teacher_views)

    @classmethod
    def same(cls, views: int = 1) -> "Pairs":
        """Every view with itself, equally (masked patches)."""
        return cls(tuple(tuple(1 / views if s == t else 0.0 for s in range(views)) for t in range(views)))

    @classmethod
    def masked(cls, mask: Bool[Tensor, "i p"]) -> "Pairs":
        """Masked patches, gathered in row-major order: per image the mean, then the mean over images.

        An image without a masked patch counts as zero and stays in the mean (iBOT, DINOv2).
        """
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise ValueError(f"a mask must be boolean, images x patches, got {mask.dtype} of shape {tuple(mask.shape)}")
        weights = 1 / mask.sum(1, keepdim=True).clamp(min=1).double() / mask.shape[0]
        return cls.same().weighing(weights.expand(mask.shape)[mask])

    @classmethod
    def weighted(cls, views: Sequence[Sequence[float]] | Float[Tensor, "t s"]) -> "Pairs":
        """Any table of weights."""
        table = views.tolist() if isinstance(views, Tensor) else views
        return cls(tuple(tuple(float(weight) for weight in row) for row in table))

    def weighing(self, rows: Float[Tensor, " b"]) -> "Pairs":
        """The same pairs with a weight for every row of a view."""
        return replace(self, rows=rows)

    def times(self, factor: float) -> "Pairs":
        """The same pairs with all weights multiplied."""
        return replace(self, views=tuple(tuple(factor * weight for weight in row) for row in self.views))

    def row_weights(self, like: Float[Tensor, "n d"]) -> Float[Tensor, " b"]:
        """The weight of every row of a view, where `like` holds the rows of all student views."""
        count = like.shape[0] // len(self.views[0])
        if self.rows is None:
            return like.new_full((count,), 1 / max(count, 1))
        if self.rows.shape[0] != count:
            raise ValueError(f"there are {count} rows in a student view but {self.rows.shape[0]} row weights")
        return self.rows.to(like)

    def table(self, like: Tensor) -> Float[Tensor, "t s"]:
        return torch.tensor(self.views, dtype=like.dtype, device=like.device)
