"""What evaluations read from a backbone: not always its pooled features.

n images, p patches, d dims.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prototile.backbones.backbone import Backbone
from prototile.backbones.beit import BEiT
from prototile.backbones.resnet import ResNet
from prototile.backbones.swin import Swin
from prototile.backbones.vit import ViT
from prototile.types import Features


@dataclass(frozen=True)
class Readout:
    """The features that an evaluation takes of images; as it stands, pooled ones. Who takes it for linear classifiers:

    what                                     features                                        used by
    Readout()                                pooled                                          kNN of all; ResNets
    Readout(blocks=4)                        class tokens of the last 4 blocks               DINO, iBOT, EsViT, ExCB
    Readout(blocks=1, patches="interleaved") class token and mean patch, element by element  DINO, ViT-B
    Readout(blocks=1, patches="behind")      class token, then mean patch                    iBOT, ViT-B and -L
    Readout(blocks=4, patches="behind")      4 class tokens, then mean patch                 DINOv2
    Readout(blocks=1, normed=False)          class token before the final norm               MSN
    Readout(pool=6)                          map's 6 x 6 means, flattened                    SwAV, as an option
    Readout(grid=2)                          map's means over 2 x 2 parts, flattened         VISSL, of ResNets

    Blocks stand oldest first, each behind the final norm where that has their dims (Swin's earlier stages go without,
    and the mean of all tokens is their class token).
    """

    blocks: int = 0
    patches: Literal["no", "behind", "interleaved"] = "no"
    normed: bool = True
    pool: int = 0
    grid: int = 0

    def __post_init__(self) -> None:
        if self.patches not in ("no", "behind", "interleaved"):
            raise ValueError(f"patches must be 'no', 'behind' or 'interleaved', got {self.patches!r}")
        if min(self.blocks, self.pool, self.grid) < 0 or sum(x > 0 for x in (self.blocks, self.pool, self.grid)) > 1:
            raise ValueError(
                f"a readout is of blocks or of a pooled map, got blocks={self.blocks}, pool={self.pool}, "
                f"grid={self.grid}"
            )
        if self.patches == "interleaved" and self.blocks != 1:
            raise ValueError(f"one block is interleaved with its patches, got blocks={self.blocks}")
        if not self.blocks and (self.patches != "no" or not self.normed):
            raise ValueError("pooled features stand alone: pass blocks=1 for patches beside them, or before the norm")

    def __call__(self, backbone: Backbone, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _d"]:
        if self.pool or self.grid:
            if not isinstance(backbone, ResNet):
                raise ValueError(f"only a ResNet has a map to pool, not a {type(backbone).__name__}")
            regions = backbone.regions(images)
            if self.grid:
                return F.adaptive_avg_pool2d(regions, self.grid).flatten(1)
            return F.avg_pool2d(regions, self.pool, stride=1).flatten(1)
        if not self.blocks:
            return backbone(images, patches=False).pooled
        return self._of_blocks(backbone, backbone(images, blocks=self.blocks))

    def _of_blocks(self, backbone: Backbone, features: Features) -> Float[Tensor, "n _d"]:
        norm = final_norm(backbone)
        tokens = [self._normalized(norm, x) for x in features.blocks]
        found = [x.mean(1) if features.cls is None else x[:, 0] for x in tokens]
        if self.patches == "no":
            return torch.cat(found, 1)
        assert features.patches is not None
        mean = features.patches.mean(1)
        if self.patches == "interleaved":
            return torch.stack([*found, mean], 2).flatten(1)
        return torch.cat([*found, mean], 1)

    def _normalized(self, norm: nn.Module, tokens: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        dims = next(norm.parameters()).shape[0]
        return norm(tokens) if self.normed and dims == tokens.shape[-1] else tokens


def final_norm(backbone: Backbone) -> nn.Module:
    """The norm behind the last block of a transformer."""
    match backbone:
        case ViT():
            return backbone.vit.norm
        case BEiT():
            return backbone.beit.norm
        case Swin():
            return backbone.swin.norm
    raise ValueError(f"a {type(backbone).__name__} has no blocks to read: take Readout(), its pooled features")
