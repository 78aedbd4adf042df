"""A plain PyTorch loop: the same long-tailed points clustered under two priors.

First the prototype layer at 65,536 prototypes, and what memory it takes. Then points around ten centres on a sphere,
in groups whose sizes fall as a power law: a small encoder learns to give two noisy views of a point the same cluster,
once with the uniform prior and once with the one that the sizes follow. Printed, per prior: how far the clusters'
marginal ends from the true sizes, and how well the clusters agree with the true groups (normalised mutual
information), mean and standard deviation over seeds.

    python examples/marginals.py
"""

import copy
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prototile as pt

CLASSES, DIMS, SEEDS, STEPS, BATCH = 10, 16, 3, 400, 256
SIZES = pt.PowerLaw(1.0)(CLASSES)


def train(prior: pt.Prior, seed: int) -> tuple[float, float]:
    """KL of the clusters' marginal to the true sizes, and the mutual information with the true groups."""
    torch.manual_seed(seed)
    centers = F.normalize(torch.randn(CLASSES, DIMS), dim=-1)
    student = nn.Sequential(nn.Linear(DIMS, 64), nn.GELU(), nn.Linear(64, 32))
    teacher, prototypes = copy.deepcopy(student), pt.Prototypes(32, CLASSES)
    pi = prior(CLASSES)
    balancer, match = pt.Sequential(pt.Sharpen(0.25), pt.Sinkhorn(pi, start="probabilities")), pt.MatchPrior(pi)
    optimizer = torch.optim.AdamW([*student.parameters(), *prototypes.parameters()], lr=2e-3)
    for _ in range(STEPS):
        points, _ = draw(centers, BATCH)
        with torch.no_grad():
            targets = balancer(prototypes(teacher(noisy(points)), 0.1))
        assignments = prototypes(student(noisy(points)), 0.1)
        loss, mean = pt.cross_entropy_and_mean(assignments, targets, pt.Pairs.every(1, 1))
        optimizer.zero_grad()
        (loss + match(mean)).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 0.02)
    points, groups = draw(centers, 4096)
    with torch.no_grad():
        assignments = prototypes(teacher(points), 0.1)
        ranked = assignments.mean().sort(descending=True).values
        return float(pt.regularizers.match_prior(ranked, SIZES)), mutual_information(assignments.hard(), groups)


def draw(centers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    groups = torch.multinomial(SIZES.float(), count, replacement=True)
    return F.normalize(centers[groups] + 0.12 * torch.randn(count, DIMS), dim=-1), groups


def noisy(points: Tensor) -> Tensor:
    return points + 0.12 * torch.randn_like(points)


def mutual_information(a: Tensor, b: Tensor) -> float:
    """Normalised by the mean of the two entropies."""
    joint = torch.zeros(CLASSES, CLASSES).index_put_((a, b), torch.ones(len(a)), accumulate=True) / len(a)
    rows, columns = joint.sum(1), joint.sum(0)
    entropies = [-torch.xlogy(p, p).sum() for p in (rows, columns, joint.flatten())]
    return float((entropies[0] + entropies[1] - entropies[2]) / (0.5 * (entropies[0] + entropies[1])))


def large_layer() -> None:
    """One training step of 65,536 prototypes, 2 teacher and 12 student views of 32 images."""
    z, targets = torch.randn(12 * 32, 256, requires_grad=True), torch.randn(2 * 32, 256)
    prototypes = pt.Prototypes(256, 65_536)
    before, start = peak_memory(), time.perf_counter()
    balancer = pt.Centering(pt.Uniform()(65_536))
    loss = pt.cross_entropy(prototypes(z, 0.1), balancer(prototypes(targets, 0.04)), pt.Pairs.cross(2, 12))
    loss.backward()
    print(f"  loss {loss.item():.4f} in {time.perf_counter() - start:.1f} s; peak memory grew by")
    print(f"  {peak_memory() - before:.0f} MB with the prototypes' gradient and unit vectors (64 MB each);")
    print(f"  one dense copy of the logits would be {14 * 32 * 65_536 * 4 / 2**20:.0f} MB, and training needs several")


def peak_memory() -> float:
    """In MB (Linux counts kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    print("The prototype layer at K = 65,536:")
    large_layer()
    print(f"\nTen groups of sizes 1, 1/2, ... 1/10, clustered under two priors ({SEEDS} seeds):")
    print(f"  {'prior':<22}{'KL(marginal || sizes)':>24}{'agreement (NMI)':>22}")
    for name, prior in (("uniform", pt.Uniform()), ("power law, as the data", pt.PowerLaw(1.0))):
        runs = [train(prior, seed) for seed in range(SEEDS)]
        cells = [f"{statistics.mean(x):.3f} ± {statistics.stdev(x):.3f}" for x in zip(*runs, strict=True)]
        print(f"  {name:<22}{cells[0]:>24}{cells[1]:>22}")
    print("  The prior decides how large clusters become. That they then are the true groups does not follow: see NMI.")


if __name__ == "__main__":
    main()
