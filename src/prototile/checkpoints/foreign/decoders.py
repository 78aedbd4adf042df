"""MAE's decoder from its weights."""

import math
from functools import partial

from prototile.backbones import Backbone, ViT
from prototile.backbones.decoder import Decoder
from prototile.checkpoints.foreign.filling import Misfit, State, count, made, renamed, shape_of

DECODER = ((r"^pred\.", "pixels."),)  # of keys without their prefix, `decoder_`
_HEAD = 32  # dims of a head of attention


def decoder_of(state: State, backbone: Backbone | None, heads: int | None) -> Decoder:
    """The decoder with these weights; its positions are the file's, or computed where it is our own."""
    if backbone is None or backbone.patch is None:
        raise Misfit("there is a decoder without a backbone of patches")
    weights = renamed(state, DECODER)
    width, dims = shape_of(weights, "embed.weight", 2)
    positions = None
    if isinstance(backbone, ViT) and "pixels.weight" in state:
        grid = backbone.vit.patch_embed.grid_size[0]
    else:
        grid = math.isqrt(max(shape_of(weights, "pos_embed", 3)[1] - 1, 0))
        positions = weights.pop("pos_embed")
        if positions.shape != (1, grid**2 + 1, width):
            raise Misfit("the decoder's positions (decoder_pos_embed) are not those of a square of patches")
    build = partial(
        Decoder,
        dims,
        patch=backbone.patch,
        image_size=grid * backbone.patch,
        channels=shape_of(weights, "pixels.weight", 2)[0] // backbone.patch**2,
        width=width,
        depth=count(weights, r"blocks\.(\d+)\.", "the decoder's blocks"),
        heads=max(1, width // _HEAD) if heads is None else heads,
    )
    decoder = made(build, weights, "the decoder")
    if positions is not None:
        decoder.positions = positions
    return decoder
