"""Heads from their weights: an MLP from the numbers of its layers, prototypes from however they are kept."""

import re
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from prototile.checkpoints.foreign.filling import Misfit, State, count, listed, made, shape_of
from prototile.heads import Prototypes

Score = Literal["stored", "cosine"]
Bias = Literal["all", "not last", "unless normed", "unless affine", "any"]  # which linear layers have one

WEIGHT_NORM = {  # both of torch's ways to keep a weight as length and direction
    "weight_g": "gain",
    "weight_v": "vectors",
    "parametrizations.weight.original0": "gain",
    "parametrizations.weight.original1": "vectors",
    "weight": "vectors",
    "layers.weight": "vectors",  # lightly before it had several
    "": "vectors",  # a bare tensor
    "vectors": "vectors",  # our own
    "gain": "gain",
    "bias": "bias",
}
_SEVERAL = r"^(?:prototypes|heads\.)?(\d+)\."  # DeepCluster-v2's, solo-learn's, lightly's
_LAYERS = 20


def mlp_of(
    state: State, activation: Callable[[], nn.Module], what: str, inputs: int | None, bias: Bias = "all"
) -> nn.Module:
    """The MLP whose layers have these numbers; a number without weights is an activation.

    `inputs` is what it must take, where that is known. `bias` says which layers must have one: a file that lacks it is
    not whole. Those before a batch norm have none ("unless normed"), those before one with parameters ("unless
    affine"), or the last one.
    """
    if set(state) <= {"weight", "bias"}:  # a single layer
        state = {f"0.{name}": x for name, x in state.items()}
    numbers = {int(match[1]) for name in state if (match := re.match(r"(\d{1,2})\.", name))}
    stray = [name for name in state if not re.match(r"\d{1,2}\.", name)]
    if stray or not numbers or max(numbers) >= _LAYERS:
        raise Misfit(f"{what} is no MLP of numbered layers: {listed(stray) or 'no layers'}")
    layers: list[Callable[[], nn.Module]] = []
    width = inputs
    for i in range(max(numbers) + 1):
        if i not in numbers:
            if not layers or layers[-1] is activation:
                raise Misfit(f"{what} has no layer {i}, and none before it: an activation stands between two layers")
            layers.append(activation)
        elif f"{i}.running_mean" in state:
            if width is None:
                raise Misfit(f"{what} begins with batch norm {i}, of nobody knows what")
            layers.append(partial(nn.BatchNorm1d, width, affine=f"{i}.weight" in state))
        else:
            outputs, given = shape_of(state, f"{i}.weight", 2)
            if width is not None and given != width:
                raise Misfit(f"{what}: layer {i} takes {given} dims and gets {width}")
            layers.append(partial(nn.Linear, given, outputs, bias=_biased(state, i, bias, last=i == max(numbers))))
            width = outputs
    if bias != "any" and f"{max(numbers)}.weight" in state and f"{max(numbers)}.running_mean" in state:
        raise Misfit(f"{what} ends with batch norm {max(numbers)}: the layer behind it is missing")
    return made(lambda: nn.Sequential(*(layer() for layer in layers)), state, what)


def _biased(state: State, i: int, bias: Bias, *, last: bool) -> bool:
    """Whether layer i must have a bias."""
    match bias:
        case "all":
            return True
        case "not last":
            return not last
        case "unless normed":
            return f"{i + 1}.running_mean" not in state
        case "unless affine":
            return f"{i + 1}.running_mean" not in state or f"{i + 1}.weight" not in state
        case "any":
            return f"{i}.bias" in state


def width_of(module: nn.Module, otherwise: int | None) -> int | None:
    """The dims that an MLP gives."""
    widths = [part.out_features for part in module.modules() if isinstance(part, nn.Linear)]
    return widths[-1] if widths else otherwise


def prototypes_of(state: State, score: Score, what: str, dims: int | None) -> list[Prototypes]:
    """All sets of prototypes of a part; one, or several that are numbered."""
    if any(re.match(_SEVERAL, name) for name in state):
        number = count(state, _SEVERAL, f"sets of {what}", limit=50)
        stray = [name for name in state if not re.match(_SEVERAL, name)]
        if stray:
            raise Misfit(f"{what} are several sets and more: {listed(stray)}")
        if any(name.startswith("heads.") for name in state):  # lightly's are linear layers with a bias
            missing = [f"heads.{i}.bias" for i in range(number) if f"heads.{i}.bias" not in state]
            if missing:
                raise Misfit(f"{what}: {listed(missing)} is missing")
        groups: list[dict[str, Tensor]] = [{} for _ in range(number)]
        for name, x in state.items():
            match = re.match(_SEVERAL, name)
            assert match is not None
            groups[int(match[1])][name[match.end() :]] = x
    else:
        groups = [dict(state)]
    return [_one(group, score, what, dims) for group in groups]


def _one(state: State, score: Score, what: str, dims: int | None) -> Prototypes:
    unknown = [name for name in state if name not in WEIGHT_NORM]
    if unknown:
        raise Misfit(f"{what} are kept in a way that is not known: {listed(unknown)}")
    found = {WEIGHT_NORM[name]: x for name, x in state.items()}
    normed = any("weight_v" in name or "original1" in name for name in state)
    if normed and "gain" not in found:
        raise Misfit(f"{what} are kept as lengths and directions, and the lengths are missing")
    if len(found) < len(state) or "vectors" not in found:
        raise Misfit(f"{what} are kept twice, or not at all: {listed(state)}")
    rows, width = shape_of(found, "vectors", 2)
    if dims is not None and width != dims:
        raise Misfit(f"{what} have {width} dims and the embeddings {dims}")
    bias = found.get("bias")
    if bias is not None and bias.shape != (rows,):
        raise Misfit(f"{what}: {len(bias)} biases for {rows} prototypes")
    if "gain" in found and found["gain"].shape != (rows, 1):
        raise Misfit(f"{what}: lengths and directions are of different numbers")
    lengths = found.get("gain")
    if lengths is not None and bool((lengths == 1).all()):
        del found["gain"]
    gain = "learned" if "gain" in found else "free" if lengths is None and score == "stored" else "one"
    return made(partial(Prototypes, width, rows, gain=gain, bias=bias is not None), found, what)
