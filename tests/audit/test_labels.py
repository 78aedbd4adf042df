"""Clusters against labels: as scikit-learn has it, and by hand."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from prototile.audit.labels import audit_labels


@pytest.mark.parametrize("clusters", [1, 3, 40])
@pytest.mark.parametrize("agree", [0.0, 0.7, 1.0])
def test_equals_scikit_learn(clusters, agree):
    labels = torch.randint(6, (400,))
    assigned = torch.where(torch.rand(400) < agree, labels % clusters, torch.randint(clusters, (400,)))
    found = audit_labels(assigned, labels, clusters + 2)
    assert found.nmi == pytest.approx(normalized_mutual_info_score(labels, assigned), abs=1e-12)
    assert found.ari == pytest.approx(adjusted_rand_score(labels, assigned), abs=1e-12)
    table = np.zeros((clusters + 2, 6))
    np.add.at(table, (assigned.numpy(), labels.numpy()), 1)
    assert found.purity == pytest.approx(table.max(1).sum() / 400)
    used = table.sum(1) > 0
    assert found.majority.tolist() == np.where(used, table.argmax(1), -1).tolist()
    assert found.clusters == used.sum()
    assert found.matched == pytest.approx(table[linear_sum_assignment(table, maximize=True)].sum() / 400, abs=1e-12)


def test_unlabelled_images_are_left_out():
    labels = torch.tensor([0, 1, -1, 1])
    found = audit_labels(torch.tensor([0, 1, 1, 1]), labels, 2)
    assert (found.images, found.classes, found.nmi, found.purity) == (3, 2, 1.0, 1.0)


def test_purity_of_singles_is_one_and_their_accuracy_is_none():
    """With as many clusters as images purity says nothing: the other half of the images knows better."""
    labels = torch.randint(5, (200,))
    found = audit_labels(torch.arange(200), labels, 200)
    assert found.purity == 1
    assert found.accuracy == 0
    good = audit_labels(labels, labels, 5)
    assert (good.purity, good.accuracy, good.nmi, good.ari, good.matched) == (1, 1, 1, 1, 1)


def test_a_cluster_is_matched_with_one_class_only():
    """Two of three classes in one cluster: one of them goes without; of two clusters with one class, one does."""
    labels = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    assert audit_labels(torch.tensor([7] * 9 + [2] * 3), labels, 9).matched == pytest.approx(8 / 12)
    assert audit_labels(torch.tensor([0] * 3 + [1] * 2 + [2] * 4 + [3] * 3), labels, 4).matched == pytest.approx(
        10 / 12
    )


def test_groups_are_means_over_their_classes():
    """Class 0 has its cluster, class 1 shares one with the larger class 2, class 3 has no image."""
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 50)
    assigned = torch.tensor([0] * 40 + [1] * 60)
    groups = {"head": torch.tensor([0, 2]), "middle": np.array([1]), "tail": torch.tensor([3])}
    found = audit_labels(assigned, labels, 2, groups=groups)
    assert found.accuracy == pytest.approx(0.9)
    shown = {name: (group.classes, group.images, group.accuracy) for name, group in found.groups.items()}
    assert shown == {"head": (2, 90, 1.0), "middle": (1, 10, 0.0), "tail": (1, 0, None)}
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["groups"]["tail"]["accuracy"] is None
    assert "purity 90.0%" in str(found)


@pytest.mark.parametrize(
    ("assigned", "labels", "message"),
    [([0, 1], [0], "1 labels for 2 images"), ([0, 1], [-1, -1], "no image has a label")],
)
def test_what_is_refused(unchecked, assigned, labels, message):
    with pytest.raises(ValueError, match=message):
        audit_labels(torch.tensor(assigned), torch.tensor(labels), 2)
