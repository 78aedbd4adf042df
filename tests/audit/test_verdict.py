"""The verdict: what is planted is said, what is not is not; the whole audit as text and as JSON."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prototile.audit import (
    Audit,
    EmbeddingAudit,
    Statement,
    Verdict,
    audit_clusters,
    audit_embeddings,
    audit_prototypes,
    map_prototypes,
    verdict,
)
from prototile.audit.plain import Histogram, plain, quantiles
from prototile.priors import PowerLaw, Uniform


def names(found: Verdict) -> dict[str, str]:
    return {statement.name: statement.level for statement in found}


def of_prototypes(weights: Tensor) -> Verdict:
    return verdict({"cls": audit_prototypes(weights)})


def groups(unique: int, total: int) -> Tensor:
    return F.normalize(torch.randn(unique, 64), dim=1)[torch.arange(total) % unique] + 0.002 * torch.randn(total, 64)


@pytest.mark.parametrize(
    ("unique", "name", "level"),
    [
        (300, "distinct prototypes", "fine"),
        (280, "distinct prototypes", "fine"),
        (200, "redundant prototypes", "note"),
        (40, "partial prototype collapse", "problem"),
        (1, "total prototype collapse", "problem"),
    ],
)
def test_collapse_by_how_many_are_unique(unique, name, level):
    found = of_prototypes(groups(unique, 300))
    assert names(found)[name] == level
    if unique > 1:
        assert f"Of 300 prototypes {unique} are unique" in found.headline
    else:
        assert found.headline == "All 300 prototypes point in the same direction"
    first = found.statements[0]
    assert "M by epsilon: " in first.evidence
    assert (first.remedy is None) == (level == "fine")
    if name == "partial prototype collapse":
        assert "K of about 40" in (first.remedy or "")


def test_one_prototype_alone_has_not_collapsed():
    assert names(of_prototypes(torch.randn(1, 4))) == {"distinct prototypes": "fine"}


def test_prototypes_without_a_direction_and_in_few_dims():
    weights = torch.randn(100, 2) @ torch.randn(2, 50)
    weights[3:5] = 0
    found = names(of_prototypes(weights))
    assert found["prototypes without a direction"] == "problem"
    assert found["prototypes in few dims"] == "note"
    assert "prototypes in few dims" not in names(of_prototypes(torch.randn(100, 50)))


def test_a_count_that_depends_on_the_cover_is_said():
    """Groups as wide as epsilon: their centres cover all, their members do not cover each other."""
    centres = F.normalize(torch.randn(20, 128), dim=1)
    wide = centres.repeat(9, 1) + 0.21 * F.normalize(torch.randn(180, 128), dim=1)
    weights = torch.cat([wide, centres])
    assert "the count depends on the cover" in names(of_prototypes(weights))
    assert "the count depends on the cover" not in names(of_prototypes(groups(20, 200)))


def of_sizes(sizes: list[int], k: int | None = None, **options) -> Verdict:
    """So many images on each of k orthogonal prototypes."""
    k = k or len(sizes)
    z = torch.eye(k)[torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))]
    return verdict({}, {"cls": audit_clusters(z, torch.eye(k), 0.05, **options)})


def test_empty_clusters():
    assert names(of_sizes([20] * 10))["clusters in use"] == "fine"
    assert names(of_sizes([20] * 8, 10))["empty clusters"] == "note"
    assert names(of_sizes([50] * 4, 10))["empty clusters"] == "problem"
    few = of_sizes([1] * 4, 10)
    assert names(few) == {"too few images": "note"}
    assert "at least 40 images" in (few.statements[0].remedy or "")


def test_twins_that_look_empty_are_told_from_dead_ones():
    z = torch.eye(10).repeat(20, 1)
    found = verdict({}, {"cls": audit_clusters(z, torch.eye(10).repeat(4, 1), 0.05)})
    assert names(found)["empty by redundancy"] == "note"
    assert "empty clusters" not in names(found)


def test_images_at_random_leave_no_more_empty_than_they_may():
    sizes = torch.bincount(torch.randint(50, (200,)), minlength=50).tolist()
    found = names(of_sizes(sizes))
    assert found["clusters in use"] == "fine"
    assert found["law of sizes"] == "note"


def test_uniform_assignments_are_all_that_is_said():
    found = verdict({}, {"cls": audit_clusters(torch.randn(100, 16), torch.randn(8, 16), 100.0)})
    assert names(found) == {"uniform assignments": "problem"}


def test_one_cluster_takes_all_unless_the_prior_says_so():
    assert names(of_sizes([80, 5, 5, 5, 5]))["one cluster"] == "problem"
    assert "one cluster" not in names(of_sizes([30, 20, 20, 15, 15]))
    prior = torch.tensor([0.8, 0.05, 0.05, 0.05, 0.05])
    assert "one cluster" not in names(of_sizes([80, 5, 5, 5, 5], prior=prior))


def test_the_prior():
    sizes = (PowerLaw(1.0)(8) * 1000).round().long().tolist()
    assert names(of_sizes(sizes, prior=PowerLaw(1.0)(8)))["near the prior"] == "fine"
    assert names(of_sizes(sizes[::-1], prior=PowerLaw(2.0)(8)))["far from the prior"] == "problem"
    even = [1000 // 8] * 8
    mild = PowerLaw(0.4)(8)
    assert 0.1 < float((mild - 1 / 8).abs().sum() / 2) < 0.2
    assert "near the prior" not in names(of_sizes(even, prior=mild)), "equal shares are as near, whatever the prior"
    assert names(of_sizes(even, prior=Uniform()(8)))["near the prior"] == "fine"
    between = names(of_sizes(sizes, prior=Uniform()(8)))
    assert not {"near the prior", "far from the prior"} & set(between)
    assert not {"near the prior", "far from the prior"} & set(names(of_sizes(sizes)))


def test_laws_are_told_only_where_sizes_follow_one():
    shares = torch.arange(1, 81).double() ** -0.8
    lawful = torch.bincount(torch.multinomial(shares, 4000, True), minlength=80).tolist()
    said = {statement.name: statement.text for statement in of_sizes(lawful)}
    assert said["law of sizes"].startswith("Sizes follow a power law of exponent 0.")
    even = torch.bincount(torch.randint(80, (4000,)), minlength=80).tolist()
    assert {x.name: x.text for x in of_sizes(even)}["law of sizes"] == "Sizes are as equal as chance allows"
    assert "law of sizes" not in names(of_sizes([90] * 40 + [10] * 40))
    for sizes in ([12, 0], [40, 0, 0], [39, 1, 0], [5, 5]):  # which has none, or any
        assert "law of sizes" not in names(of_sizes(sizes))
    z = torch.eye(80)[torch.arange(80).repeat_interleave(torch.tensor(lawful))]
    twins = verdict({}, {"cls": audit_clusters(z, torch.eye(80).repeat(2, 1), 0.05)})
    said = {statement.name: statement.text for statement in twins}
    assert said["law of sizes"].startswith("Sizes of unique prototypes follow a power law of exponent 0.")


def test_mass_and_redundancy_are_told_where_they_go_together():
    redundancy = torch.tensor([1] * 20 + [2] * 10 + [4] * 10 + [8] * 10)
    weights = torch.eye(50).repeat_interleave(redundancy, 0)
    with_it, without = (
        torch.eye(50).repeat_interleave(counts, 0) for counts in (10 * redundancy, torch.randint(20, 40, (50,)))
    )
    assert names(verdict({}, {"cls": audit_clusters(with_it, weights, 0.05)}))["mass and redundancy"] == "note"
    assert "mass and redundancy" not in names(verdict({}, {"cls": audit_clusters(without, weights, 0.05)}))


def of_embeddings(found: EmbeddingAudit) -> dict[str, str]:
    return names(verdict({}, {}, {"features": found}))


def test_embeddings():
    assert of_embeddings(audit_embeddings(torch.randn(300, 20)))["dims in use"] == "fine"
    constant = torch.ones(1, 20) + 0.001 * torch.randn(300, 20)
    assert of_embeddings(audit_embeddings(constant))["constant embeddings"] == "problem"
    flat = torch.randn(300, 2) @ torch.randn(2, 60)
    assert of_embeddings(audit_embeddings(flat))["few dims in use"] == "note"


def test_problems_come_first_and_nothing_to_judge_is_said():
    found = verdict(
        {"cls": audit_prototypes(torch.randn(30, 16))}, {}, {"features": audit_embeddings(torch.ones(10, 4))}
    )
    assert [x.level for x in found][:2] == ["problem", "fine"]
    assert found.problems == found.statements[:1]
    assert str(found).startswith("problem  features: All images have nearly the same direction (RankMe")
    assert verdict({}).headline == "There is nothing to judge: no prototypes, no images."
    assert str(Statement("note", "n", "cls", "T", "e", "M.", "r.")) == "cls: T (e). M. Try: r."


# ---------------------------------------------------------------------------------------------------- the whole
def test_an_audit_prints_and_is_strict_json():
    weights = groups(20, 60)
    prototypes = audit_prototypes(weights)
    z = torch.randn(200, 64)
    audit = Audit(
        "a.pth",
        layout="DINO",
        evidence=("keys of a DINO head",),
        network="teacher",
        prototypes={"cls": prototypes},
        clusters={"cls": audit_clusters(z, weights, 0.1, unique=prototypes.unique, labels=torch.arange(200) % 3)},
        embeddings={"projections": audit_embeddings(z, views=torch.randn(2, 200, 64))},
        maps={"cls": map_prototypes(weights, prototypes.unique)},
    )
    text = str(audit)
    assert text.startswith("a.pth: DINO (teacher)\n")
    assert "20 of 60 (33.3%)" in text
    assert text.endswith("partial prototype collapse")
    written = json.loads(json.dumps(audit.as_dict(), allow_nan=False))
    assert written["verdict"]["headline"] == audit.verdict.headline
    assert written["verdict"]["statements"][0]["level"] == "problem"
    assert set(written) == {
        "name", "layout", "evidence", "network", "verdict", "prototypes", "clusters", "embeddings", "maps"
    }  # fmt: skip
    assert dict(audit.table())["unique prototypes (cls)"] == "20 of 60 (33.3%)"
    assert "nothing to judge" in str(Audit("empty"))


def test_plain_values():
    assert plain({"a": (1, float("nan")), 2: torch.tensor([1.5, math.inf])}) == {"a": [1, None], "2": [1.5, None]}
    assert plain(1 / 3) == 0.3333333
    with pytest.raises(TypeError, match="object has no form in JSON"):
        plain(object())
    histogram = Histogram.of(torch.tensor([0.0, 0.5, 1.0, math.nan]), 2)
    assert histogram == Histogram((0.0, 0.5, 1.0), (1, 2))
    assert sum(Histogram.of(torch.ones(5), 4).counts) == 5
    assert quantiles(torch.tensor([1.0, 2, 3, math.inf]))["median"] == 2
    assert quantiles(torch.empty(0))["mean"] is None


def test_a_pair_of_twins_tells_nothing_of_mass_and_redundancy():
    redundancy = torch.tensor([1] * 48 + [2, 2])
    weights = torch.eye(50).repeat_interleave(redundancy, 0)
    z = torch.eye(50).repeat_interleave(40 * redundancy, 0)
    assert "mass and redundancy" not in names(verdict({}, {"cls": audit_clusters(z, weights, 0.05)}))
