"""Benchmark of training: images per second from image files to updated weights, of prototile and of lightly.

    python benchmarks/training.py                  everything: about a quarter of an hour on two cores
    python benchmarks/training.py --quick          tiny networks, to see that it runs
    python benchmarks/training.py --only dino      the cases whose names contain a word
    python benchmarks/training.py --device cuda    ViT-S/16 in bf16, with views that the GPU finishes
    python benchmarks/training.py --report         the tables anew, from the numbers there are

Results go to benchmarks/results; those of a partial or quick run, which are not for keeping, to a temporary folder.
Modules: `contests` cases, data and clocks, `trainers` ours, `rival_trainers` lightly's, `goals`, `report`, `command`.
"""

import gc
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import command
import goals
import report
from contests import Case, LoopTrainer, Rate, Trainer, children_seconds, described, write_photos
from measure import machine
from prototile.data import default_workers
from rival_trainers import RIVALS
from trainers import Fit, Ours

METHOD = {
    "what": (
        "A whole step of training: images are read, decoded and made into views by worker processes; student and "
        "teacher see them; loss, gradients, AdamW and the teacher's moving average. float32 on a CPU, bf16 autocast on "
        "a GPU, where prototile's views are finished. Both have the same batches, workers and threads: as many workers "
        "as prototile takes by default, and the cores that are left for training."
    ),
    "time": (
        "Wall clock. In each round every contestant in turn makes so many warm-up steps that no batch is left that was "
        "made while it was not its turn, and is then timed for about as many steps as fill {share:g} seconds, at least "
        "{least}; before its turn starts, the workers of all others must have come to rest. Images per second are the "
        "median over the rounds, beside it their range. `waiting` is the share of that time in which training waited "
        "for data; CPU milliseconds are those of training and workers together, by which it hardly matters what else "
        "the machine does."
    ),
    "check": (
        "After a first step contestants must have done the same work: the same number of tokens through student and "
        "teacher, the same number of trained parameters within 0.1%, and first losses within 20% (heads and prototypes "
        "start at random)."
    ),
    "parts": (
        "Where the time goes is measured apart (CPU time; GPU: wall clock), without workers, so that views stand in "
        "line. `student` and "
        "`teacher` are networks and projectors, forward and backward; products with prototypes belong to the loss; "
        "`update` is AdamW and the moving average."
    ),
}
SHARE, LEAST_STEPS = 5.0, 2  # seconds, and steps, that are timed in a turn
ROUNDS, LIMIT = (2, 9), 75.0  # least and most, and seconds per case within them
PREFETCHED = 2  # batches that each worker holds ready
PROFILED = 2  # steps
CASES = {
    "cpu": (
        Case("dino", "tiny", small=False, batch=16, prototypes=65536),
        Case("msn", "tiny", small=False, batch=16, prototypes=1024),
        Case("dino", "tiny", small=True, batch=32, prototypes=4096),
        Case("msn", "tiny", small=True, batch=32, prototypes=1024),
    ),
    "cuda": (
        Case("dino", "small", small=False, batch=64, prototypes=65536),
        Case("dino", "small", small=False, batch=256, prototypes=65536),
        Case("msn", "small", small=False, batch=128, prototypes=1024),
        Case("dino", "tiny", small=True, batch=512, prototypes=4096),
    ),
}
ABOUT = {
    "loop": "prototile's Loader, method and Optimization in a plain loop",
    "fit": "the same through `prototile.training.fit`: Lightning's Trainer, with the guard against broken numbers",
    "lightly": (
        "LightlyDataset, its transform, MaskedVisionTransformerTIMM around the same timm network, its head, loss and "
        "`update_momentum`, in a loop like its examples', where all views of a size go through the network together. "
        "Made equal: positions and MSN's prototypes learn, its focal views are whole. What is left of other work: "
        "its jitter is stronger for MSN, its MSN head has no biases before batch norm, its AdamW decays biases, too"
    ),
}

Make = Callable[[Case, Path, torch.device, int], Trainer]


def contestants(case: Case) -> dict[str, Make]:
    return {"loop": Ours, "fit": Fit, "lightly": RIVALS[case.method]}


# ------------------------------------------------------------------------------------------------------- check
def same_work(found: dict[str, dict[str, Any]]) -> None:
    """A ValueError where contestants did not do the same."""
    (name, ours), *others = found.items()
    for other, theirs in others:
        for what, tolerance in (
            ("student_tokens", 0),
            ("teacher_tokens", 0),
            ("parameters", 1e-3),
            ("first_loss", 0.2),
        ):
            if abs(theirs[what] - ours[what]) > tolerance * ours[what]:
                raise ValueError(f"{other} is not like {name}: {what} are {theirs[what]:g}, not {ours[what]:g}")


