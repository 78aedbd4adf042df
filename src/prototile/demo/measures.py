"""What is measured of a method, before and after training: on images as they are, in evaluation mode.

n images, m of them wanted, d dims, k prototypes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit import Unique, unique
from prototile.demo.data import CLASSES, Digits
from prototile.evaluation import encode, knn
from prototile.evaluation.features import evaluating
from prototile.methods import Prototypical
from prototile.methods.network import Network
from prototile.reports.demo_result import Cluster, Picture, Query, Sheet, Snapshot
from prototile.sphere import normalize

EPSILON = 0.025
CLUSTERS, PICTURES, NEIGHBORS = 12, 8, 8  # that a page shows


def teacher_of(method: Prototypical) -> Network:
    assert method.teacher is not None
    return method.teacher


def features(method: Prototypical, digits: Digits) -> Float[Tensor, "n d"]:
    """Of the backbone that is evaluated, the teacher's."""
    return encode(method.backbone, digits.images)


def cosines(method: Prototypical, digits: Digits) -> Float[Tensor, "n k"]:
    """Of every image and every prototype, by the teacher."""
    network = teacher_of(method)
    with evaluating(network):
        projections = network.head.projector(network.backbone(digits.images).pooled)
        return normalize(projections) @ network.prototypes[0].directions().T


def of_student(method: Prototypical) -> Unique:
    """The student's unique prototypes."""
    return unique(method.student.prototypes[0].directions(), EPSILON)


def snapshot(method: Prototypical, train: Digits, test: Digits) -> Snapshot:
    """Unique prototypes, sizes of the clusters of training images, accuracy of nearest neighbours."""
    student = of_student(method)
    teacher = unique(teacher_of(method).prototypes[0].directions(), EPSILON)
    sizes = torch.bincount(cosines(method, train).argmax(1), minlength=len(student.labels))
    near = knn(features(method, train), train.labels, features(method, test), test.labels)
    return Snapshot(
        unique=student.count,
        teacher_unique=teacher.count,
        groups=_descending(student.redundancy),
        sizes=_descending(sizes),
        knn=near.accuracy,
    )


def sheet(method: Prototypical, train: Digits, *, arm: str, seed: int) -> Sheet:
    """Clusters from the largest to the smallest used one, evenly spaced, each with the images nearest to it."""
    scores = cosines(method, train)
    best, owner = scores.max(1)
    sizes = torch.bincount(owner, minlength=scores.shape[1])
    order = sizes.argsort(descending=True, stable=True)[: int((sizes > 0).sum())]
    ranks = torch.linspace(0, len(order) - 1, min(CLUSTERS, len(order))).round().long().tolist()
    clusters = []
    for rank in ranks:
        members = (owner == order[rank]).nonzero().flatten()
        nearest = members[best[members].argsort(descending=True, stable=True)[:PICTURES]]
        clusters.append(Cluster(rank + 1, len(members), tuple(picture(train, int(i)) for i in nearest)))
    return Sheet(arm, seed, tuple(clusters))


def first_of_each_class(digits: Digits) -> Int[Tensor, " m"]:
    return torch.stack([(digits.labels == label).nonzero()[0, 0] for label in range(len(CLASSES))])


def neighbors(method: Prototypical, train: Digits, test: Digits, queries: Int[Tensor, " m"]) -> Int[Tensor, "m n"]:
    """The training images nearest to these test images, in the backbone's features."""
    there, here = normalize(features(method, test)[queries]), normalize(features(method, train))
    return (there @ here.T).topk(NEIGHBORS, dim=1).indices


def pictured(
    train: Digits, test: Digits, queries: Int[Tensor, " m"], before: Int[Tensor, "m n"], after: Int[Tensor, "m n"]
) -> tuple[Query, ...]:
    """Test images with their neighbours, as pictures."""
    return tuple(
        Query(picture(test, query), tuple(picture(train, i) for i in old), tuple(picture(train, i) for i in new))
        for query, old, new in zip(queries.tolist(), before.tolist(), after.tolist(), strict=True)
    )


def picture(digits: Digits, index: int) -> Picture:
    return Picture(CLASSES[int(digits.labels[index])], tuple(map(tuple, digits.raw[index].tolist())))


def _descending(numbers: Int[Tensor, " k"]) -> tuple[int, ...]:
    return tuple(numbers.sort(descending=True).values.tolist())
