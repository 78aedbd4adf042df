"""Vision transformers (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929).

n images, c channels, h w pixels, p patches, m patches that are kept, d dims.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from timm.models import vision_transformer as networks
from torch import Tensor, nn

from prototile.backbones import transformer
from prototile.backbones.backbone import Backbone
from prototile.backbones.positions import Resize, check_resize, resized, sincos
from prototile.types import Features


class Shape(NamedTuple):
    dims: int
    depth: int
    heads: int


SHAPES = {
    "tiny": Shape(192, 12, 3),
    "small": Shape(384, 12, 6),
    "base": Shape(768, 12, 12),
    "large": Shape(1024, 24, 16),
}


def vit(
    size: Literal["tiny", "small", "base", "large"] = "small",
    *,
    patch: int = 16,
    image_size: int = 224,
    channels: int = 3,
    drop_path: float = 0.0,
    layer_scale: float | None = None,
    positions: Literal["learned", "sincos"] = "learned",
    resize: Resize = "dino",
    init: Literal["truncated", "xavier"] = "truncated",
    mask_token: bool = False,
    checkpointing: bool = False,
    dims: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
) -> "ViT":
    """A vision transformer with a class token; `dims`, `depth` and `heads` are those of `size` where not given.

    Positions are stored for `image_size` and resized for other views (`resize`, see `positions.resized`).
    `drop_path` grows over depth from 0 to this, `layer_scale` is where DINOv2's LayerScale begins (1e-5). Linear
    layers start from a truncated normal of standard deviation 0.02, with `init="xavier"` as in MAE, whose positions
    are "sincos": fixed, and no parameters to train.
    """
    shape = transformer.chosen(SHAPES, size)
    shape = Shape(dims or shape.dims, depth or shape.depth, heads or shape.heads)
    transformer.check_side(image_size, patch)
    check_heads(shape)
    network = networks.VisionTransformer(
        img_size=image_size,
        patch_size=patch,
        in_chans=channels,
        num_classes=0,
        embed_dim=shape.dims,
        depth=shape.depth,
        num_heads=shape.heads,
        init_values=layer_scale,
        drop_path_rate=drop_path,
        norm_layer=transformer.LAYER_NORM,
        block_fn=Block,
        dynamic_img_size=True,
    )
    _initialize(network, init, positions)
    return ViT(network, resize=resize, mask_token=mask_token, checkpointing=checkpointing)


class Block(networks.Block):
    """timm's block; what comes after the attention is done for the `leading` tokens alone, and only they are given."""

    def forward(self, x: Float[Tensor, "n t d"], leading: int | None = None) -> Float[Tensor, "n _t d"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        x = x[:, :leading]
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ViT(Backbone):
    """timm's `VisionTransformer` as a backbone; pooled features are the class token.

    `vit` is the network under timm's own names: its state dict loads into `timm.create_model(..., num_classes=0)`
    strictly and the other way round. The mask token, which timm lacks, stands beside it.
    """

    def __init__(
        self,
        vit: networks.VisionTransformer,
        *,
        resize: Resize = "dino",
        mask_token: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__()
        check_resize(resize)
        self.vit = vit
        self.mask_token = transformer.new_token(vit.embed_dim) if mask_token else None
        self.dims, self.patch = vit.embed_dim, vit.patch_embed.proj.kernel_size[0]
        self.resize: Resize = resize
        self.checkpointing = checkpointing

    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        keep: Int[Tensor, "n m"] | None = None,
        mask: Bool[Tensor, "n p"] | None = None,
        *,
        blocks: int = 0,
        patches: bool = True,
    ) -> Features:
        depth = len(self.vit.blocks)
        transformer.check_blocks(blocks, depth)
        steps: list[Callable[[Tensor], Tensor]] = list(self.vit.blocks)
        if not patches and not blocks and isinstance(last := self.vit.blocks[-1], Block):
            steps[-1] = partial(last, leading=1)
        tokens = self._embedded(images, keep, mask)
        checkpointing = self.checkpointing and self.training
        tokens, after = transformer.run(steps, tokens, skip=depth - blocks, checkpointing=checkpointing)
        tokens = self.vit.norm(tokens)
        return Features(tokens[:, 0], tokens[:, 0], tokens[:, 1:] if patches else None, tuple(after))

    def _embedded(
        self, images: Float[Tensor, "n c h w"], keep: Int[Tensor, "n m"] | None, mask: Bool[Tensor, "n p"] | None
    ) -> Float[Tensor, "n t d"]:
        """Class token and patches, with their positions."""
        network = self.vit
        height, width = transformer.grid_of(images, network.in_chans, network.patch_embed.proj.kernel_size[0])
        patches = transformer.masked(network.patch_embed(images).flatten(1, 2), mask, self.mask_token)
        cls, positions = _tokens(network)
        positions = resized(positions, height, width, self.resize)
        patches = transformer.kept(patches + positions[:, 1:], keep)
        return torch.cat([(cls + positions[:, :1]).expand(len(images), -1, -1), patches], dim=1)

    @property
    def layers(self) -> Sequence[nn.Module]:
        *blocks, last = self.vit.blocks
        bare = [*_tokens(self.vit), *([] if self.mask_token is None else [self.mask_token])]
        embedding = nn.ModuleList([self.vit.patch_embed, nn.ParameterList(bare)])
        return [embedding, *blocks, nn.ModuleList([last, self.vit.norm])]

    def keep_all_paths_(self) -> None:
        transformer.drop_no_paths_(self)


def check_heads(shape: Shape) -> None:
    if shape.dims % shape.heads:
        raise ValueError(f"heads share dims equally: {shape.heads} heads do not divide {shape.dims} dims")


def _tokens(network: networks.VisionTransformer) -> tuple[nn.Parameter, nn.Parameter]:
    """The class token, and positions."""
    assert network.cls_token is not None
    assert network.pos_embed is not None
    return network.cls_token, network.pos_embed


@torch.no_grad()
def _initialize(network: networks.VisionTransformer, init: str, positions: str) -> None:
    """What differs from timm: a class token that is not almost zero, MAE's weights and positions."""
    cls, table = _tokens(network)
    nn.init.trunc_normal_(cls, std=0.02)
    if init == "xavier":
        for part in network.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
        nn.init.xavier_uniform_(network.patch_embed.proj.weight.flatten(1))  # as a linear layer's
    elif init != "truncated":
        raise ValueError(f"init must be 'truncated' or 'xavier', got {init!r}")
    if positions == "sincos":
        table.copy_(sincos(network.embed_dim, network.patch_embed.grid_size[0]))
        table.requires_grad_(False)
    elif positions != "learned":
        raise ValueError(f"positions must be 'learned' or 'sincos', got {positions!r}")
