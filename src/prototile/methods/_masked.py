"""MAE and data2vec."""

from prototile.backbones import Backbone, Decoder
from prototile.methods._ibot import needs_patches
from prototile.methods.masked import Autoencoder, MaskedLatents, MaskedPixels, Regressor
from prototile.schedules import Constant, Schedule


def mae(
    backbone: Backbone,
    *,
    image_size: int = 224,
    channels: int = 3,
    decoder_dims: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
    normalize_pixels: bool = True,
) -> MaskedPixels:
    """Masked autoencoder (He et al. 2022, https://arxiv.org/abs/2111.06377).

    The mean squared error over the pixels of the patches that were left out, each patch standardised. The backbone
    wants `positions="sincos"`; the views are square, of `image_size` pixels.
    """
    needs_patches(backbone, "MAE")
    assert backbone.patch is not None
    decoder = Decoder(
        backbone.dims,
        patch=backbone.patch,
        image_size=image_size,
        channels=channels,
        width=decoder_dims,
        depth=decoder_depth,
        heads=decoder_heads,
    )
    return MaskedPixels(Autoencoder(backbone, decoder), normalize_pixels=normalize_pixels)


def data2vec(
    backbone: Backbone,
    *,
    blocks: int = 6,
    beta: float = 2.0,
    momentum: Schedule = Constant(0.9998),
) -> MaskedLatents:
    """Data2vec for images (Baevski et al. 2022, https://arxiv.org/abs/2202.03555).

    Smooth L1 between the student's guess and the mean of the teacher's last `blocks` blocks, standardised, at the
    masked patches. The backbone needs a mask token.
    """
    needs_patches(backbone, "data2vec")
    depth = len(backbone.layers) - 1  # the first is the embedding
    if not 1 <= blocks <= depth:
        raise ValueError(
            f"data2vec averages the last 1 to {depth} blocks of this backbone, not {blocks}: change `blocks`"
        )
    return MaskedLatents(Regressor(backbone), momentum=momentum, blocks=blocks, beta=beta)
