"""Benchmark of evaluations: nearest neighbours and 45 logistic regressions beside scikit-learn's, at equal accuracy.

    python benchmarks/evaluation.py                     everything: half an hour to an hour
    python benchmarks/evaluation.py --quick             tiny sizes, to see that it runs
    python benchmarks/evaluation.py --only knn          the cases whose names contain a word
    python benchmarks/evaluation.py --device cuda       ours on a GPU, scikit-learn on the CPU
    python benchmarks/evaluation.py --report            the tables anew, from the numbers there are

Features are drawn: 50,000 x 384 to learn from and 10,000 to test, classes that overlap, and dims whose deviation falls
as that of real features does. Both sides see the same numbers.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor

import command
import report
from goals import Goal
from measure import MIB, CPUMeter, Meter, machine, meter
from prototile.evaluation import knn, logistic
from prototile.evaluation.logistic import GRID
from prototile.evaluation.splits import held_out

DIMS, TRAIN, TEST, K, TEMPERATURE = 384, 50_000, 10_000, 20, 0.07
METHOD = {
    "time": (
        "One thread (also of BLAS and OpenMP), process CPU time (GPU: events); every contestant of a case runs once "
        "before any runs again: nearest neighbours three times, of which the least counts, the fits once."
    ),
    "memory": (
        "Peak resident memory of the first call less what was resident before it (GPU: allocated memory), so without "
        "the features. MB are 2^20 bytes."
    ),
    "knn": (
        f"k = {K}, votes exp(s / {TEMPERATURE}). scikit-learn: KNeighborsClassifier, brute force, Euclidean on "
        "normalised rows, its fastest way, and the cosine metric, which gives the same neighbours. The products alone, "
        "in float32, are the floor for both."
    ),
    "logistic": (
        "All of the protocol: 45 fits of 40,000 images, each judged on 10,000 others, then one of all 50,000. "
        "scikit-learn as in the original: L-BFGS, at most 100 iterations, warm start, from the weakest "
        "regularisation on; and in float32 from the strongest on, which is our order. Tolerance 1e-4 for all."
    ),
}


@dataclass(frozen=True)
class Data:
    x: Tensor
    y: Tensor
    queries: Tensor
    wanted: Tensor


def drawn(classes: int, *, quick: bool) -> Data:
    """Classes on centres of small distance; deviations fall from 1 to 1/30 along the dims, which then are turned."""
    torch.manual_seed(0)
    dims, counts = (32, (600, 200)) if quick else (DIMS, (TRAIN, TEST))
    spread = torch.logspace(0, -1.5, dims)
    turn = torch.linalg.qr(torch.randn(dims, dims)).Q
    centres = 0.25 * torch.randn(classes, dims)
    parts = []
    for n in counts:
        y = torch.randint(classes, (n,))
        parts += [((centres[y] + torch.randn(n, dims)) * spread) @ turn + 0.1, y]
    return Data(*parts)


def ours_knn(data: Data, device: torch.device) -> float:
    return knn(data.x, data.y, data.queries, data.wanted, (K,), device=device).top1[K]


def theirs_knn(data: Data, metric: str) -> float:
    x, queries = (torch.nn.functional.normalize(part).numpy() for part in (data.x, data.queries))

    def votes(distances: np.ndarray) -> np.ndarray:
        cosines = 1 - distances if metric == "cosine" else 1 - distances**2 / 2
        return np.exp(cosines / TEMPERATURE)

    machine = KNeighborsClassifier(K, weights=votes, algorithm="brute", metric=metric)
    return float(machine.fit(x, data.y.numpy()).score(queries, data.wanted.numpy()))


def products(data: Data) -> float:
    """The floor of all that multiplies: queries by training images, in blocks on the CPU, nothing done with them."""
    scratch = torch.empty(1024 * 16384)
    for some in data.queries.split(1024):
        for block in data.x.split(16384):
            torch.mm(some, block.T, out=scratch[: len(some) * len(block)].view(len(some), len(block)))
    return float("nan")


def ours_logistic(data: Data, device: torch.device) -> float:
    return logistic(data.x, data.y, data.queries, data.wanted, device=device).value


def theirs_logistic(data: Data, dtype: type, *, weakest_first: bool) -> float:
    kept, held = held_out(data.y, 0.2)
    x, queries, y = data.x.numpy().astype(dtype), data.queries.numpy().astype(dtype), data.y.numpy()
    machine, best = LogisticRegression(warm_start=True, max_iter=100, tol=1e-4), (-1.0, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in sorted(GRID, reverse=weakest_first):
            score = machine.set_params(C=c).fit(x[kept], y[kept]).score(x[held], y[held])
            best = max(best, (float(score), c))
        machine.set_params(C=best[1]).fit(x, y)
    return float(machine.score(queries, data.wanted.numpy()))


Contestants = dict[str, Callable[[], float]]


def knn_contest(data: Data, device: torch.device) -> Contestants:
    return {
        "prototile": lambda: ours_knn(data, device),
        "the products alone": lambda: products(data),
        "scikit-learn, Euclidean": lambda: theirs_knn(data, "euclidean"),
        "scikit-learn, cosine": lambda: theirs_knn(data, "cosine"),
    }


def logistic_contest(data: Data, device: torch.device) -> Contestants:
    return {
        "prototile": lambda: ours_logistic(data, device),
        "scikit-learn, float64": lambda: theirs_logistic(data, np.float64, weakest_first=True),
        "scikit-learn, float32": lambda: theirs_logistic(data, np.float32, weakest_first=True),
        "scikit-learn, float32, our order": lambda: theirs_logistic(data, np.float32, weakest_first=False),
    }


@dataclass(frozen=True)
class Case:
    name: str
    classes: int
    contest: Callable[[Data, torch.device], Contestants]
    rounds: int


CASES = (
    Case("knn, 10 classes", 10, knn_contest, 3),
    Case("logistic, 10 classes", 10, logistic_contest, 1),
    Case("logistic, 100 classes", 100, logistic_contest, 1),
)


def measure_case(case: Case, device: torch.device, *, quick: bool) -> dict[str, Any]:
    data = drawn(case.classes, quick=quick)
    found: dict[str, dict[str, Any]] = {}
    contestants = case.contest(data, device)
    meters = {name: meter(device) if name == "prototile" else CPUMeter() for name in contestants}
    if device.type == "cuda":
        contestants["prototile"]()  # the first call builds handles
    for turn in range(case.rounds):
        for name, call in contestants.items():
            if turn == 0:
                found[name] = first(meters[name], call)
            else:
                found[name]["seconds"].append(meters[name].seconds(call))
    for name, numbers in found.items():
        print(
            f"{case.name:24} {name:34} {min(numbers['seconds']):8.2f} s, {numbers['peak_mb']:7.0f} MB, "
            f"accuracy {numbers['accuracy']}",
            flush=True,
        )
    return {"images": len(data.x), "dims": data.x.shape[1], "contestants": found}


def first(stopwatch: Meter, call: Callable[[], float]) -> dict[str, Any]:
    """Time, memory and result of the first call."""
    result: list[float] = []
    seconds, peak = stopwatch.peak(lambda: stopwatch.seconds(lambda: result.append(call())))
    return {"seconds": [seconds], "peak_mb": peak / MIB, "accuracy": None if math.isnan(result[0]) else result[0]}


def quickest_rival(word: str, of: str = "scikit-learn") -> Callable[[dict[str, Any]], float]:
    """The least time of these rivals over ours, in the worst case of this name."""

    def value(run: dict[str, Any]) -> float:
        ratios = []
        for name, case in run["cases"].items():
            if word in name:
                least = {name: min(x["seconds"]) for name, x in case["contestants"].items()}
                rivals = [seconds for name, seconds in least.items() if name.startswith(of)]
                ratios.append(min(rivals) / least["prototile"])
        if not ratios:
            raise KeyError(word)
        return min(ratios)

    return value


def behind(run: dict[str, Any]) -> float:
    """By how much our accuracy is below the best rival's, in the worst case."""
    if not run["cases"]:
        raise KeyError("cases")
    found = []
    for case in run["cases"].values():
        scores = {name: x["accuracy"] for name, x in case["contestants"].items() if x["accuracy"] is not None}
        found.append(max(scores.values()) - scores["prototile"])
    return max(found)


