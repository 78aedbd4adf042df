"""What two ranks and one process compute for `distributed/test_two_ranks.py`: importable by spawned processes.

Every case is called as case(rank, world): it draws the whole batch from a seed, takes its own part of every view, and
returns named tensors whose names say how ranks combine:

    mean.*   averaged over ranks (losses, gradients of shared parameters, as DistributedDataParallel does)
    rows.*   gradients of a rank's own rows, by view: concatenated over ranks within each view, then averaged likewise
    same.*   equal on all ranks (state, statistics)
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from prototile import distributed, losses
from prototile.assignments import Assignments, Pairs, cross_entropy, cross_entropy_and_mean
from prototile.balancing import (
    Balancer,
    Centering,
    ExplicitBalancing,
    ProbabilityCentering,
    Queue,
    Sequential,
    Sharpen,
    Sinkhorn,
)
from prototile.priors import PowerLaw
from prototile.regularizers import (
    EffectiveEntropy,
    KoLeo,
    ManifoldCapacity,
    MatchPrior,
    Uniformity,
    VarianceCovariance,
)

IMAGES, DIMS, PROTOTYPES, STEPS = 8, 6, 11, 3
PRIOR = PowerLaw(0.5)(PROTOTYPES)


def draw(step: int, views: int) -> Tensor:
    """The whole batch: v b d."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(views, IMAGES, DIMS, generator=generator, dtype=torch.float64)


def own(x: Tensor, rank: int, world: int) -> Tensor:
    """This rank's images, in every view."""
    return x.chunk(world, dim=1)[rank].clone()


def prototypes() -> Tensor:
    return F.normalize(draw(-1, 2).flatten(0, 1)[:PROTOTYPES], dim=-1).requires_grad_()


