"""Loggers: numbers of a run, by step, into its folder.

    JsonLines             metrics.jsonl: one JSON object a line
    TensorBoard           events.* for TensorBoard
    weights_and_biases    the same numbers to W&B, where it is installed
    GoOn                  a callback: where a run goes on at a step, what was logged beyond it is cut off

A checkpoint may be older than the last line. Without the cut a resumed run would have some steps twice.
"""

import json
import math
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from prototile.checkpoints.atomic import write_atomically

FILE = "metrics.jsonl"


class JsonLines(Logger):
    """Appends {"step": ..., "epoch": ..., "time": ..., numbers} to metrics.jsonl and flushes.

    "epoch" is there where the numbers have one, "time" is in seconds since 1970; a number that is not finite is null.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self.path = Path(folder) / FILE
        self._file: TextIO | None = None
        self._kept: set[tuple[int, frozenset[str]]] = set()

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> int:
        return 0

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        numbers = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        step = 0 if step is None else step
        if (step, frozenset(numbers)) in self._kept:
            return  # it was logged between the checkpoint and its step's end
        epoch = {"epoch": int(metrics["epoch"])} if "epoch" in metrics else {}
        line = {"step": step, **epoch, "time": round(time.time(), 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Removes the lines beyond this step, and one that was not written to its end."""
        self.finalize("cut")
        if not self.path.exists():
            return
        lines = [line for text in self.path.read_text(encoding="utf-8").splitlines() if (line := _parsed(text))]
        kept = [line for line in lines if line["step"] <= step]
        self._kept = {(line["step"], frozenset(line) - {"step", "epoch", "time"}) for line in kept[-100:]}
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, lambda file: file.write(text.encode()))


class TensorBoard(Logger):
    """Writes the same numbers as events for TensorBoard into the run's folder."""

    def __init__(self, folder: str | Path):
        super().__init__()
        self._folder = Path(folder)
        self._purge: int | None = None
        self._writer: Any = None

    @property
    def name(self) -> str:
        return "tensorboard"

    @property
    def version(self) -> int:
        return 0

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # its import takes seconds

            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge)
        for name, value in metrics.items():
            if name != "epoch":
                self._writer.add_scalar(name, float(value), step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml has them."""

    @rank_zero_only
    def save(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Lets TensorBoard forget what was logged beyond this step."""
        self.finalize("cut")
        self._purge = step + 1


class GoOn(pl.Callback):
    """Cuts off what was logged beyond the step where a run goes on; put it before callbacks that log."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            return
        for log in trainer.loggers:
            if isinstance(log, JsonLines | TensorBoard):
                log.cut(trainer.global_step)


def weights_and_biases(folder: str | Path, *, project: str = "prototile", name: str | None = None) -> Logger:
    """A logger to W&B, which keeps its files in the run's folder."""
    if find_spec("wandb") is None:
        raise ModuleNotFoundError("W&B is not installed: pip install wandb, or leave this logger out")
    return WandbLogger(project=project, name=name or Path(folder).name, save_dir=str(folder))


def _parsed(text: str) -> dict[str, Any] | None:
    """A line's object; none of a line that was cut off while it was written."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
