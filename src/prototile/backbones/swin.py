"""Swin transformers (Liu et al. 2021, https://arxiv.org/abs/2103.14030), on views of any size as in EsViT and iBOT.

n images, c channels, h w pixels or rows and columns of tokens, p patches, m windows of t tokens, d dims.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, SwinTransformerStage
from torch import Tensor, nn

from prototile.backbones import transformer
from prototile.backbones.backbone import Backbone
from prototile.types import Features

_PATCH = 4  # of the embedding; each later stage halves the grid


class SwinShape(NamedTuple):
    dims: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]


SWIN_SHAPES = {
    "tiny": SwinShape(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": SwinShape(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": SwinShape(128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


def swin(
    size: Literal["tiny", "small", "base"] = "tiny",
    *,
    window: int = 7,
    image_size: int = 224,
    channels: int = 3,
    drop_path: float = 0.0,
    mask_token: bool = False,
    checkpointing: bool = False,
    dims: int | None = None,
    depths: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> "Swin":
    """A Swin transformer; `dims` (of the first stage), `depths` and `heads` are those of `size` where not given.

    Where a stage's grid for `image_size` is no larger than `window`, it is one window and is not shifted. Views of
    other sizes keep the windows and are padded.
    """
    shape = transformer.chosen(SWIN_SHAPES, size)
    shape = SwinShape(dims or shape.dims, tuple(depths or shape.depths), tuple(heads or shape.heads))
    transformer.check_side(image_size, _PATCH)
    if len(shape.depths) != len(shape.heads):
        raise ValueError(f"depths and heads are one number a stage, got {shape.depths} and {shape.heads}")
    network = SwinTransformer(
        img_size=image_size,
        patch_size=_PATCH,
        in_chans=channels,
        num_classes=0,
        embed_dim=shape.dims,
        depths=shape.depths,
        num_heads=shape.heads,
        window_size=window,
        strict_img_size=False,
        drop_path_rate=drop_path,
        norm_layer=transformer.LAYER_NORM,
    )
    return Swin(network, mask_token=mask_token, checkpointing=checkpointing)


class Swin(Backbone):
    """timm's `SwinTransformer` as a backbone; patches are the last stage's normalised tokens, pooled features their
    mean.

    `swin` is the network under timm's own names. A mask hides patches of the last stage's side, `patch` pixels: as
    many small ones as that side holds (iBOT).
    """

    def __init__(self, swin: SwinTransformer, *, mask_token: bool = False, checkpointing: bool = False):
        super().__init__()
        self.swin = swin
        for stage in self._stages():
            blocks = cast(list[SwinTransformerBlock], list(stage.blocks))
            stage.blocks = nn.Sequential(*map(WindowBlock, blocks))
        self.mask_token = transformer.new_token(swin.embed_dim) if mask_token else None
        self.dims, self.patch = swin.num_features, _PATCH * 2 ** (swin.num_layers - 1)
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
        if keep is not None:
            raise ValueError("a Swin transformer sees all patches of its windows: take a ViT, or views without `keep`")
        depth = sum(len(stage.blocks) for stage in self._stages())
        transformer.check_blocks(blocks, depth)
        tokens = self._embedded(images, mask)
        after: list[Tensor] = []
        skip = depth - blocks
        checkpointing = self.checkpointing and self.training
        for stage in self._stages():
            tokens = stage.downsample(tokens)
            tokens, some = transformer.run(stage.blocks, tokens, skip=skip, checkpointing=checkpointing)
            after += [x.flatten(1, 2) for x in some]
            skip = max(skip - len(stage.blocks), 0)
        regions = self.swin.norm(tokens).flatten(1, 2)
        return Features(regions.mean(1), patches=regions, blocks=tuple(after))

    def _embedded(
        self, images: Float[Tensor, "n c h w"], mask: Bool[Tensor, "n p"] | None
    ) -> Float[Tensor, "n _h _w d"]:
        rows, columns = transformer.grid_of(images, self.swin.in_chans, _PATCH)
        tokens = self.swin.patch_embed(images)
        if mask is None:
            return tokens
        assert self.patch is not None
        height, width = transformer.grid_of(images, self.swin.in_chans, self.patch)
        if mask.shape[1] != height * width:
            raise ValueError(
                f"the mask is of {mask.shape[1]} patches, the view has {height} x {width}: draw it for this view"
            )
        times = self.patch // _PATCH
        mask = mask.unflatten(1, (height, width)).repeat_interleave(times, 1).repeat_interleave(times, 2)
        return transformer.masked(tokens.flatten(1, 2), mask.flatten(1), self.mask_token).unflatten(1, (rows, columns))

    def _stages(self) -> list[SwinTransformerStage]:
        return cast(list[SwinTransformerStage], list(self.swin.layers))

    @property
    def layers(self) -> Sequence[nn.Module]:
        tokens = [] if self.mask_token is None else [nn.ParameterList([self.mask_token])]
        parts: list[nn.Module] = [nn.ModuleList([self.swin.patch_embed, *tokens])]
        for stage in self._stages():
            first, *others = stage.blocks
            merging = [] if isinstance(stage.downsample, nn.Identity) else [stage.downsample]
            parts += [nn.ModuleList([*merging, first]) if merging else first, *others]
        return [*parts[:-1], nn.ModuleList([parts[-1], self.swin.norm])]

    def keep_all_paths_(self) -> None:
        transformer.drop_no_paths_(self)


class WindowBlock(nn.Module):
    """The parts of timm's block in the official order for grids that no window divides: the padded grid is shifted, not
    the shifted one padded.
    """

    def __init__(self, block: SwinTransformerBlock):
        super().__init__()
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.window, self.shift = block.window_size[0], block.shift_size[0]

    def forward(self, x: Float[Tensor, "n h w d"]) -> Float[Tensor, "n h w d"]:
        x = x + self.drop_path1(self._attention(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _attention(self, x: Float[Tensor, "n h w d"]) -> Float[Tensor, "n h w d"]:
        """Attention within windows, of tokens that are neighbours in the image."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded, shift = x.shape[1:3], self.shift
        x = x.roll((-shift, -shift), (1, 2))
        mask = apart(padded[0], padded[1], self.window, shift, x) if shift else None
        x = undivided(self.attn(windows(x, self.window), mask=mask), padded[0], padded[1], self.window)
        return x.roll((shift, shift), (1, 2))[:, :height, :width]


def windows(x: Float[Tensor, "n h w d"], side: int) -> Float[Tensor, "m t d"]:
    """All windows of the first image, row by row, then of the next."""
    n, height, width, d = x.shape
    x = x.reshape(n, height // side, side, width // side, side, d)
    return x.transpose(2, 3).reshape(-1, side * side, d)


def undivided(x: Float[Tensor, "m t d"], height: int, width: int, side: int) -> Float[Tensor, "n {height} {width} d"]:
    """The grid whose windows these are."""
    x = x.view(-1, height // side, width // side, side, side, x.shape[2])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def apart(height: int, width: int, side: int, shift: int, like: Tensor) -> Float[Tensor, "m t t"]:
    """-100 between tokens of a window that the shift brought together from opposite borders, 0 elsewhere."""
    rows, columns = (torch.arange(n, device=like.device) >= n - shift for n in (height, width))  # came over the border
    regions = windows((2 * rows[:, None] + columns)[None, ..., None].to(like.dtype), side)[..., 0]
    return (regions[:, None] != regions[:, :, None]).to(like.dtype) * -100
