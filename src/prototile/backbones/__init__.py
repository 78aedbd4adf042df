"""Backbones: from images to features. timm's networks behind one interface, `Backbone`.

    function                class    features                             used by
    vit(size)               ViT      class token, patches, blocks         DINO, iBOT, DINOv2, MSN, PMSN, ExCB, MAE
    beit(size)              BEiT     class token, patches, blocks         data2vec
    swin(size)              Swin     patches and their mean, blocks       EsViT, iBOT
    resnet(name)            ResNet   mean over space                      SimCLR, VICReg, Barlow Twins, SimSiam, MMCR,
                                                                          SwAV, DINO, ExCB
    timm_model(name)        Pooled   what the network pools               methods of pooled features

A ViT takes masks (with `mask_token=True`) and patches to keep, BEiT and Swin take masks, the others images alone. How
a ViT's positions come to other sizes is in `positions.py`. Backbones start untrained; `Decoder` is what MAE puts behind
one. `as_timm` gives one in timm's own terms. `Readout` says what of it an evaluation takes.
"""

from prototile.backbones.as_timm import Timm, as_timm
from prototile.backbones.backbone import Backbone
from prototile.backbones.beit import BEiT, beit
from prototile.backbones.decoder import Decoder
from prototile.backbones.other import Pooled, timm_model
from prototile.backbones.positions import sincos
from prototile.backbones.readout import Readout
from prototile.backbones.resnet import ResNet, resnet
from prototile.backbones.swin import Swin, swin
from prototile.backbones.vit import ViT, vit

__all__ = [
    "BEiT",
    "Backbone",
    "Decoder",
    "Pooled",
    "Readout",
    "ResNet",
    "Swin",
    "Timm",
    "ViT",
    "as_timm",
    "beit",
    "resnet",
    "sincos",
    "swin",
    "timm_model",
    "vit",
]
