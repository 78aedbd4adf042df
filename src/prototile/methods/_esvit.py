"""EsViT: class tokens and regions across views."""

from collections.abc import Callable, Sequence

from torch import Tensor

from prototile.backbones import Backbone
from prototile.balancing import Balancer, Centering
from prototile.heads import Head, Prototypes, dino_head
from prototile.methods._ibot import needs_patches
from prototile.methods.addons import AddOn
from prototile.methods.network import Network
from prototile.methods.objectives import ClassTokens, Regions, Temperatures
from prototile.methods.prototypical import Prototypical
from prototile.priors import Prior, Uniform
from prototile.schedules import Cosine, EpochRamp, Schedule


def esvit(
    backbone: Backbone,
    *,
    num_prototypes: int = 65536,
    num_region_prototypes: int | None = None,
    prior: Prior = Uniform(),
    balancer: Callable[[Tensor], Balancer] = Centering,
    match_weight: float = 0.0,
    add_ons: Sequence[AddOn] = (),
    region_weight: float = 0.5,
    hidden: int = 2048,
    bottleneck: int = 256,
    head_batch_norm: bool = False,
    student_temperature: float = 0.1,
    teacher_temperature: Schedule = EpochRamp(0.04, 0.07, 30),
    momentum: Schedule = Cosine(0.996, 1.0),
) -> Prototypical:
    r"""Efficient self-supervised vision transformers (Li et al. 2022, https://arxiv.org/abs/2106.09785).

    $(1 - w) H_{view} + w \cdot \frac1R \sum_i H(q_{j^*(i)}, p_i)$ over DINO's pairs of views, where region $j^*(i)$ of
    the teacher is the most similar one to region i of the student; two heads with prototypes of their own, as many of
    regions as of views where their number is not given.
    """
    needs_patches(backbone, "EsViT")
    if not 0 <= region_weight <= 1:
        raise ValueError(f"the weight of regions lies in [0, 1], got {region_weight}")
    counts = num_prototypes, num_region_prototypes or num_prototypes
    head, region_head = (
        Head(
            dino_head(backbone.dims, hidden=hidden, bottleneck=bottleneck, batch_norm=head_batch_norm),
            Prototypes(bottleneck, count),
        )
        for count in counts
    )
    pi, region_pi = map(prior, counts)
    temperatures = Temperatures(student_temperature, teacher_temperature)
    tokens = ClassTokens(pi, balancer(pi), temperatures, match_weight=match_weight, weight=1 - region_weight)
    regions = Regions(region_pi, balancer(region_pi), temperatures, weight=region_weight)
    network = Network(backbone, head, region_head)
    return Prototypical(network, [tokens, regions], momentum=momentum, add_ons=add_ons)
