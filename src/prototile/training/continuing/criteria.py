"""What is added to a method's own loss while it is continued, with the coefficients and spaces that were published.

    criterion     added                                     SwAV              VICReg              SimSiam
    none          nothing: the method alone
    e2mc          effective entropy of projections          1, 25, normal     1000, 100, sigmoid  0.001, 0.01, normal
    vcreg         variance and covariance of directions     0.1, 0.001
    auh           uniformity of directions                  0.5, t = 2
    mmcr          nuclear norm of images' centroids         0.005
    koleo-proto   nearest prototypes                        0.1

E2MC's numbers are beta, gamma and the mapping into (0, 1) (Chakraborty et al. 2025, appendix A.1): a sigmoid where the
method does not normalise its projections, else the normal distribution function. Other methods take those of the one
that is like them. All rivals' are those that the paper found for SwAV.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import nn

from prototile.methods import AddOn, JointEmbedding, Method, Prototypical, auh, e2mc, koleo_proto, mmcr_term, vcreg

Criterion = Literal["none", "e2mc", "vcreg", "auh", "mmcr", "koleo-proto"]
Space = Literal["hypersphere", "hypercube"]

# beta, gamma, space; published for the first three
E2MC: dict[str, tuple[float, float, Space]] = {
    "vicreg": (1000.0, 100.0, "hypercube"),
    "swav": (1.0, 25.0, "hypersphere"),
    "simsiam": (0.001, 0.01, "hypersphere"),
    "barlow_twins": (1000.0, 100.0, "hypercube"),
}
_MAKERS = {"vcreg": vcreg, "auh": auh, "mmcr": mmcr_term, "koleo-proto": koleo_proto}


def space_of(method: str) -> Space:
    """How a method's projections are mapped into (0, 1)."""
    return E2MC.get(method, E2MC["swav"])[2]


def add_ons(criterion: str, method: str, coefficients: Mapping[str, Any] | None = None) -> list[AddOn]:
    """The add-ons of a criterion for this method; `coefficients` are options of the add-on's function."""
    if criterion not in get_args(Criterion):
        raise ValueError(f"there is no criterion {criterion!r}; there are: {', '.join(get_args(Criterion))}")
    given = dict(coefficients or {})
    if criterion == "none":
        if given:
            raise ValueError(f"without a criterion there are no coefficients, got {', '.join(given)}")
        return []
    if criterion == "e2mc":
        beta, gamma, space = E2MC.get(method, E2MC["swav"])
        usual: dict[str, Any] = {"beta": beta, "gamma": gamma, "space": space}
        make: Any = e2mc
    else:
        make, usual = _MAKERS[criterion], {}
    known = [option for option in inspect.signature(make).parameters if option != "partition"]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{criterion} has no coefficient {', '.join(unknown)}; it has: {', '.join(known)}")
    return [make(**{**usual, **given})]


def add_(method: Method, criterion: str, name: str, coefficients: Mapping[str, Any] | None = None) -> None:
    """Adds a criterion to a method; one that it has already takes its place."""
    new = add_ons(criterion, name, coefficients)
    if not isinstance(method, JointEmbedding | Prototypical):
        raise ValueError(f"a {type(method).__name__} takes no criterion")
    if criterion == "koleo-proto" and not isinstance(method, Prototypical):
        raise ValueError(f"koleo-proto spreads prototypes, and {name} has none: choose another criterion")
    names = {add_on.name for add_on in new}
    kept = [add_on for add_on in method.add_ons.each if isinstance(add_on, AddOn) and add_on.name not in names]
    method.add_ons.each = nn.ModuleList([*kept, *new])
