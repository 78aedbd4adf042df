"""Results as plain numbers, lists and words: strict JSON, where what is no number (NaN, infinity) is null.

plain(value)           anything that an audit holds
Histogram              counts in bins
quantiles(x)           least, quarters, greatest
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_DIGITS = 7  # that a list of numbers is written with: what float32 holds


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` numbers lie in [edges[i], edges[i + 1]); the last bin holds its upper edge too."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, bins: int = 50, low: float | None = None, high: float | None = None) -> "Histogram":
        """Of all numbers, in equal bins between their extremes or the given ones; what lies outside is left out."""
        numbers = x.detach().double().flatten().cpu().numpy()
        numbers = numbers[np.isfinite(numbers)]
        extremes = (numbers.min(), numbers.max()) if len(numbers) else (0.0, 0.0)
        low, high = (float(e if given is None else given) for e, given in zip(extremes, (low, high), strict=True))
        counts, edges = np.histogram(numbers, bins, (low, high if high > low else low + 1e-6))
        return cls(tuple(edges.tolist()), tuple(counts.tolist()))

    def as_dict(self) -> dict[str, Any]:
        return {"edges": plain(self.edges), "counts": list(self.counts)}


def quantiles(x: Float[Tensor, " n"]) -> dict[str, float | None]:
    """The least and greatest finite number, median, quarters and mean; null where there are none."""
    numbers = x.detach().double().cpu().numpy()
    numbers = numbers[np.isfinite(numbers)]
    names = ("min", "lower quarter", "median", "upper quarter", "max")
    if not len(numbers):
        return dict.fromkeys((*names, "mean"), None)
    found = np.quantile(numbers, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {name: plain(value) for name, value in zip((*names, "mean"), (*found, float(numbers.mean())), strict=True)}


def plain(value: Any) -> Any:
    """The value as strict JSON takes it; dataclasses by their fields, or as they say themselves."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
        case Tensor() | np.ndarray():
            return plain(value.tolist())
        case Mapping():
            return {str(key): plain(each) for key, each in value.items()}
        case Sequence():
            return [plain(each) for each in value]
        case torch.dtype() | torch.device():
            return str(value)
    own = getattr(type(value), "as_dict", None)
    if own is not None:
        return plain(own(value))
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} has no form in JSON")
