"""Losses that predict one embedding from another. n images, d dims."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prototile.precision import full_precision, same_shape


@full_precision
def negative_cosine(prediction: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Minus the mean cosine; the target is a constant (SimSiam, Chen & He 2021: average it over both directions)."""
    same_shape(prediction, target)
    return -F.cosine_similarity(prediction, target.detach(), dim=-1, eps=1e-8).mean()
