"""Findings: each fires on its failure, once, and ends once; a healthy run is left alone; real failures are seen."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prototile.assignments import Assignments, Pairs, cross_entropy
from prototile.audit import (
    ClusterHealth,
    EmbeddingHealth,
    Finding,
    Health,
    Watch,
    Window,
    cluster_health,
    diagnose,
    embedding_health,
)
from prototile.audit.diagnosis import PATIENCE, SYMPTOMS
from prototile.balancing import Centering, Sinkhorn
from prototile.priors import PowerLaw, Prior, Uniform

K = 4096
HEALTHY = ClusterHealth(
    prototypes=K,
    student_entropy=7.0,
    target_entropy=5.0,
    student_confidence=0.05,
    target_confidence=0.3,
    marginal_entropy=8.2,
    marginal_divergence=0.11,
    marginal_distance=0.2,
    target_distance=0.25,
    rows=8 * K,
    used=3900,
    largest=0.002,
    unique=K,
    smallest_norm=1.0,
    largest_norm=1.0,
    largest_prior=1 / K,
)
SPREAD = EmbeddingHealth(0.8, 0.3)
UNIFORM = {"student_entropy": 8.3178, "target_entropy": 8.3177, "used": 1, "largest": 1.0, "target_distance": 0.0}


def history(*clusters: dict[str, Any], embeddings: EmbeddingHealth = SPREAD, loss: float = 6.0) -> list[Health]:
    """One observation for each set of changes to a healthy one."""
    return [
        Health(50 * (i + 1), loss, embeddings, {"cls": replace(HEALTHY, **changes)})
        for i, changes in enumerate(clusters)
    ]


def names(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings]


def test_a_healthy_run_is_left_alone():
    assert diagnose(history(*[{}] * 50)) == []


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("uniform assignments", UNIFORM, ["8.3178", "ln 4096", "Uniform collapse", "lower teacher temperature"]),
        (
            "uniform assignments",
            {"student_entropy": 8.30},
            ["8.3000", "5.0000", "targets choose", "learning rate"],
        ),
        ("one prototype", {"largest": 0.97}, ["97%", "takes all", "balancer"]),
        ("few prototypes", {"used": 2000}, ["2,000 of 4,096", "49%", "fewer prototypes"]),
        (
            "far from the prior",
            {"target_distance": 0.66, "marginal_distance": 0.02, "marginal_divergence": 0.0006},
            ["66%", "KL 0.0006", "does not show this", "no target_prior"],
        ),
        ("far from the prior", {"target_distance": 0.66, "marginal_distance": 0.5}, ["66%"]),
    ],
)
def test_a_failure_is_found_once(name, changes, words):
    found = diagnose(history(*[changes] * 40))
    assert names(found) == [name]
    assert found[0].step == 50 * PATIENCE
    assert found[0].token == "cls"
    for word in words:
        assert word in str(found[0])


def test_constant_embeddings_are_found():
    found = diagnose(history(*[{}] * 9, embeddings=EmbeddingHealth(0.01, 0.9999)))
    assert names(found) == ["constant embeddings"]
    assert found[0].token is None
    assert "0.9999" in str(found[0])


def test_merging_prototypes_are_found_against_what_there_was():
    falling = [{"unique": int(K * 0.97**i)} for i in range(40)]
    found = diagnose(history(*falling))
    assert names(found) == ["merging prototypes"]
    assert falling[found[0].step // 50 - PATIENCE]["unique"] < 0.75 * K
    assert "4,096 were before" in found[0].seen
    assert f"K of about {falling[found[0].step // 50 - 1]['unique']:,}" in found[0].remedy
    assert diagnose(history(*[{"unique": 1000}] * 40)) == [], "few from the start are few dims, not a collapse"


@pytest.mark.parametrize(
    "changes",
    [
        {"student_entropy": 8.25, "target_entropy": 7.9},  # a random start: below ln K by .07
        {"used": 2000, "rows": 8 * K - 1, "target_distance": 0.9},  # too few rows to tell
        {"largest": 0.97, "rows": 16},
        {"prototypes": 2, "largest_prior": 0.5, "largest": 0.85, "student_entropy": 0.3, "target_entropy": 0.1}
        | {"used": 2, "unique": 2, "rows": 99},
        {"largest": 0.6, "largest_prior": 0.4, "target_distance": 0.4},  # a prior that wishes it
        {"student_entropy": math.nan, "target_distance": math.nan, "largest": math.nan},
        {"unique": 3300},
    ],
)
def test_what_is_no_failure(changes):
    assert diagnose(history(*[changes] * 40)) == []


def test_under_a_uniform_prior_few_prototypes_are_said_once():
    starved = {"used": 600, "target_distance": 0.85}
    assert names(diagnose(history(*[starved] * 9))) == ["few prototypes"]
    skewed = starved | {"largest_prior": 0.02}
    assert names(diagnose(history(*[skewed] * 9))) == ["few prototypes", "far from the prior"]


def test_a_finding_begins_and_ends_with_patience():
    bad, good = {"largest": 0.9}, {}
    found = diagnose(history(*[bad] * (PATIENCE - 1), good, *[bad] * 9, good, bad, *[good] * 9, *[bad] * 9))
    assert [(x.step // 50, x.ended) for x in found] == [(10, False), (21, True), (30, False)]
    assert "no longer seen" in str(found[1])


def test_kinds_of_tokens_are_apart():
    both = {"cls": HEALTHY, "patches": replace(HEALTHY, largest=0.9)}
    found = diagnose(Health(i, 1.0, SPREAD, both) for i in range(9))
    assert [(x.name, x.token) for x in found] == [("one prototype", "patches")]


def test_a_watch_goes_on_where_it_was():
    observations = history(*[{}] * 3, *[{"unique": 2000, "largest": 0.9}] * 12, *[{}] * 9)
    whole = diagnose(observations)
    assert len(whole) == 4
    for cut in range(len(observations)):
        first, second = Watch(), Watch()
        found = [x for health in observations[:cut] for x in first.update(health)]
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert second.active == first.active
        assert found + [x for health in observations[cut:] for x in second.update(health)] == whole


def test_what_is_active_has_a_name():
    watch = Watch()
    for health in history(*[{"largest": 0.9}] * 9):
        watch.update(health)
    assert watch.active == ("one prototype (cls)",)
    assert set(watch.state_dict()) == {"peaks", "streaks", "active"}


def test_a_finding_is_plain_data():
    found = diagnose(history(*[{"largest": 0.9}] * 9))[0]
    assert found.as_dict()["name"] == "one prototype"
    assert found.as_dict()["ended"] is False
    assert set(SYMPTOMS) == {
        "uniform assignments",
        "one prototype",
        "few prototypes",
        "far from the prior",
        "merging prototypes",
    }


# Real runs: eight blobs in 16 dims, a small network, 32 prototypes.


def none(teacher: Assignments) -> Assignments:
    return teacher.detach()


def train(
    balancer: Callable[[Assignments], Assignments] = none,
    *,
    prior: Prior | None = None,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    momentum: float = 0.97,
    lr: float = 3e-3,
    steps: int = 200,
    clusters: bool = True,
) -> list[Health]:
    """DINO in miniature, with a prior's term where there is one; without clusters two views are only made equal."""
    k = 32
    student = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    teacher, w = copy.deepcopy(student).requires_grad_(False), nn.Parameter(0.02 * torch.randn(k, 16))
    optimizer = torch.optim.AdamW([*student.parameters(), w], lr=lr, weight_decay=0)
    pi = (prior or Uniform())(k)
    centres, window, seen = 3 * torch.randn(8, 16), Window(k), []
    for step in range(steps):
        x = centres[torch.randint(8, (128,))] + torch.randn(128, 16)
        views = torch.cat([x + 0.5 * torch.randn_like(x) for _ in range(2)])
        z, prototypes = F.normalize(student(views), dim=1), F.normalize(w, dim=1)
        predicted = Assignments(z, prototypes, student_temperature)
        targets = balancer(Assignments(F.normalize(teacher(views), dim=1), prototypes.detach(), teacher_temperature))
        if clusters:
            loss = cross_entropy(predicted, targets, Pairs.cross(2, 2))
        else:
            loss = (z[:128] - z[128:]).square().sum(1).mean()
        if prior is not None:
            p = predicted.mean()
            loss = loss + 100 * (torch.xlogy(p, p) - torch.xlogy(p, pi.to(p))).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, its in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.lerp_(its, 1 - momentum)
        if step % 10 == 9:
            found = {"cls": cluster_health(predicted.detach(), targets, pi, prototypes.detach(), window)}
            seen.append(Health(step + 1, loss.item(), embedding_health(z.detach()), found if clusters else {}))
    return seen


