"""The guard: a run whose loss or gradients are no numbers any more, or whose loss has run away, ends with a reason.

    Guard       a callback; looks at every optimiser step
    Watch       when a loss has run away: pure Python

A step is judged before the next one begins, by its loss, the loss's terms and the norm of each gradient. They are on
their way from a GPU before the optimiser begins there, so that looking costs next to nothing. Before a checkpoint is
written `settle` looks at all weights, so that a checkpoint is never one of a broken state.
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
from prototile.training.module import Diverged, Training


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


class Record:
    """What is known of an optimiser step: on its way from the step's device."""

    def __init__(self, step: int, parts: dict[str, Tensor], names: list[str], norms: Float[Tensor, " p"]):
        self.step, self._parts, self.names = step, list(parts), names
        device = norms.device
        values = torch.cat([torch.stack([x.to(device, torch.float32) for x in parts.values()]), norms.float()])
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        self._values = values.to("cpu", non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> tuple[dict[str, float], Float[Tensor, " p"]]:
        """The loss under "", its terms by name, and the norms of the gradients of the named parameters."""
        if self._arrived is not None:
            self._arrived.synchronize()
        count = len(self._parts)
        return dict(zip(self._parts, self._values[:count].tolist(), strict=True)), self._values[count:]


class Guard(pl.Callback):
    """Ends a run that is broken: with the step, the term, the gradient and what to try.

    A loss that is no number, or a gradient that is none where the precision has no scaler to leave such steps out,
    ends it at once; a loss that has run away (`Watch`) when it stays away.
    """

    def __init__(self, watch: Watch | None = None):
        self.watch = watch or Watch()
        self._record: Record | None = None
        self._sums: dict[str, Tensor] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._judge(trainer)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Puts a step aside; gradients are unscaled by now, and not clipped yet."""
        assert isinstance(pl_module, Training)
        assert pl_module.progress is not None
        found = [(name, p.grad) for name, p in pl_module.method.named_parameters() if p.grad is not None]
        every = trainer.accumulate_grad_batches
        parts = {name: value / every for name, value in self._sums.items()}
        norms = _norms([grad for _, grad in found], pl_module.device)
        self._record = Record(pl_module.progress.step, parts, [name for name, _ in found], norms)
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

    def _judge(self, trainer: pl.Trainer) -> None:
        record, self._record = self._record, None
        if record is None:
            return
        parts, norms = record.read()
        loss = parts.pop("")
        said = f"step {record.step}: the loss is {loss:.4g}"
        why = f"{_gradients(record.names, norms)}. {_advice(trainer)}"
        if not math.isfinite(loss):
            raise Diverged(f"{said}{_terms(parts)}. {why}")
        if not _scaled(trainer) and not bool(norms.isfinite().all()):
            raise Diverged(f"{said}, but its gradient is no number. {why}")
        if self.watch.note(loss):
            median = statistics.median(self.watch.losses)
            raise Diverged(
                f"{said} and has been far above its median of {median:.4g} for {self.watch.far} steps: "
                f"the run has diverged{_terms(parts)}. {why}"
            )


def _terms(parts: dict[str, float]) -> str:
    """The parts of a loss, those that are no numbers first."""
    ordered = sorted(parts.items(), key=lambda part: math.isfinite(part[1]))
    return f", its terms {', '.join(f'{name} = {value:.4g}' for name, value in ordered)}" if parts else ""


def _gradients(names: list[str], norms: Float[Tensor, " p"]) -> str:
    """Which gradients are no numbers, or the largest one."""
    if not names:
        return "There are no gradients"
    broken = [name for name, finite in zip(names, norms.isfinite().tolist(), strict=True) if not finite]
    if broken:
        return f"{len(broken)} of {len(names)} gradients are no numbers, the first is that of {broken[0]}"
    largest = int(norms.argmax())
    return f"The largest gradient is that of {names[largest]}, with a norm of {norms[largest]:.3g}"


def _advice(trainer: pl.Trainer) -> str:
    said = "Often the learning rate is too high or its warm-up too short: try half of it, or clip=3"
    if trainer.precision == "16-mixed":
        said += "; float16 overflows above 65,504: try bf16-mixed or 32-true"
    return f"{said}; then go on from the last checkpoint, with resume."


def _scaled(trainer: pl.Trainer) -> bool:
    plugin = trainer.precision_plugin
    return isinstance(plugin, MixedPrecision) and plugin.scaler is not None


def _norms(grads: list[Tensor], device: torch.device) -> Float[Tensor, " p"]:
    if not grads:
        return torch.zeros(0, device=device)
    if any(distributed.is_sharded(grad) for grad in grads):
        return torch.stack([distributed.whole(grad.norm()) for grad in grads])
    return torch.stack(list(torch._foreach_norm(grads)))  # type: ignore[reportPrivateImportUsage]


def _finite(x: Tensor) -> bool:
    return bool(distributed.whole(x.detach().isfinite().all()))
