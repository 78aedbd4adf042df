"""What experiments conclude from their numbers: statistics, verdicts, arms that differ in one thing only."""

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from prototile.schedules import Progress
from started import script

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import collapse  # noqa: E402
import experiments  # noqa: E402
import toy_prior  # noqa: E402
from toy_prior import MATCHING, UNIFORM  # noqa: E402


# ---------------------------------------------------------------------------------------------------- statistics
def test_paired_interval_is_that_of_the_t_test():
    a, b = [0.31, 0.42, 0.35, 0.50, 0.33], [0.30, 0.35, 0.36, 0.41, 0.30]
    found = experiments.paired(a, b)
    wanted = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert (found["positive"], found["pairs"]) == (4, 5)


def test_a_single_pair_has_no_interval():
    found = experiments.paired([0.5], [0.4])
    assert found["low"] is None
    assert experiments.interval(found) == "+0.100, positive in 1 of 1"
    assert experiments.spread([0.5]) == "0.500"


def test_entropy_and_divergence():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.2, 0.3, 0.5])
    assert experiments.entropy(p) == pytest.approx(scipy.stats.entropy(p))
    assert experiments.divergence(p, q) == pytest.approx(scipy.stats.entropy(p, q))


# ------------------------------------------------------------------------------------------------------ toy_prior
def toy(uniform, matching, **changes):
    """Results with these agreements of digits, seed by seed."""
    runs = []
    for arm, agreements in ((UNIFORM, uniform), (MATCHING, matching)):
        for seed, agreement in enumerate(agreements):
            numbers = dict.fromkeys(toy_prior.NUMBERS, 0.2) | {"entropy": 2.3, "prior_entropy": 2.25, "used": 10.0}
            runs.append(
                {"arm": arm, "seed": seed, **numbers, "nn_digit": agreement, "images_per_second": 10.0} | changes
            )
    return {"arms": [UNIFORM, MATCHING], "runs": runs}


@pytest.mark.parametrize(
    ("matching", "said"),
    [
        ([0.3, 0.4, 0.5], "The claim holds"),
        ([0.3, 0.4, 0.1], "The claim does not hold"),
        ([0.1, 0.1, 0.1], "The claim is reversed"),
    ],
)
def test_toy_claim(matching, said):
    verdict = toy_prior.judge(toy([0.2, 0.2, 0.2], matching))
    assert verdict["informative"]
    assert verdict["verdict"].startswith(said)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"used": 4.0}, "as few as 4 of 10 prototypes are used (3 of 3 runs)"),
        ({"entropy": 2.0}, "the marginal's entropy is up to 0.25 off its prior's (3 of 3 runs)"),
    ],
)
def test_collapsed_toy_says_nothing(change, reason):
    verdict = toy_prior.judge(toy([0.2] * 3, [0.3] * 3, **change))
    assert not verdict["informative"]
    assert reason in verdict["verdict"]
    assert "holds" not in verdict["verdict"]


def test_toy_needs_three_pairs_that_have_ended():
    assert "2 pairs have run" in toy_prior.judge(toy([0.2] * 2, [0.3] * 2))["verdict"]
    found = toy([0.2] * 3, [0.3] * 3)
    found["runs"][0] = {"arm": UNIFORM, "seed": 0, "error": "the loss is not a number"}
    verdict = toy_prior.judge(found)
    assert verdict["reasons"] == ["uniform, seed 0, diverged", "2 pairs have run, and at least 3 are needed"]
    assert verdict["digit"]["pairs"] == 2


def test_arms_of_a_seed_start_alike():
    first, second = (
        toy_prior.method(arm, "prior", 100.0, seed=3, quick=True).student.state_dict() for arm in (UNIFORM, MATCHING)
    )
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    other = toy_prior.method(UNIFORM, "prior", 100.0, seed=4, quick=True).student.state_dict()
    assert not torch.equal(first["head.prototypes.vectors"], other["head.prototypes.vectors"])


@pytest.mark.parametrize(
    ("targets", "prior", "iterations"), [("prior", MATCHING, 3), ("uniform", UNIFORM, 3), ("none", MATCHING, 0)]
)
def test_what_targets_are_balanced_to(targets, prior, iterations):
    tokens = toy_prior.method(MATCHING, targets, 5.0, seed=0, quick=True).objectives[0]
    wanted = toy_prior.Sinkhorn(toy_prior.prior_of(prior)(10), start="probabilities")
    assert all(torch.equal(x, y) for x, y in zip(tokens.balancer.buffers(), wanted.buffers(), strict=True))
    assert tokens.balancer.iterations == iterations
    assert tokens.match_weight == 5.0


