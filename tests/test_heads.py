"""Prototypes and heads: gains, directions, copies, who gets gradient, sizes at paper scale."""

import copy

import pytest
import torch
from torch import nn

from prototile import heads
from prototile.assignments import Pairs, cross_entropy
from prototile.heads import ExCBHead, Head, Prototypes


@pytest.mark.parametrize(("gain", "vmf"), [("one", False), ("learned", False), ("free", False), ("learned", True)])
def test_gradients_reach_everything(gain, vmf):
    prototypes = Prototypes(6, 9, gain=gain, vmf=vmf)
    z = torch.randn(8, 6, requires_grad=True)
    targets = Prototypes(6, 9)(torch.randn(8, 6), 0.05)
    cross_entropy(prototypes(z, 0.1), targets, Pairs.same()).backward()
    for x in (z, *prototypes.parameters()):
        assert x.grad is not None
        assert x.grad.abs().sum() > 0


def test_vmf_gradients_equal_those_of_the_dense_form():
    """Through the offset log C(|w| / tau) too."""
    prototypes = Prototypes(6, 9, gain="learned", vmf=True).double()
    prototypes.gain.data.copy_(torch.rand(9, 1) + 0.5)
    z = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    targets = Prototypes(6, 9).double()(torch.randn(8, 6, dtype=torch.float64), 0.05)
    leaves = [z, prototypes.vectors, prototypes.gain]
    streamed = torch.autograd.grad(cross_entropy(prototypes(z, 0.1), targets, Pairs.same()), leaves)
    log_p, q = prototypes(z, 0.1).log_probabilities(), targets.probabilities().detach()
    dense = torch.autograd.grad(-(q * log_p).sum(1).mean(), leaves)
    for gradient, expected in zip(streamed, dense, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("vmf", [False, True])
def test_a_bias_is_added_to_scores(vmf):
    prototypes = Prototypes(6, 9, gain="learned", vmf=vmf, bias=True)
    plain = Prototypes(6, 9, gain="learned", vmf=vmf)
    bias = torch.linspace(-0.5, 0.5, 9)
    with torch.no_grad():
        prototypes.bias.copy_(bias)
        plain.load_state_dict({name: x for name, x in prototypes.state_dict().items() if name != "bias"})
    z = torch.randn(8, 6)
    for temperature in (0.1, 0.5):
        wanted = (plain(z, temperature).log_probabilities() + bias / temperature).softmax(1)
        torch.testing.assert_close(prototypes(z, temperature).probabilities(), wanted)
    prototypes(z, 0.1).mean()[0].backward()
    assert prototypes.bias.grad.abs().sum() > 0
    assert not prototypes(z, 0.1, frozen=True).offset.requires_grad


def test_weights_and_directions():
    prototypes = Prototypes(6, 9, gain="learned")
    prototypes.gain.data.fill_(2.0)
    torch.testing.assert_close(prototypes.weights().norm(dim=1), torch.full((9,), 2.0))
    torch.testing.assert_close(prototypes.directions().norm(dim=1), torch.ones(9))
    torch.testing.assert_close(2 * prototypes.directions(), prototypes.weights())


def test_frozen_gain_makes_gradients_tangential():
    prototypes = Prototypes(6, 9)
    prototypes(torch.randn(8, 6), 0.1).mean()[0].backward()
    inner = (prototypes.vectors.grad * prototypes.vectors).sum(1)
    torch.testing.assert_close(inner, torch.zeros(9), atol=1e-6, rtol=0)


def test_renormalize():
    prototypes = Prototypes(6, 9, gain="free")
    torch.testing.assert_close(prototypes.weights().norm(dim=1), torch.ones(9))
    prototypes.vectors.data.mul_(3)
    torch.testing.assert_close(prototypes.weights().norm(dim=1), torch.full((9,), 3.0))
    prototypes.renormalize_()
    torch.testing.assert_close(prototypes.weights().norm(dim=1), torch.ones(9))


def test_frozen_prototypes_are_constants():
    prototypes, z = Prototypes(6, 9), torch.randn(8, 6, requires_grad=True)
    prototypes(z, 0.1, frozen=True).mean()[0].backward()
    assert prototypes.vectors.grad is None
    assert z.grad.abs().sum() > 0


def test_zero_embeddings_and_prototypes_stay_finite():
    """A zero row has cosine 0 with every prototype, a zero prototype with every row."""
    prototypes = Prototypes(6, 9)
    prototypes.vectors.data[4] = 0
    z = torch.zeros(2, 6, requires_grad=True)
    prototypes(z, 0.1).mean()[0].backward()
    assert bool(z.grad.isfinite().all())
    assert bool(prototypes.vectors.grad.isfinite().all())
    torch.testing.assert_close(prototypes(z, 0.1).probabilities(), torch.full((2, 9), 1 / 9))


def test_a_teacher_is_a_deep_copy():
    """Weight normalisation is a formula here, not a hook: copies work and have the same parameters."""
    student = nn.Sequential(heads.dino_head(5, hidden=7, bottleneck=6), Prototypes(6, 9, gain="learned"))
    teacher = copy.deepcopy(student)
    assert [n for n, _ in teacher.named_parameters()] == [n for n, _ in student.named_parameters()]
    teacher.load_state_dict(student.state_dict())


def test_under_autocast_prototypes_see_float32():
    prototypes = Prototypes(6, 9)
    with torch.autocast("cpu", torch.bfloat16):
        a = prototypes(torch.randn(4, 6).bfloat16(), 0.1)
    assert a.embeddings.dtype == a.prototypes.dtype == torch.float32


PAPER_SCALE = [  # (head, inputs, parameters counted by hand from the table of the module)
    (lambda: heads.dino_head(384), 384, 384 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 256 + 256),
    (lambda: heads.msn_head(384), 384, 384 * 2048 + 2048 * 2048 + 2 * 3 * 2048 + 2048 * 256 + 256),
    (lambda: heads.swav_head(2048), 2048, 2048 * 2048 + 3 * 2048 + 2048 * 128 + 128),
    (lambda: heads.simclr_head(2048), 2048, 2048 * 2048 + 2048 + 2048 * 128 + 128),
    (lambda: heads.vicreg_head(2048), 2048, 2048 * 8192 + 2 * 8192 * 8192 + 2 * 3 * 8192),
    (lambda: heads.simsiam_projector(2048), 2048, 3 * 2048 * 2048 + 2 * 2 * 2048),
    (lambda: heads.simsiam_predictor(), 2048, 2048 * 512 + 2 * 512 + 512 * 2048 + 2048),
]


@pytest.mark.parametrize(("make", "inputs", "count"), PAPER_SCALE)
def test_heads_at_paper_scale(make, inputs, count):
    with torch.device("meta"):
        head = make()
    assert sum(p.numel() for p in head.parameters()) == count
    assert next(head.parameters()).shape[1] == inputs


def test_a_head_is_a_projector_and_its_prototypes():
    head = Head(heads.dino_head(5, hidden=7, bottleneck=6), Prototypes(6, 9))
    x = torch.randn(4, 5)
    found, wanted = head(x, 0.2), head.prototypes(head.projector(x), 0.2)
    assert found.temperature == 0.2
    torch.testing.assert_close(found.probabilities(), wanted.probabilities())


def test_excb_prototypes_learn_from_global_projections_alone():
    head = ExCBHead(5, 9, hidden=7, bottleneck=6)
    x_global, x_local = torch.randn(6, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    parts = head(x_global, x_local, 0.1)
    assert [len(part) for part in parts] == [6, 4, 10]
    parts.local.mean()[0].backward(retain_graph=True)
    parts.predicted.mean()[0].backward(retain_graph=True)
    assert head.prototypes.vectors.grad is None
    assert x_global.grad.abs().sum() > 0
    assert x_local.grad.abs().sum() > 0
    assert all(p.grad is not None for p in head.projector.parameters())
    parts.learning.mean()[0].backward()
    assert head.prototypes.vectors.grad.abs().sum() > 0


def test_excb_head_without_local_crops():
    parts = ExCBHead(5, 9, hidden=7, bottleneck=6, activation=nn.GELU, batch_norm=False)(
        torch.randn(6, 5), torch.zeros(0, 5), 0.1
    )
    assert [len(part) for part in parts] == [6, 0, 6]


def test_bad_arguments(unchecked):
    for make, message in (
        (lambda: Prototypes(6, 0), "at least one prototype"),
        (lambda: Prototypes(6, 9, gain="two"), "gain must be 'one', 'learned' or 'free'"),
        (lambda: Prototypes(6, 9, vmf=True), "vmf needs norms that can differ"),
        (lambda: heads.dino_head(6, layers=0), "at least one layer"),
        (lambda: Prototypes(6, 9)(torch.zeros(2, 5), 0.1), "embeddings have 5 dims but prototypes have 6"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
