"""MSN and PMSN."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from prototile.backbones import Backbone
from prototile.balancing import Balancer, Sinkhorn
from prototile.heads import Head, Prototypes, msn_head
from prototile.methods.addons import AddOn
from prototile.methods.network import Network
from prototile.methods.objectives import ClassTokens, Temperatures
from prototile.methods.prototypical import Prototypical
from prototile.priors import PowerLaw, Prior, Uniform
from prototile.schedules import Constant, Linear, Schedule


def pmsn(
    backbone: Backbone,
    *,
    num_prototypes: int = 8142,
    prior: Prior = PowerLaw(0.25),
    target_prior: Prior | None = None,
    balancer: Callable[[Tensor], Balancer] = lambda prior: Sinkhorn(prior, start="probabilities"),
    match_weight: float = 5.0,
    entropy_weight: float = 0.0,
    add_ons: Sequence[AddOn] = (),
    hidden: int = 2048,
    bottleneck: int = 256,
    student_temperature: float = 0.1,
    teacher_temperature: Schedule = Constant(0.025),
    momentum: Schedule = Linear(0.996, 1.0, stretch=1.25),
) -> Prototypical:
    r"""Prior-matching siamese networks (Assran et al. 2023, https://arxiv.org/abs/2210.07277).

    $\frac1A \sum_a H(q, p_a) + \lambda D_{KL}(\bar p \,\|\, \pi)$: the anchors, some with patches left out, predict the
    target view's assignment; their marginal is drawn to the prior. The teacher's temperature includes the sharpening,
    0.1 x 0.25. Student and teacher have the same prototypes.

    Targets are balanced to the same prior, or to `target_prior`. Under a skewed prior without any balancing
    (`Sinkhorn` with 0 iterations) a constant output can satisfy the penalty: watch the share of prototypes in use.
    """
    head = Head(
        msn_head(backbone.dims, hidden=hidden, bottleneck=bottleneck),
        Prototypes(bottleneck, num_prototypes),
    )
    nn.init.uniform_(head.prototypes.vectors, -(bottleneck**-0.5), bottleneck**-0.5)
    tokens = ClassTokens(
        prior(num_prototypes),
        balancer((target_prior or prior)(num_prototypes)),
        Temperatures(student_temperature, teacher_temperature),
        pairs="every",
        match_weight=match_weight,
        entropy_weight=entropy_weight,
    )
    return Prototypical(
        Network(backbone, head),
        [tokens],
        momentum=momentum,
        anchors_apart=True,
        share_prototypes=True,
        add_ons=add_ons,
    )


def msn(
    backbone: Backbone,
    *,
    num_prototypes: int = 1024,
    prior: Prior = Uniform(),
    match_weight: float = 1.0,
    **options: Any,
) -> Prototypical:
    r"""Masked siamese networks (Assran et al. 2022, https://arxiv.org/abs/2204.07141): `pmsn` with a uniform prior.

    $\lambda D_{KL}(\bar p \,\|\, 1/K) = \lambda (\log K - H(\bar p))$ is mean-entropy maximisation. The other options
    are those of `pmsn`.
    """
    return pmsn(backbone, num_prototypes=num_prototypes, prior=prior, match_weight=match_weight, **options)
