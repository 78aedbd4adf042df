"""The fused kernels equal `naive`, values and gradients, at odd sizes: in Triton's interpreter, or on a GPU."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from interpreter import needs_triton
from problems import Problem, random_problem, relative_error, unit
from prototile import kernels
from prototile.assignments import (
    Assignments,
    Pairs,
    backend,
    cross_entropy,
    cross_entropy_and_mean,
)
from prototile.balancing import ExplicitBalancing, ProbabilityCentering, Sharpen, Sinkhorn
from prototile.kernels import launch
from prototile.neighbors import nearest
from prototile.priors import PowerLaw, Uniform

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT = 2e-6 if DEVICE == "cpu" else 2e-5  # a GPU multiplies float32 as three TF32 products

H200, A100 = 232_448, 166_912  # bytes of shared memory that a program may take

pytestmark = needs_triton


def rounded(problem: Problem, dtype: torch.dtype = torch.float32) -> Problem:
    """The same problem on the device and in another dtype, with leaves of its own."""
    z, w = (leaf.detach().to(DEVICE, dtype).requires_grad_() for leaf in problem.leaves[:2])
    leaves = [z, w]
    student = replace(problem.student, embeddings=z, prototypes=w)
    if student.offset is not None:
        leaves.append(student.offset.detach().to(DEVICE, torch.float32).requires_grad_())
        student = replace(student, offset=leaves[2])
    targets = problem.targets
    offset = None if targets.offset is None else targets.offset.to(DEVICE, torch.float32)
    constants = targets.embeddings.to(DEVICE, dtype), targets.prototypes.to(DEVICE, dtype)
    return Problem(student, Assignments(*constants, targets.temperature, offset), problem.pairs, leaves)


def evaluate(problem: Problem, name: str, *, mean: bool) -> list[torch.Tensor]:
    """The loss (with a penalty on the mean), the mean, and the gradients of all leaves."""
    with backend(name):
        if mean:
            loss, marginal = cross_entropy_and_mean(problem.student, problem.targets, problem.pairs)
            loss = loss + 3 * (marginal * (marginal + 1e-6).log()).sum()
        else:
            loss, marginal = cross_entropy(problem.student, problem.targets, problem.pairs), torch.zeros(1)
        return [loss.detach(), marginal.detach(), *torch.autograd.grad(1.3 * loss, problem.leaves)]


def assert_equals_naive(problem: Problem, *, mean: bool, tolerance: float = EXACT) -> None:
    exact = evaluate(problem, "naive", mean=mean)
    for value, reference in zip(evaluate(rounded(problem), "fused", mean=mean), exact, strict=True):
        assert relative_error(value.cpu(), reference) < tolerance


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(
    ("dims", "images", "prototypes"),
    [(64, 70, 300), (128, 9, 131), (256, 5, 517), (384, 33, 67), (24, 3, 5)],
)
def test_equals_naive_at_odd_sizes(dims, images, prototypes, mean):
    """Neither rows nor prototypes fill their tiles; 24 and 384 dims do not fill a power of two."""
    if DEVICE == "cuda" and dims > 256:
        pytest.skip("so many dims of float32 leave no room on a GPU; half precision is tested")
    assert_equals_naive(
        random_problem(images=images, dims=dims, prototypes=prototypes, student_offset=True, teacher_offset="shared"),
        mean=mean,
    )


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("teacher_views", "student_views"), [(1, 1), (2, 12), (3, 2)])
@pytest.mark.parametrize("teacher_offset", ["none", "per view"])
def test_equals_naive_for_any_pairing(teacher_views, student_views, teacher_offset, mean):
    problem = random_problem(
        images=7,
        prototypes=90,
        teacher_views=teacher_views,
        student_views=student_views,
        teacher_offset=teacher_offset,
        weighted=True,
    )
    assert_equals_naive(problem, mean=mean)


@pytest.mark.parametrize("mean", [False, True])
def test_logits_that_no_exponential_bears(mean):
    """Vectors 40 times as long: the rows' maxima come first."""
    problem = random_problem(scale=40.0, prototypes=90, student_offset=True, teacher_offset="shared")
    assert_equals_naive(problem, mean=mean, tolerance=40 * EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [False, True])
