r"""The normaliser of the von Mises-Fisher distribution, for prototypes whose norm is a concentration.

$\log C_p(\kappa) = \nu \log \kappa - \frac p2 \log 2\pi - \log I_\nu(\kappa)$ with $\nu = p/2 - 1$ (Govindarajan et
al. 2023, DINO-vMF). $I_\nu$ under- and overflows; what is computed is $f_\mu = \log I_\mu(\kappa) - \mu \log
\kappa$, finite at 0:

* at an order $\mu = \nu + m \ge 64$ by the uniform (Debye) expansion, six terms: absolute error below 1e-11;
* down to $\nu$ by $f_j = f_{j+1} - \log \rho_j$ with the ratios $\rho_j = I_{j+1}(\kappa) / (\kappa I_j(\kappa))$,
  which the stable recurrence $\rho_j = 1 / (2(j+1) + \kappa^2 \rho_{j+1})$ gives.

The derivative comes along, $d \log C_p / d\kappa = -\kappa \rho_\nu$. All in float64.
"""

import math
from fractions import Fraction
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_ORDER = 64
_TERMS = 6


def log_normalizer(kappa: Float[Tensor, "..."], dims: int) -> Float[Tensor, "..."]:
    """log C_p of every concentration >= 0, for p = `dims` >= 2, in float64; differentiable once."""
    if dims < 2:
        raise ValueError(f"a von Mises-Fisher distribution needs at least two dims, got {dims}")
    return _LogNormalizer.apply(kappa.double(), dims)  # type: ignore[return-value]


def log_normalizer_at_zero(dims: int) -> float:
    """log C_p(0): minus the log of the sphere's area."""
    return math.lgamma(dims / 2) - math.log(2) - dims / 2 * math.log(math.pi)


class _LogNormalizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kappa: Tensor, dims: int) -> Tensor:
        nu = dims / 2 - 1
        steps = max(0, math.ceil(_ORDER - nu))
        scaled, ratio = _debye(kappa, nu + steps), _debye_ratio(kappa, nu + steps)
        for j in range(steps - 1, -1, -1):
            ratio = 1 / (2 * (nu + j + 1) + kappa.square() * ratio)
            scaled = scaled - ratio.log()
        ctx.save_for_backward(kappa * ratio)
        return -dims / 2 * math.log(2 * math.pi) - scaled

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return -ctx.saved_tensors[0] * grad, None


def _debye(kappa: Tensor, mu: float) -> Tensor:
    r"""$\log I_\mu(\kappa) - \mu \log \kappa$ by the uniform expansion (Abramowitz & Stegun 9.7.7)."""
    s = (1 + (kappa / mu).square()).sqrt()
    series = torch.zeros_like(s)
    for term, coefficients in enumerate(_debye_polynomials()):
        value = torch.zeros_like(s)
        for coefficient in reversed(coefficients):
            value = value / s + coefficient
        series = series + value / mu**term
    head = mu * s - mu * (1 + s).log() - mu * math.log(mu)
    return head - 0.5 * math.log(2 * math.pi * mu) - 0.5 * s.log() + series.log()


def _debye_ratio(kappa: Tensor, mu: float) -> Tensor:
    r"""$I_{\mu+1} / (\kappa I_\mu)$ as the quotient of two expansions."""
    return (_debye(kappa, mu + 1) - _debye(kappa, mu)).exp()


@cache
def _debye_polynomials() -> list[list[float]]:
    r"""Coefficients of $u_0 .. u_6$ in powers of t, from

    $u_{k+1}(t) = \frac12 t^2 (1 - t^2) u_k'(t) + \frac18 \int_0^t (1 - 5 s^2) u_k(s)\,ds$ (Abramowitz & Stegun 9.3.10).
    """
    polynomials = [[Fraction(1)]]
    for _ in range(_TERMS):
        u = polynomials[-1]
        following = [Fraction(0)] * (len(u) + 3)
        for power, c in enumerate(u):
            following[power + 1] += c * power / 2 + c / (8 * (power + 1))
            following[power + 3] -= c * power / 2 + 5 * c / (8 * (power + 3))
        polynomials.append(following)
    return [[float(c) for c in u] for u in polynomials]
