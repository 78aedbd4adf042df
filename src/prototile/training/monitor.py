"""The monitor: every so many steps it looks at a run's health, logs the numbers, and says what is wrong in plain words.

What it logs: loss and loss/PART of the last batch, lr, weight_decay, time/images_per_second, time/waiting, and what
`prototile.audit.health` lists; at a finding's begin and end finding/NAME as 1 and 0. Its state is part of a checkpoint,
so that a run that is resumed finds what it would have found.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from prototile import distributed
from prototile.audit import (
    ClusterHealth,
    Finding,
    Health,
    Watch,
    Window,
    cluster_health,
    embedding_health,
)
from prototile.methods import Clusters, Terms
from prototile.training.module import Training
from prototile.training.speed import Speed

logger = logging.getLogger(__name__)


class Monitor(pl.Callback):
    """Watches every `every`-th optimiser step; `latest` is the last health, `findings` all that began and ended.

    A look costs about three more products of embeddings and prototypes, and one of prototypes with prototypes
    (`prototile.audit.health.cluster_health`): little, every 50 steps.
    """

    def __init__(self, every: int = 50):
        if every < 1:
            raise ValueError(f"the monitor looks every so many steps, at least every one, got every={every}")
        self.latest: Health | None = None
        self.findings: list[Finding] = []
        self._every = every
        self._watch = Watch()
        self._windows: dict[str, Window] = {}
        self._priors: dict[str, Tensor] = {}
        self._speed = Speed()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._speed = Speed()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._speed.begin_epoch()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Training)
        self._speed.note(len(batch.indices), pl_module.loader.waiting)
        step = trainer.global_step
        if not pl_module.steps_now(batch_idx) or step % self._every:
            return
        assert pl_module.terms is not None
        health, numbers = self._looked(step, pl_module.terms)
        numbers |= {"epoch": trainer.current_epoch} | _settings(trainer) | self._speed.numbers()
        self.latest = health
        for finding in self._watch.update(health):
            self.findings.append(finding)
            numbers[_key(finding)] = float(not finding.ended)
            if trainer.is_global_zero:
                (logger.info if finding.ended else logger.warning)("%s", finding)
        for log in trainer.loggers:
            log.log_metrics(numbers, step=step)

    @property
    def active(self) -> tuple[str, ...]:
        """What is wrong now."""
        return self._watch.active

    def spreads(self) -> dict[str, dict[str, Any]]:
        """How the latest targets spread over prototypes, by kind of token (`Window.summary`), once it has looked."""
        return {token: self._windows[token].summary(prior) for token, prior in self._priors.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "watch": self._watch.state_dict(),
            "windows": {token: window.state_dict() for token, window in self._windows.items()},
            "findings": [finding.as_dict() for finding in self.findings],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._watch.load_state_dict(state_dict["watch"])
        self.findings = [Finding(**finding) for finding in state_dict["findings"]]
        for token, state in state_dict["windows"].items():
            self._windows[token] = Window(state["sums"].shape[-1])
            self._windows[token].load_state_dict(state)

    @torch.no_grad()
    def _looked(self, step: int, terms: Terms) -> tuple[Health, dict[str, float]]:
        """The health, and all numbers of it with the loss and its parts: means over ranks."""
        loss = float(distributed.mean(terms.loss.detach()))
        health = Health(step, loss, embedding_health(terms.embeddings), self._clusters(terms.clusters))
        parts = {f"loss/{name}": float(distributed.mean(part)) for name, part in terms.parts.items()}
        return health, {"loss": loss} | parts | health.numbers()

    def _clusters(self, clusters: Mapping[str, Clusters]) -> dict[str, ClusterHealth]:
        found = {}
        everywhere = set[str].intersection(*map(set, distributed.gather_objects(list(clusters))))
        for token, x in clusters.items():
            if token not in everywhere:  # a rank has no hidden patch in this batch: no rank looks at theirs
                continue
            window = self._windows.setdefault(token, Window(x.student.num_prototypes))
            self._priors[token] = x.prior
            found[token] = cluster_health(x.student, x.targets, x.prior, x.prototypes, window)
        return found


def _settings(trainer: pl.Trainer) -> dict[str, float]:
    """The largest learning rate and weight decay of the step, over all groups."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return {name: max((float(group[name]) for group in groups), default=math.nan) for name in ("lr", "weight_decay")}


def _key(finding: Finding) -> str:
    return "/".join(filter(None, ["finding", finding.token, finding.name.replace(" ", "_")]))
