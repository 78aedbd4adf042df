"""Priors: values, files, and what they refuse."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prototile.priors import Explicit, FromCounts, PowerLaw, Uniform


@given(k=st.integers(1, 500), exponent=st.floats(0, 5))
def test_power_law(k, exponent):
    prior = PowerLaw(exponent)(k)
    assert prior.dtype == torch.float64
    assert float(prior.sum()) == pytest.approx(1)
    assert bool((prior.diff() <= 0).all())
    assert float(prior[-1] / prior[0]) == pytest.approx(k**-exponent)


def test_counts_keep_their_order():
    torch.testing.assert_close(FromCounts([6, 0, 2])(3), torch.tensor([0.75, 0, 0.25], dtype=torch.float64))


def test_priors_are_values():
    for prior in (Uniform(), PowerLaw(0.3), FromCounts(torch.tensor([1, 2])), Explicit(np.array([0.5, 0.5]))):
        assert prior == copy.deepcopy(prior)
        assert hash(prior) == hash(copy.deepcopy(prior))


def test_explicit_warns_and_normalises():
    with pytest.warns(UserWarning, match="sums to 4 and is normalised"):
        prior = Explicit([1, 3])
    torch.testing.assert_close(prior(2), torch.tensor([0.25, 0.75], dtype=torch.float64))


@pytest.mark.parametrize("kind", [FromCounts, Explicit])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, -0.1, 0.6], "must not be negative; entry 1 is -0.1"),
        ([0.5, float("nan"), 0.5], "must be finite; entry 1 is nan"),
        ([0.5, 0.5, float("inf")], "must be finite; entry 2 is inf"),
        ([0.0, 0.0], "must not be all zero"),
        ([], "must be a list of numbers"),
    ],
)
def test_bad_values(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(values)


def test_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"got an array of shape \(2, 2\)"):
        FromCounts(np.ones((2, 2)))


@pytest.mark.parametrize("prior", [FromCounts([1, 2, 1]), Explicit([0.25, 0.5, 0.25])])
def test_wrong_length_names_both(prior):
    with pytest.raises(ValueError, match="K = 5 prototypes but the prior has 3"):
        prior(5)


def test_mistakes_of_a_hurry(unchecked):
    with pytest.raises(ValueError, match=r"use .read\('counts.txt'\)"):
        FromCounts("counts.txt")
    with pytest.raises(ValueError, match=r"whole number, got 8\.5"):
        PowerLaw()(8.5)


def test_bad_exponents_and_numbers():
    for exponent in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="exponent of a power law"):
            PowerLaw(exponent)
    for prior in (Uniform(), PowerLaw()):
        with pytest.raises(ValueError, match="at least one prototype, got K = 0"):
            prior(0)


def test_files(tmp_path):
    np.save(tmp_path / "counts.npy", np.array([4, 1, 3]))
    (tmp_path / "counts.txt").write_text("4\n1\n3\n")
    (tmp_path / "counts.json").write_text(json.dumps([4, 1, 3]))
    for name in ("counts.npy", "counts.txt", "counts.json"):
        assert FromCounts.read(tmp_path / name) == FromCounts([4, 1, 3])
    (tmp_path / "p.txt").write_text("0.25 0.75")
    assert Explicit.read(str(tmp_path / "p.txt")) == Explicit([0.25, 0.75])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file"),
        ("counts.csv", "1,2", "is read from .npy, .txt, .json, not from counts.csv"),
        ("words.txt", "one two", "does not hold a list of numbers"),
        ("broken.json", "[1, 2", "does not hold a list of numbers"),
        ("object.json", '{"a": 1}', "does not hold a list of numbers"),
        ("broken.npy", "no array", "does not hold a list of numbers"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        FromCounts.read(tmp_path / name)


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="does not hold a list of numbers"):
        FromCounts.read(tmp_path / "objects.npy")
