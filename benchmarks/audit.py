"""Benchmark of the audit of prototypes: time and memory against K, beside the bare product, and counts that are known.

    python benchmarks/audit.py                          everything: about a quarter of an hour
    python benchmarks/audit.py --quick                  tiny sizes, to see that it runs
    python benchmarks/audit.py --only 65536             the cases whose names contain a word
    python benchmarks/audit.py --device cuda            on a GPU, up to a million prototypes
    python benchmarks/audit.py --report                 the tables anew, from the numbers there are

An audit is all that `audit_prototypes` gives: nine epsilons, both covers, nearest neighbours, duplicates, ranks. The
bare product is that of all blocks on and above the diagonal, into the same memory, with nothing done to them. A million
prototypes take hours on a CPU: 16 times as long as 262,144, and are measured on a GPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import command
import report
from goals import Goal
from measure import MIB, machine, meter
from prototile.audit import audit_prototypes, unique

DIMS = 256
METHOD = {
    "time": (
        "One thread, process CPU time (GPU: events), the least of the repetitions (one for 262,144 on a CPU); audit "
        "and bare product take turns in one process, so that a disturbance of the machine hits both alike."
    ),
    "memory": (
        "Peak resident memory of the first call less what was resident before it (GPU: allocated memory), so without "
        "the prototypes themselves. MB are 2^20 bytes."
    ),
    "data": (
        "spread: random directions. groups: K / 64 tight groups of 64. skewed: group sizes fall as 1 / rank, the "
        "largest has a tenth of all. twins: each has one. cone: all around one direction, so that many pairs are "
        "closer than the largest epsilon, .5, and none than the others."
    ),
}


def spread(k: int) -> Tensor:
    return F.normalize(torch.randn(k, DIMS), dim=1)


def around(centres: Tensor, which: Tensor, jitter: float = 0.1) -> Tensor:
    return F.normalize(centres[which] + jitter / DIMS**0.5 * torch.randn(len(which), DIMS), dim=1)


def groups(k: int) -> Tensor:
    return around(spread(k // 64), torch.randperm(k) % (k // 64))


def skewed(k: int) -> Tensor:
    shares = torch.arange(1, k // 4 + 1).double() ** -1
    return around(spread(k // 4), torch.searchsorted(shares.cumsum(0) / shares.sum(), torch.rand(k).double()))


def twins(k: int) -> Tensor:
    return around(spread(k // 2), torch.randperm(k) % (k // 2))


def cone(k: int) -> Tensor:
    return F.normalize(spread(1) + 1.03 / DIMS**0.5 * torch.randn(k, DIMS), dim=1)


@dataclass(frozen=True)
class Case:
    kind: Callable[[int], Tensor]
    k: int
    rounds: int = 2

    @property
    def name(self) -> str:
        return f"{self.kind.__name__} K={self.k}"


CASES = (
    *(Case(kind, k) for k in (8192, 65536) for kind in (spread, groups, skewed, twins, cone)),
    Case(spread, 262144, 1),
)
GPU_CASES = (*CASES, Case(skewed, 262144), Case(spread, 2**20), Case(skewed, 2**20))


def product(x: Tensor) -> None:
    """All blocks on and above the diagonal, and nothing else."""
    block = 8192 if x.is_cuda else 1024
    scratch = x.new_empty(block**2)
    for row in range(0, len(x), block):
        for column in range(row, len(x), block):
            a, b = x[row : row + block], x[column : column + block]
            torch.mm(a, b.T, out=scratch[: len(a) * len(b)].view(len(a), len(b)))


def measure_case(case: Case, device: torch.device, *, quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    x = case.kind(case.k // 64 if quick else case.k).to(device)
    stopwatch, audits = meter(device), []
    product(x[: 2 * 8192])

    def audit() -> None:
        audits[:] = [audit_prototypes(x)]

    seconds: dict[str, list[float]] = {"product": [], "audit": []}
    peaks = []
    for _ in range(case.rounds):
        seconds["product"].append(stopwatch.seconds(lambda: product(x)))
        spent, peak = stopwatch.peak(lambda: stopwatch.seconds(audit))
        seconds["audit"].append(spent)
        peaks.append(peak)
    found = audits[0]
    least = {name: min(each) for name, each in seconds.items()}
    result = {
        "prototypes": len(x),
        "seconds": seconds,
        "ratio": least["audit"] / least["product"],
        "peak_mb": peaks[0] / MIB,
        "own_mb": x.numel() * x.element_size() / MIB,
        "unique": found.count,
        "in_order": found.in_order,
        "sweep": dict(found.sweep),
    }
    print(
        f"{case.name:20} product {least['product']:8.2f} s, audit {least['audit']:8.2f} s, "
        f"{result['ratio']:.2f} times, {result['peak_mb']:.0f} MB, M = {found.count:,}",
        flush=True,
    )
    return result


def planted() -> list[dict[str, Any]]:
    """Counts of collapses that are known: groups of known sizes at a known distance from their centres."""
    rows = []
    for radius in (0.002, 0.01, 0.02, 0.0245):
        torch.manual_seed(0)
        shares = torch.arange(1, 1001).double() ** -1.1
        sizes = (shares / shares.sum() * 7192).floor().long() + 1
        sizes[0] += 8192 - int(sizes.sum())
        group = torch.arange(1000).repeat_interleave(sizes)
        centres = spread(1000)
        side = torch.randn(8192, DIMS)
        side = F.normalize(side - (side * centres[group]).sum(1, keepdim=True) * centres[group], dim=1)
        x = (1 - radius) * centres[group] + (1 - (1 - radius) ** 2) ** 0.5 * side
        x[sizes.cumsum(0) - sizes] = centres
        orders = [torch.arange(8192), torch.arange(8192).flip(0), *(torch.randperm(8192) for _ in range(3))]
        covers = [unique(x[order]) for order in orders]
        wanted = sizes.sort(descending=True).values
        rows.append(
            {
                "radius": radius,
                "groups": 1000,
                "degree": sorted({cover.count for cover in covers}),
                "exact": all(torch.equal(cover.redundancy.sort(descending=True).values, wanted) for cover in covers),
                "index": sorted({unique(x[order], mode="index").count for order in orders}),
            }
        )
    return rows


def worst(word: str, what: str) -> Callable[[dict[str, Any]], float]:
    def value(run: dict[str, Any]) -> float:
        found = [case[what] for name, case in run["cases"].items() if word in name]
        if not found:
            raise KeyError(word)
        return max(found)

    return value


def exact(run: dict[str, Any]) -> float:
    if not run["planted"]:
        raise KeyError("planted")
    return sum(row["exact"] for row in run["planted"]) / len(run["planted"])


GOALS = (
    Goal("audit / bare product, time, spread, K = 65,536", "<=", 1.5, worst("spread K=65536", "ratio")),
    Goal("audit / bare product, time, K = 65,536, worst", "<=", 1.5, worst("K=65536", "ratio")),
    Goal("memory beyond the prototypes, MB, K = 65,536, worst", "<=", 500, worst("K=65536", "peak_mb")),
    Goal(
        "planted collapses of which M and every size are exact, whatever the order",
        ">=",
        1,
        exact,
    ),
)


def run(only: list[str] | None, device: torch.device, *, quick: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"quick": quick, "device": device.type, "machine": machine(device), "method": METHOD}
    cases = GPU_CASES if device.type == "cuda" else CASES
    wanted = [case for case in cases if only is None or any(word in case.name for word in only)]
    found["planted"] = planted() if only is None or "planted" in only else []
    found["cases"] = {case.name: measure_case(case, device, quick=quick) for case in wanted}
    return found | {"goals": [goal.judge(found) for goal in GOALS]}


def markdown(run: dict[str, Any]) -> str:
    return report.audit(run, [("Time and memory", HEADER, rows(run)), ("Planted collapses", PLANTED, known(run))])


HEADER = (
    "prototypes", "product, s", "audit, s", "ratio", "memory, MB", "prototypes, MB", "M", "by index",
    "M at .001 / .1 / .5",
)  # fmt: skip
PLANTED = ("radius", "groups", "M, five orders", "every size exact", "M in the order of indices")


def rows(run: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, case in run["cases"].items():
        sweep = {float(epsilon): count for epsilon, count in case["sweep"].items()}
        yield (
            name,
            *(f"{min(case['seconds'][what]):.3g}" for what in ("product", "audit")),
            f"{case['ratio']:.2f}",
            f"{case['peak_mb']:.0f}",
            f"{case['own_mb']:.0f}",
            f"{case['unique']:,}",
            f"{case['in_order']:,}",
            " / ".join(f"{sweep[epsilon]:,}" for epsilon in (0.001, 0.1, 0.5)),
        )


def known(run: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in run["planted"]:
        counts = (", ".join(f"{count:,}" for count in row[mode]) for mode in ("degree", "index"))
        degree, index = counts
        yield f"{row['radius']:g}", f"{row['groups']:,}", degree, "yes" if row["exact"] else "**no**", index


if __name__ == "__main__":
    command.main(__doc__ or "", "audit", run, markdown)
