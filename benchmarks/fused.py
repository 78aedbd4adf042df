"""Benchmark of the fused kernels: correct first, then time and memory beside bare products and dense losses.

    python benchmarks/fused.py --device cuda            everything, on a GPU: some five minutes
    python benchmarks/fused.py --device cuda --only 65536
    python benchmarks/fused.py --quick                  tiny sizes in Triton's interpreter, to see that it runs
    python benchmarks/fused.py --device cuda --report   the tables anew, from the numbers there are

All are called under autocast to bfloat16, with leaves in float32, as in training. Nothing is written where a value or a
gradient is wrong.
"""

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

if "cuda" not in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import command
import inputs
import report
import rivals
from goals import Goal
from inputs import STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, Case, Problem
from measure import MIB, Contest, compare, machine, meter
from prototile.kernels import launch
from prototile.methods import ibot
from prototile.neighbors import nearest
from prototile.schedules import Progress
from prototile.types import Views
from tasks import TASKS, forced, plain, trained, with_lightly

METHOD = {
    "time": (
        "Events on the stream, the median of at least 3 repetitions, forward, backward and the gradient of prototypes; "
        "every contestant of a case runs once before any runs again. Launching is part of it."
    ),
    "memory": (
        "Peak of allocated memory beyond what was allocated before the call; 'beyond dW' is without the float32 "
        "gradient of the prototypes. MB are 2^20 bytes. What does not fit is listed with the error it ended with."
    ),
    "rate": (
        "The share of a matrix rate that a call reaches: 2 (4 t + 4 s) B K D operations for t teacher and s student "
        "views, those that kernels do, over the seconds, over the rate of a product of two matrices of 8192 x 8192 in "
        "bfloat16."
    ),
    "check": (
        "Loss and gradients of a case with 2,048 prototypes against float64; then the value of every contestant's "
        "first call against ours."
    ),
}
CASES = (
    *(Case("prototypes", k, images=64, teacher_views=2, student_views=12) for k in (8192, 65536, 262144, 1048576)),
    *(Case("prototypes", k, images=256, teacher_views=2, student_views=12) for k in (8192, 65536, 262144, 1048576)),
    *(Case("prototypes", k, images=1024, teacher_views=2, student_views=12) for k in (65536, 262144, 1048576)),
    Case("msn", 65536, images=256, teacher_views=1, student_views=2),
    Case("sinkhorn", 65536, images=3072),
    Case("swav", 65536, images=256, teacher_views=2, student_views=2),
    Case("koleo", 65536),
    Case("nearest", 1048576),
    Case("tiles", 65536, images=256, teacher_views=2, student_views=12),
)
CHECKED = Case("check", 2048, images=16, teacher_views=2, student_views=12)
TILES = (  # queries, keys, warps, stages
    (128, 64, 8, 2),
    (128, 64, 8, 1),
    (128, 32, 8, 2),
    (128, 32, 8, 3),
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (64, 64, 8, 3),
    (64, 128, 8, 2),
)
IBOT = {"images": (64, 100), "prototypes": (1024, 10240)}
LIMIT = 4.0  # seconds per case, unless the least number of repetitions takes longer
GIB = 2**30


