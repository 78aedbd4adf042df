"""Optimisers and gradient treatment beyond parity."""

import copy

import pytest
import torch
from torch import nn

from prototile.training.optimizers import LARC, LARS, clip_each_, drop_gradients_


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    network(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [LARS, LARC])
def test_resumed_equals_uninterrupted(kind):
    straight = model()
    optimizer = kind(straight.parameters(), 0.1, weight_decay=0.01)
    step(straight, optimizer, 1)
    resumed = copy.deepcopy(straight)
    other = kind(resumed.parameters(), 0.1, weight_decay=0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(straight, optimizer, 2)
    step(resumed, other, 2)
    for p, q in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", [LARS, LARC])
def test_descends(kind):
    network = model()
    optimizer = kind(network.parameters(), 1.0, eta=0.02)
    x = torch.randn(32, 4)
    before = network(x).square().mean().item()
    for seed in range(30):
        step(network, optimizer, seed)
    assert network(x).square().mean().item() < before / 2


def test_a_zero_gradient():
    """LARC leaves the tensor alone, where timm's Lars would decay it; LARS decays it, by the adapted rate."""
    for kind, expected in ((LARC, 1.0), (LARS, 0.9)):
        p = nn.Parameter(torch.ones(2, 2))
        optimizer = kind([p], 0.1, weight_decay=0.01, eta=1.0)
        p.grad = torch.zeros(2, 2)
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.full((2, 2), expected))  # LARS: the ratio is eta / decay


def test_parameters_without_gradient_stay():
    p = nn.Parameter(torch.ones(2, 2))
    LARS([p], 0.1, weight_decay=0.5).step()
    assert torch.equal(p, torch.ones(2, 2))


def test_closure():
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = LARC([p], 0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4


def test_clipping_each_parameter_by_itself():
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    a.grad, b.grad = torch.tensor([30.0, 0, 40.0]), torch.tensor([0.3, 0.4])
    clip_each_([a, b, nn.Parameter(torch.zeros(1))], 1.0)
    torch.testing.assert_close(a.grad, torch.tensor([0.6, 0, 0.8]), rtol=1e-6, atol=0)
    assert torch.equal(b.grad, torch.tensor([0.3, 0.4]))


def test_dropped_gradients_stop_momentum_and_decay():
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    step(network, optimizer, 1)
    last = network[2].weight.detach().clone()
    optimizer.zero_grad()
    network(torch.randn(8, 4)).sum().backward()
    drop_gradients_(network[2])
    optimizer.step()
    assert torch.equal(network[2].weight, last)


@pytest.mark.parametrize("kind", [LARS, LARC])
def test_bad_arguments(kind):
    with pytest.raises(ValueError, match="weight_decay must not be negative"):
        kind([nn.Parameter(torch.zeros(1))], 0.1, weight_decay=-1.0)
