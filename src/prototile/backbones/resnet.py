"""Residual networks (He et al. 2016, https://arxiv.org/abs/1512.03385).

n images, c channels, h w pixels, d dims.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import timm
from jaxtyping import Bool, Float, Int
from timm.models import resnet as networks
from torch import Tensor, nn

from prototile.backbones.backbone import Backbone
from prototile.types import Features

Name = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200"]
# By whether blocks are bottlenecks, and how many each stage has.
DEPTHS: dict[tuple[bool, tuple[int, ...]], Name] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
    (True, (3, 24, 36, 3)): "resnet200",
}
Stem = Literal["imagenet", "cifar", "padded"]
_WIDTH = 64  # channels of the stem


def resnet(
    name: Name = "resnet50",
    *,
    stem: Stem = "imagenet",
    channels: int = 3,
    width: int = 64,
    zero_init_last: bool = False,
) -> "ResNet":
    """A residual network. The stem for small images is a 3 x 3 convolution of stride 1 without pooling; "padded", it
    adds a border of 2 pixels instead of 1, as solo-learn's does. `width` is the stem's number of channels, to which all
    others are in proportion: 128 are SwAV's and VICReg's networks of double width.

    `zero_init_last` starts each residual branch at zero, by its last batch norm (SimCLR, VICReg, Barlow Twins,
    SimSiam).
    """
    if name not in get_args(Name):
        raise ValueError(f"name must be one of {', '.join(get_args(Name))}, got {name!r}; timm_model() builds others")
    if stem not in get_args(Stem):
        raise ValueError(f"stem must be one of {', '.join(get_args(Stem))}, got {stem!r}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    stages: dict[str, Any] = {} if width == _WIDTH else {"channels": tuple(width * 2**i for i in range(4))}
    network = timm.create_model(name, num_classes=0, in_chans=channels, zero_init_last=zero_init_last, **stages)
    assert isinstance(network, networks.ResNet)
    if width != _WIDTH:
        network.conv1, network.bn1 = _convolution(channels, width, 7, stride=2, padding=3), nn.BatchNorm2d(width)
        network.get_submodule("layer1")[0] = _first_block(network, width)  # type: ignore[index]
        if zero_init_last:
            nn.init.zeros_(_last_norm(network).weight)
    if stem != "imagenet":
        network.conv1 = _convolution(channels, width, 3, stride=1, padding=1 if stem == "cifar" else 2)
        network.maxpool = nn.Identity()
    return ResNet(network)


def _convolution(inputs: int, outputs: int, side: int, *, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, side, stride=stride, padding=padding, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _first_block(network: networks.ResNet, width: int) -> nn.Module:
    """The first block of a network that is not 64 channels wide, which timm has fitted to a stem of 64."""
    kind = type(network.get_submodule("layer1.0"))
    assert kind in (networks.BasicBlock, networks.Bottleneck)
    outputs = width * kind.expansion
    wider = nn.Sequential(_convolution(width, outputs, 1), nn.BatchNorm2d(outputs)) if outputs != width else None
    block = kind(width, width, downsample=wider)
    for part in block.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return block


def _last_norm(network: networks.ResNet) -> nn.BatchNorm2d:
    """The last batch norm of the first block."""
    return [part for part in network.get_submodule("layer1.0").children() if isinstance(part, nn.BatchNorm2d)][-1]


class ResNet(Backbone):
    """timm's `ResNet` as a backbone, under timm's own names in `resnet`; pooled features are the mean over space.

    `regions` is the last map before that.
    """

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

    def regions(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d rows columns"]:
        """The last stage's map, whose mean over space are the features."""
        return self.resnet.forward_features(images)

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
