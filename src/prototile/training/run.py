"""`fit`: a method, a loader and an optimisation in; a run on disk out.

    out/  config.yaml  environment.json  metrics.jsonl  train.log  events.*  report.html
          checkpoints/last.ckpt    resumable
          model/                   the evaluated backbone and the prototypes, when the run has ended

Several ranks: start the script or command with `torchrun --nproc-per-node=8`, in SLURM with one task per device, or
with `devices=8`, which starts it again for the other ranks of this machine.
"""

import contextlib
import dataclasses
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from prototile.checkpoints.native import export
from prototile.data import Loader
from prototile.methods import Method
from prototile.training import folder
from prototile.training.checkpointing import LAST, AtomicIO, Checkpoints, read
from prototile.training.guard import Guard
from prototile.training.module import Training, difference
from prototile.training.optimization import Optimization
from prototile.training.sharding import strategy as chosen_strategy
from prototile.training.sharding import world_of

logger = logging.getLogger(__name__)

# Lightning's advice that does not apply to what `fit` does.
_SILENCED = (
    ".*does not have many workers.*",
    ".*eval mode at the start of training.*",
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*srun. command is available.*",
    ".*tensorboardX.*",
    ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
    ".*`broadcast_buffers` is deprecated.*",  # its successor is not in torch 2.9
    ".*FSDP2-wrapped module .* returned a view tensor.*",  # which nothing changes in place
    ".*barrier.* using the device under current context.*",
)


@dataclass(frozen=True)
class Run:
    """A run that has ended: its folder, the method as it is now, and the optimiser steps made."""

    folder: Path
    method: Method
    steps: int
    seconds: float

    @property
    def model(self) -> Path:
        """The exported weights (`prototile.checkpoints.load_backbone`)."""
        return self.folder / "model"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / LAST


class Enough(Exception):
    """The limit of steps is reached."""


def fit(
    method: Method,
    loader: Loader | Callable[[], Loader],
    *,
    optimization: Optimization,
    epochs: int,
    out: str | Path,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    accumulate: int = 1,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    devices: int | str = "auto",
    nodes: int = 1,
    strategy: Literal["auto", "ddp", "fsdp"] = "auto",
    sync_batch_norm: bool = False,
    compile: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_minutes: float = 30.0,
    checkpoint_steps: int | None = None,
    seed: int = 0,
    limit_steps: int | None = None,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> Run:
    """Trains the method and leaves a run in the folder `out`.

    The loader's batch is the images of all ranks; with `accumulate` an optimiser step sees that many batches. Give a
    function that makes the loader where there are several ranks: it must be made after them.

    `resume` goes on from the last checkpoint, or begins where there is none, so that one command serves a queue that
    stops and restarts it; what decides the numbers must be as it was. `overwrite` removes what an earlier run has
    written. Otherwise a folder with a run is refused. `limit_steps` ends the run early, with a checkpoint and an
    export; its schedules are those of the whole.

    `config` are the resolved settings of data, views and method as plain values, where there are any: they are compared
    when a run goes on, and `config["method"]["init_args"]["backbone"]` says how to build the backbone again. `files`
    are texts to put beside the run ("config.yaml").

    The weights stay float32 in every precision. A signal that ends the run raises `Interrupted`, broken numbers
    `Diverged`; in both cases the last checkpoint is sound.
    """
    _check(epochs, accumulate, limit_steps, resume, overwrite)
    out, began = Path(out), time.monotonic()
    accelerator = ("gpu" if torch.cuda.is_available() else "cpu") if accelerator == "auto" else accelerator
    devices, nodes = _launched(devices, nodes)
    settings = _settings(method, optimization, epochs, accumulate, precision, seed, config)
    module = Training(method, optimization, loader, seed=seed, compile=compile, settings=settings)
    guard, io = Guard(), AtomicIO()
    saving = Checkpoints(out / "checkpoints", guard=guard, io=io, minutes=checkpoint_minutes, steps=checkpoint_steps)
    ending = _Ending(saving, out / "model", described_backbone(config), limit_steps)
    with _quiet():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=chosen_strategy(strategy, world_of(accelerator, devices, nodes)),
            precision=precision,
            max_epochs=epochs,
            accumulate_grad_batches=accumulate,
            sync_batchnorm=sync_batch_norm,
            logger=list(loggers) or False,
            callbacks=[*callbacks, guard, saving, ending],
            plugins=[io],
            default_root_dir=out,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=1,
        )
        if trainer.is_global_zero:
            folder.begin(out, resume=resume, overwrite=overwrite, files=files or {})
        go_on = saving.path if resume and saving.path.exists() else None
        if go_on is not None:
            _check_unchanged(go_on, settings)
        with folder.log(out / "train.log", write=trainer.is_global_zero):
            if go_on is not None:
                logger.info("going on from %s", go_on)
            with contextlib.suppress(Enough):
                trainer.fit(module, ckpt_path=go_on, weights_only=True)
            seconds = time.monotonic() - began
            logger.info("ended after %d steps, %.0f seconds", ending.steps, seconds)
    return Run(out, method, ending.steps, seconds)


