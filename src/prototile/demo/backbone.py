"""A convolutional network that a core trains in seconds.

n images, d dims, h w pixels.
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prototile.backbones import Backbone
from prototile.demo.data import SIDE
from prototile.types import Features

WIDTHS = (16, 32, 64)


class SmallNetwork(Backbone):
    """Three convolutions that halve the side, a linear layer; batch norm and ReLU after each.

    Kernels are 4 x 4: with stride 2, 3 x 3 ones look at the upper left more than at the lower right.
    """

    def __init__(self, *, dims: int = 128):
        super().__init__()
        self.dims, self.patch = dims, None
        convolutions = [_halving(a, b) for a, b in zip((1, *WIDTHS), WIDTHS, strict=False)]
        side = SIDE >> len(WIDTHS)
        linear = nn.Linear(WIDTHS[-1] * side**2, dims, bias=False)
        self.parts = nn.ModuleList(
            [*convolutions, nn.Sequential(nn.Flatten(), linear, nn.BatchNorm1d(dims), nn.ReLU())]
        )

    def forward(
        self,
        images: Float[Tensor, "n 1 h w"],
        keep: Int[Tensor, "n m"] | None = None,
        mask: Bool[Tensor, "n p"] | None = None,
        *,
        blocks: int = 0,
        patches: bool = True,
    ) -> Features:
        if keep is not None or mask is not None or blocks:
            raise ValueError("this network has neither patches to keep or mask nor blocks: give images alone")
        x = images
        for part in self.parts:
            x = part(x)
        return Features(x)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return list(self.parts)

    def keep_all_paths_(self) -> None:
        """It drops none."""


def _halving(channels: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel_size=4, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
