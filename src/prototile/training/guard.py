"""The guard: a run whose loss or gradients are no numbers any more, or whose loss has run away, ends with a reason.

    Guard       a callback; looks at every optimiser step
    Diverged    the error it raises
    Watch       when a loss has run away: pure Python

Looking costs a GPU no pause: a step is judged when the next one is under way, by losses and gradient norms that were
put aside. Before a checkpoint is written `settle` judges what is left and looks at all weights, so that a checkpoint is
never one of a broken state.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from prototile import distributed
from prototile.training.module import Training


class Diverged(RuntimeError):
    """A run that cannot go on: its numbers are broken. The last checkpoint is from before."""


@dataclass
class Watch:
    """Says when a loss has run away.

    A loss is far off when it is above the median m of the last `window` losses that were not by `times` times the
    larger of |m| and their range between the quartiles; `patience` such steps in a row are divergence. Fewer than
    `least` losses say nothing.
    """

    window: int = 500
    least: int = 100
    times: float = 10.0
    patience: int = 100
    losses: deque[float] = field(default_factory=deque)
    far: int = 0

    def limit(self) -> float:
        """The loss from which one is far off."""
        if len(self.losses) < self.least:
            return math.inf
        low, middle, high = statistics.quantiles(self.losses, n=4)
        return middle + self.times * max(abs(middle), high - low)

    def note(self, loss: float) -> bool:
        """Notes a loss; true where it has run away."""
        if loss > self.limit():
            self.far += 1
        else:
            self.far = 0
            self.losses.append(loss)
            if len(self.losses) > self.window:
                self.losses.popleft()
        return self.far >= self.patience


@dataclass
class Record:
    """What was put aside of an optimiser step, on its device."""

    step: int
    loss: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    names: list[str]
    norms: Float[Tensor, " p"]  # of the gradients of the parameters with these names
    images: Float[Tensor, ""]  # the sum of the last batch's: no number where one of its pixels is none


class Guard(pl.Callback):
    """Ends a run that is broken: with the step, the term, the gradient and what to try.

    A loss that is no number, or a gradient that is none where the precision has no scaler to leave such steps out,
    ends it at once; a loss that has run away (`Watch`) when it stays away.
    """

    def __init__(self, watch: Watch | None = None):
        self.watch = watch or Watch()
        self._record: Record | None = None
        self._sums: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Judges the last step and puts this one aside; gradients are unscaled by now, and not clipped yet."""
        assert isinstance(pl_module, Training)
        self._judge(trainer)
        found = [(name, p.grad) for name, p in pl_module.method.named_parameters() if p.grad is not None]
        assert pl_module.progress is not None
        assert pl_module.pixel_sum is not None
        loss, parts = self._summed(pl_module)
        names, norms = [name for name, _ in found], _norms([grad for _, grad in found])
        self._record = Record(pl_module.progress.step, loss, parts, names, norms, pl_module.pixel_sum)
        self._sums = {}

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds up an accumulation window: what is no number anywhere in it is none in the sum."""
        assert isinstance(pl_module, Training)
        assert pl_module.terms is not None
        terms = pl_module.terms
        for name, value in {"": terms.loss.detach(), **terms.parts}.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def settle(self, module: pl.LightningModule) -> None:
        """Judges what is left to judge, and all weights and states: an error where one is no number."""
        assert isinstance(module, Training)
        self._judge(module.trainer)
        tensors = [*module.method.named_parameters(), *module.method.named_buffers()]
        broken = [name for name, x in tensors if x.is_floating_point() and not _finite(x)]
        (anywhere,) = distributed.any_rank(bool(broken), device=module.device)
        if anywhere:
            name = broken[0] if broken else "a parameter of another rank"
            raise Diverged(
                f"after step {module.trainer.global_step}: {name} holds values that are no numbers, the first of "
                f"{len(broken)}. No checkpoint was written of this state; the last one is from before. "
                f"{_advice(module.trainer)}"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._judge(trainer)

    def _summed(self, module: Training) -> tuple[Tensor, dict[str, Tensor]]:
        parts = dict(self._sums)
        every = module.trainer.accumulate_grad_batches
        return parts.pop("") / every, {name: value / every for name, value in parts.items()}

    def _judge(self, trainer: pl.Trainer) -> None:
        record, self._record = self._record, None
        if record is None:
            return
        loss = float(record.loss)
        if not math.isfinite(loss):
            raise Diverged(f"step {record.step}: the loss is {loss}{_terms(record)}. {_cause(record, trainer)}")
        if not _scaled(trainer) and not bool(record.norms.isfinite().all()):
            broken = record.names[int((~record.norms.isfinite()).nonzero()[0])]
            raise Diverged(
                f"step {record.step}: the loss is {loss:.4g}, but the gradient of {broken} is no number. "
                f"{_cause(record, trainer)}"
            )
        if self.watch.note(loss):
            raise Diverged(
                f"step {record.step}: the loss is {loss:.4g} and has been far above its median of "
                f"{statistics.median(self.watch.losses):.4g} for {self.watch.far} steps: the run has diverged"
                f"{_terms(record)}. {_cause(record, trainer)}"
            )


def _terms(record: Record) -> str:
    """The parts of a loss, those that are no numbers first."""
    values = {name: float(value) for name, value in record.parts.items()}
    broken = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    sound = [f"{name} = {value:.4g}" for name, value in values.items() if math.isfinite(value)]
    return f", its terms {', '.join(broken + sound)}" if values else ""


def _cause(record: Record, trainer: pl.Trainer) -> str:
    """The largest gradient, the suspected cause and what to try."""
    if not bool(record.images.isfinite()):
        return "The images of this batch hold values that are no numbers: look at the data and the augmentation."
    finite = record.norms.isfinite()
    if not bool(finite.all()):
        first = record.names[int((~finite).nonzero()[0])]
        where = f"{int((~finite).sum())} gradients are no numbers, the first is that of {first}"
    elif len(record.norms) == 0:
        where = "There are no gradients"
    else:
        largest = int(record.norms.argmax())
        where = f"The largest gradient is that of {record.names[largest]}, with a norm of {record.norms[largest]:.3g}"
    return f"{where}. {_advice(trainer)}"


def _advice(trainer: pl.Trainer) -> str:
    said = "Often the learning rate is too high or its warm-up too short: try half of it, or clip=3"
    if trainer.precision == "16-mixed":
        said += "; float16 overflows above 65,504: try bf16-mixed or 32-true"
    return f"{said}; then go on from the last checkpoint, with resume."


def _scaled(trainer: pl.Trainer) -> bool:
    plugin = trainer.precision_plugin
    return isinstance(plugin, MixedPrecision) and plugin.scaler is not None


def _norms(grads: list[Tensor]) -> Float[Tensor, " p"]:
    if not grads:
        return torch.zeros(0)
    if any(distributed.is_sharded(grad) for grad in grads):
        return torch.stack([distributed.whole(grad.norm()) for grad in grads])
    return torch.stack(list(torch._foreach_norm(grads)))  # type: ignore[reportPrivateImportUsage]


def _finite(x: Tensor) -> bool:
    return bool(distributed.whole(x.detach().isfinite().all()))
