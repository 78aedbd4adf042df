"""What the experiment on continuing concludes from its numbers, and that it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import continuing  # noqa: E402
from continuing import ALONE, ARMS, BASES, NUMBERS, OURS  # noqa: E402

BASE = dict.fromkeys(NUMBERS, 0.5) | {"entropy": -1.0, "overlap": 0.4, "chi_square": 5.0}


def results(**changes):
    """Two seeds in which E2MC does what it claims, with changes of arms: {"swav E2MC": {"entropy": ...}}."""
    untrained = {name: BASE | {"knn": 0.2} for name in BASES}
    runs = []
    for arm in ARMS:
        better = {"entropy": -0.5, "overlap": 0.3, "chi_square": 3.0} if arm.endswith(OURS) else {"entropy": -0.9}
        runs += [{"arm": arm, "seed": seed, **BASE, **better, **changes.get(arm, {})} for seed in range(2)]
    base = {name: {"untrained": untrained[name], "base": BASE | changes.get(name, {})} for name in BASES}
    return {"arms": list(ARMS), "runs": runs, "untrained": {"0": base, "1": base}}


def test_a_claim_that_holds():
    verdict = continuing.judge(results())
    assert verdict["informative"]
    assert verdict["verdict"].startswith("E2MC against continuing alone: vicreg: holds; swav: holds; simsiam: holds.")


@pytest.mark.parametrize(
    ("number", "said"),
    [("overlap", "less overlap"), ("chi_square", "more uniform pairs of dims")],
)
def test_a_claim_that_does_not_hold(number, said):
    verdict = continuing.judge(results(**{f"swav {OURS}": {number: 9.0}}))
    assert f"swav: not so: {said}" in verdict["verdict"]
    assert verdict["checks"]["vicreg"][said]
    alone = continuing.judge(results(**{f"swav {ALONE}": {"entropy": 0.0}}))
    assert "swav: not so: higher entropy" in alone["verdict"]


def test_nothing_is_said_where_entropy_did_not_rise_or_nothing_was_learnt():
    verdict = continuing.judge(results(**{f"swav {OURS}": {"entropy": -1.5}, "simsiam": {"knn": 0.1}}))
    assert (
        "Nothing is said of swav (its entropy did not rise), simsiam (its base has learnt nothing)"
        in verdict["verdict"]
    )
    assert set(verdict["checks"]) == {"vicreg"}


def test_broken_runs_are_reasons():
    found = results()
    found["runs"][0] = {"arm": ARMS[0], "seed": 0, "error": "nan"}
    assert "vicreg continued, seed 0, diverged" in continuing.judge(found)["reasons"]


@pytest.mark.thorough
def test_it_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "continuing.py", "--quick", "--seeds", "1", "--out", tmp_path],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "continuing.json").read_text())
    assert {run["arm"] for run in found["runs"]} == set(ARMS)
    text = (tmp_path / "continuing.md").read_text()
    assert "## simsiam: mean and standard error over seeds" in text
    assert "A quick run on tiny networks" in text
