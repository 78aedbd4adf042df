"""Progress on the screen: a live bar on a terminal, a plain line every so many steps elsewhere.

step 1,200 of 40,000, epoch 4, loss 5.2131, 1,024 images/s, 3% waiting for data, 82% of prototypes used,
kNN 61.2% (untrained: kNN 30.1%), 1:02:10 left
"""

import sys
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from prototile.training.module import Training
from prototile.training.monitor import Monitor
from prototile.training.probe import Probe
from prototile.training.speed import Speed

_REFRESH = 0.5  # seconds between two looks at the loss of a live bar: each makes a GPU wait


class Bar(pl.Callback):
    """Says every `every` steps, or live where standard error is a terminal, how a run goes.

    Give it the run's monitor and probe for the share of prototypes in use and the kNN, and put it behind them; a
    Trainer of your own needs `enable_progress_bar=False`. Only the first rank says something.
    """

    def __init__(
        self, monitor: Monitor | None = None, probe: Probe | None = None, *, every: int = 50, live: bool | None = None
    ):
        if every < 1:
            raise ValueError(f"a line is printed every so many steps, at least every one, got every={every}")
        self._monitor, self._probe = monitor, probe
        self._every = every
        self._live = sys.stderr.isatty() if live is None else live
        self._speed = Speed()
        self._shown: tuple[Progress, TaskID] | None = None
        self._last = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training)
        self._speed, self._last = Speed(), time.monotonic()
        if self._live and trainer.is_global_zero:
            columns = BarColumn(20), TextColumn("{task.percentage:.0f}%"), TextColumn("{task.description}")
            progress = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
            self._shown = progress, progress.add_task("begins", total=pl_module.steps, completed=trainer.global_step)
            progress.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._speed.begin_epoch()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Training)
        if not trainer.is_global_zero:
            return
        self._speed.note(len(batch.indices), pl_module.loader.waiting)
        step = trainer.global_step
        if not pl_module.steps_now(batch_idx):
            return
        last = step == pl_module.steps
        if self._shown is not None:
            if last or time.monotonic() - self._last > _REFRESH:
                self._last = time.monotonic()
                progress, task = self._shown
                progress.update(task, completed=step, description=self.line(trainer, pl_module))
        elif last or step % self._every == 0:
            print(self.line(trainer, pl_module), file=sys.stderr, flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def line(self, trainer: pl.Trainer, module: Training) -> str:
        """How the run goes, since the last line."""
        assert module.terms is not None
        images, waiting, batches = self._speed.read()
        step, steps = trainer.global_step, module.steps
        said = [
            f"step {step:,} of {steps:,}",
            f"epoch {trainer.current_epoch + 1}",
            f"loss {float(module.terms.loss.detach()):.4f}",
            f"{images:,.0f} images/s",
            f"{waiting:.0%} waiting for data",
        ]
        if self._monitor is not None and self._monitor.latest is not None:
            for token, x in self._monitor.latest.clusters.items():
                of = "" if token == "cls" else f" ({token})"
                said.append(f"{x.used_share:.0%} of prototypes used{of}")
        if self._probe is not None and self._probe.latest is not None:
            said.append(str(self._probe))
        seconds = (steps - step) * trainer.accumulate_grad_batches / max(batches, 1e-9)
        said.append(f"{timedelta(seconds=round(seconds))} left")
        return ", ".join(said)

    def _close(self) -> None:
        if self._shown is not None:
            self._shown[0].stop()
            self._shown = None
