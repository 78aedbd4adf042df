"""What `prototile demo` measured, as its page and its file show it: plain numbers.

Result      all of it: settings, machine, arms, runs, pictures, prices
Arm         one way to train
Run         one arm with one seed: measured along the way, before and after
Sheet       images of some clusters
Query       a test image and its nearest training images, before and after training
Prices      what codes pay under a prior, exactly
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev


@dataclass(frozen=True)
class Arm:
    """One way to train; all else is equal."""

    key: str
    label: str
    balancer: str  # "centering" or "explicit"
    koleo: float  # weight of KoLeo-proto
    prototype_decay: float


@dataclass(frozen=True)
class Point:
    """In the middle of a run."""

    step: int
    loss: float | None  # none before the first step
    unique: int  # M of the student


@dataclass(frozen=True)
class Snapshot:
    """Of a network before or after training; sizes from the largest on, prototypes without images at the end."""

    unique: int
    teacher_unique: int
    groups: tuple[int, ...]  # how many prototypes each unique one stands for
    sizes: tuple[int, ...]  # training images of each prototype
    knn: float

    @property
    def empty(self) -> float:
        """The share of prototypes without an image."""
        return sum(size == 0 for size in self.sizes) / len(self.sizes)

    @property
    def used(self) -> int:
        return sum(size > 0 for size in self.sizes)

    @property
    def largest(self) -> float:
        """The largest cluster, relative to an equal share."""
        return max(self.sizes) * len(self.sizes) / sum(self.sizes)


@dataclass(frozen=True)
class Warned:
    """A warning of the watch, word for word: what it saw, what that means and what to try."""

    step: int
    name: str
    seen: str
    advice: str


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    seconds: float
    curve: tuple[Point, ...]
    before: Snapshot
    after: Snapshot
    warnings: tuple[Warned, ...] = ()


@dataclass(frozen=True)
class Picture:
    """An image as it came, row by row, values from 0 to 16."""

    label: str
    pixels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Cluster:
    """A prototype's images, the nearest first; `rank` among the used ones from the largest on."""

    rank: int
    size: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Sheet:
    arm: str
    seed: int
    clusters: tuple[Cluster, ...]


@dataclass(frozen=True)
class Query:
    picture: Picture
    before: tuple[Picture, ...]
    after: tuple[Picture, ...]


@dataclass(frozen=True)
class Price:
    """KL(marginal || prior) of perfect codes, for one exponent of the long tail, which is that of the prior too."""

    exponent: float
    tailed_under_uniform: float
    uniform_under_tailed: float
    tailed_under_tailed: float
    uniform_under_uniform: float


@dataclass(frozen=True)
class Prices:
    """`tailed` and `uniform`: what codes pay over the exponents of the prior; the tail's exponent is `shown`."""

    num_prototypes: int
    table: tuple[Price, ...]
    shown: float
    exponents: tuple[float, ...]
    tailed: tuple[float, ...]
    uniform: tuple[float, ...]


@dataclass(frozen=True)
class Settings:
    """Equal in all arms."""

    num_prototypes: int
    steps: int
    batch: int
    lr: float
    train_images: int
    test_images: int
    epsilon: float  # prototypes closer than this cosine distance count as one


@dataclass(frozen=True)
class Machine:
    processor: str
    cores: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Result:
    """All that was measured."""

    when: str
    seconds: float
    quick: bool
    seeds: tuple[int, ...]
    settings: Settings
    machine: Machine
    arms: tuple[Arm, ...]
    runs: tuple[Run, ...]
    sheets: tuple[Sheet, ...]
    queries: tuple[Query, ...]
    queries_arm: str
    prices: Prices

    def arm(self, key: str) -> Arm:
        return next(arm for arm in self.arms if arm.key == key)

    def of(self, arm: str) -> tuple[Run, ...]:
        """The runs of this arm, in the order of their seeds."""
        return tuple(sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed))

    def values(self, arm: str, number: Callable[[Snapshot], float]) -> tuple[float, ...]:
        """A number of the trained networks of this arm, in the order of their seeds."""
        return tuple(number(run.after) for run in self.of(arm))

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; none of one seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)

    def text(self, digits: int = 1, *, percent: bool = False) -> str:
        """As in 105.5 ± 6.6, or in percent."""
        factor, unit = (100, " %") if percent else (1, "")
        mean = f"{factor * self.mean:,.{digits}f}"
        deviation = "" if self.deviation is None else f" ± {factor * self.deviation:,.{digits}f}"
        return f"{mean}{deviation}{unit}"


def thrown(cells: int, balls: int) -> float:
    """The share of cells that stay empty when balls are thrown at random: (1 - 1/cells)^balls."""
    return math.exp(balls * math.log1p(-1 / cells))
