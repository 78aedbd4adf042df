"""Residual networks (He et al. 2016, https://arxiv.org/abs/1512.03385).

n images, c channels, h w pixels, d dims.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import timm
from jaxtyping import Bool, Float, Int
from timm.models import resnet as networks
from torch import Tensor, nn

from prototile.backbones.backbone import Backbone
from prototile.types import Features

Name = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def resnet(
    name: Name = "resnet50",
    *,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    channels: int = 3,
    zero_init_last: bool = False,
) -> "ResNet":
    """A residual network. The stem for small images is a 3 x 3 convolution of stride 1 without pooling.

    `zero_init_last` starts each residual branch at zero, by its last batch norm (SimCLR, VICReg, Barlow Twins,
    SimSiam).
    """
    if name not in get_args(Name):
        raise ValueError(f"name must be one of {', '.join(get_args(Name))}, got {name!r}; timm_model() builds others")
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f"stem must be 'imagenet' or 'cifar', got {stem!r}")
    network = timm.create_model(name, num_classes=0, in_chans=channels, zero_init_last=zero_init_last)
    assert isinstance(network, networks.ResNet)
    if stem == "cifar":
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return ResNet(network)


class ResNet(Backbone):
    """timm's `ResNet` as a backbone, under timm's own names in `resnet`; pooled features are the mean over space."""

    def __init__(self, resnet: networks.ResNet):
        super().__init__()
        self.resnet = resnet
        self.dims, self.patch = int(resnet.num_features), None

    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        keep: Int[Tensor, "n m"] | None = None,
        mask: Bool[Tensor, "n p"] | None = None,
        *,
        blocks: int = 0,
        patches: bool = True,
    ) -> Features:
        check_images_only("a ResNet", keep, mask, blocks)
        return Features(self.resnet(images))

    @property
    def layers(self) -> Sequence[nn.Module]:
        stages = [self.resnet.get_submodule(f"layer{i}") for i in range(1, 5)]
        stem = nn.ModuleList([self.resnet.conv1, self.resnet.bn1])
        return [stem, *(block for stage in stages for block in stage.children())]

    def keep_all_paths_(self) -> None:
        """It drops none."""


def check_images_only(backbone: str, keep: Tensor | None, mask: Tensor | None, blocks: int) -> None:
    """An error where something is asked of a backbone that has no tokens."""
    if keep is not None or mask is not None:
        raise ValueError(f"{backbone} has no patches to keep or mask: take a ViT, or views without masks")
    if blocks:
        raise ValueError(f"{backbone} gives pooled features, not the tokens of blocks, got blocks={blocks}")
