"""Methods: views in, a loss out. A published method is a function that composes parts of four families.

    method         family            targets from    balancer              predicts, or its loss       with
    dino           Prototypical      teacher         Centering             other views
    dino_vmf       Prototypical      teacher         ProbabilityCentering  other views
    esvit          Prototypical      teacher         Centering             other views, regions
    ibot           Prototypical      teacher         Centering             other views, hidden patches
    ibot_vmf       Prototypical      teacher         ProbabilityCentering  other views, hidden patches
    dinov2         Prototypical      teacher         Centering             other views, hidden patches  koleo_data
    msn            Prototypical      teacher         Sinkhorn              the target view
    pmsn           Prototypical      teacher         Sinkhorn              the target view
    excb           Prototypical      teacher         ExplicitBalancing     all views
    swav           Prototypical      itself          Sinkhorn              other views
    simclr         JointEmbedding    -               -                     nt_xent
    vicreg         JointEmbedding    -               -                     vicreg
    barlow_twins   JointEmbedding    -               -                     barlow_twins
    simsiam        JointEmbedding    itself          -                     negative_cosine
    mmcr           JointEmbedding    -               -                     ManifoldCapacity
    mae            MaskedPixels      pixels          -                     hidden patches
    data2vec       MaskedLatents     teacher         -                     hidden patches

The clustering methods take any `prior`, any `balancer` for it and a `match_weight` that draws the student's marginal
to the prior; PMSN is MSN with another prior. They and the joint embeddings take `add_ons`: `koleo_proto`,
`koleo_data`, `e2mc`, `vcreg`, `auh`, `mmcr_term`. Defaults are those of the papers.

    method       what every method is, and what a loop does with it
    network      backbone and heads, and what they make of views
    objectives   what a clustering student predicts
    addons       regularisers with weights
"""

from collections.abc import Callable

from prototile.methods._dino import dino, dino_vmf
from prototile.methods._esvit import esvit
from prototile.methods._excb import excb
from prototile.methods._ibot import dinov2, ibot, ibot_vmf
from prototile.methods._masked import data2vec, mae
from prototile.methods._msn import msn, pmsn
from prototile.methods._siamese import barlow_twins, mmcr, simclr, simsiam, vicreg
from prototile.methods._swav import swav
from prototile.methods.addons import AddOn, auh, e2mc, koleo_data, koleo_proto, mmcr_term, vcreg
from prototile.methods.joint_embedding import JointEmbedding
from prototile.methods.masked import MaskedLatents, MaskedPixels
from prototile.methods.method import Clusters, Method, Supervised, Terms
from prototile.methods.prototypical import Prototypical

METHODS: dict[str, Callable[..., Method]] = {
    "dino": dino,
    "dino_vmf": dino_vmf,
    "esvit": esvit,
    "ibot": ibot,
    "ibot_vmf": ibot_vmf,
    "dinov2": dinov2,
    "msn": msn,
    "pmsn": pmsn,
    "excb": excb,
    "swav": swav,
    "simclr": simclr,
    "vicreg": vicreg,
    "barlow_twins": barlow_twins,
    "simsiam": simsiam,
    "mmcr": mmcr,
    "mae": mae,
    "data2vec": data2vec,
}

ADD_ONS: dict[str, Callable[..., AddOn]] = {
    "koleo_proto": koleo_proto,
    "koleo_data": koleo_data,
    "e2mc": e2mc,
    "vcreg": vcreg,
    "auh": auh,
    "mmcr_term": mmcr_term,
}

__all__ = [
    "ADD_ONS",
    "METHODS",
    "AddOn",
    "Clusters",
    "JointEmbedding",
    "MaskedLatents",
    "MaskedPixels",
    "Method",
    "Prototypical",
    "Supervised",
    "Terms",
    "auh",
    "barlow_twins",
    "data2vec",
    "dino",
    "dino_vmf",
    "dinov2",
    "e2mc",
    "esvit",
    "excb",
    "ibot",
    "ibot_vmf",
    "koleo_data",
    "koleo_proto",
    "mae",
    "mmcr",
    "mmcr_term",
    "msn",
    "pmsn",
    "simclr",
    "simsiam",
    "swav",
    "vcreg",
    "vicreg",
]