def test_a_real_healthy_run_is_left_alone():
    seen = train(Sinkhorn(Uniform()(32)))
    assert seen[-1].loss < 1.5
    assert diagnose(seen) == []


def test_a_real_uniform_collapse_is_found():
    """Centering with targets that are too smooth."""
    seen = train(Centering(Uniform()(32)), teacher_temperature=0.5)
    assert seen[-1].loss == pytest.approx(math.log(32), abs=0.01)
    found = diagnose(seen)
    assert names(found) == ["uniform assignments"]
    assert "Uniform collapse" in found[0].meaning


def test_one_real_prototype_that_takes_all_is_found():
    """No balancer, a large learning rate, and a teacher that follows soon."""
    seen = train(lr=0.1, momentum=0.5, student_temperature=0.2)
    assert seen[-1].clusters["cls"].largest > 0.4
    assert "one prototype" in names(diagnose(seen))


def test_a_real_constant_embedding_is_found():
    """Nothing but invariance."""
    assert names(diagnose(train(clusters=False, lr=0.01, steps=400))) == ["constant embeddings"]


def test_real_centering_leaves_prototypes_empty():
    assert names(diagnose(train(Centering(Uniform()(32))))) == ["few prototypes"]


def test_a_real_silent_collapse_under_a_skewed_prior_is_found():
    """The prior's term is nearly zero, for all images have the same assignment: the prior."""
    seen = train(prior=PowerLaw(0.5), student_temperature=1.0, teacher_temperature=0.25)
    assert seen[-1].clusters["cls"].marginal_divergence < 0.001
    found = {finding.name: finding for finding in diagnose(seen)}
    assert set(found) == {"one prototype", "few prototypes", "far from the prior"}
    assert "does not show this" in found["far from the prior"].seen
