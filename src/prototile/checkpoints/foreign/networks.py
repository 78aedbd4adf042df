"""Backbones from their weights: official names -> those of `prototile.backbones`, and all sizes from shapes."""

import math
import re
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from prototile.backbones import Backbone, beit, resnet, swin, vit
from prototile.backbones.positions import Resize
from prototile.backbones.resnet import DEPTHS, Stem
from prototile.checkpoints.foreign.filling import Misfit, State, count, made, renamed, shape_of

# What is computed when a network is built, and so left out where a file holds it.
COMPUTED = {
    r"\brelative_position_index$": "a table of indices that is computed from the window",
    r"\battn_mask$": "a mask that is computed from the window",
}

VIT = (
    (r"^(masked_embed|mask_token)$", "mask_token"),
    (r"^register_tokens$", "reg_token"),
    (r"^fc_norm\.", "norm."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^(?!mask_token$)", "vit."),
)
BEIT = ((r"^fc_norm\.", "norm."), (r"^(?!mask_token$)", "beit."))
SWIN = (
    (r"^masked_embed$", "mask_token"),
    *((rf"^layers\.{i}\.downsample\.", f"layers.{i + 1}.merging.") for i in reversed(range(8))),
    (r"\.merging\.", ".downsample."),  # official code merges at the end of a stage, timm at the beginning of the next
    (r"^(?!mask_token$)", "swin."),
)
RESNET = ((r"^", "resnet."),)

_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24}  # of ViTs, by their dims; others have 64 dims a head
_MARKS = {
    "beit": r"^blocks\.0\.attn\.q_bias$",
    "swin": r"^layers\.0\.blocks\.0\.",
    "resnet": r"^layer1\.0\.conv1\.weight$",
    "vit": r"^blocks\.0\.attn\.qkv\.weight$",
}
_UNBUILT = {
    "XCiT": r"^cls_attn_blocks\.",
    "CvT": r"^stage0\.(patch_embed|blocks)\.",
    "ViL": r"^layer1\.\d+\.attn\.",
}


@dataclass(frozen=True)
class Found:
    """A backbone of some kind ("vit", "swin", "resnet", "beit"), and what the shapes do not tell, in words."""

    network: Backbone
    kind: str
    said: str


def kind_of(state: State) -> str | None:
    names = "\n".join(state)
    return next((kind for kind, mark in _MARKS.items() if re.search(mark, names, re.M)), None)


def unbuilt(state: State) -> str | None:
    """The name of a network that is known and cannot be built here."""
    names = "\n".join(state)
    if kind_of(state) is not None or re.search(r"^(blocks\.0|layer1\.0\.(conv|bn)\d)\.", names, re.M):
        return None
    return next((name for name, mark in _UNBUILT.items() if re.search(mark, names, re.M)), None)


def backbone_of(state: State, *, resize: Resize = "dino", stem: Stem = "cifar") -> Found:
    """The backbone with these weights, under official names without any prefix.

    `resize` is the project's way to bring positions to other sizes, `stem` what it makes of a 3 x 3 convolution.
    """
    match kind_of(state):
        case "vit":
            return _vit(state, resize)
        case "beit":
            return _beit(state)
        case "swin":
            return _swin(state)
        case "resnet":
            return _resnet(state, stem)
    raise Misfit("its backbone is none that is known (ViT, BEiT, Swin, ResNet)")


def _vit(state: State, resize: Resize) -> Found:
    dims, channels, patch, width = shape_of(state, "patch_embed.proj.weight", 4)
    folded = "reg_token" in state  # timm's form: positions are the patches' alone
    tokens = shape_of(state, "pos_embed", 3)[1] + folded
    grid = math.isqrt(max(tokens - 1, 0))
    if grid**2 + 1 != tokens or patch != width:
        raise Misfit(f"pos_embed is for {tokens} tokens and patches are {patch} x {width}: only squares are known")
    name = "reg_token" if folded else "register_tokens"
    registers = shape_of(state, name, 3)[1] if name in state else 0
    gated = "blocks.0.mlp.w12.weight" in state
    hidden = shape_of(state, f"blocks.0.mlp.{'w12' if gated else 'fc1'}.weight", 2)[0]
    heads = _heads(dims)
    weights = renamed(state, VIT)
    if "mask_token" in weights:
        weights["mask_token"] = weights["mask_token"].reshape(1, 1, -1)
    if registers:
        resize = "timm"
    if registers and not folded:  # DINOv2 adds the first position to the class token, and none to registers
        first = _fitting_tokens(state, dims, tokens)
        weights["vit.cls_token"], weights["vit.pos_embed"] = state["cls_token"] + first, state["pos_embed"][:, 1:]
    build = partial(
        vit,
        patch=patch,
        image_size=grid * patch,
        channels=channels,
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in state else None,
        resize=resize,
        mask_token="mask_token" in weights,
        registers=registers,
        mlp="swiglu" if gated else "gelu",
        pool="mean" if "fc_norm.weight" in state else "cls",
        dims=dims,
        depth=count(state, r"blocks\.(\d+)\.", "blocks"),
        heads=heads,
        hidden=hidden,
    )
    said = f"a ViT: {heads} heads, as the project's ViTs of {dims} dims have (shapes do not tell)"
    return Found(made(build, weights, "the ViT"), "vit", f"{said}; positions resized as {resize!r}")


