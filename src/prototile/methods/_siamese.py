"""SimCLR, VICReg, Barlow Twins, SimSiam and MMCR."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prototile.backbones import Backbone
from prototile.heads import simclr_head, simsiam_predictor, simsiam_projector, vicreg_head
from prototile.losses import barlow_twins as barlow_twins_loss
from prototile.losses import negative_cosine, nt_xent
from prototile.losses import vicreg as vicreg_loss
from prototile.methods.addons import AddOn
from prototile.methods.joint_embedding import JointEmbedding, Siamese
from prototile.precision import wide
from prototile.regularizers import ManifoldCapacity


def simclr(
    backbone: Backbone,
    *,
    temperature: float = 0.1,
    hidden: int = 2048,
    bottleneck: int = 128,
    add_ons: Sequence[AddOn] = (),
) -> JointEmbedding:
    r"""Contrastive learning (Chen et al. 2020, https://arxiv.org/abs/2002.05709).

    $-\log \frac{\exp(z_i^\top z_{j(i)} / \tau)}{\sum_{k \ne i} \exp(z_i^\top z_k / \tau)}$ over both views of all
    ranks.
    """

    def criterion(z: Tensor, p: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = nt_xent(z[0], z[1], temperature)
        return loss, {"nt_xent": loss}

    projector = simclr_head(backbone.dims, hidden=hidden, bottleneck=bottleneck)
    return JointEmbedding(Siamese(backbone, projector), criterion, add_ons=add_ons)


def vicreg(
    backbone: Backbone,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    hidden: int = 8192,
    add_ons: Sequence[AddOn] = (),
) -> JointEmbedding:
    r"""Variance-invariance-covariance regularisation (Bardes et al. 2022, https://arxiv.org/abs/2105.04906).

    25 mse(z, z') + 25 (var(z) + var(z')) / 2 + cov(z) + cov(z').
    """

    def criterion(z: Tensor, p: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        terms = vicreg_loss(
            z[0],
            z[1],
            invariance_weight=invariance_weight,
            variance_weight=variance_weight,
            covariance_weight=covariance_weight,
        )
        parts = terms._asdict()
        return parts.pop("loss"), parts

    projector = vicreg_head(backbone.dims, hidden=hidden)
    return JointEmbedding(Siamese(backbone, projector), criterion, apart=True, add_ons=add_ons)


def barlow_twins(
    backbone: Backbone,
    *,
    redundancy: float = 0.005,
    hidden: int = 8192,
    add_ons: Sequence[AddOn] = (),
) -> JointEmbedding:
    r"""Redundancy reduction (Zbontar et al. 2021, https://arxiv.org/abs/2103.03230).

    $\sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2$, C the cross-correlation of the two views' projections.
    """

    def criterion(z: Tensor, p: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = barlow_twins_loss(z[0], z[1], redundancy)
        return loss, {"barlow_twins": loss}

    projector = vicreg_head(backbone.dims, hidden=hidden)
    return JointEmbedding(Siamese(backbone, projector), criterion, apart=True, add_ons=add_ons)


def simsiam(
    backbone: Backbone, *, hidden: int = 2048, bottleneck: int = 512, add_ons: Sequence[AddOn] = ()
) -> JointEmbedding:
    r"""Siamese networks without negatives (Chen & He 2021, https://arxiv.org/abs/2011.10566).

    $-\frac12 (\cos(p_1, z_2) + \cos(p_2, z_1))$ with the projections z as constants.
    """

    def criterion(z: Tensor, p: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (negative_cosine(p[0], z[1]) + negative_cosine(p[1], z[0])) / 2
        return loss, {"negative_cosine": loss}

    student = Siamese(
        backbone, simsiam_projector(backbone.dims, hidden=hidden), simsiam_predictor(hidden, hidden=bottleneck)
    )
    return JointEmbedding(student, criterion, apart=True, add_ons=add_ons)


def mmcr(
    backbone: Backbone,
    *,
    compression: float = 0.0,
    hidden: int = 8192,
    bottleneck: int = 512,
    add_ons: Sequence[AddOn] = (),
) -> JointEmbedding:
    r"""Maximum manifold capacity (Yerxa et al. 2023, https://arxiv.org/abs/2303.03307).

    $-\|C\|_* + \lambda \frac1B \sum_b \|Z_b\|_*$: the nuclear norm of the images' centroids on the sphere, and of each
    image's views. Any number of views.
    """
    capacity = ManifoldCapacity()

    def criterion(z: Tensor, p: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = capacity(z)
        parts = {"capacity": loss}
        if compression:
            units = F.normalize(wide(z), dim=-1).transpose(0, 1)
            parts["extent"] = torch.linalg.svdvals(units).sum(-1).mean()
            loss = loss + compression * parts["extent"]
        return loss, parts

    projector = simclr_head(backbone.dims, hidden=hidden, bottleneck=bottleneck)
    return JointEmbedding(Siamese(backbone, projector), criterion, pairs=False, add_ons=add_ons)
