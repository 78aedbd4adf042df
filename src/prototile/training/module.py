"""The one LightningModule: any method, optimised as data says, on the batches of a loader.

What a step does, in this order: seed, forward and backward of each batch of an accumulation window, clipping, frozen
parts dropped, the optimiser with this step's learning rates, the method's `after_step`. One `Progress` drives all
schedules; it counts optimiser steps. Use it through `fit`, or with a Trainer of your own:

    Trainer(max_epochs=100, use_distributed_sampler=False).fit(Training(method, optimization, loader))
"""

import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from prototile import distributed
from prototile.balancing import Queue
from prototile.checkpoints.imported import Seen
from prototile.data import Loader
from prototile.methods import Method, Supervised, Terms
from prototile.schedules import Progress
from prototile.training.optimization import Optimization
from prototile.types import Batch

logger = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """A run that cannot go on: its numbers are broken. The last checkpoint is from before."""


class Training(pl.LightningModule):
    """A method in training.

    The loader, or a function that makes it: with several ranks it has to be made after them, so give a function then.
    `terms` and `progress` are those of the last batch, for callbacks. Random numbers (drop path, dropout) of a batch
    follow from the seed, the batch's place in the run and the rank, so that they need no state; global generators of
    torch, numpy and Python are seeded with them before each batch.

    Where float16 overflows and its scaler leaves a step out, nothing moves: schedules count the step, the teacher's
    moving average does not.
    """

    def __init__(
        self,
        method: Method,
        optimization: Optimization,
        loader: Loader | Callable[[], Loader],
        *,
        seed: int = 0,
        compile: bool = False,
        settings: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.method, self.optimization = method, optimization
        self.terms: Terms | None = None
        self.progress: Progress | None = None
        self.pixel_sum: Tensor | None = None  # of the last batch, for `Guard`
        self.skipped_steps = 0
        self._make_loader = loader
        self._seed = seed
        self._settings = dict(settings or {})
        self._loader: Loader | None = None
        self._restored: dict[str, Any] | None = None
        if compile:
            for network in method.backbones:
                network.compile()

    @property
    def loader(self) -> Loader:
        assert self._loader is not None, "the loader is there once a Trainer has begun"
        return self._loader

    @property
    def epochs(self) -> int:
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError("schedules need an end: give the Trainer `max_epochs`")
        return epochs

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run; the last window of an epoch may have fewer batches."""
        return self.epochs * math.ceil(len(self.loader) / self.trainer.accumulate_grad_batches)

    def now(self) -> Progress:
        """Where the run stands: of the step that is being computed, or of the next one between two steps."""
        return Progress(min(self.trainer.global_step, self.steps), self.steps, self.epochs)

    def steps_now(self, batch_idx: int) -> bool:
        """Whether the optimiser steps after this batch of the epoch."""
        every = self.trainer.accumulate_grad_batches
        return (batch_idx + 1) % every == 0 or batch_idx + 1 == len(self.loader)

    # Lightning's hooks, in the order in which it calls them.

    def setup(self, stage: str) -> None:
        self._loader = self._make_loader if isinstance(self._make_loader, Loader) else self._make_loader()
        self._restored = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        batch = self.loader.batch_size * self.trainer.accumulate_grad_batches
        fused = self.device.type == "cuda" and self._scaler() is None  # fused ones unscale float16 by themselves
        sharded = any(distributed.is_sharded(p) for p in self.method.parameters())
        return self.optimization.build(self.method, batch, fused=fused and not sharded)

    def train_dataloader(self) -> Loader:
        return self.loader

    def on_fit_start(self) -> None:
        """Prepares the method where a run begins; where one goes on, gives each rank back what only it has."""
        if self._restored is None:
            self._prepare()
        else:
            self._restore_buffers(self._restored)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._seed_batch(batch_idx)
        self.progress = self.now()
        self.pixel_sum = torch.stack([views.images.sum() for views in batch.views]).sum()
        try:
            self.terms = terms = self._learn(batch, self.progress)
        except ValueError as error:
            if not bool(self.pixel_sum.isfinite()):
                raise Diverged(
                    f"step {self.progress.step}: the images of this batch hold values that are no numbers, look at the "
                    f"data and the augmentation ({error})"
                ) from error
            raise
        return terms.loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        progress, scale = self.now(), self._scale()
        self.optimization.set_values_(optimizer.optimizer, progress)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._scale() < scale:  # what the scaler does where it leaves a step out, and only there
            self.skipped_steps += 1
        else:
            self.method.after_step(progress)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.optimization.clip_(self.method)
        self.optimization.drop_frozen_(self.method, self.now())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        buffers = {name: x.detach().cpu().clone() for name, x in self.method.named_buffers()}
        checkpoint["prototile"] = {
            "loader": self.loader.state_dict(),
            "settings": self._settings,
            "images": Seen.of(self.loader.augmentation).as_dict(),
            "ranks": distributed.world_size(),
            "buffers": distributed.gather_objects(buffers) if distributed.world_size() > 1 else [],
            "skipped_steps": self.skipped_steps,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = checkpoint["prototile"]
        self.loader.load_state_dict(own["loader"])
        self.skipped_steps = own["skipped_steps"]
        self._restored = own

    # What they need.

    def _learn(self, batch: Batch, progress: Progress) -> Terms:
        if isinstance(self.method, Supervised):
            return self.method(batch.views, progress, batch.labels)
        return self.method(batch.views, progress)

    def _prepare(self) -> None:
        state = self.loader.state_dict()
        with self.trainer.precision_plugin.forward_context():
            self.method.prepare(self._batches())
        self.loader.load_state_dict(state)

    def _batches(self) -> Iterator[Batch]:
        while True:
            for batch in self.loader:
                yield batch.to(self.device)

    @torch.no_grad()
    def _restore_buffers(self, own: dict[str, Any]) -> None:
        world = distributed.world_size()
        if own["ranks"] != world:
            for module in self.method.modules():
                if isinstance(module, Queue):
                    module.embeddings.zero_()
                    module.filled.zero_()
                    logger.info("the run was on %d ranks and is on %d: queues start empty", own["ranks"], world)
        elif world > 1:
            mine = own["buffers"][distributed.rank()]
            for name, x in self.method.named_buffers():
                x.copy_(mine[name])

    def _seed_batch(self, batch_idx: int) -> None:
        key = (self._seed % 2**64, self.trainer.current_epoch, batch_idx, distributed.rank())
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)

    def _scaler(self) -> Any:
        plugin = self.trainer.precision_plugin
        return plugin.scaler if isinstance(plugin, MixedPrecision) else None

    def _scale(self) -> float:
        scaler = self._scaler()
        return 0.0 if scaler is None else scaler.get_scale()


def difference(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What changed between two nested settings, in words."""
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from difference(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} was {old!r} and is {new!r}"