def _fitting_tokens(state: State, dims: int, tokens: int) -> Tensor:
    """The class token's position, of tables of the right shapes."""
    if shape_of(state, "cls_token", 3) != (1, 1, dims) or shape_of(state, "pos_embed", 3) != (1, tokens, dims):
        raise Misfit(f"cls_token and pos_embed are not those of {dims} dims and {tokens} tokens")
    return state["pos_embed"][:, :1]


def _heads(dims: int) -> int:
    heads = _HEADS.get(dims, max(1, dims // 64))
    if dims % heads:
        raise Misfit(f"a ViT of {dims} dims is none of the known ones: its number of heads cannot be told")
    return heads


def _beit(state: State) -> Found:
    dims, channels, patch, _ = shape_of(state, "patch_embed.proj.weight", 4)
    shared = "rel_pos_bias.relative_position_bias_table" in state
    table = "rel_pos_bias" if shared else "blocks.0.attn"
    entries, heads = shape_of(state, f"{table}.relative_position_bias_table", 2)
    grid = (math.isqrt(max(entries - 3, 0)) + 1) // 2
    if (2 * grid - 1) ** 2 + 3 != entries:
        raise Misfit(f"{table}.relative_position_bias_table has {entries} rows, which no square of patches has")
    build = partial(
        beit,
        patch=patch,
        image_size=grid * patch,
        channels=channels,
        layer_scale=1e-4 if "blocks.0.gamma_1" in state else None,
        mask_token="mask_token" in state,
        shared_bias=shared,
        pool="mean" if "fc_norm.weight" in state else "cls",
        dims=dims,
        depth=count(state, r"blocks\.(\d+)\.", "blocks"),
        heads=heads,
    )
    return Found(made(build, renamed(state, BEIT), "the BEiT"), "beit", f"a BEiT for {grid * patch} pixels")


def _swin(state: State) -> Found:
    dims, channels, patch, _ = shape_of(state, "patch_embed.proj.weight", 4)
    if patch != 4:
        raise Misfit(f"a Swin transformer of patches of {patch} pixels is not known, only of 4")
    stages = count(state, r"layers\.(\d+)\.", "stages", limit=8)
    depths = [count(state, rf"layers\.{i}\.blocks\.(\d+)\.", f"blocks of stage {i}") for i in range(stages)]
    tables = [shape_of(state, f"layers.{i}.blocks.0.attn.relative_position_bias_table", 2) for i in range(stages)]
    windows = [(math.isqrt(rows) + 1) // 2 for rows, _ in tables]
    if any((2 * side - 1) ** 2 != rows for side, (rows, _) in zip(windows, tables, strict=True)):
        raise Misfit("the tables of relative positions are for no square windows")
    window, size = max(windows), _image_size(windows)
    weights = renamed(state, SWIN)
    if "mask_token" in weights:
        weights["mask_token"] = weights["mask_token"].reshape(1, 1, -1)
    build = partial(
        swin,
        window=window,
        image_size=size,
        channels=channels,
        mask_token="mask_token" in weights,
        dims=dims,
        depths=depths,
        heads=[heads for _, heads in tables],
    )
    said = f"a Swin transformer of windows of {window}, trained for {size} pixels (of which shapes tell only some)"
    return Found(made(build, weights, "the Swin transformer"), "swin", said)


def _image_size(windows: list[int]) -> int:
    """224 where that makes these windows; else that of the first stage that is one window."""
    sides = [4 * 2**i for i in range(len(windows))]
    if all(window == min(max(windows), 224 // side) for window, side in zip(windows, sides, strict=True)):
        return 224
    smaller = [window * side for window, side in zip(windows, sides, strict=True) if window < max(windows)]
    return smaller[0] if smaller else max(windows) * sides[-1]


def _resnet(state: State, stem: Stem) -> Found:
    width, channels, side, _ = shape_of(state, "conv1.weight", 4)
    if side not in (3, 7):
        raise Misfit(f"a ResNet whose first convolution is {side} x {side} is not known, only 7 and 3")
    deep = "layer1.0.conv3.weight" in state
    depths = tuple(count(state, rf"layer{i}\.(\d+)\.", f"blocks of layer{i}") for i in range(1, 5))
    if (deep, depths) not in DEPTHS:
        raise Misfit(f"a ResNet of {depths} blocks is not known ({', '.join(DEPTHS.values())} are)")
    name = DEPTHS[deep, depths]
    build = partial(resnet, name, stem="imagenet" if side == 7 else stem, channels=channels, width=width)  # type: ignore[arg-type]
    said = f"a {name}" + (f" {width / 64:g} times as wide" if width != 64 else "")
    if side == 3:
        said += ", stem for small images, " + ("padded by 2" if stem == "padded" else "padded by 1")
    return Found(made(build, renamed(state, RESNET), f"the {name}"), "resnet", said)
