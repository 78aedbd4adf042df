"""What the benchmark of training trains: cases, their data, and where a step's time goes.

    Case      a method at a size, with its views
    photos    what it is trained on: JPEG files, or small images in memory
    Clock     which part of a step is at work
    Trainer   someone who trains a case: ours (`trainers`) and lightly's (`rival_trainers`)

v views, b images, h w pixels.
"""

import os
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import active_children
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from photographs import photographs
from prototile import views
from prototile.backbones import ViT, vit
from prototile.data.images import decode
from prototile.views import Augmentation

LEARNING_RATE, WEIGHT_DECAY, MOMENTUM = 5e-4, 0.04, 0.996
FILES, EPOCH_IMAGES = 64, 400_000  # each file comes again and again: an epoch has no end that would be timed
PARTS = ("views", "student", "teacher", "loss", "update", "other")


@dataclass(frozen=True)
class Case:
    """A method, a vision transformer and its views; `small` are 32-pixel images, otherwise photographs of 500 x 375."""

    method: Literal["dino", "msn"]
    size: Literal["tiny", "small"]
    small: bool
    batch: int
    prototypes: int
    dims: int | None = None  # of a network that is smaller than any `size`
    depth: int | None = None
    heads: int | None = None

    @property
    def name(self) -> str:
        return f"{self.method} ViT-{self.size}/{self.patch} {self.side} px B={self.batch} K={self.prototypes}"

    @property
    def side(self) -> int:
        return 32 if self.small else 224

    @property
    def patch(self) -> int:
        return 4 if self.small else 16

    @property
    def augmentation(self) -> Augmentation:
        crops = 4 if self.small else {"dino": 8, "msn": 10}[self.method]
        if self.method == "dino":
            published = views.presets.dino(local_views=crops)
        else:
            published = views.presets.msn(focal_views=crops)
        return views.small(published) if self.small else published

    def quick(self) -> "Case":
        """The same with a tiny network, few prototypes and few images."""
        return replace(self, batch=4, prototypes=64, dims=48, depth=2, heads=2)


def transformer(case: Case) -> ViT:
    return vit(case.size, patch=case.patch, image_size=case.side, dims=case.dims, depth=case.depth, heads=case.heads)


def described(case: Case) -> str:
    groups = [f"{len(group.views)} x {group.size}" for group in case.augmentation.groups]
    kind = "arrays of 32 x 32 x 3" if case.small else "JPEG files of 500 x 375"
    return f"{kind}; views of {' + '.join(groups)} pixels; batches of {case.batch}; K = {case.prototypes:,}"


@cache
def small_photos() -> UInt8[np.ndarray, "n h w 3"]:
    return np.stack([decode(data).permute(1, 2, 0).numpy() for data in photographs(4 * FILES, 32, 32)])


def write_photos(folder: Path, *, quick: bool) -> None:
    for number, data in enumerate(photographs(4 if quick else FILES, 500, 375)):
        (folder / f"{number:03}.jpg").write_bytes(data)


