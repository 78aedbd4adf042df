"""Laws of rank: planted exponents are recovered, with errors that are true."""

import pytest
import torch
from torch import Tensor

from prototile.audit.power import PowerFit, fit_power, nearest_power


def drawn(k: int, images: int, exponent: float) -> Tensor:
    shares = torch.arange(1, k + 1).double() ** -exponent
    return torch.bincount(torch.multinomial(shares, images, True), minlength=k)[torch.randperm(k)]


@pytest.mark.parametrize(
    ("k", "images", "exponent"),
    [(100, 2000, 0.25), (100, 2000, 1.0), (500, 10000, 0.1), (500, 10000, 0.5), (300, 500, 0.5), (10, 5000, 0.5)],
)
def test_a_planted_exponent_is_recovered_and_its_error_is_honest(k, images, exponent):
    """Over repeated draws: no bias, the errors' size is the estimates' deviation, the interval holds the truth."""
    fits = [fit_power(drawn(k, images, exponent)) for _ in range(30)]
    found = torch.tensor([fit.exponent for fit in fits])
    error = torch.tensor([fit.error or 0.0 for fit in fits]).mean()
    assert abs(float(found.mean()) - exponent) < float(error), "far less than one error, and a sixth by chance"
    assert 0.6 < float(found.std() / error) < 1.5
    assert sum((fit.low or 0) <= exponent <= (fit.high or 0) for fit in fits) >= 24
    distance, noise = (torch.tensor(x).mean() for x in zip(*((f.distance, f.noise or 0.0) for f in fits), strict=True))
    assert 0.8 < float(distance / noise) < 1.2, "sizes that follow the law lie as far from it as chance makes them"


def test_equal_shares_have_no_exponent_though_sorted_counts_fall():
    fits = [fit_power(drawn(400, 4000, 0.0)) for _ in range(20)]
    assert sum(fit.low == 0 for fit in fits) >= 18, "the interval reaches 0"
    assert max(fit.exponent for fit in fits) < 0.12
    counts = drawn(400, 4000, 0.0).sort(descending=True).values.double()
    line = torch.arange(1, 401).double().log()
    slope = float(((line - line.mean()) @ counts.clamp(min=1).log()) / (line - line.mean()).square().sum())
    assert slope < -0.2, "a line through the same counts would have a slope"


def test_many_ranks_are_fitted_by_their_cells():
    fit = fit_power(drawn(20000, 400000, 0.6))
    assert fit.error is not None
    assert fit.exponent == pytest.approx(0.6, abs=4 * fit.error)
    assert fit.error < 0.005


def test_what_follows_no_law_is_far_from_it():
    sizes = torch.cat([torch.full((100,), 200), torch.zeros(300, dtype=torch.long)])
    fit = fit_power(sizes)
    assert fit.noise is not None
    assert fit.distance > 5 * fit.noise


def test_shares_that_are_a_law_give_its_exponent():
    for exponent in (0.0, 0.25, 1.3):
        shares = torch.arange(1, 501).double() ** -exponent
        fit = nearest_power((shares / shares.sum())[torch.randperm(500)])
        assert fit.exponent == pytest.approx(exponent, abs=1e-9)
        assert fit.distance < 1e-9
        assert fit.error is None


def test_words_and_refusals():
    assert str(PowerFit(0.5, 0.01, 0.48, 0.52, 0.03, 0.02)) == (
        "exponent 0.500 +- 0.010, 3.0% of the mass lies off that law"
    )
    with pytest.raises(ValueError, match="two sizes and one image"):
        fit_power(torch.tensor([4]))
    with pytest.raises(ValueError, match="two sizes and one image"):
        fit_power(torch.tensor([0, 0]))
