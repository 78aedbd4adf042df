"""DINO and DINO-vMF."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from prototile.backbones import Backbone
from prototile.balancing import Balancer, Centering, ProbabilityCentering
from prototile.heads import Head, Prototypes, dino_head
from prototile.methods.addons import AddOn
from prototile.methods.network import Network
from prototile.methods.objectives import ClassTokens, Temperatures
from prototile.methods.prototypical import Prototypical
from prototile.priors import Prior, Uniform
from prototile.schedules import Cosine, EpochRamp, Schedule


def dino(
    backbone: Backbone,
    *,
    num_prototypes: int = 65536,
    prior: Prior = Uniform(),
    balancer: Callable[[Tensor], Balancer] = Centering,
    match_weight: float = 0.0,
    add_ons: Sequence[AddOn] = (),
    hidden: int = 2048,
    bottleneck: int = 256,
    head_batch_norm: bool = False,
    gain: Literal["one", "learned"] = "one",
    vmf: bool = False,
    student_temperature: float = 0.1,
    teacher_temperature: Schedule = EpochRamp(0.04, 0.07, 30),
    momentum: Schedule = Cosine(0.996, 1.0),
) -> Prototypical:
    r"""Self-distillation with no labels (Caron et al. 2021, https://arxiv.org/abs/2104.14294).

    $\frac{1}{G(V-1)} \sum_{t \le G} \sum_{v \ne t} H\big(\mathrm{softmax}((l_t - c) / \tau_t),
    \mathrm{softmax}(l_v / \tau_s)\big)$: each of V views predicts the centred targets of the G global ones. `gain`
    "learned" is the official `norm_last_layer=False`; convolutional backbones want `head_batch_norm`.
    """
    head = Head(
        dino_head(backbone.dims, hidden=hidden, bottleneck=bottleneck, batch_norm=head_batch_norm),
        Prototypes(bottleneck, num_prototypes, gain=gain, vmf=vmf),
    )
    pi = prior(num_prototypes)
    temperatures = Temperatures(student_temperature, teacher_temperature)
    tokens = ClassTokens(pi, balancer(pi), temperatures, match_weight=match_weight)
    return Prototypical(Network(backbone, head), [tokens], momentum=momentum, add_ons=add_ons)


def dino_vmf(
    backbone: Backbone, *, balancer: Callable[[Tensor], Balancer] = ProbabilityCentering, **options: Any
) -> Prototypical:
    r"""DINO as a mixture of von Mises-Fisher distributions (Govindarajan et al. 2023, DINO-vMF).

    Prototypes have norms, $\kappa_k = \|w_k\| / \tau$, and logits the normaliser $\log C_d(\kappa_k)$; targets are
    centred as probabilities. The other options are those of `dino`.
    """
    return dino(backbone, balancer=balancer, gain="learned", vmf=True, **options)
