"""What a protocol is given, and what it gives.

Options    what can be asked of protocols
Task       parts of images, options, what was finished before
Outcome    a number, and all that its record says beside
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prototile.cli.subject import Part, Subject
from prototile.evaluation.logistic import Metric
from prototile.evaluation.lowshot import LAMBDA
from prototile.evaluation.records import Parts, packed, unpacked
from prototile.evaluation.splits import share_of_each

SelectOn = Literal["validation", "test"]
SHOTS: tuple[int | float, ...] = (1, 2, 5, 0.01)


@dataclass(frozen=True)
class Options:
    """What can be asked of protocols; each heeds what concerns it, and only that is part of its key."""

    ks: tuple[int, ...] = (10, 20, 100, 200)
    seeds: tuple[int, ...] | None = None
    select_on: SelectOn = "validation"
    metric: Metric | None = None
    labels: float = 1.0  # share of the labels to learn from
    subset_seed: int = 0
    augmented: bool = False
    epochs: int | None = None
    standardise: bool = False
    shots: tuple[int | float, ...] = SHOTS
    shot_splits: int = 3
    penalty: float = LAMBDA
    lists: Path | None = None  # ImageNet's official ones
    method: str | None = None  # E2MC's rates are those of a method

    def __post_init__(self) -> None:
        if self.select_on not in get_args(SelectOn):
            raise ValueError(f"select_on must be 'validation' or 'test', got {self.select_on!r}")
        if self.metric is not None and self.metric not in get_args(Metric):
            raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}, got {self.metric!r}")
        if not 0 < self.labels <= 1:
            raise ValueError(f"labels is a share in (0, 1], got {self.labels}")


@dataclass(frozen=True, eq=False)
class Outcome:
    """A metric, its value for each seed, and which images were right."""

    metric: str
    values: Sequence[float]
    images: int
    seeds: Sequence[int] = (0,)
    chosen: Sequence[Mapping[str, Any]] = ()
    selected_on: str = "nothing"
    details: Mapping[str, Any] = field(default_factory=dict)
    right: Sequence[Tensor] = ()  # of the test images that have a label
    suffix: str = ""  # of the protocol's name, where it gives several numbers


@dataclass(frozen=True, eq=False)
class Task:
    """A subject, its images, and what was finished of this evaluation before it was interrupted."""

    subject: Subject
    name: str  # of the data
    train: Part
    test: Part
    validation: Part | None
    options: Options
    parts: Parts
    folder: Path  # for lists of images that are drawn

    def several(self, what: str) -> None:
        """An error where images have several classes each."""
        if self.train.labels.ndim == 2:
            raise ValueError(
                f"{self.name} gives each image several classes, and {what} is for one: there are logistic and svm"
            )

    def learned(self) -> Tensor:
        """The numbers of the training images whose labels are learned from."""
        labels = self.train.labels
        if self.options.labels < 1:
            return share_of_each(labels, self.options.labels, seed=self.options.subset_seed)
        return torch.arange(len(labels))

    def hidden(self) -> Tensor:
        """The training labels, -1 where they are not learned from."""
        if self.options.labels == 1:
            return self.train.labels
        labels = torch.full_like(self.train.labels, -1)
        rows = self.learned()
        labels[rows] = self.train.labels[rows]
        return labels

    def each(
        self, seeds: Sequence[int], measure: Callable[[int], dict[str, Any]], scope: str = ""
    ) -> Iterator[dict[str, Any]]:
        """What is measured with each seed; those of an interrupted call are not measured again."""
        for seed in seeds:
            name = f"{scope}seed {seed}"
            if name not in self.parts:
                found = measure(seed)
                self.parts[name] = found | {"right": None if found["right"] is None else packed(found["right"])}
            told = self.parts[name]
            right = None if told["right"] is None else torch.from_numpy(unpacked(told["right"], told["images"]))
            yield {**told, "right": right}


def gathered(
    metric: str, seeds: Sequence[int], found: Sequence[Mapping[str, Any]], selected_on: str, details: Mapping[str, Any]
) -> Outcome:
    """Of several seeds, one outcome."""
    return Outcome(
        metric,
        [x["value"] for x in found],
        found[0]["images"],
        tuple(seeds),
        [x["chosen"] for x in found] if any(x["chosen"] for x in found) else [],
        selected_on,
        details,
        [x["right"] for x in found if x["right"] is not None],
    )
