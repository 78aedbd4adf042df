"""Weights and images made from names: what the official networks behind tests/reference/backbones were run on."""

import math
import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

TOKENS = ("pos_embed", "cls_token", "mask_token", "masked_embed", "relative_position_bias_table")


def weight(name: str, like: Tensor) -> Tensor:
    """A tensor of this shape, by its official name: noise z from a generator that the name seeds.

    Token and position tables are z / 2, running variances and scales 1 + z / 10, biases and running means z / 10,
    everything else z over the square root of its inputs.
    """
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros_like(like)
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if leaf in TOKENS:
        return noise / 2
    if leaf in ("bias", "running_mean", "q_bias", "v_bias"):
        return noise / 10
    if leaf == "running_var" or noise.ndim <= 1:
        return 1 + noise / 10
    return noise / math.sqrt(noise[0].numel())


@torch.no_grad()
def fill_(network: nn.Module, official: Callable[[str], str], scale: Mapping[str, float] | None = None) -> None:
    """Gives every tensor of the network its synthetic weight, times `scale` by our name; `official` names it."""
    for name, tensor in network.state_dict().items():
        tensor.copy_(weight(official(name), tensor) * (scale or {}).get(name, 1))


def images(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
