"""Audits side by side, and groups that merge and split where that was planted."""

import json

import pytest
import torch
import torch.nn.functional as F

from prototile.audit import Audit, audit_clusters, audit_embeddings, audit_prototypes, changes, compare, follow, unique


def test_merges_and_splits_are_told():
    #                      0  0  0  1  1  2  2  2  2  3
    before = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    after = torch.tensor([5, 5, 5, 5, 5, 1, 1, 2, 2, 0])
    found = changes(before, after)
    assert [(x.before, x.after, x.things) for x in found.merges] == [((0, 1), 5, 5)]
    assert [(x.before, x.after, x.things) for x in found.splits] == [(2, (1, 2), 4)]
    assert (found.before, found.after, found.merged, found.split, found.kept) == (4, 4, 2, 1, 1)
    assert found.destination.tolist() == [5, 5, 1, 0]
    assert str(found) == "4 groups became 4: 1 kept, 2 merged into 1, 1 split"
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["merges"][0]["before"] == [0, 1]


def test_nothing_changed_and_stray_things_do_not_count():
    groups = torch.arange(8).repeat_interleave(50)
    same = changes(groups, torch.randperm(8)[groups])
    assert (same.kept, same.merged, same.split) == (8, 0, 0)
    assert same.nmi == pytest.approx(1)
    stray = groups.clone()
    stray[::10] = torch.randint(8, (40,))
    assert changes(groups, stray, "images").split == 0
    assert changes(groups, stray, "images").kept == 8


def test_prototypes_of_a_run_are_followed_by_index():
    """Two directions become one; another tears apart."""
    directions = torch.eye(6)[torch.arange(6).repeat_interleave(3)] + 0.01 * torch.randn(18, 6)
    later = directions.clone()
    later[:3] = later[3:6] + 0.01
    later[15:17] = -later[15:17]
    audits = [
        Audit(name, prototypes={"cls": audit_prototypes(x)})
        for name, x in (("epoch 1", directions), ("epoch 2", later))
    ]
    ((head, before, after, found),) = compare(audits, run=True).changes
    assert (head, before, after) == ("cls", "epoch 1", "epoch 2")
    labels = [audit.prototypes["cls"].unique.labels for audit in audits]
    assert [set(x.before) for x in found.merges] == [{int(labels[0][0]), int(labels[0][3])}]
    assert [x.before for x in found.splits] == [int(labels[0][15])]
    assert compare(audits).changes == (), "nobody said that prototype k is the same"


def test_prototypes_are_followed_by_direction_whatever_their_order_and_number():
    a = F.normalize(torch.randn(30, 16), dim=1)
    b = torch.cat([a[torch.randperm(30)], a[:5] + 0.001])
    found = follow(a, unique(a), b, unique(b))
    assert (found.kept, found.merged, found.split, found.nmi) == (30, 0, 0, pytest.approx(1))
    middle = F.normalize(a[0] + a[1], dim=0)[None]
    found = follow(a, unique(a), torch.cat([middle, a[2:]]), unique(torch.cat([middle, a[2:]])))
    assert [len(x.before) for x in found.merges] == [2]


def test_models_of_different_spaces_are_compared_by_their_images():
    which = torch.arange(8).repeat_interleave(25)
    one = audit_clusters(torch.eye(8)[which], torch.eye(8), 0.1)
    two = audit_clusters(torch.eye(4)[which // 2], torch.eye(4), 0.1)
    pair = [Audit("a", clusters={"cls": one}), Audit("b", clusters={"cls": two})]
    ((_, _, _, found),) = compare(pair, same_images=True).changes
    assert found.kind == "images"
    assert sorted(x.before for x in found.merges) == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_the_table_has_every_number_that_some_audit_has():
    x = torch.randn(30, 8)
    cls = audit_prototypes(x)
    audits = [
        Audit("a", prototypes={"cls": cls}, embeddings={"features": audit_embeddings(torch.randn(40, 8))}),
        Audit("b", prototypes={"patches": audit_prototypes(x[:20])}),
        Audit("c", prototypes={"cls": cls}, clusters={"cls": audit_clusters(torch.randn(99, 8), x, 0.1)}),
    ]
    found = compare(audits)
    rows = {(row.part, row.name): row for row in found.rows}
    assert rows["cls", "unique prototypes"].values == (cls.count, None, cls.count)
    assert rows["patches", "prototypes"].values == (None, 20, None)
    assert rows["cls", "images"].values == (None, None, 99)
    assert rows["features", "dims"].values == (8, None, None)
    assert ("cls", "NMI") not in rows, "nobody has labels"
    for row in found.rows:
        assert all(format(value, row.format) for value in row.values if value is not None)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["names"] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="at least two"):
        compare(audits[:1])


def test_what_cannot_be_compared(unchecked):
    a, b = torch.randn(5, 16), torch.randn(3, 8)
    with pytest.raises(ValueError, match="different spaces"):
        follow(a, unique(a), b, unique(b))
    with pytest.raises(ValueError, match="the same things"):
        changes(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