def autocast(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    def under_autocast() -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return call()

    return under_autocast


# ---------------------------------------------------------------------------------------------------- contests
def prototypes_contest(case: Case, device: torch.device) -> Contest:
    """DINO's cross-entropy without a centre, in every way there is."""
    problem = inputs.problem(case, device)
    ours = trained(plain, problem)
    contestants: dict[str, Callable[[], Any]] = {
        "fused": forced("fused", ours),
        "portable": forced("direct", ours),
        "official loop": trained(rivals.double_loop, problem),
        "compiled dense": trained(rivals.compiled_einsum(problem)),
        **with_lightly(rivals.lightly_dino, problem),
    }
    if device.type == "cuda":
        contestants["flex attention"] = trained(flex_attention(problem))
    contestants = {name: autocast(call, device) for name, call in contestants.items()}
    contestants["gemm"] = rivals.products(in_bfloat16(problem))
    return Contest(
        contestants,
        problem.leaves,
        problem.gradient_bytes,
        tolerances=dict.fromkeys(contestants, 2e-2) | {"lightly": 0.1},  # bfloat16; lightly has a centre of its own
        compiled=frozenset({"fused", "compiled dense", "flex attention"}),
    )


def in_bfloat16(problem: Problem) -> Problem:
    tensors = {name: x.detach().bfloat16() for name, x in vars(problem).items() if isinstance(x, Tensor)}
    return replace(problem, **tensors)


def flex_attention(problem: Problem) -> rivals.Loss:
    """The stock alternative without matrices in memory: attention of rows over prototypes, and its log-sum-exps."""
    from torch.nn.attention.flex_attention import AuxRequest
    from torch.nn.attention.flex_attention import flex_attention as attention

    torch._dynamo.reset()
    compiled = torch.compile(attention, dynamic=False)
    weights = problem.pairs().table(problem.rows) / problem.case.images

    def half(x: Tensor) -> Tensor:
        return x.bfloat16()[None, None]

    def loss() -> Tensor:
        w = half(problem.prototypes)
        teacher = half(problem.teacher_rows), half(problem.teacher_prototypes)
        v = compiled(*teacher, w, scale=1 / TEACHER_TEMPERATURE)[0, 0].float()
        _, aux = compiled(half(problem.rows), w, w, scale=1 / STUDENT_TEMPERATURE, return_aux=AuxRequest(lse=True))
        t, s = weights.shape
        by_view = v.unflatten(0, (t, -1)), problem.rows.unflatten(0, (s, -1))
        agreement = torch.einsum("tbd,sbd,ts->", *by_view, weights) / STUDENT_TEMPERATURE
        return (aux.lse[0, 0].unflatten(0, (s, -1)).sum(1) * weights.sum(0)).sum() - agreement

    return loss


def tiles_contest(case: Case, device: torch.device) -> Contest:
    """Ours with other tiles than those that are chosen: is the choice the best one?"""
    problem = inputs.problem(case, device)

    def with_tiles(shape: tuple[int, int, int, int]) -> Callable[[], Tensor]:
        step = trained(plain, problem)

        def call() -> Tensor:
            with these_tiles(launch.Tiles(*shape)):
                return step()

        return autocast(forced("fused", call), device)

    contestants = {"chosen": autocast(forced("fused", trained(plain, problem)), device)}
    contestants |= {"{} x {}, {} warps, {} stages".format(*shape): with_tiles(shape) for shape in TILES}
    return Contest(contestants, problem.leaves, problem.gradient_bytes, compiled=frozenset(contestants))


@contextmanager
def these_tiles(tiles: launch.Tiles):
    chosen = launch.tiles
    launch.tiles = lambda *_, **__: tiles
    try:
        yield
    finally:
        launch.tiles = chosen


def nearest_contest(case: Case, device: torch.device) -> Contest:
    """Of a million rows the products alone would take a dense form 4 TB."""
    x = inputs.unit(case.prototypes, device, torch.Generator().manual_seed(0))
    contestants = {"default": lambda: nearest(x)[1], "upper triangle": rivals.upper_triangle(x)}
    return Contest(contestants, compiled=frozenset({"default"}))


CONTESTS = TASKS | {"prototypes": prototypes_contest, "tiles": tiles_contest, "nearest": nearest_contest}
WITHIN = ("msn", "sinkhorn", "swav", "koleo")  # of the benchmark of assignments, under autocast
LEFT_OUT = ("stream", "hold", "row", "default, normalizing")


def contest_of(case: Case, device: torch.device) -> Contest:
    contest = CONTESTS[case.task](case, device)
    if case.task not in WITHIN:
        return contest
    calls = {name: autocast(call, device) for name, call in contest.contestants.items() if name not in LEFT_OUT}
    tolerances = dict.fromkeys(calls, 0.1)
    return replace(contest, contestants=calls, tolerances=tolerances, compiled=frozenset({"default"}))


# -------------------------------------------------------------------------------------------------------- runs
def check(case: Case, device: torch.device) -> dict[str, float]:
    """The largest deviations from float64, of the loss and of both gradients against their largest number."""
    problem = inputs.problem(case, device)
    exact = inputs.problem(case, device)
    exact = replace(exact, **{n: x.detach().double() for n, x in vars(exact).items() if isinstance(x, Tensor)})
    for leaf in exact.leaves:
        leaf.requires_grad_()
    reference = forced("naive", trained(plain, exact))()
    found = {}
    for dtype in ("bfloat16", "float32"):
        for leaf in problem.leaves:
            leaf.grad = None
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            value = forced("fused", trained(plain, problem))()
        pairs = [(value, reference), *((a.grad, b.grad) for a, b in zip(problem.leaves, exact.leaves, strict=True))]
        for name, (ours, theirs) in zip(("loss", "dz", "dw"), pairs, strict=True):
            found[f"{name}, {dtype}"] = float((ours.double() - theirs).abs().max() / theirs.abs().max())
    limits = {"bfloat16": 2e-2, "float32": 1e-4}
    wrong = [f"{name}: {error:.1e}" for name, error in found.items() if not error < limits[name.split(", ")[1]]]
    if wrong:
        raise SystemExit(f"the fused kernels are wrong ({', '.join(wrong)}): nothing else was measured")
    return found


def matrix_rate(device: torch.device) -> float:
    """Operations per second of a large product in bfloat16."""
    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    clock = meter(device)
    clock.seconds(lambda: a @ b)
    return 2 * size**3 / min(clock.seconds(lambda: a @ b) for _ in range(10))


def measure_case(case: Case, device: torch.device, rate: float, *, quick: bool) -> dict[str, Any]:
    contest = contest_of(case, device)
    found = compare(contest, meter(device), limit=0.1 if quick else LIMIT)
    operations = 8 * (case.teacher_views + case.student_views) * case.images * case.prototypes * inputs.DIMS
    print(case.name, flush=True)
    for name, result in found.items():
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if "error" in result:
            print(f"  {name:32} failed: {result['error']}", flush=True)
            continue
        result["rate_share"] = operations / result["median_seconds"] / rate if operations else None
        print(f"  {name:32} {result['median_seconds'] * 1e3:10.3f} ms {result['peak_mb']:9.0f} MB", flush=True)
    return {"dw_mb": contest.gradient_bytes / MIB, "contestants": found}


def ibot_memory(device: torch.device, *, quick: bool) -> dict[str, float]:
    """The peak of a whole step of iBOT on a ViT-S/16, forward and backward, in GB; local views are left out."""
    from prototile.backbones.vit import vit

    found = {}
    side, patch = (224, 16) if not quick else (32, 8)
    images = IBOT["images"] if not quick else (2,)
    for count in images:
        for k in IBOT["prototypes"]:
            torch.manual_seed(0)
            backbone = vit("small" if not quick else "tiny", patch=patch, image_size=side, mask_token=True)
            method = ibot(backbone, num_prototypes=k if not quick else k // 16).to(device)
            pixels = torch.randn(2, count, 3, side, side, device=device)
            mask = torch.rand(2, count, (side // patch) ** 2, device=device) < 0.15

            def step(method=method, pixels=pixels, mask=mask) -> None:
                with torch.autocast(device.type, torch.bfloat16):
                    terms = method((Views(pixels, mask=mask),), Progress(0, 10, 1))
                terms.loss.backward()

            step()
            method.zero_grad()
            _, peak = meter(device).peak(step)
            found[f"B={count} K={k}"] = peak / GIB
            print(f"iBOT B={count} K={k}: {peak / GIB:.2f} GB", flush=True)
            del method, backbone
    return found


def run(only: list[str] | None, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Everything that is measured, as it goes into the JSON file."""
    if device.type != "cuda" and not quick:
        raise SystemExit("the fused kernels are for GPUs: --device cuda, or --quick to see here that all runs")

    def wanted(name: str) -> bool:
        return only is None or any(word in name for word in only)

    cases = [case.reduced() if quick else case for case in CASES if wanted(case.name)]
    if quick:
        cases = [replace(case, prototypes=min(case.prototypes, 512), images=min(case.images, 4)) for case in cases]
    found: dict[str, Any] = {"quick": quick, "device": device.type, "machine": machine(device, ("triton",))}
    found["method"] = METHOD
    found["check"] = check(CHECKED.reduced() if quick else CHECKED, device)
    found["matrix_rate"] = rate = matrix_rate(device)
    found["cases"] = {case.name: measure_case(case, device, rate, quick=quick) for case in cases}
    found["ibot_gb"] = ibot_memory(device, quick=quick) if wanted("ibot") else {}
    return found | {"goals": [goal.judge(found) for goal in GOALS]}


# ------------------------------------------------------------------------------------------------------- goals
LARGE = tuple(case.name for case in CASES if case.task == "prototypes" and case.prototypes >= 65536)
ALL_AT_ONCE = "prototypes 2x12 B=1024 K=1048576"


def slower(run: dict[str, Any], name: str) -> float:
    """The least ratio of a rival's time to ours, over the large cases that it could do; None of them is a KeyError."""
    ratios = []
    for case in LARGE:
        contestants = run["cases"][case]["contestants"]
        if "median_seconds" in contestants.get(name, {}):
            ratios.append(contestants[name]["median_seconds"] / contestants["fused"]["median_seconds"])
    if not ratios:
        raise KeyError(name)
    return min(ratios)


def growth(run: dict[str, Any]) -> float:
    low, high = IBOT["prototypes"]
    return max(run["ibot_gb"][f"B={b} K={high}"] - run["ibot_gb"][f"B={b} K={low}"] for b in IBOT["images"])


GOALS = (
    Goal(
        "share of the matrix rate, K >= 65k, least",
        ">=",
        0.45,
        lambda r: min(r["cases"][case]["contestants"]["fused"]["rate_share"] for case in LARGE),
    ),
    Goal("official loop / fused, time, K >= 65k, least", ">=", 5, lambda r: slower(r, "official loop")),
    Goal("lightly / fused, time, K >= 65k, least", ">=", 2.5, lambda r: slower(r, "lightly")),
    Goal("compiled dense / fused, time, K >= 65k, least", ">=", 1.3, lambda r: slower(r, "compiled dense")),
    Goal(
        "GB beyond dW, B = 1024 x 12, K = 1M",
        "<",
        2,
        lambda r: r["cases"][ALL_AT_ONCE]["contestants"]["fused"]["beyond_dw_mb"] / 1024,
    ),
    Goal("growth of a step of iBOT from K = 1,024 to 10,240, in GB, worst of B = 64, 100", "<=", 0.1, growth),
)


def markdown(run: dict[str, Any]) -> str:
    header = ("contestant", "ms", "rivals / ours", "share of rate", "peak MB", "beyond dW MB")
    tables = []
    for name, case in run["cases"].items():
        contestants = case["contestants"]
        ours = next((x["median_seconds"] for x in contestants.values() if "median_seconds" in x), None)
        tables.append((name, header, [_row(each, result, ours) for each, result in contestants.items()]))
    errors = [(name, f"{error:.1e}") for name, error in run["check"].items()]
    tables.append(("Deviation from float64", ("what", "largest / largest number"), errors))
    steps = [(name, f"{size:.2f}") for name, size in run["ibot_gb"].items()]
    tables.append(("A step of iBOT", ("case", "GB"), steps))
    return report.fused(run, tables)


def _row(name: str, result: dict[str, Any], ours: float | None) -> tuple[str, ...]:
    if "error" in result:
        return name, result["error"], "", "", "", ""
    share = result.get("rate_share")
    return (
        name,
        f"{result['median_seconds'] * 1e3:.3f}",
        f"{result['median_seconds'] / ours:.2f}" if ours else "",
        f"{share:.0%}" if share else "",
        f"{result['peak_mb']:,.0f}",
        f"{result['beyond_dw_mb']:,.0f}",
    )


if __name__ == "__main__":
    command.main(__doc__ or "", "fused", run, markdown)
