"""MAE's decoder from its weights."""

import math
from functools import partial

from prototile.backbones import Backbone
from prototile.backbones.decoder import Decoder
from prototile.checkpoints.foreign.filling import Misfit, State, count, made, renamed, shape_of

DECODER = ((r"^pred\.", "pixels."),)  # of keys without their prefix, `decoder_`
_HEAD = 32  # dims of a head of attention


def decoder_of(state: State, backbone: Backbone | None) -> Decoder:
    """The decoder with these weights; its positions are the file's."""
    if backbone is None or backbone.patch is None:
        raise Misfit("there is a decoder without a backbone of patches")
    state = dict(state)
    positions = state.pop("pos_embed", None)
    width, dims = shape_of(state, "embed.weight", 2)
    grid = math.isqrt(max(shape_of({"positions": positions}, "positions", 3)[1] - 1, 0)) if positions is not None else 0
    if positions is None or positions.shape != (1, grid**2 + 1, width):
        raise Misfit("the decoder's positions (decoder_pos_embed) are missing, or not those of a square of patches")
    pixels = shape_of(state, "pred.weight", 2)[0]
    build = partial(
        Decoder,
        dims,
        patch=backbone.patch,
        image_size=grid * backbone.patch,
        channels=pixels // backbone.patch**2,
        width=width,
        depth=count(state, r"blocks\.(\d+)\.", "the decoder's blocks"),
        heads=max(1, width // _HEAD),
    )
    decoder = made(build, renamed(state, DECODER), "the decoder")
    decoder.positions = positions
    return decoder
