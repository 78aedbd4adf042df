"""Maps: close things close, the same map every time, and few points are no error."""

import json

import pytest
import torch
import torch.nn.functional as F

from prototile.audit import map_embeddings, map_prototypes, unique


def test_groups_stay_together_and_a_seed_decides():
    centres = F.normalize(torch.randn(4, 16), dim=1)
    group = torch.arange(4).repeat_interleave(15)
    z = (centres[group] + 0.05 * torch.randn(60, 16)) * (torch.rand(60, 1) + 0.1)
    cover = unique(centres)
    found, again = (map_embeddings(z, centres, cover, seed=1) for _ in range(2))
    assert torch.equal(found.image_points, again.image_points)
    assert torch.equal(found.prototype_points, again.prototype_points)
    distance = torch.cdist(found.image_points, found.image_points).fill_diagonal_(torch.inf)
    assert bool((group[distance.argmin(1)] == group).all())
    to_images = torch.cdist(found.prototype_points, found.image_points).argmin(1)
    assert torch.equal(group[to_images], found.prototypes), "a prototype lies among its images"
    assert (found.of_images, found.of_prototypes, found.perplexity) == (60, 4, 21.0)


def test_samples_are_drawn_by_the_seed_and_stay_in_order():
    weights = torch.randn(60, 8)
    cover = unique(weights, 0.001)
    one, two, three = (map_prototypes(weights, cover, at_most=20, seed=seed) for seed in (0, 0, 1))
    assert one.prototypes.tolist() == two.prototypes.tolist() != three.prototypes.tolist()
    order = {int(k): i for i, k in enumerate(cover.representatives)}
    places = [order[int(k)] for k in one.prototypes]
    assert places == sorted(places)
    assert (len(one.prototypes), one.of_prototypes, len(one.images)) == (20, 60, 0)
    assert str(one) == "map of 0 of 0 images and 20 of 60 prototypes"
    some = map_embeddings(torch.randn(100, 8), images=torch.tensor([5, 9, 11, 50, 70, 80]), at_most=5)
    assert set(some.images.tolist()) <= {5, 9, 11, 50, 70, 80}
    assert len(some.images) == 5
    json.dumps(one.as_dict(), allow_nan=False)


def test_few_or_equal_points():
    for weights in (torch.randn(1, 3), torch.randn(3, 1), torch.eye(4)):
        found = map_prototypes(weights, unique(weights))
        assert bool(found.prototype_points.isfinite().all())
    same = map_embeddings(torch.ones(20, 4))
    assert bool(same.image_points.isfinite().all())


def test_what_is_refused():
    with pytest.raises(ValueError, match="both their weights and their cover"):
        map_embeddings(torch.randn(5, 3), torch.randn(2, 3))
