"""The goals, and whether a run meets them. They were set before the package was written; none is tuned to a result.

Ratios of rivals are theirs over ours, in time and in peak memory; 'ours' is the default plan unless another is named.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

ONE_TO_ONE = ("cross-entropy 1x1 B=256 K=8192", "cross-entropy 1x1 B=256 K=65536")
MULTI_CROP = ("cross-entropy 2x12 B=64 K=8192", "cross-entropy 2x12 B=32 K=65536")
CROSS_ENTROPIES = (*ONE_TO_ONE, *MULTI_CROP, "cross-entropy 2x12 B=8 K=262144")
DINO = ("dino 2x12 B=64 K=4096", "dino 2x12 B=64 K=8192", "dino 2x12 B=16 K=65536")
IBOT = "ibot 2x12 B=4 K=8192"
MSN = "msn 1x2 B=256 K=65536"
SINKHORN = "sinkhorn N=512 K=65536"
SWAV = ("swav 2x2 B=256 K=8192", "swav 2x2 B=256 K=65536")
KOLEO = ("koleo K=16384", "koleo K=65536")
NEAREST = ("nearest K=16384", "nearest K=65536")
PHOTOGRAPHS = "500 x 375"


class Results:
    """Numbers of a run of `assignments` by case and contestant; a KeyError where something was not measured."""

    def __init__(self, run: dict[str, Any]):
        self._cases, self._accuracy = run["cases"], run["accuracy"]

    def number(self, what: str, case: str, contestant: str = "default") -> float:
        return self._cases[case]["contestants"][contestant][what]

    def slower(self, case: str, contestant: str, than: str = "default") -> float:
        return self.number("seconds", case, contestant) / self.number("seconds", case, than)

    def larger(self, case: str, contestant: str, than: str = "default", *, what: str = "peak_mb") -> float:
        return self.number(what, case, contestant) / max(self.number(what, case, than), 1e-3)

    def dw_mb(self, case: str) -> float:
        return self._cases[case]["dw_mb"]

    def worst_error(self, dtype: str) -> float:
        ours = ("direct", "row", "stream")
        rows = [row for row in self._accuracy if row["dtype"] == dtype and row["contestant"] in ours]
        if not rows:
            raise KeyError("accuracy")
        return max(max(row["dz"], row["dw"]) for row in rows)


@dataclass(frozen=True)
class Goal:
    """What is wanted of a value of a benchmark's results."""

    text: str
    relation: Literal["<=", ">=", "<", ">"]
    bound: float
    value: Callable[[Any], float]

    def judge(self, results: Any) -> dict[str, Any]:
        """The goal with the run's value; both `value` and `met` are None where the run lacks a number."""
        try:
            value = self.value(results)
        except KeyError:
            value = None
        compare = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}[self.relation]
        met = None if value is None else compare(value, self.bound)
        return {"goal": self.text, "relation": self.relation, "bound": self.bound, "value": value, "met": met}


def _worst(cases: tuple[str, ...], value: Callable[[str], float]) -> float:
    return max(value(case) for case in cases)


def _least(cases: tuple[str, ...], value: Callable[[str], float]) -> float:
    return min(value(case) for case in cases)


