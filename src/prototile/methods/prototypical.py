"""Clustering: a student predicts to which prototypes a teacher assigns other views, or hidden patches, of an image."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from prototile import distributed
from prototile.backbones import Backbone
from prototile.ema import follow_, teacher_of
from prototile.kmeans import spherical_kmeans
from prototile.methods.addons import AddOn, AddOns
from prototile.methods.method import Clusters, Method, Terms
from prototile.methods.network import Encoded, Network, by_view, encode
from prototile.methods.objectives import MaskedPatches, Objective
from prototile.schedules import Progress, Schedule
from prototile.types import Batch, Views
from prototile.views import Augmentation


class Prototypical(Method):
    """The clustering family: networks, objectives, and how the teacher follows.

    The teacher sees the first group of views, whole. The student sees all groups, with what hides patches; with
    `anchors_apart` all but the first (MSN). `momentum` moves the teacher's average; without one the student teaches
    itself (SwAV). `share_prototypes` gives both the student's (MSN). `renormalize` puts prototypes back on the sphere
    before each step (SwAV). `kmeans_images` projections of the first views are clustered to start from (ExCB).
    """

    student: Network

    def __init__(
        self,
        student: Network,
        objectives: Sequence[Objective],
        *,
        momentum: Schedule | None,
        anchors_apart: bool = False,
        share_prototypes: bool = False,
        renormalize: bool = False,
        kmeans_images: int = 0,
        add_ons: Sequence[AddOn] = (),
    ):
        super().__init__()
        self.student = student
        self.teacher = None
        if momentum is not None:
            self.teacher = teacher_of(student, shared=student.head.prototypes if share_prototypes else None)
            self.teacher.backbone.keep_all_paths_()
        self.objectives, self.add_ons = nn.ModuleList(objectives), AddOns(add_ons)
        self.momentum, self.anchors_apart, self.renormalize = momentum, anchors_apart, renormalize
        self.kmeans_images = kmeans_images

    def forward(self, views: tuple[Views, ...], progress: Progress) -> Terms:
        if self.renormalize and self.training:
            for prototypes in self.student.prototypes:
                prototypes.renormalize_()
        seen = views[1:] if self.anchors_apart else views
        student = encode(self.student, seen)
        teacher = self._taught(views, student)
        loss, parts = self.add_ons(
            self.student.prototypes,
            by_view(student.features[0].pooled, student.views[0]),
            by_view(student.projections, student.count),
        )
        clusters: dict[str, Clusters] = {}
        for objective in self.objectives:
            outcome = objective(student, teacher, seen, progress)
            loss = outcome.loss + loss
            parts |= outcome.parts
            clusters |= outcome.clusters
        assert isinstance(loss, Tensor)
        return Terms(
            loss, {name: x.detach() for name, x in parts.items()}, student.features[0].pooled.detach(), clusters
        )

    @torch.no_grad()
    def _taught(self, views: tuple[Views, ...], student: Encoded) -> Encoded:
        return student.leading() if self.teacher is None else encode(self.teacher, views[:1], whole=True)

    def after_step(self, progress: Progress) -> None:
        if self.teacher is not None:
            assert self.momentum is not None
            follow_(self.teacher, self.student, self.momentum(progress))

    @torch.no_grad()
    def prepare(self, batches: Iterator[Batch]) -> None:
        if not self.kmeans_images:
            return
        rows, count = [], 0
        network = self.student if self.teacher is None else self.teacher
        for batch in batches:
            first = Views(batch.views[0].images[:1])
            rows.append(distributed.gather(encode(network, [first]).projections))
            count += len(rows[-1])
            if count >= self.kmeans_images:
                break
        for prototypes in self.student.prototypes[:1]:
            centers = spherical_kmeans(torch.cat(rows)[: self.kmeans_images], len(prototypes.vectors))
            for each in (prototypes, *network.prototypes[:1]):
                each.vectors.copy_(distributed.like(centers.to(each.vectors.dtype), each.vectors))

    def check(self, augmentation: Augmentation) -> None:
        groups = augmentation.groups
        if self.anchors_apart and len(groups) < 2:
            raise ValueError(
                "this method needs a group of target views and one of anchors, and the augmentation has one group: "
                "use prototile.views.preset('msn')"
            )
        students = sum(len(group.views) for group in (groups[1:] if self.anchors_apart else groups))
        if not self.anchors_apart and students < 2:
            raise ValueError("this method compares views of an image, and the augmentation makes one: give it two")
        patch = self.backbone.patch
        guesses_patches = any(isinstance(objective, MaskedPatches) for objective in self.objectives)
        if guesses_patches and (groups[0].masks is None or groups[0].masks.drops):
            raise ValueError(
                "this method predicts hidden patches, and the first group of views masks none: "
                "use prototile.views.preset('ibot')"
            )
        for group in groups:
            if group.masks is not None and group.patch != patch:
                raise ValueError(
                    f"the views are masked in patches of {group.patch} pixels, and the backbone has "
                    f"{'none' if patch is None else f'patches of {patch}'}: make them equal"
                )

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        return tuple(network.backbone for network in (self.student, self.teacher) if network is not None)

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        return {"prototypes": nn.ModuleList(self.student.prototypes)}
