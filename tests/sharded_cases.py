"""What ranks that share out prototypes compute, and one process that has them all: importable by spawned processes.

Every case is called as case(rank, world); on several ranks each holds some of the prototypes. Beside the prefixes of
`rank_cases` names may begin with

    part.*   gradients of a rank's own prototypes: concatenated, then averaged (by the number of ranks)
    each.*   numbers of a rank's own rows, by view: concatenated within each view
"""

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from prototile import distributed
from prototile.assignments import Assignments, Pairs, cross_entropy, cross_entropy_and_mean
from prototile.audit import cluster_health
from prototile.balancing import (
    Balancer,
    Centering,
    ExplicitBalancing,
    ProbabilityCentering,
    Sequential,
    Sharpen,
    Sinkhorn,
)
from prototile.heads import Prototypes
from prototile.priors import PowerLaw
from prototile.regularizers import KoLeo, MatchPrior
from prototile.sphere import normalize

IMAGES, DIMS, K = 9, 6, 37
PRIOR = PowerLaw(0.5)(K)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def own(x: Tensor, rank: int, world: int) -> Tensor:
    """This rank's images, in every view; the last ranks have fewer."""
    return x.tensor_split(world, dim=1)[rank].clone()


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def prototypes(world: int, scale: float = 1.0, seed: int = -1) -> tuple[Tensor, distributed.Shard | None]:
    """This rank's, and which they are. The 3rd is there again as the 32nd, on another rank, bit for bit."""
    w = unit(draw(seed + 1000, K, DIMS))
    w[[2, 31]] = torch.eye(DIMS, dtype=torch.float64)[0]
    w = scale * w
    if world == 1:
        return w.requires_grad_(), None
    shard = distributed.shard_of(K)
    return w[shard.start : shard.stop].clone().requires_grad_(), shard


