"""MAE's decoder: from the features of the patches that were seen to the pixels of all.

n images, p patches, m kept patches, d dims.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from prototile.backbones.positions import sincos
from prototile.types import Features


class Decoder(nn.Module):
    """A small transformer over kept patches and mask tokens (He et al. 2022, https://arxiv.org/abs/2111.06377)."""

    def __init__(
        self,
        dims: int,
        *,
        patch: int,
        image_size: int,
        channels: int = 3,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
    ):
        super().__init__()
        if image_size % patch:
            raise ValueError(f"images of {image_size} pixels do not divide into patches of {patch}: choose a divisor")
        if width % 4 or width % heads:
            raise ValueError(f"a decoder's width must divide by 4 and by its {heads} heads, got {width}")
        grid = image_size // patch
        self.embed = nn.Linear(dims, width)
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=0.02))
        self.register_buffer("positions", sincos(width, grid), persistent=False)
        self.positions: Tensor  # 1 x (1 + p) x width
        self.blocks = nn.Sequential(
            *(
                Block(width, heads, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))  # type: ignore[arg-type]
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, patch * patch * channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: Features, keep: Int[Tensor, "n m"]) -> Float[Tensor, "n p d"]:
        """The pixels of every patch, row by row, each as (row, column, channel)."""
        assert features.cls is not None
        assert features.patches is not None
        seen = self.embed(features.patches)
        patches = self.positions.shape[1] - 1
        everything = self.mask_token.to(seen.dtype).expand(len(seen), patches, -1)
        everything = everything.scatter(1, keep[:, :, None].expand(-1, -1, seen.shape[-1]), seen)
        tokens = torch.cat([self.embed(features.cls)[:, None], everything], 1) + self.positions
        return self.pixels(self.norm(self.blocks(tokens)))[:, 1:]
