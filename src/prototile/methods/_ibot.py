"""iBOT, iBOT-vMF and DINOv2's loss: class tokens across views, masked patches within."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from prototile.backbones import Backbone
from prototile.balancing import Balancer, Centering, ProbabilityCentering
from prototile.heads import Head, Prototypes, dino_head
from prototile.methods.addons import AddOn, koleo_data
from prototile.methods.network import Network
from prototile.methods.objectives import ClassTokens, MaskedPatches, Temperatures
from prototile.methods.prototypical import Prototypical
from prototile.priors import Prior, Uniform
from prototile.schedules import Cosine, EpochRamp, Schedule


def ibot(
    backbone: Backbone,
    *,
    num_prototypes: int = 8192,
    prior: Prior = Uniform(),
    balancer: Callable[[Tensor], Balancer] = Centering,
    match_weight: float = 0.0,
    add_ons: Sequence[AddOn] = (),
    shared: Literal["prototypes", "projector", "nothing"] = "prototypes",
    num_patch_prototypes: int | None = None,
    hidden: int = 2048,
    bottleneck: int = 256,
    head_batch_norm: bool = False,
    gain: Literal["one", "learned"] = "one",
    vmf: bool = False,
    observed: Literal["all", "masked"] = "all",
    cls_weight: float = 1.0,
    patch_weight: float = 1.0,
    student_temperature: float = 0.1,
    teacher_temperature: Schedule = EpochRamp(0.04, 0.07, 30),
    patch_temperature: Schedule = EpochRamp(0.04, 0.07, 30),
    momentum: Schedule = Cosine(0.996, 1.0),
) -> Prototypical:
    r"""Image BERT with an online tokenizer (Zhou et al. 2022, https://arxiv.org/abs/2111.07832).

    $\lambda_1 L_{cls} + \lambda_2 L_{mim}$: DINO's loss, and
    $L_{mim} = \frac{1}{GB} \sum_{t, b} \frac{\sum_i m_{tbi} H(q_{tbi}, p_{tbi})}{\max(1, \sum_i m_{tbi})}$ over the
    masked patches of the global views. What class and patch tokens share: everything behind the backbone, the
    projector, or nothing.
    """
    needs_patches(backbone, "iBOT")
    if shared == "prototypes" and num_patch_prototypes not in (None, num_prototypes):
        raise ValueError("shared prototypes are as many for patches as for class tokens: choose shared='projector'")

    def made(projector: nn.Module, count: int) -> Head:
        return Head(projector, Prototypes(bottleneck, count, gain=gain, vmf=vmf))

    def projector() -> nn.Module:
        return dino_head(backbone.dims, hidden=hidden, bottleneck=bottleneck, batch_norm=head_batch_norm)

    count = num_patch_prototypes or num_prototypes
    head = patch_head = made(projector(), num_prototypes)
    if shared == "projector":
        patch_head = made(head.projector, count)
    elif shared == "nothing":
        patch_head = made(projector(), count)
    pi, patch_pi = prior(num_prototypes), prior(count)
    tokens = ClassTokens(
        pi,
        balancer(pi),
        Temperatures(student_temperature, teacher_temperature),
        match_weight=match_weight,
        weight=cls_weight,
    )
    patches = MaskedPatches(
        patch_pi,
        balancer(patch_pi),
        Temperatures(student_temperature, patch_temperature),
        observed=observed,
        weight=patch_weight,
    )
    network = Network(backbone, head, patch_head)
    return Prototypical(network, [tokens, patches], momentum=momentum, add_ons=add_ons)


def ibot_vmf(
    backbone: Backbone, *, balancer: Callable[[Tensor], Balancer] = ProbabilityCentering, **options: Any
) -> Prototypical:
    r"""iBOT as a mixture of von Mises-Fisher distributions, as in `dino_vmf`, for both kinds of token.

    With `add_ons=[koleo_proto()]` it is the paper's remedy for partial prototype collapse (Govindarajan et al. 2024,
    https://arxiv.org/abs/2410.14060). The other options are those of `ibot`.
    """
    return ibot(backbone, balancer=balancer, gain="learned", vmf=True, **options)


def dinov2(
    backbone: Backbone,
    *,
    num_prototypes: int = 65536,
    koleo_weight: float = 0.1,
    add_ons: Sequence[AddOn] = (),
    teacher_temperature: Schedule = EpochRamp(0.04, 0.07, 30),
    momentum: Schedule = Cosine(0.992, 1.0),
    **options: Any,
) -> Prototypical:
    r"""DINOv2's loss (Oquab et al. 2023, https://arxiv.org/abs/2304.07193).

    iBOT's two terms, whose patch targets are balanced over masked patches alone, and 0.1 KoLeo over the class tokens of
    each global view. Large runs balance by Sinkhorn's iterations (`balancer=Sinkhorn`) and share nothing between heads.
    The other options are those of `ibot`.
    """
    return ibot(
        backbone,
        num_prototypes=num_prototypes,
        add_ons=[*add_ons, koleo_data(koleo_weight)] if koleo_weight else add_ons,
        observed="masked",
        teacher_temperature=teacher_temperature,
        patch_temperature=teacher_temperature,
        momentum=momentum,
        **options,
    )


def needs_patches(backbone: Backbone, method: str) -> None:
    if backbone.patch is None:
        raise ValueError(
            f"{method} works on patches, and a {type(backbone).__name__} has none: use a transformer "
            "(prototile.backbones.vit, beit or swin)"
        )