class _Ending(Callback):
    """Exports the weights when the run has ended, by itself or by its limit."""

    def __init__(self, saving: Checkpoints, folder: Path, backbone: Mapping[str, Any] | None, limit: int | None):
        self._saving, self._folder, self._backbone, self._limit = saving, folder, backbone, limit
        self.steps = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Training)
        last = batch_idx + 1 == len(pl_module.loader)
        if self._reached(trainer) and pl_module.steps_now(batch_idx) and not last:
            self._saving.save(trainer, must=True)
            self._export(trainer, pl_module)
            raise Enough

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training)
        if self._reached(trainer) and trainer.current_epoch + 1 != trainer.max_epochs:
            self._export(trainer, pl_module)
            raise Enough

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training)
        self._export(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where a run that goes on had made all its steps already."""
        assert isinstance(pl_module, Training)
        if not self.steps:
            self._export(trainer, pl_module)

    def _reached(self, trainer: pl.Trainer) -> bool:
        return self._limit is not None and trainer.global_step >= self._limit

    def _export(self, trainer: pl.Trainer, module: Training) -> None:
        self.steps = trainer.global_step
        export(module.method, self._folder, self._backbone, module.loader.augmentation)


def _check(epochs: int, accumulate: int, limit: int | None, resume: bool, overwrite: bool) -> None:
    for name, value in {"epochs": epochs, "accumulate": accumulate, "limit_steps": limit}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if resume and overwrite:
        raise ValueError("a run is either resumed or overwritten: give one of resume and overwrite")


def _launched(devices: int | str, nodes: int) -> tuple[int | str, int]:
    """As many devices and nodes as torchrun has started processes for, where it has and nothing else is said."""
    local, world = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    if devices == "auto" and local is not None and world is not None:
        return int(local), int(world) // int(local)
    return devices, nodes


def _settings(
    method: Method,
    optimization: Optimization,
    epochs: int,
    accumulate: int,
    precision: str,
    seed: int,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What decides a run's numbers, as plain values; the loader's state holds the rest."""
    shapes = {name: list(x.shape) for name, x in method.state_dict().items()}
    return {
        "method": type(method).__name__,
        "parameters": shapes,
        "epochs": epochs,
        "accumulate": accumulate,
        "precision": precision,
        "seed": seed,
        "optimization": _plain(optimization),
        "config": _plain(config or {}),
    }


def _plain(value: Any) -> Any:
    """Plain values: dataclasses with their class's name, mappings, sequences, numbers and texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = {field.name: _plain(vars(value)[field.name]) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **values}
    if isinstance(value, Mapping):
        return {str(name): _plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def described_backbone(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The description of the backbone in a resolved configuration, where it has one."""
    value: Any = config
    for name in ("method", "init_args", "backbone"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else None


def _check_unchanged(path: Path, settings: Mapping[str, Any]) -> None:
    changed = list(difference(read(path)["prototile"]["settings"], settings))
    if changed:
        said = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise ValueError(
            f"the run in {path.parents[1]} was made with other settings: {said}. Make them equal again to resume, or "
            "begin a new run: another `out`, or overwrite"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning's remarks off the terminal, and those of its warnings that do not apply."""
    names = ("lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        for message in _SILENCED:
            warnings.filterwarnings("ignore", message)
        for name in names:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