def clustering(
    rank: int,
    world: int,
    balancer: Balancer | None = None,
    *,
    scale: float = 1.0,
    with_offset: bool = False,
    with_mean: bool = True,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Two teacher views, three student views, images of unequal weight, not equally many on each rank."""
    w, shard = prototypes(world, scale)
    taught, _ = prototypes(world, scale, seed=1)
    offset = 0.5 * draw(7, K) if with_offset else None
    offset = None if offset is None else offset.requires_grad_()
    z = own(draw(0, 3, IMAGES, DIMS), rank, world).requires_grad_()
    t = own(draw(1, 2, IMAGES, DIMS), rank, world)
    weights = own(draw(2, 1, IMAGES).square() + 0.1, rank, world)[0] * world
    student = Assignments(unit(z).flatten(0, 1).to(dtype), w.to(dtype), 0.1, offset, shard=shard)
    targets = Assignments(unit(t).flatten(0, 1).to(dtype), taught.detach().to(dtype), 0.05, shard=shard)
    targets = targets if balancer is None else balancer(targets)
    pairs = Pairs.cross(2, 3).weighing(weights)
    if with_mean:
        loss, mean = cross_entropy_and_mean(student, targets, pairs)
        total = loss + 2 * MatchPrior(PRIOR)(mean)
    else:
        total = loss = cross_entropy(student, targets, pairs)
        mean = student.mean()
    leaves = [z, w] + ([] if offset is None else [offset])
    gradients = torch.autograd.grad(total, leaves)
    results = {
        "mean.loss": loss.detach(),
        "same.mean": mean.detach(),
        "same.target_mean": targets.mean(),
        "same.counts": targets.counts(),
        "same.confidence": targets.confidence(),
        "rows.z": gradients[0],
        "part.w": gradients[1],
    }
    if offset is not None:
        results["mean.offset"] = gradients[2]
    state = {} if balancer is None else balancer.state_dict()
    return results | {f"same.state.{name}": x for name, x in state.items()}


def plain(rank: int, world: int):
    return clustering(rank, world)


def without_mean(rank: int, world: int):
    return clustering(rank, world, with_mean=False)


def offsets(rank: int, world: int):
    return clustering(rank, world, with_offset=True)


def offsets_without_mean(rank: int, world: int):
    return clustering(rank, world, with_offset=True, with_mean=False)


def wide(rank: int, world: int):
    """Logits up to 40 / 0.05 = 800."""
    return clustering(rank, world, scale=40, with_offset=True)


def centering(rank: int, world: int):
    return clustering(rank, world, Centering(PRIOR))


def probability_centering(rank: int, world: int):
    return clustering(rank, world, ProbabilityCentering(PRIOR))


def explicit_balancing(rank: int, world: int):
    balancer = ExplicitBalancing(PRIOR, momentum=0.5)
    balancer.sizes.copy_(draw(8, K).square() + 0.01)
    balancer.sizes[4] = 0
    return clustering(rank, world, balancer)


def sinkhorn(rank: int, world: int):
    return clustering(rank, world, Sinkhorn(PRIOR))


def sinkhorn_from_probabilities(rank: int, world: int):
    return clustering(rank, world, Sequential(Sharpen(0.5), Sinkhorn(PRIOR, start="probabilities")))


def sinkhorn_per_view(rank: int, world: int):
    return clustering(rank, world, Sinkhorn(PRIOR, views=2))


def sinkhorn_of_wide_logits(rank: int, world: int):
    return clustering(rank, world, Sinkhorn(PRIOR), scale=40)


def sinkhorn_of_wide_logits_from_probabilities(rank: int, world: int):
    return clustering(rank, world, Sinkhorn(PRIOR, start="probabilities"), scale=40)


def a_rank_of_closed_prototypes(rank: int, world: int):
    """Targets have none of the last prototypes, which are all that the last rank has."""
    prior = PRIOR.clone()
    prior[18:] = 0
    return clustering(rank, world, Sinkhorn(prior / prior.sum()))


def a_rank_of_closed_prototypes_of_wide_logits(rank: int, world: int):
    prior = PRIOR.clone()
    prior[18:] = 0
    return clustering(rank, world, Sinkhorn(prior / prior.sum()), scale=40)


def reductions(rank: int, world: int):
    w, shard = prototypes(world)
    z = own(draw(0, 2, IMAGES, DIMS), rank, world)
    z[0] = prototypes(1)[0][2].detach()  # as close to the 3rd as to the 32nd
    a = Assignments(unit(z).flatten(0, 1), w, 0.1, shard=shard)
    per_view = replace(a, offset=draw(5, 2, K))
    found = {}
    for name, x in {"one": a, "two": per_view, "three": replace(a, offset=draw(6, K))}.items():
        entropy = x.entropy()
        (gradient,) = torch.autograd.grad(entropy, w)
        found |= {
            f"mean.{name}.entropy": entropy.detach(),
            f"part.{name}.entropy": gradient,
            f"each.{name}.hard": x.hard().view(2, -1),
            f"each.{name}.logsumexp": x.row_logsumexp().view(2, -1),
            f"each.{name}.probabilities": x.probabilities().detach().unflatten(0, (2, -1)),
            f"same.{name}.columns": x.column_logsumexp(),
            f"same.{name}.log_mean": x.log_mean(),
            f"same.{name}.mean": x.mean().detach(),
            f"same.{name}.counts": x.counts(),
            f"same.{name}.confidence": x.confidence(),
        }
    assert (a.hold() is a) == (shard is not None)
    return found | {"same.similarity": a.mean_similarity()}


def watched(rank: int, world: int):
    """A monitor's numbers."""
    w, shard = prototypes(world, scale=1.5)
    z = unit(own(draw(0, 2, IMAGES, DIMS), rank, world)).flatten(0, 1)
    student = Assignments(z, w, 0.1, shard=shard).detach()
    targets = Sinkhorn(PRIOR)(replace(student, temperature=0.05))
    health = cluster_health(student, targets, PRIOR, normalize(student.unsharded().prototypes))
    return {f"same.{name}": torch.tensor(float(value)) for name, value in asdict(health).items()}


def some_rows(rank: int, world: int):
    """A rank has no rows, as when no patch of its images is masked."""
    w, shard = prototypes(world)
    z = unit(draw(0, IMAGES, DIMS))
    z = (z if world == 1 else z.tensor_split(world - 1)[rank] if rank < world - 1 else z[:0]).requires_grad_()
    weights = torch.full((len(z),), world / IMAGES, dtype=torch.float64)
    student, targets = Assignments(z, w, 0.1, shard=shard), Assignments(z.detach().flip(1), w, 0.05, shard=shard)
    loss, mean = cross_entropy_and_mean(student, ProbabilityCentering(PRIOR)(targets), Pairs.same().weighing(weights))
    gradients = torch.autograd.grad(loss + MatchPrior(PRIOR)(mean), [z, w])
    return {
        "mean.loss": loss.detach(),
        "same.mean": mean.detach(),
        "rows.z": gradients[0][None],
        "part.w": gradients[1],
    }


def no_rows(rank: int, world: int):
    w, shard = prototypes(world)
    z = torch.zeros(0, DIMS, dtype=torch.float64, requires_grad=True)
    student = Assignments(z, w, 0.1, shard=shard)
    targets = Sinkhorn(PRIOR)(replace(student, temperature=0.05))
    loss = cross_entropy(student, targets, Pairs.same())
    gradients = torch.autograd.grad(loss, [z, w])
    return {"mean.loss": loss.detach(), "rows.z": gradients[0][None], "part.w": gradients[1]}


def _layer(rank: int, world: int, gain: str, vmf: bool) -> dict[str, Tensor]:
    """Prototypes as a module, whose parameters are split."""
    torch.manual_seed(3)
    layer = Prototypes(DIMS, K, gain=gain, vmf=vmf).double()
    with torch.no_grad():
        layer.vectors.mul_(1 + torch.rand(K, 1))
    if gain == "free":
        layer.renormalize_()
        with torch.no_grad():
            layer.vectors.mul_(1 + torch.rand(K, 1))
    if world > 1:
        layer.split_()
    z = own(draw(0, 2, IMAGES, DIMS), rank, world).requires_grad_()
    rows = z.flatten(0, 1)
    weights = torch.full((z.shape[1],), world / IMAGES, dtype=torch.float64)
    student, targets = layer(rows, 0.1), layer(rows.detach().flip(1), 0.05)
    loss, mean = cross_entropy_and_mean(student, targets, Pairs.cross(2, 2).weighing(weights))
    loss = loss + MatchPrior(PRIOR)(mean) + layer(rows, 0.1, frozen=True).mean()[3]
    loss = loss + 0.1 * KoLeo(partition=10)(distributed.whole(layer.vectors))
    loss.backward()
    assert z.grad is not None
    found = {"mean.loss": loss.detach(), "rows.z": z.grad}
    for name, p in layer.named_parameters():
        found[f"same.{name}"] = distributed.whole(p.grad)
    found |= {"same.weights": layer.weights().detach().clone(), "same.directions": layer.directions().detach()}
    layer.renormalize_()
    return found | {"same.renormalized": distributed.whole(layer.vectors.detach())}


def cosines(rank: int, world: int):
    return _layer(rank, world, "one", False)


def learned_gains(rank: int, world: int):
    return _layer(rank, world, "learned", False)


def free_vmf(rank: int, world: int):
    return _layer(rank, world, "free", True)


CASES: list[Callable[[int, int], dict[str, Tensor]]] = [
    a_rank_of_closed_prototypes,
    a_rank_of_closed_prototypes_of_wide_logits,
    centering,
    cosines,
    explicit_balancing,
    free_vmf,
    learned_gains,
    no_rows,
    offsets,
    offsets_without_mean,
    plain,
    probability_centering,
    reductions,
    sinkhorn,
    sinkhorn_from_probabilities,
    sinkhorn_of_wide_logits,
    sinkhorn_of_wide_logits_from_probabilities,
    sinkhorn_per_view,
    some_rows,
    watched,
    wide,
    without_mean,
]


# ------------------------------------------------------------------------- what is not compared to one process
def single_precision(rank: int, world: int) -> dict[str, Tensor]:
    dtype = torch.float64 if world == 1 else torch.float32
    return clustering(rank, world, Sinkhorn(PRIOR), scale=40, with_offset=True, with_mean=False, dtype=dtype)


def unlike_losses(rank: int, world: int) -> list[Tensor]:
    """Ranks that weigh their losses differently: the gradient, and that of the dense reference."""
    w, shard = prototypes(world)
    z = unit(own(draw(0, 2, IMAGES, DIMS), rank, world)).flatten(0, 1).requires_grad_()
    student = Assignments(z, w, 0.1, shard=shard)
    gradients = []
    for x in (student, student.unsharded()):
        loss, mean = cross_entropy_and_mean(x, replace(x, temperature=0.05).detach(), Pairs.cross(2, 2))
        gradients.append(torch.autograd.grad((rank + 1) * (loss + (rank + 2) * mean.square().sum()), [z, w]))
    return [torch.cat([g.flatten() for g in found]) for found in gradients]


def said(rank: int, world: int, what: str) -> str:
    """The error that this rank gets."""
    w, shard = prototypes(world)
    w = w.detach()
    z = unit(draw(0, IMAGES, DIMS))
    student = Assignments(z, w, 0.1, shard=shard)
    try:
        if what == "embeddings" and rank == 1:
            z[3, 2] = torch.nan
        if what == "prototypes" and rank == 0:
            w[0, 0] = torch.inf
        if what == "rows":
            replace(student, prototypes=w[1:])
        targets = student.unsharded() if what == "unlike" else student
        cross_entropy(student, targets, Pairs.same())
    except ValueError as error:
        return str(error)
    return ""


def a_few(rank: int, world: int) -> bool:
    """Fewer prototypes than every rank could have some of."""
    layer = Prototypes(4, world + 1 if world == 4 else 1)
    layer.split_()
    return distributed.is_sharded(layer.vectors)


def parts(rank: int, world: int) -> None:
    """Rows are dealt out as torch does it."""
    for rows in (1, 4, 5, 8, 37):
        shard = distributed.shard_of(rows)
        chunks = torch.arange(rows).chunk(world)
        mine = chunks[rank].tolist() if rank < len(chunks) else []
        assert list(range(shard.start, shard.stop)) == mine
        assert shard.counts == tuple([len(chunk) for chunk in chunks] + [0] * (world - len(chunks)))