def test_half_precision_has_float32_sums(dtype, mean):
    """Rounded operands, and rounded weights in the second product: a few thousandths, the loss far less."""
    problem = rounded(random_problem(images=16, dims=64, prototypes=200), dtype)
    wide = replace(problem.student, embeddings=problem.leaves[0].double(), prototypes=problem.leaves[1].double())
    targets = replace(
        problem.targets, embeddings=problem.targets.embeddings.double(), prototypes=problem.targets.prototypes.double()
    )
    exact = evaluate(replace(problem, student=wide, targets=targets), "naive", mean=mean)
    found = evaluate(problem, "fused", mean=mean)
    assert found[0].dtype == torch.float32
    assert relative_error(found[0], exact[0]) < 1e-4
    for value, reference, leaf in zip(found[2:], exact[2:], problem.leaves, strict=True):
        assert value.dtype == leaf.dtype == dtype
        assert relative_error(value, reference, least=0) < 1e-2


def test_autocast_decides_the_products():
    """Under autocast operands are rounded; without it nothing is."""
    problem = rounded(random_problem(images=16, dims=64, prototypes=200))
    exact = evaluate(problem, "fused", mean=False)
    with torch.autocast(DEVICE, torch.bfloat16):
        cast = evaluate(problem, "fused", mean=False)
    assert cast[2].dtype == torch.float32
    errors = [relative_error(value, reference, least=0) for value, reference in zip(cast, exact, strict=True)]
    assert 0 < errors[0] < 1e-3
    assert all(1e-5 < error < 2e-2 for error in errors[2:])


