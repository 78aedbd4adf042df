"""What transformers have in common: patches, mask tokens, blocks, drop path.

n images, c channels, h w pixels, p patches, m patches that are kept, d dims; * the axes of tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

S = TypeVar("S")

LAYER_NORM: Any = partial(nn.LayerNorm, eps=1e-6)  # timm's signatures ask for a class, and take this


def grid_of(images: Float[Tensor, "n c h w"], channels: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches."""
    height, width = images.shape[2:]
    if images.shape[1] != channels:
        raise ValueError(
            f"images have {images.shape[1]} channels and the backbone was built for {channels}: pass channels="
        )
    if height % patch or width % patch:
        raise ValueError(
            f"a patch of {patch} pixels does not divide images of {height} x {width}: crop them to a multiple of "
            f"{patch}, or build the backbone with another patch"
        )
    return height // patch, width // patch


def check_side(image_size: int, patch: int) -> None:
    """An error where a backbone cannot be built for this size."""
    if image_size < 1 or patch < 1 or image_size % patch:
        raise ValueError(f"patch must divide image_size, got patch {patch} and image_size {image_size}")


def chosen(sizes: Mapping[str, S], size: str) -> S:
    if size not in sizes:
        raise ValueError(f"size must be one of {', '.join(sizes)}, got {size!r}")
    return sizes[size]


def new_token(dims: int) -> nn.Parameter:
    """A mask token; it starts at zero, as in iBOT and DINOv2."""
    return nn.Parameter(torch.zeros(1, 1, dims))


def masked(
    tokens: Float[Tensor, "n p d"], mask: Bool[Tensor, "n p"] | None, token: nn.Parameter | None
) -> Float[Tensor, "n p d"]:
    """The mask token where the mask says so; it is part of the graph wherever there is a mask, even an empty one."""
    if mask is None:
        return tokens
    if token is None:
        raise ValueError("this backbone has no mask token: build it with mask_token=True, or give it no mask")
    if mask.shape != tokens.shape[:2]:
        raise ValueError(f"the mask is {_x(mask)} and the patches are {_x(tokens[..., 0])}: draw it for this view")
    return torch.where(mask[..., None], token, tokens)


def kept(tokens: Float[Tensor, "n p d"], keep: Int[Tensor, "n m"] | None) -> Float[Tensor, "n _m d"]:
    """Only the tokens of these numbers, in their order."""
    if keep is None:
        return tokens
    if len(keep) != len(tokens):
        raise ValueError(f"patches to keep are named for {len(keep)} images, there are {len(tokens)}")
    return tokens.gather(1, keep.long()[..., None].expand(-1, -1, tokens.shape[2]))


def run(
    blocks: Iterable[Callable[[Tensor], Tensor]],
    tokens: Float[Tensor, "n *t d"],
    *,
    skip: int,
    checkpointing: bool,
) -> tuple[Float[Tensor, "n *_t d"], list[Float[Tensor, "n *_t d"]]]:
    """Tokens after all blocks, and after each but the first `skip`.

    With `checkpointing` a block's activations are computed again in the backward pass instead of being kept.
    """
    after = []
    for i, block in enumerate(blocks):
        tokens = checkpoint(block, tokens, use_reentrant=False) if checkpointing else block(tokens)
        if i >= skip:
            after.append(tokens)
    return tokens, after


def check_blocks(wanted: int, depth: int) -> None:
    if not 0 <= wanted <= depth:
        raise ValueError(f"this backbone has {depth} blocks, got blocks={wanted}")


def drop_no_paths_(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0


def _x(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
