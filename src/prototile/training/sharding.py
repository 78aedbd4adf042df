"""How ranks share the work.

single       one process
ddp          every rank holds the whole method; gradients are averaged
fsdp         every rank holds a part of the backbones' parameters (FSDP2) and some of the prototypes, with their
             gradients and optimiser states; all else whole

With fsdp, a backbone's layers are gathered when their turn comes. Prototypes are not: the embeddings of all ranks are,
which are small, and sums over prototypes are summed over ranks (`prototile.assignments.sharded`). Who compares
prototypes with each other does gather them: KoLeo-proto in every step, the monitor and audits where they look.
"""

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

from prototile import distributed
from prototile.backbones import Backbone
from prototile.heads import Prototypes
from prototile.training.module import Training


def strategy(name: Literal["auto", "ddp", "fsdp"], ranks: int) -> Strategy | str:
    """Lightning's strategy; buffers stay each rank's own, as queues are."""
    if name not in ("auto", "ddp", "fsdp"):
        raise ValueError(f"strategy must be 'auto', 'ddp' or 'fsdp', got {name!r}")
    if name == "fsdp":
        return Sharded()
    return DDPStrategy(broadcast_buffers=False) if name == "ddp" or ranks > 1 else "auto"


class Sharded(DDPStrategy):
    """Backbones in parts, layer by layer (`fully_shard`), and prototypes by rows; all else whole on every rank.

    Student and teacher are cut alike, so that a moving average is one of each rank's parts. What stays whole, such as
    projectors, has its gradients averaged after every backward. Checkpoints hold whole tensors, the same file as other
    strategies write.
    """

    def configure_ddp(self) -> None:
        module = self.lightning_module
        assert isinstance(module, Training)
        with torch.no_grad():
            distributed.broadcast_(module.parameters())
        for network in module.method.backbones:
            _shard_(network)
        for part in module.method.modules():
            if isinstance(part, Prototypes):
                part.split_()
        self._whole = [p for p in module.parameters() if p.requires_grad and not distributed.is_sharded(p)]

    def teardown(self) -> None:
        """Leaves the method where it is: parts cannot be moved after an error within a layer."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()

    def post_backward(self, closure_loss: Tensor) -> None:
        distributed.average_gradients_(self._whole)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {name: _saved(x) for name, x in super().lightning_module_state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().optimizer_state(optimizer))
        whole = {i: {k: _saved(x) for k, x in values.items()} for i, values in state["state"].items()}
        return state | {"state": whole}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        cut = []
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                i: {k: distributed.like(x, parameters[i]) for k, x in values.items()}
                for i, values in state["state"].items()
            }
            cut.append(state | {"state": parts})
        super().load_optimizer_state_dict({"optimizer_states": cut})


def _shard_(network: Backbone) -> None:
    """Layer by layer, then what is left: the first, whose tokens and positions belong to no module of it."""
    for layer in network.layers[1:]:
        parts = layer.children() if isinstance(layer, nn.ModuleList) else [layer]
        distributed.shard_([part for part in parts if _has_parameters(part)])
    distributed.shard_([network])


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _saved(x: Any) -> Any:
    return distributed.whole(x).cpu() if distributed.is_sharded(x) else x


def world_of(accelerator: str, devices: int | str, nodes: int) -> int:
    """The number of ranks that a Trainer with these settings has."""
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer.world_size