GOALS = (
    Goal("45 logistic regressions, quickest scikit-learn / ours, time, worst", ">=", 3, quickest_rival("logistic")),
    Goal(
        "nearest neighbours, scikit-learn by cosine / ours, time", ">=", 3, quickest_rival("knn", "scikit-learn, cos")
    ),
    Goal("nearest neighbours, quickest scikit-learn / ours, time", ">=", 3, quickest_rival("knn")),
    Goal("accuracy below the best of all, worst", "<=", 0.003, behind),
)


def run(only: list[str] | None, device: torch.device, *, quick: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    packages = ("scikit-learn", "numpy")
    found: dict[str, Any] = {"quick": quick, "device": device.type, "machine": machine(device, packages)}
    wanted = [case for case in CASES if only is None or any(word in case.name for word in only)]
    with threadpool_limits(1):
        found["cases"] = {case.name: measure_case(case, device, quick=quick) for case in wanted}
    return found | {"method": METHOD, "goals": [goal.judge(found) for goal in GOALS]}


HEADER = ("contestant", "time, s", "theirs / ours", "memory, MB", "accuracy")


def rows(case: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    ours = min(case["contestants"]["prototile"]["seconds"])
    for name, x in case["contestants"].items():
        least = min(x["seconds"])
        accuracy = "" if x["accuracy"] is None else f"{x['accuracy']:.4f}"
        yield name, f"{least:.3g}", f"{least / ours:.2f}", f"{x['peak_mb']:.0f}", accuracy


def markdown(run: dict[str, Any]) -> str:
    tables = [
        (f"{name}: {case['images']:,} x {case['dims']}", HEADER, rows(case)) for name, case in run["cases"].items()
    ]
    return report.evaluation(run, tables)


if __name__ == "__main__":
    command.main(__doc__ or "", "evaluation", run, markdown)
