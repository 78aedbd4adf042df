"""Schedules: from one `Progress` to a value. Pure; the same progress gives the same value.

    schedule                                           shape
    Constant(value)
    Cosine(base, final, warmup_epochs=...)             linear warm-up, then half a cosine
    Linear(start, final)                               a straight line
    EpochRamp(start, final, epochs)                    a line over epochs, constant within one and afterwards
    Steps(base, factor, epochs)                        constant, times the factor from each of these epochs on
    Product(a, b)                                      one times the other

What official implementations do differently from each other is a field: a horizon beyond the last step
(`stretch`), a step counter that is incremented before use (`ahead`), a warm-up that reaches its end at the last
warm-up step (`inclusive`), one value per epoch (`per_epoch`).

    DINO, iBOT, SwAV        lr, weight decay, momentum      Cosine(..., inclusive=True)
    DINO, iBOT              teacher temperature             EpochRamp(.04, .07, 30)
    MSN, PMSN               lr, weight decay                Cosine(..., stretch=1.25, ahead=True)
    MSN, PMSN               momentum                        Linear(.996, 1, stretch=1.25)
    VICReg, MAE             lr                              Cosine(lr, .001 lr, warmup_epochs=10)
    ExCB                    lr, weight decay                Cosine(..., ahead=True)
    SimSiam                 lr                              Cosine(lr, 0, per_epoch=True)
    data2vec                momentum                        Linear(.999, .9998, until=...)
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of `steps` optimiser steps (the first is 0), `epochs` in all."""

    step: int
    steps: int
    epochs: float = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.epochs <= 0 or not 0 <= self.step <= self.steps:
            raise ValueError(
                f"progress must have 0 <= step <= steps, at least one step and a positive number of epochs, got {self}"
            )

    @property
    def fraction(self) -> float:
        return self.step / self.steps

    @property
    def steps_per_epoch(self) -> float:
        return self.steps / self.epochs

    @property
    def epoch(self) -> int:
        """The epoch that this step belongs to."""
        return int(self.step * self.epochs // self.steps)


class Schedule(ABC):
    """A value for every moment of a run."""

    @abstractmethod
    def __call__(self, progress: Progress) -> float: ...


@dataclass(frozen=True)
class Constant(Schedule):
    value: float

    def __call__(self, progress: Progress) -> float:
        return self.value


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""From `start` to `base` in a line over the warm-up, then $f + \frac{b - f}{2}(1 + \cos \pi x)$ to `final`."""

    base: float
    final: float
    warmup_epochs: float = 0
    start: float = 0.0
    inclusive: bool = False
    stretch: float = 1.0
    ahead: bool = False
    per_epoch: bool = False

    def __call__(self, progress: Progress) -> float:
        unit = 1 if self.per_epoch else progress.steps_per_epoch
        now = (progress.epoch if self.per_epoch else progress.step) + self.ahead
        warmup = _whole(self.warmup_epochs * unit)
        length = _whole(self.stretch * progress.epochs * unit) - warmup
        if now < warmup:
            return self.start + (self.base - self.start) * now / max(warmup - self.inclusive, 1)
        x = min((now - warmup) / max(length, 1), 1.0)
        return self.final + 0.5 * (self.base - self.final) * (1 + math.cos(math.pi * x))


@dataclass(frozen=True)
class Linear(Schedule):
    """From `start` to `final` over the fraction `until` of a run, constant afterwards; `stretch` as in `Cosine`."""

    start: float
    final: float
    stretch: float = 1.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not (self.stretch > 0 and self.until > 0):
            raise ValueError(f"stretch and until must be positive, got {self.stretch} and {self.until}")

    def __call__(self, progress: Progress) -> float:
        x = min(progress.step / (self.stretch * self.until * progress.steps), 1.0)
        return self.start + (self.final - self.start) * x


@dataclass(frozen=True)
class EpochRamp(Schedule):
    """`start` until the epoch `begin`, a line to `final` that is reached in the last of `epochs` epochs, then constant.

    With one epoch that epoch has the value `start`; with none the value is `final` (DINO's temperatures; iBOT's, whose
    patch term begins later, with `begin`).
    """

    start: float
    final: float
    epochs: int
    begin: int = 0

    def __call__(self, progress: Progress) -> float:
        epoch = progress.epoch - self.begin
        if epoch < 0:
            return self.start
        if epoch >= self.epochs:
            return self.final
        return self.start + (self.final - self.start) * epoch / max(self.epochs - 1, 1)


@dataclass(frozen=True)
class Steps(Schedule):
    """`base`, multiplied by `factor` from each of these epochs on (counted from 0)."""

    base: float
    factor: float
    epochs: tuple[float, ...]

    def __call__(self, progress: Progress) -> float:
        return self.base * self.factor ** sum(progress.epoch >= epoch for epoch in self.epochs)


@dataclass(frozen=True)
class Product(Schedule):
    """One schedule times another (ExCB: the prototypes' weight decay has a factor from 10 to 1)."""

    first: Schedule
    second: Schedule

    def __call__(self, progress: Progress) -> float:
        return self.first(progress) * self.second(progress)


def _whole(x: float) -> int:
    """The whole part, not one less where rounding left 6.999999999."""
    return int(x + 1e-9)
