"""Other projects' checkpoints: one small module per project, a key map as data each."""

from prototile.checkpoints.foreign import (
    dino,
    dinov2,
    esvit,
    excb,
    ibot,
    lightly,
    masked,
    msn,
    siamese,
    solo_learn,
    swav,
    vissl,
)
from prototile.checkpoints.foreign.layout import Layout

# The first one that recognises a file has it: what looks like a part of another comes behind it.
LAYOUTS: tuple[Layout, ...] = (
    ibot.IBOT,
    esvit.ESVIT,
    excb.EXCB,
    dinov2.TRAINING,
    dino.DINO,
    dino.OLD,
    msn.MSN,
    msn.PLAIN,
    swav.SWAV,
    swav.SEVERAL,
    vissl.SWAV,
    vissl.DINO,
    siamese.VICREG,
    siamese.SIMSIAM,
    siamese.CLASSIFIER,
    lightly.DINO,
    lightly.MSN,
    lightly.IBOT,
    lightly.DINOV2,
    lightly.OTHER,
    solo_learn.DINO,
    solo_learn.OTHER,
    masked.DATA2VEC,
    dinov2.BACKBONE,
    ibot.BACKBONE,
    dino.BACKBONE,
    dino.RESNET,
    masked.MAE,
)
