"""Any other network of timm.

n images, c channels, h w pixels, d dims.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import timm
from jaxtyping import Bool, Float, Int
from timm.models import group_parameters
from torch import Tensor, nn

from prototile.backbones.backbone import Backbone
from prototile.backbones.resnet import check_images_only
from prototile.backbones.transformer import drop_no_paths_
from prototile.types import Features


def timm_model(
    name: str, *, channels: int = 3, image_size: int | None = None, drop_path: float | None = None
) -> "Pooled":
    """A network by its name in timm, untrained, for methods that need pooled features only.

    `image_size` and `drop_path` are for networks that know them, and are timm's own where not given.
    """
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) or not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() names all"
        raise ValueError(f"timm has no network {name!r}: {hint}")
    options: dict[str, Any] = {"img_size": image_size, "drop_path_rate": drop_path}
    options = {key: value for key, value in options.items() if value is not None}
    try:
        network: Any = timm.create_model(name, num_classes=0, in_chans=channels, **options)
    except TypeError as error:
        refused = [key for key in options if key in str(error)]
        if not refused:
            raise
        ours = {"img_size": "image_size", "drop_path_rate": "drop_path"}
        raise ValueError(f"{name} does not know {ours[refused[0]]}: leave it out") from error
    return Pooled(network, network.head_hidden_size)


class Pooled(Backbone):
    """A network of timm without its classifier, under timm's own names in `network`; features are what it pools."""

    def __init__(self, network: nn.Module, dims: int):
        super().__init__()
        self.network = network
        self.dims, self.patch = dims, None

    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        keep: Int[Tensor, "n m"] | None = None,
        mask: Bool[Tensor, "n p"] | None = None,
        *,
        blocks: int = 0,
        patches: bool = True,
    ) -> Features:
        check_images_only("a network of timm_model()", keep, mask, blocks)
        return Features(self.network(images))

    @property
    def layers(self) -> Sequence[nn.Module]:
        """As timm groups parameters for layer-wise learning rates."""
        network: Any = self.network  # `group_matcher` is a custom of timm's, not of nn.Module
        groups = group_parameters(network, network.group_matcher(), return_values=True)
        return [nn.ModuleList([nn.ParameterList(groups[i])]) for i in sorted(groups)]

    def keep_all_paths_(self) -> None:
        drop_no_paths_(self)
