"""What every backbone is: images in, features out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prototile.types import Features


class Backbone(nn.Module, ABC):
    """A network from images to `Features`.

    `dims` is the size of pooled features (and of patches), `patch` the side of a patch in pixels, None where features
    have no patches.
    """

    dims: int
    patch: int | None

    @abstractmethod
    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        keep: Int[Tensor, "n m"] | None = None,
        mask: Bool[Tensor, "n p"] | None = None,
        *,
        blocks: int = 0,
        patches: bool = True,
    ) -> Features:
        """Features of the images; `keep` are the only patches to look at, `mask` those that a mask token replaces.

        `blocks` is the number of last blocks whose tokens are wanted. `patches=False` says that nobody looks at the
        patches: a ViT then saves the last block's work on them, and gives none.
        """

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The parts from pixels to features, in order; every parameter belongs to exactly one.

        What layer-wise learning rates count, and what is sharded one by one. A part of several modules is an
        `nn.ModuleList` of them, in which an `nn.ParameterList` holds parameters of no module (tokens, positions).
        """

    @abstractmethod
    def keep_all_paths_(self) -> None:
        """Turns drop path off: a teacher's whole network answers."""
