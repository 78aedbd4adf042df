"""ExCB."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from prototile.backbones import Backbone
from prototile.balancing import Balancer, ExplicitBalancing
from prototile.heads import ExCBHead
from prototile.methods.addons import AddOn
from prototile.methods.network import Network
from prototile.methods.objectives import ExplicitClusters, Temperatures
from prototile.methods.prototypical import Prototypical
from prototile.priors import Prior, Uniform
from prototile.schedules import Constant, Cosine, Schedule


def excb(
    backbone: Backbone,
    *,
    num_prototypes: int = 65536,
    prior: Prior = Uniform(),
    balancer: Callable[[Tensor], Balancer] = ExplicitBalancing,
    match_weight: float = 0.0,
    add_ons: Sequence[AddOn] = (),
    variant: Literal["paper", "code"] = "paper",
    kmeans_images: int = 500_000,
    hidden: int = 2048,
    bottleneck: int = 256,
    activation: Literal["relu", "gelu"] = "relu",
    head_batch_norm: bool = True,
    student_temperature: float = 0.1,
    teacher_temperature: Schedule = Constant(0.04),
    momentum: Schedule = Cosine(0.996, 1.0),
) -> Prototypical:
    r"""Explicit clustering with balancing by measured sizes (ExCB, ECCV 2024, supplementary material).

    $\frac12 L_h + \frac12 L_g$: projections of all views predict the balanced targets of the *other* global views, and
    predictions those of all; only projections of global crops move the prototypes. These start from spherical k-means
    on the untrained network's projections of `kmeans_images` images (0: at random). Transformers want
    `activation="gelu"` and `head_batch_norm=False`.
    """
    head = ExCBHead(
        backbone.dims,
        num_prototypes,
        hidden=hidden,
        bottleneck=bottleneck,
        activation={"relu": nn.ReLU, "gelu": nn.GELU}[activation],
        batch_norm=head_batch_norm,
    )
    pi = prior(num_prototypes)
    clusters = ExplicitClusters(
        pi,
        balancer(pi),
        Temperatures(student_temperature, teacher_temperature),
        variant=variant,
        match_weight=match_weight,
    )
    network = Network(backbone, head)
    return Prototypical(network, [clusters], momentum=momentum, kmeans_images=kmeans_images, add_ons=add_ons)