# -------------------------------------------------------------------------------------------------------- turns
def rest(limit: float = 120.0) -> None:
    """Waits until the worker processes have nothing more to do: their queues are full."""
    before, end = -1.0, time.monotonic() + limit
    while (now := children_seconds()) != before and time.monotonic() < end:
        before = now
        time.sleep(0.3)


def rounds(trainers: dict[str, Trainer], workers: int, *, quick: bool) -> dict[str, list[Rate]]:
    """Every trainer's rate in every round."""
    (least, most), limit = ((1, 1), 1.0) if quick else (ROUNDS, LIMIT)
    warmup = PREFETCHED * workers + 1
    steps = dict.fromkeys(trainers, 1)
    rates: dict[str, list[Rate]] = {name: [] for name in trainers}
    if not quick:
        steps = {name: _steps(trainer) for name, trainer in trainers.items()}
    began = time.monotonic()
    for number in range(1, most + 1):
        for name, trainer in trainers.items():
            gc.collect()  # what `fit` leaves behind
            rest()
            rates[name].append(trainer.measure(steps[name], warmup))
        if number >= least and (time.monotonic() - began) * (number + 1) / number > limit:
            break
    return rates


def _steps(trainer: Trainer) -> int:
    """How many of its steps fill a turn."""
    rest()
    began = time.perf_counter()
    trainer.measure(1, 1)
    return max(LEAST_STEPS, round(2 * SHARE / (time.perf_counter() - began)))


# --------------------------------------------------------------------------------------------------------- run
def contest(case: Case, device: torch.device, workers: int, *, quick: bool) -> dict[str, Any]:
    sized = case.quick() if quick else case
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        photos = Path(folder)
        write_photos(photos, quick=quick)
        results, work, shares = _looked_at(sized, photos, device, quick=quick)
        makes = {name: make for name, make in contestants(sized).items() if name not in results}
        trainers = {name: make(sized, photos, device, workers) for name, make in makes.items()}
        for name, rates in rounds(trainers, workers, quick=quick).items():
            results[name] = _numbers(rates) | work.get(name, {}) | ({"parts": shares[name]} if name in shares else {})
        for trainer in trainers.values():
            trainer.close()
        trainers.clear()
        gc.collect()
    return {"note": described(sized), "contestants": {name: results[name] for name in ABOUT}}


def _looked_at(case: Case, photos: Path, device: torch.device, *, quick: bool) -> tuple[dict, dict, dict]:
    """Who failed, what work the others did in a first step, and where their time went: each alone, without workers."""
    failed: dict[str, Any] = {}
    work: dict[str, Any] = {}
    shares: dict[str, Any] = {}
    for name, make in contestants(case).items():
        if make is Fit:
            continue
        try:
            trainer = make(case, photos, device, 0)
            assert isinstance(trainer, LoopTrainer)
            work[name] = trainer.check()
            shares[name] = trainer.profile(1 if quick else PROFILED)
            trainer.close()
        except Exception as error:  # a rival that fails must not cost the numbers of the others
            traceback.print_exc()
            failed[name] = {"error": type(error).__name__}
        gc.collect()
    same_work(work)
    return failed, work, shares


def _numbers(rates: list[Rate]) -> dict[str, Any]:
    images = [rate.images_per_second for rate in rates]
    waiting = [rate.waiting for rate in rates if rate.waiting is not None]
    found: dict[str, Any] = {"images_per_second": statistics.median(images), "rounds": images}
    found["cpu_seconds"] = statistics.median(rate.cpu_seconds for rate in rates)
    return found | ({"waiting": statistics.median(waiting)} if waiting else {})


def run(only: list[str] | None, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Everything that is measured, as it goes into the JSON file."""
    torch.manual_seed(0)
    workers = default_workers()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - workers))
    versions = machine(device, ("torchvision", "timm", "lightning", "pillow")) | {"workers": workers}
    method = {name: text.format(share=SHARE, least=LEAST_STEPS) for name, text in METHOD.items()}
    found: dict[str, Any] = {"quick": quick, "device": device.type, "machine": versions, "method": method, "cases": {}}
    for case in CASES[device.type]:
        if only is None or any(word in case.name for word in only):
            found["cases"][case.name] = contest(case, device, workers, quick=quick)
            _print_summary(case.name, found["cases"][case.name])
    found["about"] = ABOUT
    return found | {"goals": goals.training(found, [case.name for case in CASES[device.type]])}


def _print_summary(name: str, case: dict[str, Any]) -> None:
    print(f"{name}  {case['note']}", flush=True)
    for contestant, result in case["contestants"].items():
        rate = f"failed: {result.get('error')}"
        if "error" not in result:
            rate = f"{result['images_per_second']:9.2f} images/s {1e3 * result['cpu_seconds']:9.2f} CPU ms/image"
        parts = ", ".join(f"{part} {share:.0%}" for part, share in result.get("parts", {}).items())
        print(f"  {contestant:12} {rate}  {parts}", flush=True)


if __name__ == "__main__":
    command.main(__doc__ or "", "training", run, report.training)
