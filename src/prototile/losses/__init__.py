"""Losses on embeddings: pure functions, tensors in, a number (or named parts) out.

Those with batch statistics see the rows of all ranks; see `prototile.distributed` for the convention.
"""

from prototile.losses.contrastive import nt_xent
from prototile.losses.masked import latent_regression, masked_pixels, patchify
from prototile.losses.redundancy import VICReg, barlow_twins, vicreg
from prototile.losses.regression import negative_cosine

__all__ = [
    "VICReg",
    "barlow_twins",
    "latent_regression",
    "masked_pixels",
    "negative_cosine",
    "nt_xent",
    "patchify",
    "vicreg",
]
