"""The four ways to train that are compared, and how each is built from the package's parts.

    arm          balancer              KoLeo-proto    weight decay of prototypes
    forgetting   Centering             -              20
    koleo        Centering             0.1            20
    centering    Centering             -              0.04
    explicit     ExplicitBalancing     -              0.04

A prototype forgets its random start only through the sum of lr x weight decay: a run of 100 epochs on ImageNet reaches
about 20, 400 steps at the usual 0.04 reach about 0.04. A decay of 20 compresses that time.
"""

from functools import partial

import torch
from torch import nn

from prototile.balancing import Centering, ExplicitBalancing
from prototile.demo.backbone import SmallNetwork
from prototile.methods import Method, Prototypical, dino, koleo_proto
from prototile.reports.demo_result import Arm, Settings
from prototile.schedules import Constant, Cosine

ARMS = (
    Arm("forgetting", "centering, fast forgetting", "centering", 0.0, 20.0),
    Arm("koleo", "the same + KoLeo-proto", "centering", 0.1, 20.0),
    Arm("centering", "centering", "centering", 0.0, 0.04),
    Arm("explicit", "explicit balancing", "explicit", 0.0, 0.04),
)
HIDDEN, BOTTLENECK = 256, 32
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
MOMENTUM = Cosine(0.97, 1.0)
SIZES_MOMENTUM = 0.99  # of explicit balancing: the published 0.999 is too slow for 400 steps
WEIGHT_DECAY = 0.04


def build(arm: Arm, settings: Settings) -> Prototypical:
    """DINO with the arm's balancer and add-on."""
    explicit = partial(ExplicitBalancing, momentum=SIZES_MOMENTUM, boost=1.0)
    return dino(
        SmallNetwork(),
        num_prototypes=settings.num_prototypes,
        hidden=HIDDEN,
        bottleneck=BOTTLENECK,
        head_batch_norm=True,
        balancer=explicit if arm.balancer == "explicit" else Centering,
        student_temperature=STUDENT_TEMPERATURE,
        teacher_temperature=Constant(TEACHER_TEMPERATURE),
        momentum=MOMENTUM,
        add_ons=[koleo_proto(weight=arm.koleo)] if arm.koleo else [],
    )


def adamw(method: Method, prototype_decay: float) -> torch.optim.AdamW:
    """AdamW whose decay spares vectors and has its own strength for prototypes."""
    prototypes = {id(p) for p in method.roles["prototypes"].parameters()}
    matrices, vectors, apart = [], [], []
    for p in method.parameters():
        if p.requires_grad:
            (apart if id(p) in prototypes else matrices if p.ndim > 1 else vectors).append(p)
    groups: list[tuple[list[nn.Parameter], float]] = [
        (matrices, WEIGHT_DECAY),
        (vectors, 0.0),
        (apart, prototype_decay),
    ]
    return torch.optim.AdamW([{"params": params, "weight_decay": decay} for params, decay in groups], lr=0.0)
