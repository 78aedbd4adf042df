"""The online probe: what the features are worth while a run goes on, beside what they were worth before it began.

An untrained network's nearest neighbours are often right already, on small images above all: a number says nothing
without that one.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np

from prototile.backbones import Backbone
from prototile.data.source import Source, Subset
from prototile.evaluation import extract, knn, linear
from prototile.training.module import Training
from prototile.views.spec import IMAGENET, Normalization

logger = logging.getLogger(__name__)

_HELD_OUT = 0.2  # of the labelled images, where there is no split to test on


@dataclass(frozen=True)
class Score:
    """Shares of test images that nearest neighbours and a quick linear probe get right."""

    knn: float
    k: int
    linear: float | None = None

    def __str__(self) -> str:
        return f"kNN {self.knn:.1%}" + ("" if self.linear is None else f", linear {self.linear:.1%}")


class Probe(pl.Callback):
    """Measures the evaluated backbone every `every` epochs and at the end, and once before the first step.

    Without a `test` source a fifth of the labelled images, drawn once, is held out of the probe (not of the
    training). At most `limit` images of each side are looked at, drawn once too. The number of the untrained network
    is kept in checkpoints. Every rank measures the same: what is sharded needs them all.
    """

    def __init__(
        self,
        train: Source,
        test: Source | None = None,
        *,
        every: int = 1,
        limit: int = 5000,
        size: int = 224,
        resize: int | None = None,
        normalization: Normalization = IMAGENET,
        ks: Sequence[int] = (10, 20),
        with_linear: bool = True,
        batch: int = 256,
        workers: int = 0,
    ):
        if every < 1 or limit < 2:
            raise ValueError(f"a probe needs every >= 1 and a limit of at least two images, got {every} and {limit}")
        self.train, self.test = parts(train, test, limit)
        fewest = min(len(self.train), max(ks))
        self.untrained: Score | None = None
        self.latest: Score | None = None
        self._every = every
        self._ks = tuple(dict.fromkeys(min(k, fewest) for k in ks))
        self._with_linear = with_linear
        self._options: dict[str, Any] = {"size": size, "resize": resize, "normalization": normalization}
        self._options |= {"batch": batch, "workers": workers}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training)
        if self.untrained is None and trainer.global_step == 0:
            self.untrained = self.measured(pl_module.method.backbone)
            if trainer.is_global_zero:
                logger.info("before training: %s", self.untrained)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training)
        epoch = trainer.current_epoch + 1
        if epoch % self._every and epoch != trainer.max_epochs:
            return
        self.latest = score = self.measured(pl_module.method.backbone)
        numbers = {"epoch": epoch - 1, "probe/knn": score.knn}
        if score.linear is not None:
            numbers["probe/linear"] = score.linear
        if self.untrained is not None:
            numbers["probe/knn_untrained"] = self.untrained.knn
            if self.untrained.linear is not None:
                numbers["probe/linear_untrained"] = self.untrained.linear
        for log in trainer.loggers:
            log.log_metrics(numbers, step=trainer.global_step)
        if trainer.is_global_zero:
            logger.info("epoch %d: %s", epoch, self)

    def measured(self, backbone: Backbone) -> Score:
        """What the features of this backbone are worth now; it is left as it was."""
        train, test = (extract(backbone, source, **self._options) for source in (self.train, self.test))
        sides = train.features, train.labels, test.features, test.labels
        neighbours = knn(*sides, self._ks)
        right = linear(*sides).accuracy if self._with_linear else None
        return Score(neighbours.accuracy, neighbours.best_k, right)

    def __str__(self) -> str:
        """The latest score, beside the untrained network's."""
        if self.latest is None:
            return "not measured yet"
        beside = "untrained: not measured" if self.untrained is None else f"untrained: {self.untrained}"
        return f"{self.latest} ({beside})"

    def state_dict(self) -> dict[str, Any]:
        named = {"untrained": self.untrained, "latest": self.latest}
        return {name: None if score is None else dict(vars(score)) for name, score in named.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        untrained, latest = (
            None if (found := state_dict[name]) is None else Score(**found) for name in ("untrained", "latest")
        )
        self.untrained, self.latest = untrained, latest


def parts(train: Source, test: Source | None, limit: int) -> tuple[Source, Source]:
    """At most `limit` labelled images to learn from and as many to test on, the same in every run."""
    if test is None:
        order = _labelled(train, "training")
        held = max(1, round(_HELD_OUT * len(order)))
        if held == len(order):
            raise ValueError("the probe needs at least two labelled images, one to learn from and one to test on")
        return Subset(train, order[held:][:limit]), Subset(train, order[:held][:limit])
    return tuple(  # type: ignore[return-value]
        Subset(source, _labelled(source, part)[:limit]) for source, part in ((train, "training"), (test, "test"))
    )


def _labelled(source: Source, part: str) -> np.ndarray:
    """The images that have a label, in an order that is drawn once and for all."""
    if source.labels is None or source.labels.ndim != 1 or not (source.labels >= 0).any():
        raise ValueError(f"the {part} images of a probe need one class each: give labels, or leave the probe out")
    return np.random.default_rng(0).permutation(np.flatnonzero(source.labels >= 0))
