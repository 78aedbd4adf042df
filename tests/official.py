"""A ViT in plain functions, as the official codes define it: nothing of the package, and nothing of timm."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
Resize = Literal["dino", "msn", "antialias"]


def vit(state: State, images: Tensor, *, heads: int, resize: Resize = "dino") -> Tensor:
    """The tokens after the last block, before the final norm; registers stand behind the class token."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    height, width = x.shape[2:]
    positions = state["pos_embed"]
    x = x.flatten(2).transpose(1, 2) + resized(positions[:, 1:], height, width, resize)
    cls = (state["cls_token"] + positions[:, :1]).expand(len(x), -1, -1)
    registers = [state["register_tokens"].expand(len(x), -1, -1)] if "register_tokens" in state else []
    x = torch.cat([cls, *registers, x], 1)
    i = 0
    while f"blocks.{i}.norm1.weight" in state:
        x = block({name.removeprefix(f"blocks.{i}."): t for name, t in state.items()}, x, heads)
        i += 1
    return x


def block(state: State, x: Tensor, heads: int) -> Tensor:
    y = linear(state, "attn.qkv", norm(state, "norm1", x))
    q, k, v = y.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
    y = linear(state, "attn.proj", (weights @ v).transpose(1, 2).flatten(2))
    x = x + y * state.get("ls1.gamma", torch.ones(()))
    y = norm(state, "norm2", x)
    if "mlp.w12.weight" in state:
        gate, value = linear(state, "mlp.w12", y).chunk(2, -1)
        y = linear(state, "mlp.w3", F.silu(gate) * value)
    else:
        y = linear(state, "mlp.fc2", F.gelu(linear(state, "mlp.fc1", y)))
    return x + y * state.get("ls2.gamma", torch.ones(()))


def resized(positions: Tensor, height: int, width: int, how: Resize) -> Tensor:
    side = math.isqrt(positions.shape[1])
    if height == width == side:
        return positions
    grid = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if how == "dino":
        grid = F.interpolate(grid, scale_factor=((height + 0.1) / side, (width + 0.1) / side), mode="bicubic")
    elif how == "msn":
        grid = F.interpolate(grid, scale_factor=math.sqrt(height * width / side**2), mode="bicubic")
    else:
        grid = F.interpolate(grid, (height, width), mode="bicubic", antialias=True)
    return grid.flatten(2).transpose(1, 2)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, state.get(f"{name}.weight"), state.get(f"{name}.bias"))


def resnet(state: State, images: Tensor, *, stem_padding: int = 3) -> Tensor:
    """The last stage's map."""
    small = state["conv1.weight"].shape[-1] == 3
    x = F.conv2d(images, state["conv1.weight"], stride=1 if small else 2, padding=stem_padding)
    x = F.relu(batch_norm(state, "bn1", x))
    x = x if small else F.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 5):
        i = 0
        while f"layer{stage}.{i}.conv1.weight" in state:
            x = _residual(state, f"layer{stage}.{i}", x, 2 if stage > 1 and i == 0 else 1)
            i += 1
    return x


def _residual(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    deep = f"{name}.conv3.weight" in state
    y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=1 if deep else stride, padding=0 if deep else 1)
    y = F.relu(batch_norm(state, f"{name}.bn1", y))
    y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride if deep else 1, padding=1)
    y = batch_norm(state, f"{name}.bn2", y)
    if deep:
        y = batch_norm(state, f"{name}.bn3", F.conv2d(F.relu(y), state[f"{name}.conv3.weight"]))
    if f"{name}.downsample.0.weight" in state:
        x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
        x = batch_norm(state, f"{name}.downsample.1", x)
    return F.relu(x + y)