def again_and_again(images: int) -> np.ndarray:
    """Numbers of images for an epoch that nobody sees the end of."""
    return np.tile(np.arange(images), EPOCH_IMAGES // images)


# -------------------------------------------------------------------------------------------------------- time
class Clock:
    """Adds up the seconds of each part of a step; on a GPU it waits for what was begun, so it is off when not asked."""

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = defaultdict(float)
        self._device, self._on, self._part, self._since = device, False, "other", 0.0

    def start(self) -> None:
        self.seconds.clear()
        self._on, self._part = True, "other"
        self._since = self._now()

    def stop(self) -> None:
        self.enter("other")
        self._on = False

    def enter(self, part: str) -> None:
        """From now on, time is this part's."""
        if self._on:
            now = self._now()
            self.seconds[self._part] += now - self._since
            self._part, self._since = part, now

    def shares(self) -> dict[str, float]:
        total = sum(self.seconds.values())
        return {part: self.seconds.get(part, 0.0) / total for part in PARTS}

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()  # which other processes disturb least

    def watch(self, backbone: nn.Module, projector: nn.Module, part: str) -> None:
        """Gives `part` the time from the backbone's call until its features are projected, forward and backward.

        What follows a projection is the loss, until the gradient of that projection is there: the products with
        prototypes are the loss's.
        """

        def called(*_: Any) -> None:
            self.enter(part)

        def projected(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.enter("loss")
            if output.requires_grad:
                output.register_hook(lambda gradient: self.enter(part))

        backbone.register_forward_pre_hook(called)
        projector.register_forward_hook(projected)


class Work:
    """What the networks had to do: rows and tokens that entered blocks, with and without a gradient to come."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {"student": 0, "teacher": 0}

    def watch(self, block: nn.Module) -> None:
        def called(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows, tokens = inputs[0].shape[:2]
            self.tokens["student" if torch.is_grad_enabled() else "teacher"] += rows * tokens

        block.register_forward_pre_hook(called)


# ---------------------------------------------------------------------------------------------------- contestants
@dataclass(frozen=True)
class Rate:
    """Images per second by the wall clock, CPU seconds of this process and its workers for an image, and the share of
    the time in which training waited for data, where known.
    """

    images_per_second: float
    cpu_seconds: float
    waiting: float | None


@dataclass(frozen=True)
class Moment:
    """Now, by the wall clock and in CPU seconds of this process and its workers; on a GPU when all is done."""

    wall: float
    cpu: float

    @staticmethod
    def now(device: torch.device) -> "Moment":
        if device.type == "cuda":
            torch.cuda.synchronize()
        return Moment(time.perf_counter(), time.process_time() + children_seconds())

    def rate(self, end: "Moment", images: int, waited: float | None = None) -> Rate:
        """From this moment to that, in which so many images were trained on."""
        wall = end.wall - self.wall
        return Rate(images / wall, (end.cpu - self.cpu) / images, None if waited is None else waited / wall)


def children_seconds() -> float:
    """CPU seconds of the living children, in ticks of 10 ms."""
    total = 0
    for child in active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


class Trainer(ABC):
    """Someone who trains a case: batches and their steps, as many as are asked for."""

    @abstractmethod
    def measure(self, steps: int, warmup: int) -> Rate:
        """Makes `warmup` steps and then times as many as `steps`."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of the workers."""


class LoopTrainer(Trainer):
    """A plain loop: batch, forward, backward, optimiser, moving average."""

    optimizer: torch.optim.Optimizer

    def __init__(self, case: Case, device: torch.device):
        self.case, self.device, self.clock = case, device, Clock(device)
        self.steps = 0
        self._endless: Iterator[Any] | None = None
        self._waited = 0.0

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """Batches without end."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The forward pass, from the batch as its loader gave it."""

    @abstractmethod
    def update(self) -> None:
        """Optimiser and moving average."""

    @abstractmethod
    def networks(self) -> list[tuple[str, nn.Module, nn.Module, nn.Module]]:
        """Of student and teacher: the part's name, the backbone, its first block, the projector."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Those of the student."""

    def step(self) -> Tensor:
        self.clock.enter("views")
        batch = self._next()
        self.clock.enter("update")
        self.optimizer.zero_grad()
        self.clock.enter("other")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.loss(batch)
        loss.backward()
        self.clock.enter("update")
        self.update()
        self.clock.enter("other")
        self.steps += 1  # gradients stay until the next step
        return loss.detach()

    def measure(self, steps: int, warmup: int) -> Rate:
        for _ in range(warmup):
            self.step()
        self._waited = 0.0
        began = Moment.now(self.device)
        for _ in range(steps):
            self.step()
        return began.rate(Moment.now(self.device), steps * self.case.batch, self._waited)

    def profile(self, steps: int) -> dict[str, float]:
        """The share of each part of a step; for a trainer without workers, whose views stand in line."""
        for name, backbone, _, projector in self.networks():
            self.clock.watch(backbone, projector, name)
        self.step()
        self.clock.start()
        for _ in range(steps):
            self.step()
        self.clock.stop()
        return self.clock.shares()

    def check(self) -> dict[str, Any]:
        """A first step, looked at: its loss, what the networks had to do for an image, how much was trained."""
        work = Work()
        for _, _, block, _ in self.networks():
            work.watch(block)
        loss = float(self.step())
        images = self.case.batch
        trained = sum(p.numel() for p in self.parameters() if p.grad is not None)
        tokens = {f"{name}_tokens": count / images for name, count in work.tokens.items()}
        return {"first_loss": loss, "parameters": trained, **tokens}

    def _next(self) -> Any:
        if self._endless is None:
            self._endless = self.batches()
        asked = time.perf_counter()
        batch = next(self._endless)
        self._waited += time.perf_counter() - asked
        return batch
