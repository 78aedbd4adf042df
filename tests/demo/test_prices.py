"""The price of a wrong prior, against numbers computed elsewhere."""

import math

import pytest

from prototile.demo.prices import price, prices
from prototile.priors import PowerLaw, Uniform

PUBLISHED = {0.25: (0.0166, 0.0159), 0.5: (0.0715, 0.0663), 1.0: (0.3088, 0.2825), 1.5: (0.6745, 0.6539)}


def test_the_table():
    table = prices().table
    assert [row.exponent for row in table] == list(PUBLISHED)
    for row in table:
        found = round(row.tailed_under_uniform, 4), round(row.uniform_under_tailed, 4)
        assert found == PUBLISHED[row.exponent]
        assert row.tailed_under_tailed == pytest.approx(0, abs=1e-12)
        assert row.uniform_under_uniform == pytest.approx(0, abs=1e-12)


def test_by_hand():
    """log K - H of the long tail, and the mean log share of it below 1/K."""
    mass = [r**-1.0 for r in range(1, 11)]
    shares = [m / sum(mass) for m in mass]
    entropy = -sum(s * math.log(s) for s in shares)
    assert price(PowerLaw(1.0), Uniform()) == pytest.approx(math.log(10) - entropy)
    assert price(Uniform(), PowerLaw(1.0)) == pytest.approx(-math.log(10) - sum(map(math.log, shares)) / 10)


def test_curves_are_free_where_the_prior_matches():
    found = prices()
    at = found.exponents.index(found.shown)
    assert found.tailed[at] == pytest.approx(0, abs=1e-12)
    assert found.uniform[0] == pytest.approx(0, abs=1e-12)
    assert min(found.tailed) == found.tailed[at]
    assert all(a < b for a, b in zip(found.uniform, found.uniform[1:], strict=False))
