"""`continue_training`: a restored method and images in; a run on disk, with before and after, out.

out/  as `fit` leaves it, with the kept weights in model/ and in checkpoints/last.ckpt, and
      continued.json           before and after
      checkpoints/best.ckpt    the best weights so far
      checkpoints/final.ckpt   where the run ended, if those are not the kept ones
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from torch import nn

from prototile import distributed
from prototile.checkpoints import export, write_atomically
from prototile.data import Loader
from prototile.evaluation.stored import weights_hash
from prototile.methods import Prototypical
from prototile.schedules import Constant
from prototile.training.checkpointing import LAST, read
from prototile.training.continuing.criteria import add_, add_ons
from prototile.training.continuing.keeping import KeepBest
from prototile.training.continuing.measuring import Bench, Measures
from prototile.training.continuing.rebuilding import Remembering, Unfreezing, start_prototypes_
from prototile.training.continuing.recipe import EPOCHS, continued, optimization_for, warmed
from prototile.training.continuing.restoring import Restored
from prototile.training.continuing.result import FILE, Continued
from prototile.training.guard import Diverged
from prototile.training.module import Training
from prototile.training.optimization import Optimization
from prototile.training.run import Enough, described_backbone, fit

logger = logging.getLogger(__name__)

_FINAL = "final.ckpt"


def continue_training(
    restored: Restored,
    loader: Loader | Callable[[], Loader],
    *,
    bench: Bench,
    guard: Callable[[Path], KeepBest],
    out: str | Path,
    criterion: str = "e2mc",
    coefficients: Mapping[str, Any] | None = None,
    optimization: Optimization | None = None,
    epochs: int = EPOCHS,
    warmup: int = 1,
    stages: int = 3,
    keep: Literal["best", "last"] = "best",
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
    checkpoint: str = "",
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    **options: Any,
) -> Continued:
    """Goes on from a checkpoint for some epochs, with a criterion added to the method's loss.

    `bench` is what before and after are measured on, and `guard` makes what judges the weights meanwhile; of them the
    best are kept, or the last. Where the file lacked parts, prototypes start from images, and there are `warmup` epochs
    more in the beginning, in which the backbone rests; then it learns from its last layers on, in so many `stages` of
    an epoch. `optimization` is `planned` where not given. Other options are those of `fit`.
    """
    if keep not in ("best", "last"):
        raise ValueError(f"keep must be 'best' or 'last', got {keep!r}")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    out, method = Path(out), restored.method
    base = weights_hash(method)
    add_(method, criterion, restored.name, coefficients)
    plan = planned(restored, warmup) if optimization is None else optimization
    more = warmup if restored.rebuilt else 0
    going_on = resume and (out / "checkpoints" / LAST).exists()
    if restored.rebuilt and isinstance(method, Prototypical) and not going_on:
        images = bench.asked if bench.known is None else bench.known
        start_prototypes_(method, images, bench.crop, restored.rebuilt, batch=bench.batch, seed=options.get("seed", 0))
    told = {"criterion": criterion, "coefficients": dict(coefficients or {}), "weights": base, "keep": keep}
    told["score"] = _score(method)
    whole = {"method": restored.described, **(config or {}), "continued": told}
    remembering, keeper = Remembering(restored.optimizer), guard(out / "checkpoints")
    finishing = _Finishing(restored, bench, keeper, remembering, out, checkpoint, told, more + epochs, whole)
    resting = [Unfreezing(more, stages)] if restored.rebuilt else []
    try:
        fit(
            method,
            loader,
            optimization=plan,
            epochs=more + epochs,
            out=out,
            callbacks=[*resting, remembering, keeper, finishing, *callbacks],
            loggers=loggers,
            resume=resume,
            config=whole,
            **options,
        )
    except Diverged:
        if finishing.result is None:  # it broke before there was anything to keep
            raise
    assert finishing.result is not None
    return finishing.result


def planned(restored: Restored, warmup: int = 1, lr: float | None = None) -> Optimization:
    """How a method is continued: by its run's own optimisation or as published, at a hundredth of the base rate; with
    `lr` at that rate, whatever the batch.
    """
    if restored.optimization is None:
        plan = optimization_for(restored.name, restored.method.backbones[0])
    else:
        plan = continued(restored.optimization, restored.epochs, again=restored.continued)
    if lr is not None:
        plan = replace(plan, lr=Constant(lr), lr_scaling="none")
    return warmed(plan, warmup) if restored.rebuilt and warmup else plan


@dataclass(eq=False)
class _Finishing(pl.Callback):
    """Measures before the first step, and at the end puts the kept weights back, measures them and writes all down."""

    restored: Restored
    bench: Bench
    keeper: KeepBest
    remembering: Remembering
    out: Path
    checkpoint: str
    told: Mapping[str, Any]
    epochs: int
    config: Mapping[str, Any]
    before: Measures | None = None
    result: Continued | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self.before = self.bench(self.restored.method)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish(trainer, pl_module, None)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.before is not None and isinstance(exception, Enough | Diverged):
            self._finish(trainer, pl_module, str(exception) if isinstance(exception, Diverged) else None)

    def state_dict(self) -> dict[str, Any]:
        return {"before": None if self.before is None else self.before.as_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["before"] is not None:
            self.before = Measures(**state_dict["before"])

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule, broken: str | None) -> None:
        assert isinstance(pl_module, Training)
        assert self.before is not None
        method, keeper = self.restored.method, self.keeper
        if broken is None:
            keeper.look(method, trainer.current_epoch + 1, trainer.global_step, trainer)  # of an epoch that goes on
        end = max(keeper.scores)
        best = keeper.best if self.told["keep"] == "best" or broken else end
        last = None
        if best != end or broken:
            last = None if broken else _measured(self.bench, method)
            keeper.restore_(method)
        after = self.before if best == 0 else self.bench(method)
        export(method, self.out / "model", described_backbone(self.config), pl_module.loader.augmentation)
        coefficients = {name: x for name, x in self._coefficients().items() if x is not None}
        self.result = Continued(
            checkpoint=self.checkpoint,
            layout=self.restored.layout,
            network=self.restored.network,
            method=self.restored.name,
            criterion=self.told["criterion"],
            coefficients=coefficients,
            before=self.before,
            after=after,
            last=last,
            measure=keeper.measure,
            scores=dict(keeper.scores),
            kept=best,
            keep=self.told["keep"],
            epochs=self.epochs,
            steps=trainer.global_step,
            rebuilt=self.restored.rebuilt,
            said=(*self.restored.said, self.remembering.said),
            diverged=broken,
            settings={"learning rates": sorted({group["lr"] for group in trainer.optimizers[0].param_groups})},
        )
        if distributed.rank() == 0:
            if best != end and trainer.current_epoch >= self.epochs:
                _put_kept(self.out / "checkpoints", method)
            text = json.dumps(self.result.as_dict(), indent=2, allow_nan=False) + "\n"
            write_atomically(self.out / FILE, lambda file: file.write(text.encode()))
            logger.log(logging.WARNING if self.result.worse else logging.INFO, "%s", self.result.verdict)

    def _coefficients(self) -> dict[str, Any]:
        """What the criterion was weighed with."""
        new = add_ons(self.told["criterion"], self.restored.name, self.told["coefficients"])
        if not new:
            return {}
        regularizer: Any = new[0].regularizer
        names = ("beta", "gamma", "mu", "nu", "t", "space", "reduction", "partition")
        return {"weight": new[0].weight} | {name: vars(regularizer).get(name) for name in names}


def _measured(bench: Bench, method: nn.Module) -> Measures | None:
    """What the last weights are like; none where their features are no numbers."""
    try:
        return bench(method)  # type: ignore[arg-type]
    except ValueError:
        return None


def _put_kept(folder: Path, method: nn.Module) -> None:
    """The kept weights become those of the last checkpoint, and what it was lies beside it."""
    last, final = folder / LAST, folder / _FINAL
    if final.exists() or not last.exists():
        return
    contents = read(last)
    own = {f"method.{name}": x.detach().cpu().clone() for name, x in method.state_dict().items()}
    last.rename(final)
    write_atomically(last, lambda file: torch.save(contents | {"state_dict": own}, file))


def _score(method: nn.Module) -> str:
    """Whether prototypes enter scores as they are stored, which a checkpoint does not tell."""
    free = isinstance(method, Prototypical) and not method.student.head.prototypes.normalized
    return "stored" if free else "cosine"
