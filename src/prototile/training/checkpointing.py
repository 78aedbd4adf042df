"""Checkpoints of a run: written atomically, when they are due or when a signal says that time is up.

    AtomicIO       writes and reads them for Lightning
    Checkpoints    decides when; raises `Interrupted` after a signal
    read           a checkpoint as tensors and plain values; no code in it is run

A checkpoint is written between two optimiser steps, never within an accumulation window, and never from a state that is
not finite.
"""

import errno
import logging
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import CheckpointIO

from prototile import distributed
from prototile.checkpoints.atomic import remove_partial, write_atomically
from prototile.training.guard import Guard
from prototile.training.module import Training

logger = logging.getLogger(__name__)

LAST = "last.ckpt"
_AGREE = 10  # on several ranks: steps between two questions whether a checkpoint is due


class Interrupted(SystemExit):
    """The run was asked to end and has written a checkpoint; the exit code is 128 + the signal's number."""

    def __init__(self, signum: int, path: Path):
        super().__init__(128 + signum)
        self.signal, self.path = signal.Signals(signum), path

    def __str__(self) -> str:
        return f"ended by {self.signal.name}, with the checkpoint {self.path}: go on with resume"


class AtomicIO(CheckpointIO):
    """Writes checkpoints so that a crash or a full disk leaves the previous one.

    Where there is no room, all ranks go on: `failure` says why, for `Checkpoints` to decide.
    """

    def __init__(self) -> None:
        self.failure: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.failure = None
        try:
            write_atomically(Path(path), lambda file: torch.save(checkpoint, file))
        except OSError as error:
            self.failure = error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(pl.Callback):
    """Writes `last.ckpt` every `minutes`, every `steps` optimiser steps, at the end of each epoch and on signals.

    SIGTERM, SIGINT and SIGUSR1 let the running step end, then a checkpoint is written and `Interrupted` raised; after
    SIGUSR1 a SLURM job is queued again. A second SIGINT ends at once. Where a disk is full, training goes on and each
    due checkpoint is tried; the last one must succeed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        guard: Guard,
        io: AtomicIO,
        minutes: float = 30.0,
        steps: int | None = None,
    ):
        if not minutes > 0 or (steps is not None and steps < 1):
            raise ValueError(f"minutes and steps between checkpoints must be positive, got {minutes} and {steps}")
        self.path = Path(folder) / LAST
        self._guard, self._io = guard, io
        self._minutes, self._steps = minutes, steps
        self._written = time.monotonic()
        self._signals = Signals()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            remove_partial(self.path.parent)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._signals.listen()  # after Lightning did
        self._written = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Training)
        last = batch_idx + 1 == len(pl_module.loader)
        if last or not pl_module.steps_now(batch_idx):
            return  # the epoch's end has its own checkpoint
        stop, save = self._due(trainer, pl_module)
        if stop or save:
            self.save(trainer, must=bool(stop))
        if stop:
            self._end(stop)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (stopped,) = distributed.any_rank(bool(self._signals.received), device=pl_module.device)
        self.save(trainer, must=stopped or trainer.current_epoch + 1 == trainer.max_epochs)
        if stopped:
            self._end(self._signals.received or signal.SIGTERM)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._signals.ignore()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._signals.ignore()

    def save(self, trainer: pl.Trainer, *, must: bool) -> None:
        """Writes the checkpoint; an error where it must be written and there is no room."""
        self._guard.settle(trainer.lightning_module)
        trainer.save_checkpoint(self.path, weights_only=False)
        self._written = time.monotonic()
        if self._io.failure is None:
            return
        if must:
            raise self._io.failure
        logger.error("%s. Training goes on, and the next checkpoint is tried when it is due", self._io.failure)

    def _due(self, trainer: pl.Trainer, module: Training) -> tuple[int, bool]:
        """The signal that asks for an end, if any, and whether a checkpoint is due: the same on all ranks."""
        step = trainer.global_step
        by_step = self._steps is not None and step % self._steps == 0
        if distributed.world_size() > 1 and step % _AGREE != 0:
            return 0, by_step
        late = time.monotonic() - self._written > 60 * self._minutes
        stop, late = distributed.any_rank(bool(self._signals.received), late, device=module.device)
        return (self._signals.received or signal.SIGTERM) if stop else 0, by_step or late

    def _end(self, signum: int) -> None:
        error = Interrupted(signum, self.path)
        logger.warning("%s", error)
        if signum == signal.SIGUSR1 and distributed.rank() == 0:
            requeue()
        raise error


class Signals:
    """Notes the signals that ask for an end, between `listen` and `ignore`; in the main thread only."""

    WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._process = 0

    def listen(self) -> None:
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._process = os.getpid()
            self._before = {signum: signal.signal(signum, self._note) for signum in self.WATCHED}

    def ignore(self) -> None:
        """Gives the signals back to who had them."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _note(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a loader's worker: it serves until the run itself has ended
        if self.received and signum == signal.SIGINT:
            self.ignore()
            raise KeyboardInterrupt
        self.received = signum


def requeue() -> None:
    """Puts this SLURM job into the queue again; nothing elsewhere."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        logger.error("the job %s could not be queued again (%s): submit it with resume", job, error)


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint of a run, on the CPU: tensors and plain values, nothing that is executed."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}: start without resume, or give the folder of a run")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint may fail in any way; cut off, some are an "invalid argument"
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(
            f"{path} cannot be read as a checkpoint of prototile: it is cut off, or holds something else "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
    if not isinstance(checkpoint, dict) or "prototile" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of a prototile run: a run's is in its folder, checkpoints/{LAST}")
    return checkpoint
