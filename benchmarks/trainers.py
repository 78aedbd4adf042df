"""How prototile trains a case: a plain loop over its parts, and `training.fit`, which is Lightning's loop."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from contests import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Case,
    LoopTrainer,
    Moment,
    Rate,
    Trainer,
    again_and_again,
    small_photos,
    transformer,
)
from prototile import methods
from prototile.data import Arrays, Loader, Source, Subset, folder
from prototile.methods import Prototypical
from prototile.schedules import Constant, Progress
from prototile.training.optimization import Optimization
from prototile.training.run import fit
from prototile.types import Batch

OPTIMIZATION = Optimization(lr=Constant(LEARNING_RATE), weight_decay=Constant(WEIGHT_DECAY), lr_scaling="none")
EPOCHS = 100  # of the run whose first steps are measured


def method(case: Case) -> Prototypical:
    return methods.METHODS[case.method](transformer(case), num_prototypes=case.prototypes, momentum=Constant(MOMENTUM))


def source(case: Case, photos: Path) -> Source:
    images = Arrays(small_photos()) if case.small else folder(photos)
    return Subset(images, again_and_again(len(images)))


def loader(case: Case, photos: Path, device: torch.device, workers: int) -> Loader:
    there = device if device.type == "cuda" else None
    return Loader(source(case, photos), case.augmentation, case.batch, device=there, workers=workers)


class Ours(LoopTrainer):
    """prototile's loader, method and optimisation in a plain loop."""

    def __init__(self, case: Case, photos: Path, device: torch.device, workers: int):
        super().__init__(case, device)
        self._loader = loader(case, photos, device, workers)
        self._method = method(case).to(device)
        self.optimizer = OPTIMIZATION.build(self._method, case.batch, fused=device.type == "cuda")
        self._total = EPOCHS * len(self._loader)

    def batches(self) -> Iterator[Batch]:
        while True:
            yield from self._loader

    def loss(self, batch: Batch) -> Tensor:
        return self._method(batch.to(self.device).views, self._progress()).loss

    def update(self) -> None:
        OPTIMIZATION.set_values_(self.optimizer, self._progress())
        self.optimizer.step()
        self._method.after_step(self._progress())

    def networks(self) -> list[tuple[str, nn.Module, nn.Module, nn.Module]]:
        student, teacher = self._method.student, self._method.teacher
        assert teacher is not None
        return [
            (name, network.backbone, network.backbone.vit.blocks[0], network.head.projector)
            for name, network in (("student", student), ("teacher", teacher))
        ]

    def parameters(self) -> list[Tensor]:
        return list(self._method.student.parameters())

    def close(self) -> None:
        self._endless = None
        del self._loader

    def _progress(self) -> Progress:
        return Progress(self.steps % self._total, self._total, EPOCHS)


class Fit(Trainer):
    """The same through `fit`: Lightning's Trainer, the guard, and all that a run has."""

    def __init__(self, case: Case, photos: Path, device: torch.device, workers: int):
        self._case, self._device = case, device
        self._loader, self._method = loader(case, photos, device, workers), method(case)
        self._folder = tempfile.TemporaryDirectory(prefix="benchmarks-")

    def measure(self, steps: int, warmup: int) -> Rate:
        watch = _Stopwatch((warmup, warmup + steps), self._device)
        cuda = self._device.type == "cuda"
        fit(
            self._method,
            self._loader,
            optimization=OPTIMIZATION,
            epochs=EPOCHS,
            out=self._folder.name,
            callbacks=[watch],
            precision="bf16-mixed" if cuda else "32-true",
            accelerator="gpu" if cuda else "cpu",
            devices=1,
            overwrite=True,
            checkpoint_minutes=1e6,
            limit_steps=warmup + steps,
        )
        began, ended = watch.moments
        return began.rate(ended, steps * self._case.batch)

    def close(self) -> None:
        del self._loader
        self._folder.cleanup()


class _Stopwatch(Callback):
    """The moments at which two steps of a run have ended."""

    def __init__(self, steps: tuple[int, int], device: torch.device):
        self._steps, self._device = steps, device
        self.moments: list[Moment] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self._steps:
            self.moments.append(Moment.now(self._device))
