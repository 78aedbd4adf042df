"""What a classifier gets right: of all images, of each class alike, of head, middle and tail.

    Scores     the numbers
    tallied    right answers of each class, from logits
    score      a classifier's scores on a source, shared by all ranks
    Scoring    a callback: after every epoch

n images, c classes.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile import distributed
from prototile.data import Groups, Source, Subset, group_means
from prototile.evaluation import Crop
from prototile.evaluation.features import Shown, device_of, evaluating
from prototile.evaluation.scores import shares
from prototile.training.finetuning.classifier import Classifier
from prototile.training.module import Training

logger = logging.getLogger(__name__)

METRICS = ("top1", "top5", "per_class", "head", "middle", "tail")


@dataclass(frozen=True)
class Scores:
    """Shares of images whose class is the first, and among the first five; means over classes of their top-1.

    `head`, `middle` and `tail` are NaN where they have no class with test images.
    """

    top1: float
    top5: float
    per_class: float
    head: float
    middle: float
    tail: float
    images: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def numbers(self) -> dict[str, float]:
        """Those that are there, by name."""
        named = {name: float(vars(self)[name]) for name in METRICS}
        return {name: value for name, value in named.items() if not math.isnan(value)}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.2%}" for name, value in self.numbers().items()) + f" of {self.images:,}"


@torch.no_grad()
def tallied(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Int[Tensor, "3 c"]:
    """Of each class: images whose class comes first, among the first five, and all; of equal logits the first wins.

    Logits that are no numbers are never right.
    """
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(1)
    rank = torch.where(logits.isfinite().all(1), rank, logits.shape[1])
    rows = torch.stack([rank < 1, (rank < 5) & (rank < logits.shape[1]), rank >= 0]).long()
    return rows.new_zeros(3, logits.shape[1]).index_add_(1, labels, rows)


def scores_of(counts: Int[Tensor, "3 c"], groups: Groups) -> Scores:
    """The scores, from right answers and images of each class; classes without test images count nowhere."""
    first, five, images = counts.cpu()
    per_class = shares(first, images)
    total = int(images.sum())
    means = group_means(per_class.numpy(), groups)
    return Scores(int(first.sum()) / total, int(five.sum()) / total, float(per_class.nanmean()), *means, total)


def score(
    classifier: Classifier, source: Source, crop: Crop, groups: Groups, *, batch: int = 256, workers: int = 0
) -> Scores:
    """The scores on all images of `source` that can be read; every rank looks at its part, and all know the result."""
    rank, world, device = distributed.rank(), distributed.world_size(), device_of(classifier)
    counts = torch.zeros(3, classifier.head.out_features, dtype=torch.long, device=device)
    mine = Subset(source, np.arange(rank, len(source), world))
    if len(mine):
        assert mine.labels is not None
        labels = torch.from_numpy(mine.labels)
        shown = Shown(mine, crop, batch=batch, workers=workers, device=device)
        done = 0
        with evaluating(classifier):
            for images in shown:
                wanted = labels[shown.taken[done:]].to(device)
                done += len(images)
                counts += tallied(classifier.logits(images).float(), wanted)
    return scores_of(distributed.sum(counts), groups)


class Scoring(pl.Callback):
    """Scores the classifier on `source` every `every` epochs and at the end; logs the numbers under `name`.

    `latest` are the last ones, `history` holds those of each epoch that was scored. They are part of a checkpoint.
    """

    def __init__(
        self,
        source: Source,
        crop: Crop,
        groups: Groups,
        *,
        name: str = "test",
        every: int = 1,
        batch: int = 256,
        workers: int = 0,
    ):
        if every < 1:
            raise ValueError(f"scores are taken every so many epochs, at least every one, got every={every}")
        self.history: dict[int, Scores] = {}
        self._source, self._crop, self._groups, self._name = source, crop, groups, name
        self._every, self._batch, self._workers = every, batch, workers

    @property
    def latest(self) -> Scores:
        assert self.history, "nothing has been scored yet"
        return self.history[max(self.history)]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training)
        assert isinstance(pl_module.method, Classifier)
        epoch = trainer.current_epoch + 1
        if epoch % self._every and epoch != trainer.max_epochs:
            return
        with trainer.precision_plugin.forward_context():
            found = score(
                pl_module.method, self._source, self._crop, self._groups, batch=self._batch, workers=self._workers
            )
        self.history[epoch] = found
        numbers: Mapping[str, float] = {f"{self._name}/{name}": x for name, x in found.numbers().items()}
        for log in trainer.loggers:
            log.log_metrics({"epoch": epoch - 1, **numbers, **_rates(pl_module)}, step=trainer.global_step)
        if trainer.is_global_zero:
            logger.info("epoch %d, %s: %s", epoch, self._name, found)

    def state_dict(self) -> dict[str, Any]:
        return {"history": {epoch: found.as_dict() for epoch, found in self.history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = {int(epoch): Scores(**found) for epoch, found in state_dict["history"].items()}


def _rates(module: Training) -> dict[str, float]:
    """The loss of the last batch, and the largest learning rate of backbone and of head."""
    assert module.terms is not None
    groups = module.trainer.optimizers[0].param_groups
    of_head = [group["lr"] for group in groups if group["role"] == "head"]
    others = [group["lr"] for group in groups if group["role"] != "head"]
    named = {"lr": max(others, default=math.nan)} | ({"lr/head": max(of_head)} if of_head else {})
    return {"loss": float(distributed.mean(module.terms.loss.detach())), **named}