# ------------------------------------------------------------------------------------------------------- collapse
def collapsed(m=(100, 400, 900, 1000, 110), knn=(0.50, 0.50, 0.51, 0.50, 0.50), seeds=2):
    runs = []
    for arm, unique, accuracy in zip(collapse.ARMS, m, knn, strict=True):
        for seed in range(seeds):
            numbers = {"unique": float(unique), "unique_teacher": float(unique), "empty": 0.5, "linear": 0.5}
            grid = dict.fromkeys(map(str, collapse.EPSILONS), unique)
            runs.append({"arm": arm, "seed": seed, **numbers, "knn": accuracy + seed / 100, "grid": grid})
    return {"arms": list(collapse.ARMS), "runs": runs, "settings": {"prototypes": 1024}}


def test_collapse_claim_holds():
    verdict = collapse.judge(collapsed())
    assert verdict["informative"]
    assert verdict["verdict"].startswith("The claim holds. M of 1024: none: 100, kp 0.02: 400")


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"m": (100, 200, 300, 1000, 110)}, "M with kp 0.1 is more than three times that without"),
        ({"m": (100, 950, 900, 1000, 110)}, "M does not fall as kp grows"),
        ({"m": (100, 400, 900, 1000, 500)}, "M with kd is less than half of that with kp"),
        ({"knn": (0.50, 0.50, 0.49, 0.50, 0.50)}, "kNN with kp is no worse by more than a standard error"),
    ],
)
def test_what_the_claim_fails_by(changes, failed):
    verdict = collapse.judge(collapsed(**changes))
    assert [said for said, holds in verdict["checks"].items() if not holds] == [failed]
    assert f"does not hold (not so: {failed})" in verdict["verdict"]


def test_without_a_collapse_nothing_is_said():
    verdict = collapse.judge(collapsed(m=(1000, 1010, 1024, 1024, 1000)))
    assert verdict["verdict"] == "Not informative: nothing has collapsed without a remedy: M is 1000 of 1024."


def test_forgetting_is_the_sum_of_the_prototypes_decay():
    """The groups of the optimiser, step by step."""
    epochs, steps, batch = 4, 5, 64
    made = collapse.method("dino", "none", 16, epochs, seed=0, quick=True)
    plan = collapse.optimization(epochs, steps, batch, forget=20.0)
    optimizer = plan.build(made, batch)
    vectors = made.student.head.prototypes.vectors
    total = other = 0.0
    for step in range(epochs * steps):
        plan.set_values_(optimizer, Progress(step, epochs * steps, epochs))
        for group in optimizer.param_groups:
            if any(p is vectors for p in group["params"]):
                total += group["lr"] * group["weight_decay"]
            else:
                other = max(other, group["weight_decay"])
    assert total == pytest.approx(20.0)
    assert other <= collapse.FINAL_DECAY


def test_views_of_collapse():
    groups = collapse.views_of("ibot_vmf").groups
    assert [(group.size, len(group.views)) for group in groups] == [(32, 2), (16, 4)]
    assert groups[0].masks is not None
    for name in ("dino_vmf", "ibot_vmf"):
        collapse.method(name, "kp 0.1", 8, 4, seed=0, quick=True).check(collapse.views_of(name))


# ---------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize(("experiment", "found"), [(toy_prior, toy([0.2] * 3, [0.3] * 3)), (collapse, collapsed())])
def test_text_says_verdict_arms_and_what_is_missing(experiment, found):
    numbers = dict.fromkeys(experiment.NUMBERS, 0.125)
    whole = found | {
        "experiment": experiment.__name__,
        "quick": False,
        "untrained": {"0": numbers},
        "method": experiment.METHOD,
        "settings": {"seeds": 3, "prototypes": 1024},
        "machine": {"cpu": "a CPU"},
        "minutes": 1.0,
        "verdict": experiment.judge(found),
    }
    text = experiment.text(whole)
    assert f"**{whole['verdict']['verdict']}**" in text
    assert f"Written by `benchmarks/{experiment.__name__}.py`" in text
    assert f"| untrained | {' | '.join(found['arms'])} |" in text
    assert "0.125" in text
    missing = 3 * len(found["arms"]) - len(found["runs"])
    assert (f"**Unfinished: {missing} runs are missing.**" in text) == (missing > 0)


def test_real_runs_need_data(capsys):
    parser = experiments.parser("An experiment", data="cifar10:ROOT", seeds=1, epochs=1, batch=1)
    with pytest.raises(SystemExit):
        experiments.options(parser, parser.parse_args([]))
    assert "say where the data are: --data" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy_prior", "collapse"])
def test_quick_runs(name, tmp_path, start):
    process = start(script, BENCHMARKS / f"{name}.py", "--quick", "--out", str(tmp_path))
    assert process.wait(500) == 0, process.stderr
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md"}
    (text,) = tmp_path.glob("*.md")
    assert "no number here means anything" in text.read_text()
    assert "Unfinished" not in text.read_text()