ASSIGNMENTS = (
    Goal(
        "direct / GEMM only, time, 2x12 views, K 8k-65k, worst",
        "<=",
        1.20,
        lambda r: _worst(MULTI_CROP, lambda case: r.slower(case, "direct", "gemm")),
    ),
    Goal(
        "direct / GEMM only, time, 1:1, worst",
        "<=",
        1.25,
        lambda r: _worst(ONE_TO_ONE, lambda case: r.slower(case, "direct", "gemm")),
    ),
    Goal("official loop, time, 2x12 B=32 K=65k", ">=", 3, lambda r: r.slower(MULTI_CROP[1], "official loop")),
    Goal("lightly DINOLoss, time, B=16 K=65k", ">=", 3, lambda r: r.slower(DINO[2], "lightly")),
    Goal(
        "lightly DINOLoss, time, any K >= 4k, worst",
        ">=",
        1,
        lambda r: _least(DINO, lambda case: r.slower(case, "lightly")),
    ),
    Goal(
        "torch.compile dense / direct, time, worst cross-entropy",
        ">=",
        1.05,
        lambda r: _least(CROSS_ENTROPIES, lambda case: r.slower(case, "compiled einsum", "direct")),
    ),
    Goal(
        "torch.compile dense / direct, memory beyond dW, worst cross-entropy",
        ">=",
        2,
        lambda r: _least(
            CROSS_ENTROPIES, lambda case: r.larger(case, "compiled einsum", "direct", what="beyond_dw_mb")
        ),
    ),
    Goal(
        "stream, memory beyond dW in MB, any K, worst cross-entropy",
        "<=",
        64,
        lambda r: _worst(CROSS_ENTROPIES, lambda case: r.number("beyond_dw_mb", case, "stream")),
    ),
    Goal(
        "default, memory beyond dW / max(64 MB, dW), worst cross-entropy",
        "<=",
        1,
        lambda r: _worst(CROSS_ENTROPIES, lambda case: r.number("beyond_dw_mb", case) / max(64, r.dw_mb(case))),
    ),
    Goal("lightly MSNLoss, time, K=65k, ours given unit rows", ">=", 2.5, lambda r: r.slower(MSN, "lightly")),
    Goal("lightly MSNLoss, memory, K=65k, ours given unit rows", ">=", 4, lambda r: r.larger(MSN, "lightly")),
    Goal(
        "lightly MSNLoss, time, K=65k, ours normalising too",
        ">=",
        2.5,
        lambda r: r.slower(MSN, "lightly", "default, normalizing"),
    ),
    Goal(
        "lightly MSNLoss, memory, K=65k, ours normalising too",
        ">=",
        4,
        lambda r: r.larger(MSN, "lightly", "default, normalizing"),
    ),
    Goal("official iBOT cls + patch, time", ">=", 3, lambda r: r.slower(IBOT, "official, all patches")),
    Goal("official iBOT cls + patch, memory", ">=", 8, lambda r: r.larger(IBOT, "official, all patches")),
    Goal("DINOv2-style Sinkhorn / hold, time", ">=", 2, lambda r: r.slower(SINKHORN, "dinov2 style", "hold")),
    Goal("DINOv2-style Sinkhorn / stream, memory", ">=", 50, lambda r: r.larger(SINKHORN, "dinov2 style", "stream")),
    Goal("Sinkhorn stream / DINOv2-style, time", "<=", 1.2, lambda r: r.slower(SINKHORN, "stream", "dinov2 style")),
    Goal("lightly SwaVLoss, time, K=8k", ">=", 1.1, lambda r: r.slower(SWAV[0], "lightly")),
    Goal("lightly SwaVLoss, time, K=65k", ">=", 1.6, lambda r: r.slower(SWAV[1], "lightly")),
    Goal(
        "nearest / upper-triangle GEMM, time, worst",
        "<=",
        1.5,
        lambda r: _worst(NEAREST, lambda case: r.slower(case, "default", "gemm")),
    ),
    Goal("nearest, memory in MB, K=65k", "<", 256, lambda r: r.number("peak_mb", NEAREST[1])),
    Goal("KoLeo / upper-triangle GEMM, time, K=16k", "<=", 1.5, lambda r: r.slower(KOLEO[0], "default", "gemm")),
    Goal("KoLeo with its gradient, memory in MB, K=65k", "<", 256, lambda r: r.number("peak_mb", KOLEO[1])),
    Goal("float32, relative error of dz and dW, worst", "<=", 2e-6, lambda r: r.worst_error("float32")),
    Goal("float64, relative error of dz and dW, worst", "<=", 1e-12, lambda r: r.worst_error("float64")),
)


def _faster(ours: str) -> Callable[[dict[str, Any]], float]:
    """Images per second of ours over lightly's, from photographs of usual size."""

    def value(run: dict[str, Any]) -> float:
        rates = run["cases"][PHOTOGRAPHS]["contestants"]
        return rates[ours]["images_per_second"] / rates["lightly"]["images_per_second"]

    return value


VIEWS = (
    Goal(f"exact / lightly DINOTransform, images per second, {PHOTOGRAPHS}", ">=", 3, _faster("exact")),
    Goal(f"linear / lightly DINOTransform, images per second, {PHOTOGRAPHS}", ">=", 4, _faster("linear")),
    Goal(f"crops only / lightly DINOTransform, images per second, {PHOTOGRAPHS}", ">=", 7, _faster("crops only")),
)


def assignments(run: dict[str, Any]) -> list[dict[str, Any]]:
    """All goals of the benchmark of assignments; they are for a CPU."""
    return [goal.judge(Results(run)) for goal in ASSIGNMENTS] if run["device"] == "cpu" else []


def views(run: dict[str, Any]) -> list[dict[str, Any]]:
    """All goals of the benchmark of views."""
    return [goal.judge(run) for goal in VIEWS]


def training(run: dict[str, Any], cases: list[str]) -> list[dict[str, Any]]:
    """Faster than lightly in every case: images per second of ours over its."""

    def value(case: str, ours: str) -> Callable[[dict[str, Any]], float]:
        def ratio(run: dict[str, Any]) -> float:
            rates = run["cases"][case]["contestants"]
            return rates[ours]["images_per_second"] / rates["lightly"]["images_per_second"]

        return ratio

    wanted = (
        Goal(f"{ours} / lightly, {case}", ">", 1, value(case, ours)) for case in cases for ours in ("loop", "fit")
    )
    return [goal.judge(run) for goal in wanted]
