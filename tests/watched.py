"""A run whose health follows a script, for callbacks that watch: importable by spawned processes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prototile.assignments import Assignments
from prototile.backbones import Backbone
from prototile.data import Loader
from prototile.data.source import Arrays
from prototile.methods import Clusters, Method, Terms
from prototile.priors import Uniform
from prototile.schedules import Constant, Progress
from prototile.training.optimization import Optimization
from prototile.training.run import Run, fit
from prototile.types import Batch, Views
from prototile.views import Augmentation, preset, small
from training_cases import SIDE, TinyBackbone

IMAGES, BATCH, K = 32, 8, 4  # 4 batches an epoch


class Scripted(Method):
    """Learns the mean of its features; from step `sick` to step `well` all its targets choose the same prototype."""

    def __init__(self, sick: int, well: int):
        super().__init__()
        self.student = TinyBackbone()
        self.register_buffer("basis", torch.eye(K))
        self._sick, self._well = sick, well

    def forward(self, views: tuple[Views, ...], progress: Progress) -> Terms:
        z = self.student(views[0].images.flatten(0, 1)).pooled
        chosen = torch.arange(len(z), device=z.device) % K
        if self._sick <= progress.step < self._well:
            chosen = chosen * 0
        targets = Assignments(self.basis[chosen], self.basis, 0.1)
        prior = Uniform()(K).to(z.device)
        loss = (z - 1).square().mean()
        return Terms(loss, {"mean": loss.detach()}, z.detach(), {"cls": Clusters(targets, targets, prior)})

    def after_step(self, progress: Progress) -> None:
        pass

    def prepare(self, batches: Iterator[Batch]) -> None:
        pass

    def check(self, augmentation: Augmentation) -> None:
        pass

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        return (self.student,)

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        return {}


def source(images: int = IMAGES, labels: bool = True) -> Arrays:
    """Noise of three brightnesses, which are the classes."""
    classes = np.arange(images) % 3
    noise = np.random.default_rng(0).integers(0, 60, (images, SIDE, SIDE, 3))
    return Arrays((noise + 90 * classes[:, None, None, None]).astype(np.uint8), classes if labels else None)


def loader() -> Loader:
    return Loader(source(), small(preset("vicreg"), size=SIDE), BATCH, workers=0, epochs=10)


def run(out: Path, *, sick: int = 10**9, well: int = 10**9, **options: Any) -> Run:
    torch.manual_seed(0)
    settings = {"optimization": Optimization(lr=Constant(0.01), lr_scaling="none"), "epochs": 10, "accelerator": "cpu"}
    return fit(Scripted(sick, well), loader, out=out, **(settings | options))


def lines(out: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl of a run holds."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_times(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: x for name, x in line.items() if name != "time" and "time/" not in name} for line in found]
