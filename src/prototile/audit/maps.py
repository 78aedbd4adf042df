"""Maps: prototypes and images as points of a plane, close ones close (t-SNE, van der Maaten & Hinton 2008).

m images, p prototypes on the map.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.plain import plain


@dataclass(frozen=True, eq=False)
class Map:
    """Where some of the images and prototypes lie; the same seed gives the same map.

    A map of prototypes alone has no images. `of_images` and `of_prototypes` are how many there were to draw from.
    """

    images: Int[Tensor, " m"]  # which
    image_points: Float[Tensor, "m 2"]
    prototypes: Int[Tensor, " p"]  # which
    prototype_points: Float[Tensor, "p 2"]
    of_images: int
    of_prototypes: int
    perplexity: float
    seed: int

    def as_dict(self) -> dict[str, Any]:
        names = (
            "images", "image_points", "prototypes", "prototype_points", "of_images", "of_prototypes",
            "perplexity", "seed",
        )  # fmt: skip
        return {name: plain(getattr(self, name)) for name in names}

    def __str__(self) -> str:
        return (
            f"map of {len(self.images):,} of {self.of_images:,} images and "
            f"{len(self.prototypes):,} of {self.of_prototypes:,} prototypes"
        )
