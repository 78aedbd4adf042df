"""What a wrong prior costs, exactly: no training, only the loss of codes that are perfect.

A code that finds a factor of the data perfectly, one prototype per value, has that factor's own shares as its
marginal, and pays KL(marginal || prior) per unit of weight in PMSN's loss (Assran et al. 2023, equation 9).
"""

import numpy as np

from prototile.priors import PowerLaw, Prior, Uniform
from prototile.regularizers import match_prior
from prototile.reports.demo_result import Price, Prices

FACTORS = 10  # values of a factor, one prototype for each
EXPONENTS = (0.25, 0.5, 1.0, 1.5)
SHOWN = 0.5  # the exponent of the long tail in the curves
LARGEST = 1.0


def price(code: Prior, prior: Prior, num_prototypes: int = FACTORS) -> float:
    """KL(code's marginal || prior), in nats."""
    return float(match_prior(code(num_prototypes), prior(num_prototypes)))


def prices() -> Prices:
    """A long-tailed and a uniform factor under a uniform and a long-tailed prior."""
    table = [
        Price(
            exponent=exponent,
            tailed_under_uniform=price(PowerLaw(exponent), Uniform()),
            uniform_under_tailed=price(Uniform(), PowerLaw(exponent)),
            tailed_under_tailed=price(PowerLaw(exponent), PowerLaw(exponent)),
            uniform_under_uniform=price(Uniform(), Uniform()),
        )
        for exponent in EXPONENTS
    ]
    grid = [float(x) for x in np.linspace(0, LARGEST, 81)]
    return Prices(
        num_prototypes=FACTORS,
        table=tuple(table),
        shown=SHOWN,
        exponents=tuple(grid),
        tailed=tuple(price(PowerLaw(SHOWN), PowerLaw(exponent)) for exponent in grid),
        uniform=tuple(price(Uniform(), PowerLaw(exponent)) for exponent in grid),
    )
