"""An audit after every epoch, without an image more: what `prototile audit RUN` shows over a run.

`audit/epoch-0007.json` is written when seven epochs are over:

    epoch, step    when
    prototypes     of each kind of token: what `prototile.audit.audit_prototypes` measures of the student's
    clusters       of each kind of token: how the latest targets, as they were balanced, spread over prototypes
"""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from prototile.audit import audit_prototypes
from prototile.audit.plain import plain
from prototile.checkpoints.atomic import write_atomically
from prototile.checkpoints.native import prototypes_of
from prototile.training.module import Training
from prototile.training.monitor import Monitor

FOLDER = "audit"


class EpochAudits(pl.Callback):
    """Writes the audit of every `every`-th epoch and of the last one; targets are those that the monitor has seen."""

    def __init__(self, out: Path, monitor: Monitor | None = None, *, every: int = 1):
        if every < 1:
            raise ValueError(f"audits are made every so many epochs, at least every one, got every={every}")
        self._folder, self._monitor, self._every = out / FOLDER, monitor, every

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training)
        epoch = trainer.current_epoch + 1
        found = prototypes_of(pl_module.method)
        if not found or (epoch % self._every and epoch != trainer.max_epochs):
            return
        weights = {kind: prototypes.weights().detach() for kind, prototypes in found.items()}  # all ranks have a part
        if not trainer.is_global_zero:
            return
        audited: dict[str, Any] = {}
        for kind, prototypes in weights.items():
            if bool(prototypes.isfinite().all()):  # else the guard stops the run, and says why
                audited[kind] = audit_prototypes(prototypes).as_dict()
                del audited[kind]["cover"]
        said = {"epoch": epoch, "step": trainer.global_step, "prototypes": audited}
        said["clusters"] = {} if self._monitor is None else self._monitor.spreads()
        text = json.dumps(plain(said)) + "\n"
        write_atomically(self._folder / f"epoch-{epoch:04}.json", lambda file: file.write(text.encode()))
