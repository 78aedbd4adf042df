"""What every method is: views in, a loss and what is worth watching out.

A training loop needs no more than this (`examples/plain_loop.py`):

    method.prepare(batches)                             once, before the first step
    terms = method(batch.views, progress)
    terms.loss.backward()
    optimizer.step()
    method.after_step(progress)                         with the same progress

n rows, d dims, k prototypes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor, nn

from prototile.assignments import Assignments
from prototile.backbones import Backbone
from prototile.schedules import Progress
from prototile.sphere import normalize
from prototile.types import Batch, Views
from prototile.views import Augmentation


@dataclass(frozen=True)
class Clusters:
    """One softmax over prototypes, as a monitor wants to see it: constants of the step."""

    student: Assignments
    targets: Assignments
    prior: Float[Tensor, " k"]

    @property
    def prototypes(self) -> Float[Tensor, "k d"]:
        """The student's of all ranks, as unit vectors."""
        return normalize(self.student.unsharded().prototypes)


@dataclass(frozen=True)
class Terms:
    """The loss of a step, its named parts before they were weighted, and what to watch."""

    loss: Float[Tensor, ""]
    parts: Mapping[str, Float[Tensor, ""]]  # detached
    embeddings: Float[Tensor, "n d"]  # the student's pooled features of the first group of views, detached
    clusters: Mapping[str, Clusters] = field(default_factory=dict)  # by token: "cls", "patches"


class Method(nn.Module, ABC):
    """A self-supervised method: networks, and the loss that trains them.

    Parameters that require a gradient are the student's; a teacher's never do.
    """

    @abstractmethod
    def forward(self, views: tuple[Views, ...], progress: Progress) -> Terms: ...

    @abstractmethod
    def after_step(self, progress: Progress) -> None:
        """What follows an optimiser step: the teacher's moving average. `progress` is the one of that step."""

    @abstractmethod
    def prepare(self, batches: Iterator[Batch]) -> None:
        """What must see data before the first step (ExCB's prototypes); takes as many batches as it needs."""

    @abstractmethod
    def check(self, augmentation: Augmentation) -> None:
        """An error where these views are not what the method needs."""

    @property
    @abstractmethod
    def backbones(self) -> tuple[Backbone, ...]:
        """The student's, and the teacher's where there is one."""

    @property
    def backbone(self) -> Backbone:
        """The backbone that is evaluated and exported: the teacher's, where there is one."""
        return self.backbones[-1]

    @property
    @abstractmethod
    def roles(self) -> Mapping[str, nn.Module]:
        """Parts that some optimisers treat apart: "prototypes", "predictor"."""


class Supervised(Method):
    """A method that learns from labels: its `forward` sees them beside the views."""

    @abstractmethod
    def forward(self, views: tuple[Views, ...], progress: Progress, labels: Int[Tensor, " b"]) -> Terms: ...