def clustering(rank: int, world: int, make: Callable[[], Balancer], *, queue: bool = False) -> dict[str, Tensor]:
    """Several steps of a clustering loss with a prior-matching penalty: 2 teacher views, 3 student views."""
    balancer, w, results = make(), prototypes(), {}
    memory = Queue(IMAGES // world, DIMS, views=2).double() if queue else None
    for step in range(STEPS):
        z = own(draw(step, 3), rank, world).requires_grad_()
        student = Assignments(F.normalize(z, dim=-1).flatten(0, 1), w, 0.1)
        teacher = Assignments(F.normalize(own(draw(50 + step, 2), rank, world), dim=-1).flatten(0, 1), w, 0.05)
        observed = memory.observe(teacher) if memory is not None and memory.full else None
        targets = balancer(teacher, observed)
        if memory is not None:
            memory.push(teacher)
        loss, mean = cross_entropy_and_mean(student, targets, Pairs.cross(2, 3))
        loss = loss + 2 * MatchPrior(PRIOR)(mean) + 0.3 * student.entropy()
        gradients = torch.autograd.grad(loss, [z, w])
        results |= {
            f"mean.loss{step}": loss.detach(),
            f"rows.z{step}": gradients[0],
            f"mean.w{step}": gradients[1],
            f"same.mean{step}": mean.detach(),
            f"same.target_mean{step}": targets.mean(),
            f"same.counts{step}": targets.counts(),
            f"same.confidence{step}": targets.confidence(),
        }
    return results | {f"same.state.{name}": x for name, x in balancer.state_dict().items()}


def sharpen(rank: int, world: int):
    return clustering(rank, world, Sharpen)


def sinkhorn(rank: int, world: int):
    return clustering(rank, world, lambda: Sequential(Sharpen(0.5), Sinkhorn(PRIOR, start="probabilities")))


def sinkhorn_per_view(rank: int, world: int):
    return clustering(rank, world, lambda: Sinkhorn(PRIOR, views=2))


def sinkhorn_with_queue(rank: int, world: int):
    return clustering(rank, world, lambda: Sinkhorn(PRIOR, views=2), queue=True)


def sinkhorn_error(rank: int, world: int):
    balancer = Sinkhorn(PRIOR)
    z = F.normalize(own(draw(0, 2), rank, world), dim=-1).flatten(0, 1)
    targets = balancer(Assignments(z, prototypes(), 0.05))
    return {"same.error": balancer.column_error(targets)}


def centering(rank: int, world: int):
    return clustering(rank, world, lambda: Centering(PRIOR))


def probability_centering(rank: int, world: int):
    return clustering(rank, world, lambda: ProbabilityCentering(PRIOR))


def explicit_balancing(rank: int, world: int):
    return clustering(rank, world, lambda: ExplicitBalancing(PRIOR, momentum=0.5))


def explicit_balancing_raw(rank: int, world: int):
    return clustering(rank, world, lambda: ExplicitBalancing(PRIOR, momentum=0.0, count="raw"))


def unequal_rows(rank: int, world: int):
    """Ranks may hold different numbers of rows, as with masked patches."""
    z, w = F.normalize(draw(0, 2).flatten(0, 1), dim=-1), prototypes()
    return _statistics(z if world == 1 else z[:5] if rank == 0 else z[5:], w)


def a_rank_without_rows(rank: int, world: int):
    """As when no patch of a rank's images is masked."""
    z = F.normalize(draw(0, 1).flatten(0, 1), dim=-1)
    return _statistics(z[:0] if rank else z, prototypes())


def _statistics(z: Tensor, w: Tensor) -> dict[str, Tensor]:
    a = Assignments(z, w, 0.1)
    mean = a.mean()
    loss = MatchPrior(PRIOR)(mean)
    targets = Sinkhorn(PRIOR, iterations=2, start="probabilities")(a)
    centering = ProbabilityCentering(PRIOR)
    centering(a)
    return {
        "same.center": centering.center,
        "same.mean": mean.detach(),
        "mean.w": torch.autograd.grad(loss, w)[0],
        "same.log_mean": a.log_mean(),
        "same.target_mean": targets.mean(),
    }


def masked_patches(rank: int, world: int):
    """The mean over images, with other numbers of masked patches on each rank."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(IMAGES, 5, generator=generator) < 0.4
    mask[1] = False
    z = torch.randn(IMAGES, 5, DIMS, generator=generator, dtype=torch.float64)
    w = prototypes()
    half = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    rows, hidden = z[half].requires_grad_(), mask[half]
    student = Assignments(F.normalize(rows[hidden], dim=-1), w, 0.1)
    targets = Assignments(F.normalize(rows.detach()[hidden].flip(1), dim=-1), w, 0.05)
    loss = cross_entropy(student, targets, Pairs.masked(hidden))
    gradients = torch.autograd.grad(loss, [rows, w])
    return {"mean.loss": loss.detach(), "rows.z": gradients[0][None], "mean.w": gradients[1]}


def on_embeddings(rank: int, world: int, function: Callable[[Tensor], Tensor], views: int = 2):
    """A loss on embeddings of several views."""
    z = own(draw(0, views), rank, world).requires_grad_()
    loss = function(z)
    (gradient,) = torch.autograd.grad(loss, z)
    return {"mean.loss": loss.detach(), "rows.z": gradient}


def effective_entropy(rank: int, world: int):
    return on_embeddings(rank, world, EffectiveEntropy())


def variance_covariance(rank: int, world: int):
    return on_embeddings(rank, world, VarianceCovariance(mu=1, nu=1))


def uniformity(rank: int, world: int):
    return on_embeddings(rank, world, Uniformity())


def manifold_capacity(rank: int, world: int):
    return on_embeddings(rank, world, ManifoldCapacity(), views=4)


def nt_xent(rank: int, world: int):
    return on_embeddings(rank, world, lambda z: losses.nt_xent(z[0], z[1], 0.2))


def vicreg(rank: int, world: int):
    return on_embeddings(rank, world, lambda z: losses.vicreg(z[0], z[1]).loss)


def barlow_twins(rank: int, world: int):
    return on_embeddings(rank, world, lambda z: losses.barlow_twins(z[0], z[1]))


def masked_regressions(rank: int, world: int):
    """Other numbers of hidden patches on each rank."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(IMAGES, 5, generator=generator) < 0.3
    target = torch.randn(IMAGES, 5, DIMS, generator=generator, dtype=torch.float64)
    half = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    results = {}
    for name, function in (("pixels", losses.masked_pixels), ("latent", losses.latent_regression)):
        prediction = torch.zeros_like(target[half]).requires_grad_()
        loss = function(prediction, target[half], mask[half])
        (gradient,) = torch.autograd.grad(loss, prediction)
        results |= {f"mean.{name}": loss.detach(), f"rows.{name}": gradient[None]}
    return results


def unequal_gather(rank: int, world: int) -> str:
    """A ragged last batch."""
    try:
        distributed.gather(torch.zeros(3 + rank, 2))
    except ValueError as error:
        return str(error)
    return ""


def koleo_prototypes(rank: int, world: int):
    """The same partitions on all ranks, step after step."""
    regularizer, results = KoLeo(partition=4), {}
    for step in range(STEPS):
        w = prototypes()
        loss = regularizer(w)
        results |= {f"same.loss{step}": loss.detach(), f"mean.w{step}": torch.autograd.grad(loss, w)[0]}
    return results | {"same.calls": regularizer.calls}


def primitives(rank: int, world: int):
    x = own(draw(0, 2), rank, world)[0]
    return {
        "same.sum": distributed.sum(x.sum(0)),
        "same.count": torch.tensor(distributed.count(len(x), x.device)),
        "same.gather": distributed.gather(x),
        "same.logsumexp": distributed.logsumexp(x.logsumexp(0)),
        "same.logsumexp_of_nothing": distributed.logsumexp(torch.full((2,), -torch.inf)),
    }


CASES = [
    a_rank_without_rows,
    barlow_twins,
    centering,
    effective_entropy,
    explicit_balancing,
    explicit_balancing_raw,
    koleo_prototypes,
    manifold_capacity,
    masked_patches,
    masked_regressions,
    nt_xent,
    primitives,
    probability_centering,
    sharpen,
    sinkhorn,
    sinkhorn_error,
    sinkhorn_per_view,
    sinkhorn_with_queue,
    unequal_rows,
    uniformity,
    variance_covariance,
    vicreg,
]
