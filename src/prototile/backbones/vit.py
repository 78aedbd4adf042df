"""Vision transformers (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929).

n images, c channels, h w pixels, p patches, m patches that are kept, d dims.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from timm.layers.mlp import SwiGLUPacked
from timm.models import vision_transformer as networks
from torch import Tensor, nn

from prototile.backbones import transformer
from prototile.backbones.backbone import Backbone
from prototile.backbones.positions import Resize, check_resize, resized, sincos
from prototile.types import Features

Pool = Literal["cls", "mean"]


class Shape(NamedTuple):
    dims: int
    depth: int
    heads: int


SHAPES = {
    "tiny": Shape(192, 12, 3),
    "small": Shape(384, 12, 6),
    "base": Shape(768, 12, 12),
    "large": Shape(1024, 24, 16),
    "huge": Shape(1280, 32, 16),
    "giant": Shape(1536, 40, 24),
}


def vit(
    size: Literal["tiny", "small", "base", "large", "huge", "giant"] = "small",
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
    registers: int = 0,
    mlp: Literal["gelu", "swiglu"] = "gelu",
    pool: Pool = "cls",
    checkpointing: bool = False,
    dims: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    hidden: int | None = None,
) -> "ViT":
    """A vision transformer with a class token; `dims`, `depth` and `heads` are those of `size` where not given.

    Positions are stored for `image_size` and resized for other views (`resize`, see `positions.resized`).
    `drop_path` grows over depth from 0 to this, `layer_scale` is where DINOv2's LayerScale begins (1e-5). Linear
    layers start from a truncated normal of standard deviation 0.02, with `init="xavier"` as in MAE, whose positions
    are "sincos": fixed, and no parameters to train.

    `registers` are tokens beside the class token that nobody looks at (Darcet et al. 2024,
    https://arxiv.org/abs/2309.16588); with them only patches have positions. `hidden` is the width of the blocks' MLPs,
    4 `dims` where not given; with `mlp="swiglu"` half of it gates the other (DINOv2's giant). `pool` is what pooled
    features are: the class token, or the final norm of the patches' mean (MAE after fine-tuning).
    """
    shape = transformer.chosen(SHAPES, size)
    shape = Shape(dims or shape.dims, depth or shape.depth, heads or shape.heads)
    transformer.check_side(image_size, patch)
    check_heads(shape)
    check_pool(pool)
    if mlp not in ("gelu", "swiglu"):
        raise ValueError(f"mlp must be 'gelu' or 'swiglu', got {mlp!r}")
    hidden = 4 * shape.dims if hidden is None else hidden
    if registers < 0 or hidden < 1 or (mlp == "swiglu" and hidden % 2):
        raise ValueError(f"registers must not be negative, hidden positive (and even), got {registers} and {hidden}")
    gated = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if mlp == "swiglu" else {}
    network = networks.VisionTransformer(
        img_size=image_size,
        patch_size=patch,
        in_chans=channels,
        num_classes=0,
        embed_dim=shape.dims,
        depth=shape.depth,
        num_heads=shape.heads,
        mlp_ratio=(hidden + 0.5) / shape.dims,  # of which the whole part is taken
        init_values=layer_scale,
        drop_path_rate=drop_path,
        norm_layer=transformer.LAYER_NORM,
        block_fn=Block,
        reg_tokens=registers,
        no_embed_class=registers > 0,
        dynamic_img_size=True,
        **gated,  # type: ignore[arg-type]
    )
    _initialize(network, init, positions)
    return ViT(network, resize=resize, mask_token=mask_token, pool=pool, checkpointing=checkpointing)


class Block(networks.Block):
    """timm's block; what comes after the attention is done for the `leading` tokens alone, and only they are given."""

    def forward(self, x: Float[Tensor, "n t d"], leading: int | None = None) -> Float[Tensor, "n _t d"]:
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
        pool: Pool = "cls",
        checkpointing: bool = False,
    ):
        super().__init__()
        check_resize(resize)
        check_pool(pool)
        self.vit = vit
        self.mask_token = transformer.new_token(vit.embed_dim) if mask_token else None
        self.dims, self.patch = vit.embed_dim, vit.patch_embed.proj.kernel_size[0]
        self.resize: Resize = resize
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
        depth = len(self.vit.blocks)
        transformer.check_blocks(blocks, depth)
        steps: list[Callable[[Tensor], Tensor]] = list(self.vit.blocks)
        alone = not patches and not blocks and self.pool == "cls"
        if alone and isinstance(last := self.vit.blocks[-1], Block):
            steps[-1] = partial(last, leading=1)
        tokens = self._embedded(images, keep, mask)
        checkpointing = self.checkpointing and self.training
        tokens, after = transformer.run(steps, tokens, skip=depth - blocks, checkpointing=checkpointing)
        mean = None if self.pool == "cls" else self.vit.norm(self._shown(tokens)[:, 1:].mean(1))
        tokens = self.vit.norm(self._shown(tokens))
        cls = tokens[:, 0]
        shown = tuple(self._shown(x) for x in after)
        return Features(cls if mean is None else mean, cls, tokens[:, 1:] if patches else None, shown)

    def _shown(self, tokens: Float[Tensor, "n t d"]) -> Float[Tensor, "n _t d"]:
        """Class token and patches: all but the registers."""
        registers = self.vit.num_reg_tokens
        return torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], 1) if registers else tokens

    def _embedded(
        self, images: Float[Tensor, "n c h w"], keep: Int[Tensor, "n m"] | None, mask: Bool[Tensor, "n p"] | None
    ) -> Float[Tensor, "n t d"]:
        """Class token and patches, with their positions."""
        network = self.vit
        height, width = transformer.grid_of(images, network.in_chans, network.patch_embed.proj.kernel_size[0])
        patches = transformer.masked(network.patch_embed(images).flatten(1, 2), mask, self.mask_token)
        cls, positions = _tokens(network)
        if network.no_embed_class:  # timm's form of networks with registers: the class token has none
            positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        positions = resized(positions, height, width, self.resize)
        patches = transformer.kept(patches + positions[:, 1:], keep)
        leading = cls + positions[:, :1]
        if network.reg_token is not None:
            leading = torch.cat([leading, network.reg_token], dim=1)
        return torch.cat([leading.expand(images.shape[0], -1, -1), patches], dim=1)

    @property
    def layers(self) -> Sequence[nn.Module]:
        *blocks, last = self.vit.blocks
        bare = [*_tokens(self.vit), *(x for x in (self.vit.reg_token, self.mask_token) if x is not None)]
        embedding = nn.ModuleList([self.vit.patch_embed, nn.ParameterList(bare)])
        return [embedding, *blocks, nn.ModuleList([last, self.vit.norm])]

    def keep_all_paths_(self) -> None:
        transformer.drop_no_paths_(self)


def check_pool(pool: str) -> None:
    if pool not in get_args(Pool):
        raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}")


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
