"""Priors: how images should spread over prototypes. A prior is called with K and gives K probabilities.

    prior                     pi_k                                    where
    Uniform()                 1 / K                                   MSN, SwAV, DINO (implicitly)
    PowerLaw(exponent)        proportional to k^-exponent, k = 1..K   PMSN, exponent 0.25
    FromCounts(counts)        D_k / D                                 PMSN with the true class sizes
    Explicit(probabilities)   as given

The order is fixed: prototype k always gets pi_k (Assran et al. 2023, section 5, https://arxiv.org/abs/2210.07277).
Probabilities are float64; the parts that use them cast them.
"""

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Numbers = Sequence[float] | np.ndarray | Tensor


class Prior(ABC):
    """How the images should spread over the prototypes."""

    @abstractmethod
    def __call__(self, num_prototypes: int) -> Float[Tensor, " k"]:
        """The probability of each prototype: float64, none negative, summing to one."""


@dataclass(frozen=True)
class Uniform(Prior):
    """Every prototype gets the same share."""

    def __call__(self, num_prototypes: int) -> Float[Tensor, " k"]:
        return _normalized(torch.ones(_positive(num_prototypes), dtype=torch.float64))


@dataclass(frozen=True)
class PowerLaw(Prior):
    r"""$\pi_k \propto k^{-\tau}$, k = 1..K; exponent 0 is uniform (Assran et al. 2023, equation 9)."""

    exponent: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.exponent < float("inf"):
            raise ValueError(f"the exponent of a power law must be finite and at least 0, got {self.exponent}")

    def __call__(self, num_prototypes: int) -> Float[Tensor, " k"]:
        rank = torch.arange(1, _positive(num_prototypes) + 1, dtype=torch.float64)
        return _normalized(rank**-self.exponent)


@dataclass(frozen=True)
class FromCounts(Prior):
    """Shares proportional to counts, as of images per class: one count per prototype."""

    counts: Numbers

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", _checked(self.counts, "counts"))

    def __call__(self, num_prototypes: int) -> Float[Tensor, " k"]:
        return _normalized(_of_length(self.counts, num_prototypes, "counts"))

    @classmethod
    def read(cls, path: str | Path) -> "FromCounts":
        """From a file of numbers: `.npy`, `.txt` (one a line, or separated by spaces) or `.json` (a list)."""
        return cls(_read_numbers(path))


@dataclass(frozen=True)
class Explicit(Prior):
    """The given probabilities; normalised, with a warning, where they do not sum to one."""

    probabilities: Numbers

    def __post_init__(self) -> None:
        values = _checked(self.probabilities, "probabilities")
        total = float(np.sum(values))
        if abs(total - 1) > 1e-6:
            warnings.warn(f"the prior sums to {total:.6g} and is normalised to 1", stacklevel=3)
        object.__setattr__(self, "probabilities", values)

    def __call__(self, num_prototypes: int) -> Float[Tensor, " k"]:
        return _normalized(_of_length(self.probabilities, num_prototypes, "probabilities"))

    @classmethod
    def read(cls, path: str | Path) -> "Explicit":
        """From a file of numbers: `.npy`, `.txt` (one a line, or separated by spaces) or `.json` (a list)."""
        return cls(_read_numbers(path))


def checked_prior(prior: Tensor) -> Float[Tensor, " k"]:
    """A prior over given prototypes, as the parts that match it take it; an error where it is none."""
    if isinstance(prior, Prior):
        raise ValueError(f"call the prior with the number of prototypes first: {prior}(K)")
    if not isinstance(prior, Tensor) or prior.ndim != 1:
        raise ValueError(f"a prior must be a vector of probabilities, got {type(prior).__name__}: use Explicit(...)(K)")
    if prior.is_meta:
        return prior
    _checked(prior.detach().cpu(), "probabilities")
    if abs(float(prior.double().sum()) - 1) > 1e-3:
        raise ValueError(f"a prior must sum to 1, not to {float(prior.double().sum()):.6g}: use FromCounts(...)(K)")
    return prior


def _positive(num_prototypes: int) -> int:
    if num_prototypes != int(num_prototypes):
        raise ValueError(f"the number of prototypes must be a whole number, got {num_prototypes}")
    if num_prototypes < 1:
        raise ValueError(f"a prior needs at least one prototype, got K = {num_prototypes}")
    return num_prototypes


def _normalized(mass: Tensor) -> Tensor:
    return mass / mass.sum()


def _checked(values: Numbers, name: str) -> tuple[float, ...]:
    """As a tuple (hashable, so that priors compare and copy by value), or an error that says what is wrong."""
    if isinstance(values, str | Path):
        raise ValueError(f"{name} of a prior must be numbers; to read them from a file use .read({str(values)!r})")
    array = np.asarray(values.tolist() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} of a prior must be a list of numbers, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name} of a prior must be finite; entry {where} is {array[where]}")
    if (array < 0).any():
        where = int(np.flatnonzero(array < 0)[0])
        raise ValueError(f"{name} of a prior must not be negative; entry {where} is {array[where]}")
    if not array.any():
        raise ValueError(f"{name} of a prior must not be all zero")
    return tuple(array.tolist())


def _of_length(values: Numbers, num_prototypes: int, name: str) -> Tensor:
    if len(values) != num_prototypes:
        raise ValueError(
            f"there are K = {num_prototypes} prototypes but the prior has {len(values)} {name}; "
            "give one per prototype, or change the number of prototypes"
        )
    return torch.as_tensor(values, dtype=torch.float64)


def _read_numbers(path: str | Path) -> tuple[float, ...]:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such file to read a prior from: {path}")
    readers = {
        ".npy": lambda: np.load(path, allow_pickle=False),
        ".txt": lambda: np.array(path.read_text().split(), dtype=np.float64),
        ".json": lambda: np.array(json.loads(path.read_text()), dtype=np.float64),
    }
    if path.suffix not in readers:
        raise ValueError(f"a prior is read from {', '.join(readers)}, not from {path.name}")
    try:
        return tuple(np.asarray(readers[path.suffix](), dtype=np.float64).reshape(-1).tolist())
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path} does not hold a list of numbers: {error}") from error