def test_only_wanted_gradients():
    problem = rounded(random_problem(student_offset=True))
    both = torch.autograd.grad(_fused(problem), problem.leaves)
    for i, name in enumerate(("embeddings", "prototypes", "offset")):
        alone = {
            other: getattr(problem.student, other).detach()
            for other in ("embeddings", "prototypes", "offset")
            if other != name
        }
        part = replace(problem, student=replace(problem.student, **alone))
        (gradient,) = torch.autograd.grad(_fused(part), problem.leaves[i])
        torch.testing.assert_close(gradient, both[i], rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        assert not _fused(problem).requires_grad
    assert not _fused(replace(problem, student=problem.student.detach())).requires_grad


def test_targets_are_constants():
    problem = rounded(random_problem())
    z, w = (x.clone().requires_grad_() for x in (problem.targets.embeddings, problem.targets.prototypes))
    _fused(replace(problem, targets=Assignments(z, w, 0.04))).backward()
    assert z.grad is None
    assert w.grad is None


def test_the_same_on_every_call():
    problem = rounded(random_problem(images=40, prototypes=300))
    first, again = (evaluate(problem, "fused", mean=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_one_prototype_gives_zero():
    problem = rounded(random_problem(prototypes=1))
    for value in evaluate(problem, "fused", mean=False):
        assert value.abs().max() < 2e-6


def test_no_rows_give_zero():
    z, w = torch.zeros(0, 8, requires_grad=True, device=DEVICE), unit(37, 8, dtype=torch.float32).to(DEVICE)
    w.requires_grad_()
    pairs = Pairs.masked(torch.zeros(4, 9, dtype=torch.bool, device=DEVICE))
    with backend("fused"):
        loss = cross_entropy(Assignments(z, w, 0.1), Assignments(z.detach(), w.detach(), 0.04), pairs)
    loss.backward()
    assert loss == 0
    assert torch.equal(w.grad, torch.zeros_like(w))


def test_backward_twice_and_changed_prototypes():
    problem = rounded(random_problem())
    loss = _fused(problem)
    first = torch.autograd.grad(loss, problem.leaves, retain_graph=True)
    second = torch.autograd.grad(loss, problem.leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    problem.targets.prototypes.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("start", ["logits", "probabilities"])
def test_sinkhorn(start, views):
    a, exact = _teacher(rows=40, prototypes=70)
    sinkhorn = Sinkhorn(PowerLaw(0.5)(70).double(), iterations=3, start=start, views=views)
    with backend("fused"):
        offset = sinkhorn.to(DEVICE)(a).offset
    torch.testing.assert_close(offset.cpu().double(), sinkhorn.cpu()(exact).offset, rtol=1e-4, atol=1e-4)


def test_sinkhorn_closes_prototypes_of_prior_zero():
    prior = Uniform()(70)
    prior[:10] = 0
    a, _ = _teacher(rows=40, prototypes=70)
    with backend("fused"):
        targets = Sinkhorn(prior / prior.sum()).to(DEVICE)(a)
        assert bool((targets.offset[:10] == -torch.inf).all())
        mean = targets.mean()
    assert bool((mean[:10] == 0).all())
    torch.testing.assert_close(mean[10:].cpu(), torch.full((60,), 1 / 60), rtol=0.3, atol=0)


def test_probability_centering_and_sharpening():
    for make in (lambda: ProbabilityCentering(Uniform()(70)), lambda: Sharpen(0.25)):
        a, exact = _teacher(rows=40, prototypes=70)
        fused, reference = make(), make()
        for _ in range(2):
            with backend("fused"):
                found = fused.to(DEVICE)(a).mean()
            torch.testing.assert_close(found.cpu().double(), reference(exact).mean(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("prior", [Uniform()(70), PowerLaw(1.0)(70)])
def test_explicit_balancing(prior):
    """Scale, clamp and the boost of the winner, in the loss, its gradients and the counts."""
    problem = random_problem(images=20, prototypes=70, teacher_views=2, student_views=3)
    balancers = [ExplicitBalancing(prior.double(), momentum=0.5), ExplicitBalancing(prior.double(), momentum=0.5)]
    on_device = rounded(problem)
    for _ in range(3):
        exact = replace(problem, targets=balancers[0](problem.targets))
        with backend("fused"):
            found = replace(on_device, targets=balancers[1].to(DEVICE)(on_device.targets))
            hard, mean = found.targets.hard().cpu(), found.targets.mean().cpu().double()
        assert torch.equal(hard, exact.targets.hard())
        torch.testing.assert_close(mean, exact.targets.mean(), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(balancers[1].sizes.cpu(), balancers[0].sizes)
        references = evaluate(exact, "naive", mean=False)
        for value, reference in zip(evaluate(found, "fused", mean=False), references, strict=True):
            assert relative_error(value.cpu(), reference) < 5 * EXACT


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_reductions(scale):
    torch.manual_seed(3)
    exact = Assignments(scale * unit(75, 48), unit(131, 48), 0.05, torch.randn(131, dtype=torch.float64))
    a = _on_device(exact)
    potential = torch.randn(75, dtype=torch.float64)
    with backend("fused"):
        rows, log_mean = a.row_logsumexp().cpu().double(), a.log_mean().cpu().double()
        columns = [a.column_logsumexp(u).cpu().double() for u in (None, potential.to(DEVICE, torch.float32))]
        hard, counts = a.hard().cpu(), a.counts().cpu()
    tolerance = {"rtol": 1e-5, "atol": 2e-5 * scale}
    torch.testing.assert_close(rows, exact.row_logsumexp(), **tolerance)
    torch.testing.assert_close(log_mean, exact.log_mean(), **tolerance)
    for found, u in zip(columns, (None, potential), strict=True):
        torch.testing.assert_close(found, exact.column_logsumexp(u), **tolerance)
    assert torch.equal(hard, exact.hard())
    assert torch.equal(counts, exact.counts())
    _, value = _ops().fused_argmax(a.embeddings, a.prototypes, a.offset, None, None, [0.05], torch.float32)
    torch.testing.assert_close(value.cpu().double(), exact.logits().amax(1), rtol=1e-5, atol=1e-5)


def test_the_first_of_equal_prototypes_wins():
    w = unit(1, 16, dtype=torch.float32).repeat(200, 1).to(DEVICE)
    with backend("fused"):
        assert torch.equal(Assignments(w[:5], w, 0.1).hard().cpu(), torch.zeros(5, dtype=torch.long))


@pytest.mark.parametrize("count", [2, 300])
def test_nearest(count):
    from prototile.kernels.nearest import fused_nearest

    x = unit(count, 40, dtype=torch.float32).to(DEVICE)
    similarities = (x.double() @ x.double().T).fill_diagonal_(-torch.inf)
    where, value = fused_nearest(x)
    assert torch.equal(where, similarities.argmax(1))
    torch.testing.assert_close(value.double(), similarities.amax(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(nearest(x)[0], where)


def test_operators_are_what_torch_expects_of_them():
    """Schemas, fake kernels and autograd registrations, as torch itself checks them."""
    problem = rounded(random_problem(images=3, prototypes=20, student_offset=True))
    ops, (z, w, offset) = _ops(), problem.leaves
    targets = problem.targets.embeddings, problem.targets.prototypes, None, None, None, [0.04]
    table = [weight for row in problem.pairs.views for weight in row]
    rows = problem.pairs.row_weights(z)
    for gradients, mean in ((True, True), (True, False), (False, True)):
        leaves = (z, w, offset) if gradients else (x.detach() for x in (z, w, offset))
        arguments = *leaves, 0.1, *targets, table, 3, rows, torch.float32, gradients, mean
        torch.library.opcheck(ops.fused_loss, arguments, test_utils=("test_schema", "test_faketensor"))
    side = z.detach(), w.detach(), None, None, None, [0.1]
    torch.library.opcheck(ops.fused_row_logsumexp, (*side, torch.float32))
    torch.library.opcheck(ops.fused_column_logsumexp, (*side, None, torch.float32))
    torch.library.opcheck(ops.fused_argmax, (*side, torch.float32))


COMPILED = """
import torch
from problems import random_problem
from prototile.assignments import Assignments, backend, cross_entropy, cross_entropy_and_mean

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
problem = random_problem(student_offset=True, dtype=torch.float32)
leaves = [leaf.detach().to(device).requires_grad_() for leaf in problem.leaves]
targets = Assignments(problem.targets.embeddings.to(device), problem.targets.prototypes.to(device), 0.04)

def step(z, w, offset, mean):
    student = Assignments(z * 1.0, w * 1.0, 0.1, offset * 1.0)
    if not mean:
        return cross_entropy(student, targets, problem.pairs)
    loss, marginal = cross_entropy_and_mean(student, targets, problem.pairs)
    return loss + (marginal * marginal.log()).sum()

with backend("fused"):
    for mean in (False, True):
        expected = torch.autograd.grad(step(*leaves, mean), leaves)
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        for value, reference in zip(torch.autograd.grad(compiled(*leaves, mean), leaves), expected, strict=True):
            torch.testing.assert_close(value, reference)
"""


def test_whole_within_a_compiled_step():
    """torch.compile sees operators, forward and backward, and breaks no graph at them.

    In a process that checks no shapes, for those checks cannot be compiled.
    """
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=os.environ | {"PYTHONPATH": tests}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_recorded_in_a_cuda_graph():
    """Loss and gradients of a step that is replayed with other numbers in the same memory."""
    problem = rounded(random_problem(images=32, dims=64, prototypes=500))
    z, w = problem.leaves

    def step() -> tuple[torch.Tensor, ...]:
        with torch.autocast("cuda", torch.bfloat16):
            loss, marginal = cross_entropy_and_mean(problem.student, problem.targets, problem.pairs)
            loss = loss + (marginal * marginal.log()).sum()
        return loss.detach(), *torch.autograd.grad(loss, (z, w))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    with torch.no_grad():
        z.copy_(torch.nn.functional.normalize(torch.randn_like(z), dim=1))
    graph.replay()
    for value, reference in zip(results, step(), strict=True):
        torch.testing.assert_close(value, reference)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_full_size(dtype):
    """65,536 prototypes, 2 x 12 views: as the portable backend, in a hundredth of a matrix's memory."""
    torch.manual_seed(0)
    problem = rounded(random_problem(images=64, dims=256, prototypes=65_536, teacher_views=2, student_views=12), dtype)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = evaluate(problem, "fused", mean=False)
    taken = torch.cuda.max_memory_allocated() - before
    assert taken < 4 * 65_536 * 256 * 4 < 64 * 12 * 65_536 * 4
    for value, reference in zip(found, evaluate(problem, "direct", mean=False), strict=True):
        assert relative_error(value, reference, least=0) < (1e-4 if dtype == torch.float32 else 1e-2)


def test_gradient_checkpointing():
    problem = rounded(random_problem())
    expected = torch.autograd.grad(_fused(problem), problem.leaves)
    loss = checkpoint(lambda: _fused(problem), use_reentrant=False)
    for value, reference in zip(torch.autograd.grad(loss, problem.leaves), expected, strict=True):
        assert torch.equal(value, reference)


def test_tiles_of_the_plan():
    """128 queries of 256 dims with 64 keys in half precision, on an H200; less on smaller GPUs, or nothing."""
    assert launch.tiles(256, 2, values=True, room=H200) == launch.Tiles(128, 64, warps=8, stages=2)
    assert launch.tiles(256, 2, values=False, room=H200) == launch.Tiles(128, 64, warps=8, stages=4)
    assert launch.tiles(256, 2, values=True, room=A100) == launch.Tiles(128, 32, warps=8, stages=2)
    assert launch.tiles(512, 4, values=True, room=101_376) is None
    assert launch.fits(torch.device("cpu"), 512, 4)
    assert not launch.fits(torch.device("cpu"), 513, 2)


@pytest.mark.slow
def test_compiled_for_an_h200(tmp_path):
    """Without a GPU, to its machine code: what a program takes of shared memory is what tiles are chosen by."""
    script = Path(__file__).parents[1] / "kernel_builds.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), "90", str(H200)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    builds = json.loads(done.stdout)
    assert len(builds) == 6
    for build in builds:
        assert build["shared"] <= build["expected"] <= H200, build


def test_what_the_kernels_cannot_do():
    with backend("fused"), pytest.raises(ValueError, match=r"'fused' cannot serve here: .* of 600 dims"):
        Assignments(torch.zeros(3, 600, device=DEVICE), torch.zeros(5, 600, device=DEVICE), 0.1).mean()
    with backend("fused"), pytest.raises(ValueError, match="float64"):
        Assignments(unit(3, 8).to(DEVICE), unit(5, 8).to(DEVICE), 0.1).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_are_tried_before_they_serve(dtype, monkeypatch):
    """Where they fail or are wrong on a few vectors, plain PyTorch serves."""
    device, usual = torch.device(DEVICE), launch.attend
    assert launch.trial(device, 64, dtype) is None
    monkeypatch.setattr(launch, "attend", lambda *a, **k: usual(*a, **k).each(lambda x: 1.1 * x))
    assert "wrong numbers" in str(launch.trial(device, 64, dtype))

    def fail(*_, **__):
        raise RuntimeError("out of resource: shared memory\nand more")

    monkeypatch.setattr(launch, "attend", fail)
    assert launch.trial(device, 64, dtype) == "Triton fails here (RuntimeError: out of resource: shared memory)"


def test_a_fallback_is_said_once(caplog, monkeypatch, unchecked):
    monkeypatch.setattr(kernels, "_reasons", {})
    monkeypatch.setattr(kernels, "_said", set())
    monkeypatch.setattr(kernels, "_why_not", lambda *_: "it is too old")
    x = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, shape=(2, 8))
    with caplog.at_level(logging.INFO, logger="prototile.kernels"):
        assert not any(kernels.serve(x, exact=True) for _ in range(3))
        assert not any(kernels.serve(x) for _ in range(3))
    said = [record.message for record in caplog.records]
    assert said[0] == "the fused kernels are not used: it is too old; plain PyTorch serves instead"
    assert len(said) == 2
    assert "products are in float32" in said[1]


def _fused(problem: Problem) -> torch.Tensor:
    with backend("fused"):
        return cross_entropy(problem.student, problem.targets, problem.pairs)


def _teacher(*, rows: int, prototypes: int) -> tuple[Assignments, Assignments]:
    exact = Assignments(unit(rows, 32), unit(prototypes, 32), 0.05)
    return _on_device(exact), exact


def _on_device(a: Assignments) -> Assignments:
    offset = None if a.offset is None else a.offset.to(DEVICE, torch.float32)
    return Assignments(a.embeddings.to(DEVICE).float(), a.prototypes.to(DEVICE).float(), a.temperature, offset)


def _ops():
    from prototile.assignments.fused import ops

    return ops
