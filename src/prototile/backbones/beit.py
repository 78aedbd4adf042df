"""BEiT's transformer, with positions in the attention only (Bao et al. 2022, https://arxiv.org/abs/2106.08254).

n images, c channels, h w pixels, p patches, d dims.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from timm.models.beit import Beit, Block
from torch import Tensor, nn

from prototile.backbones import transformer
from prototile.backbones.backbone import Backbone
from prototile.backbones.vit import SHAPES, Pool, Shape, check_heads, check_pool
from prototile.types import Features


def beit(
    size: Literal["tiny", "small", "base", "large"] = "base",
    *,
    patch: int = 16,
    image_size: int = 224,
    channels: int = 3,
    drop_path: float = 0.0,
    attention_drop: float = 0.05,
    layer_scale: float | None = 1e-4,
    mask_token: bool = True,
    shared_bias: bool = True,
    pool: Pool = "cls",
    checkpointing: bool = False,
    dims: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
) -> "BEiT":
    """The network of data2vec (Baevski et al. 2022, https://arxiv.org/abs/2202.03555): a bias by relative position, one
    for all blocks, no bias of keys, LayerScale. `dims`, `depth` and `heads` are those of `size` where not given.

    After fine-tuning each block has a bias of its own (`shared_bias=False`), and pooled features are the final norm of
    the patches' mean (`pool="mean"`).
    """
    shape = transformer.chosen(SHAPES, size)
    shape = Shape(dims or shape.dims, depth or shape.depth, heads or shape.heads)
    transformer.check_side(image_size, patch)
    check_heads(shape)
    check_pool(pool)
    network = Beit(
        img_size=image_size,
        patch_size=patch,
        in_chans=channels,
        num_classes=0,
        global_pool="token",
        embed_dim=shape.dims,
        depth=shape.depth,
        num_heads=shape.heads,
        attn_drop_rate=attention_drop,
        drop_path_rate=drop_path,
        norm_layer=transformer.LAYER_NORM,
        init_values=layer_scale,
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=shared_bias,
        use_rel_pos_bias=not shared_bias,
    )
    backbone = BEiT(network, mask_token=mask_token, pool=pool, checkpointing=checkpointing)
    _initialize(backbone)
    return backbone


class BEiT(Backbone):
    """timm's `Beit` with relative position biases as a backbone; pooled features are the class token.

    `beit` is the network under timm's own names. timm's ready models have a bias in every block: copy
    `rel_pos_bias.relative_position_bias_table` to each `blocks.{i}.attn` for them. Views are of one size, and masked,
    never cut down to some patches.
    """

    def __init__(self, beit: Beit, *, mask_token: bool = True, pool: Pool = "cls", checkpointing: bool = False):
        super().__init__()
        check_pool(pool)
        self.beit = beit
        self.mask_token = transformer.new_token(beit.embed_dim) if mask_token else None
        self.dims, self.patch = beit.embed_dim, beit.patch_embed.proj.kernel_size[0]
        self.pool: Pool = pool
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
        network, depth = self.beit, len(self.beit.blocks)
        transformer.check_blocks(blocks, depth)
        self._check(images, keep)
        tokens = transformer.masked(network.patch_embed(images), mask, self.mask_token)
        tokens = torch.cat([network.cls_token.expand(images.shape[0], -1, -1), tokens], dim=1)
        bias = None if network.rel_pos_bias is None else network.rel_pos_bias()
        steps = [partial(block, shared_rel_pos_bias=bias) for block in network.blocks]
        checkpointing = self.checkpointing and self.training
        tokens, after = transformer.run(steps, tokens, skip=depth - blocks, checkpointing=checkpointing)
        mean = None if self.pool == "cls" else network.norm(tokens[:, 1:].mean(1))
        tokens = network.norm(tokens)
        return Features(tokens[:, 0] if mean is None else mean, tokens[:, 0], tokens[:, 1:], tuple(after))

    def _check(self, images: Float[Tensor, "n c h w"], keep: Int[Tensor, "n m"] | None) -> None:
        if keep is not None:
            raise ValueError("BEiT sees all patches: give it a mask instead of patches to keep, or take a ViT")
        assert self.patch is not None
        height, width = transformer.grid_of(images, self.beit.in_chans, self.patch)
        rows, columns = self.beit.patch_embed.grid_size
        if (height, width) != (rows, columns):
            raise ValueError(
                f"images have {height} x {width} patches and BEiT's positions are for {rows} x {columns}: "
                "make views of the size it was built for, or pass that as image_size="
            )

    @property
    def _tokens(self) -> list[nn.Parameter]:
        return [self.beit.cls_token, *([] if self.mask_token is None else [self.mask_token])]

    @property
    def layers(self) -> Sequence[nn.Module]:
        network = self.beit
        *blocks, last = network.blocks
        shared = [] if network.rel_pos_bias is None else [network.rel_pos_bias]
        embedding = nn.ModuleList([network.patch_embed, *shared, nn.ParameterList(self._tokens)])
        return [embedding, *blocks, nn.ModuleList([last, network.norm])]

    def keep_all_paths_(self) -> None:
        transformer.drop_no_paths_(self)


@torch.no_grad()
def _initialize(backbone: BEiT) -> None:
    """A normal of standard deviation 0.02 cut off there; the i-th block's last layers by 1 / sqrt(2 i) smaller."""
    truncated = partial(nn.init.trunc_normal_, std=0.02, a=-0.02, b=0.02)
    for token in backbone._tokens:
        truncated(token)
    for part in backbone.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            truncated(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for i, block in enumerate(backbone.beit.blocks, start=1):
        assert isinstance(block, Block)
        block.attn.proj.weight.div_(math.sqrt(2 * i))
        block.mlp.fc2.weight.div_(math.sqrt(2 * i))
