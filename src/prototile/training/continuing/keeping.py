"""The guard: what the evaluated features are worth before and while a method is continued, and the best weights so far.

`checkpoints/best.ckpt` holds the weights of the best moment, the beginning included: {"epoch", "score", "state_dict"}.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from prototile import distributed
from prototile.audit.spectrum import products_of, rankme
from prototile.backbones import Backbone
from prototile.checkpoints.atomic import write_atomically
from prototile.data.source import Source
from prototile.data.subsets import some_of
from prototile.evaluation import Crop, extract, knn
from prototile.evaluation.features import device_of
from prototile.methods import Method
from prototile.training.continuing.measuring import has_labels
from prototile.training.module import Training
from prototile.training.probe import parts

logger = logging.getLogger(__name__)

BEST = "best.ckpt"


@dataclass(frozen=True, eq=False)
class Judge:
    """kNN from `train` to `test`, where both have labels; else RankMe of `test`. More is better."""

    train: Source | None
    test: Source
    crop: Crop
    batch: int = 256
    workers: int = 0

    @classmethod
    def of(cls, source: Source, crop: Crop, *, limit: int = 5000, batch: int = 256, workers: int = 0) -> "Judge":
        """Of images that the method is trained on; a fifth of those with labels is judged, so that no test image
        decides which weights are kept.
        """
        if has_labels(source):
            return cls(*parts(source, None, limit), crop, batch, workers)
        return cls(None, some_of(source, limit), crop, batch, workers)

    @property
    def measure(self) -> str:
        return "RankMe" if self.train is None else "kNN"

    def __call__(self, backbone: Backbone) -> float:
        test = self._features(backbone, self.test)
        if self.train is None:
            return rankme(products_of(test.features))
        train = self._features(backbone, self.train)
        ks = tuple(dict.fromkeys(min(k, len(train)) for k in (10, 20)))
        return knn(train.features, train.labels, test.features, test.labels, ks).accuracy

    def shown(self, score: float) -> str:
        return f"{self.measure} {score:.1%}" if self.measure == "kNN" else f"{self.measure} {score:.1f}"

    def _features(self, backbone: Backbone, source: Source):
        crop = self.crop
        options: dict[str, Any] = {"size": crop.size, "resize": crop.resize, "normalization": crop.normalization}
        return extract(backbone, source, batch=self.batch, workers=self.workers, **options)


class KeepBest(pl.Callback):
    """Judges the evaluated backbone before the first step and after every `every`-th epoch, and keeps the best weights.

    Those of the beginning are best until others have a higher score; features that are no numbers have the lowest.
    """

    def __init__(self, judge: Judge, folder: Path, *, every: int = 1):
        if every < 1:
            raise ValueError(f"the guard looks every so many epochs, at least every one, got {every}")
        self.scores: dict[int, float] = {}  # by the epochs that were over
        self.path = folder / BEST
        self._judge, self._every = judge, every
        self._step = -1  # of the last look

    @property
    def measure(self) -> str:
        return self._judge.measure

    @property
    def best(self) -> int:
        """The epochs after which the weights were best, the last of equals; 0 is the beginning, if none was better."""
        highest = max(self.scores.values())
        return 0 if self.scores[0] == highest else max(e for e, score in self.scores.items() if score == highest)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training)
        if trainer.global_step == 0:
            self.look(pl_module.method, 0, 0, trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training)
        epoch = trainer.current_epoch + 1
        if epoch % self._every == 0 or epoch == trainer.max_epochs:
            self.look(pl_module.method, epoch, trainer.global_step, trainer)

    def look(self, method: Method, epoch: int, step: int, trainer: pl.Trainer | None = None) -> None:
        """Judges the method as it is now; all ranks must."""
        if step == self._step:
            return
        score = self._judge(method.backbone) if not self.scores else self._scored(method)
        self.scores[epoch], self._step = score, step
        if distributed.rank() == 0:
            if self.best == epoch:
                state = {name: x.detach().cpu().clone() for name, x in method.state_dict().items()}
                kept = {"epoch": epoch, "score": score, "state_dict": state}
                write_atomically(self.path, lambda file: torch.save(kept, file))
            logger.info("after epoch %d: %s (before: %s)", epoch, *map(self._judge.shown, (score, self.scores[0])))
        distributed.any_rank(False, device=device_of(method.backbone))  # nobody reads before it is written
        for log in trainer.loggers if trainer is not None else ():
            log.log_metrics({f"guard/{self._judge.measure}": score, "epoch": max(epoch - 1, 0)}, step=step)

    def _scored(self, method: Method) -> float:
        try:
            return self._judge(method.backbone)
        except ValueError as error:  # the images were fine before the first step
            logger.warning("the features are worth nothing any more: %s", error)
            return -math.inf

    def restore_(self, method: Method) -> int:
        """Puts the best weights back; the epochs after which they were best."""
        kept = torch.load(self.path, map_location="cpu", weights_only=True)
        method.load_state_dict(kept["state_dict"])
        return int(kept["epoch"])

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self.scores), "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores, self._step = dict(state_dict["scores"]), state_dict["step"]
