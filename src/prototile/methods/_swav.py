"""SwAV."""

from collections.abc import Callable, Sequence

from torch import Tensor

from prototile.backbones import Backbone
from prototile.balancing import Balancer, Queue, Sinkhorn
from prototile.heads import Head, Prototypes, swav_head
from prototile.methods.addons import AddOn
from prototile.methods.network import Network
from prototile.methods.objectives import ClassTokens, Temperatures
from prototile.methods.prototypical import Prototypical
from prototile.priors import Prior, Uniform
from prototile.schedules import Constant


def swav(
    backbone: Backbone,
    *,
    num_prototypes: int = 3000,
    prior: Prior = Uniform(),
    balancer: Callable[[Tensor], Balancer] = lambda prior: Sinkhorn(prior, views=2),
    match_weight: float = 0.0,
    add_ons: Sequence[AddOn] = (),
    hidden: int = 2048,
    bottleneck: int = 128,
    queue: int = 0,
    queue_from: int = 15,
    student_temperature: float = 0.1,
    epsilon: float = 0.05,
) -> Prototypical:
    r"""Swapping assignments between views (Caron et al. 2020, https://arxiv.org/abs/2006.09882).

    $\frac{1}{G(V-1)} \sum_{t \le G} \sum_{v \ne t} H(q_t, \mathrm{softmax}(z_v^\top C / \tau))$ with $q_t$ = Sinkhorn's
    assignment of view t at temperature `epsilon`, from the same network, without gradient. Prototypes are put back on
    the sphere before each step. Small batches want a `queue` of so many earlier embeddings for each view and rank
    (3,840 at a batch of 256), from epoch `queue_from` on. With `PowerLaw(0.25)` as prior it is the long-tailed variant.
    """
    if queue < 0:
        raise ValueError(f"the length of a queue must not be negative, got {queue}")
    head = Head(
        swav_head(backbone.dims, hidden=hidden, bottleneck=bottleneck),
        Prototypes(bottleneck, num_prototypes, gain="free"),
    )
    pi = prior(num_prototypes)
    tokens = ClassTokens(
        pi,
        balancer(pi),
        Temperatures(student_temperature, Constant(epsilon)),
        match_weight=match_weight,
        queue=Queue(queue, bottleneck) if queue else None,
        queue_from=queue_from,
    )
    return Prototypical(Network(backbone, head), [tokens], momentum=None, renormalize=True, add_ons=add_ons)
