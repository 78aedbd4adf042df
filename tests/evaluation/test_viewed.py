"""Features of views: other ones in every epoch, the same for the same epoch, of the images that are asked for."""

import numpy as np
import torch

from evaluation_cases import Pixels
from prototile.backbones import Readout
from prototile.data.source import Arrays
from prototile.evaluation import Crop
from prototile.evaluation.viewed import ViewsFeed, random_crops
from prototile.views import CIFAR10

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), np.uint8)


def feed(*rows: int) -> ViewsFeed:
    source = Arrays(PIXELS, np.arange(20))
    crops = random_crops(Crop(8, normalization=CIFAR10))
    return ViewsFeed(Pixels(192), source, {"a": Readout()}, crops, 6, rows=torch.tensor(rows), workers=0)


def seen(batches) -> tuple[torch.Tensor, list[int]]:
    pairs = [(x["a"], y) for x, y in batches]
    return torch.cat([x for x, _ in pairs]), [int(k) for _, y in pairs for k in y]


def test_crops_are_random():
    views = random_crops(Crop(224)).views
    assert (views[0].size, views[0].scale, views[0].flip, views[0].jitter) == (224, (0.08, 1.0), 0.5, None)
    assert random_crops(Crop(32, normalization=CIFAR10)).views[0].scale == (0.3, 1.0)
    assert random_crops(Crop(32, normalization=CIFAR10)).normalization == CIFAR10


def test_epochs_differ_and_come_again():
    views = feed(2, 3, 5, 7, 11, 13, 17)
    first, second, again = (seen(views.batches(epoch)) for epoch in (0, 1, 0))
    assert sorted(first[1]) == sorted(second[1]) == [2, 3, 5, 7, 11, 13, 17]
    assert first[1] == again[1] != second[1]
    assert torch.equal(first[0], again[0])
    assert first[0].shape == (7, 192)
    order = [np.argsort(labels) for _, labels in (first, second)]
    assert not torch.equal(first[0][order[0]], second[0][order[1]]), "other views of the same images"
    assert len(views) == 2


def test_the_backbone_stays_in_evaluation_mode():
    views = feed(1, 2, 3)
    views._backbone.train()
    before = views._backbone.norm.num_batches_tracked.clone()
    seen(views.batches(0))
    assert views._backbone.norm.num_batches_tracked == before
    assert views._backbone.training
