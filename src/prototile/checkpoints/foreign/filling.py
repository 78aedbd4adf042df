"""From tensors by name to modules: every name is used, every shape fits, and nothing is copied that need not be."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)
State = Mapping[str, Tensor]

_SHOWN = 5  # keys in an error


class Misfit(Exception):
    """Why a file is not what it looks like."""


def listed(names: Iterable[str]) -> str:
    """The first few of these, and how many more there are."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


class Unset(TorchFunctionMode):
    """Parameters begin at zero instead of being drawn, which takes long and is of no use where weights are put in."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("uniform_", "normal_", "erfinv_", "clamp_"):
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).zero_()
        return func(*args, **(kwargs or {}))


def made(build: Callable[[], M], state: State, what: str) -> M:
    """The module that `build` makes, with these weights; built without memory first, to see whether they fit."""
    with Unset():
        try:
            with torch.device("meta"):
                module = build()
            own = module.state_dict()
            state = _fitting(own, state, what)
            if {name for name, _ in module.named_buffers()} - set(own):  # what is computed needs numbers
                module = build()
        except ValueError as error:
            raise Misfit(f"{what}: {error}") from error
    module.load_state_dict(dict(state), assign=True)
    return module.eval()


def _fitting(own: State, state: State, what: str) -> State:
    """The state with what may be missing, in the numbers that modules hold."""
    state = dict(state)
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked") and name not in state:  # batch norm counts since torch 0.4.1
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in own]
    for name in own:
        if name in state and own[name].shape != state[name].shape:
            wrong.append(f"{name} is {_shape(state[name])} and should be {_shape(own[name])}")
    if wrong:
        raise Misfit(f"{what} does not fit: {listed(wrong)}")
    return {name: tensor.to(own[name].dtype) for name, tensor in state.items()}


def numbers(state: Mapping[Any, Any], room: int, where: str) -> dict[str, Tensor]:
    """The state dict as plain tensors; an error where it holds something else, or more than `room` bytes."""
    strange = [str(name)[:100] for name, x in state.items() if not isinstance(name, str) or not isinstance(x, Tensor)]
    if strange:
        raise Misfit(f"{where} holds more than weights: {listed(strange)}")
    found = {name: x.detach() for name, x in state.items()}
    for name, x in found.items():
        dense = x.layout == torch.strided and x.device.type == "cpu" and not x.is_quantized and not x.is_complex()
        if not dense or x.numel() * x.element_size() > x.untyped_storage().nbytes():
            raise Misfit(
                f"{where}: {name} of shape {_shape(x)} is no plain tensor, or larger than what is stored of it"
            )
    if sum(x.numel() * x.element_size() for x in found.values()) > room:
        raise Misfit(f"{where}: shapes say more numbers than the file holds")
    return found


def finite(state: State) -> None:
    """An error where weights are NaN or infinite."""
    for name, x in state.items():
        if x.is_floating_point() and x.numel():
            low, high = x.aminmax()
            if not bool(low.isfinite() & high.isfinite()):
                raise Misfit(f"{name} holds NaN or infinity: the training has diverged, or the file is damaged")


def renamed(state: State, rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The state under other names; an error where two would get one name."""
    found: dict[str, Tensor] = {}
    for old, tensor in state.items():
        name = old
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in found:
            raise Misfit(f"two keys mean {name}, one of them {old}")
        found[name] = tensor
    return found


def prefixed(state: State, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: x for name, x in state.items()}


def without(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The state without a prefix that all of its names have; as it is where one has it not."""
    if state and all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): x for name, x in state.items()}
    return dict(state)


def count(state: State, pattern: str, what: str, limit: int = 200) -> int:
    """How many numbers the pattern's group takes in the names; they must be 0, 1, 2, ..."""
    found = {int(match[1]) for name in state if (match := re.match(pattern, name)) and len(match[1]) < 5}
    if not found or found != set(range(len(found))) or len(found) > limit:
        raise Misfit(f"{what} are not numbered from 0 on without a gap: {listed(map(str, sorted(found))) or 'none'}")
    return len(found)


def shape_of(state: State, name: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there, with so many axes."""
    if name not in state:
        raise Misfit(f"{name} is missing")
    if state[name].ndim != ndim or 0 in state[name].shape:
        raise Misfit(f"{name} is {_shape(state[name])} and should have {ndim} axes")
    return tuple(state[name].shape)


def _shape(x: Tensor) -> str:
    return " x ".join(map(str, x.shape)) or "a number"
