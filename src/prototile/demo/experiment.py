"""The whole experiment: every arm with every seed, two runs side by side, and what it cost."""

import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch

from prototile.demo import processes
from prototile.demo.arms import ARMS
from prototile.demo.data import TRAIN, digits
from prototile.demo.measures import EPSILON
from prototile.demo.prices import prices
from prototile.demo.training import Job, Outcome, train
from prototile.reports.demo_result import Machine, Result, Settings

STEPS, QUICK_STEPS = 400, 300  # with 200 the collapse is only half way
PICTURED = "koleo"  # the arm whose nearest neighbours are shown

OnSteps = Callable[[Job, int], None]
OnDone = Callable[[Job, Outcome], None]


def run(
    seeds: int = 3,
    *,
    quick: bool = False,
    workers: int = 2,
    settings: Settings | None = None,
    on_steps: OnSteps | None = None,
    on_done: OnDone | None = None,
) -> Result:
    """Trains four arms with seeds 0, 1, ..., `workers` at a time in processes of one thread (0: all in this process).

    `quick` is one seed and fewer steps. In a script, call it below `if __name__ == "__main__":`, as all that starts
    processes.
    """
    if seeds < 1 or workers < 0:
        raise ValueError(f"there must be at least one seed and no negative number of workers, got {seeds}, {workers}")
    start = time.perf_counter()
    settings = settings_for(quick=quick) if settings is None else settings
    chosen = tuple(range(1 if quick else seeds))
    jobs = [Job(arm, seed, settings, pictures=seed == chosen[0]) for seed in chosen for arm in ARMS]
    outcomes = processes.run(
        train,
        jobs,
        workers=workers,
        on_steps=on_steps or (lambda job, steps: None),
        on_done=on_done or (lambda job, outcome: None),
    )
    return Result(
        when=datetime.now().astimezone().isoformat(timespec="minutes"),
        seconds=time.perf_counter() - start,
        quick=quick,
        seeds=chosen,
        settings=settings,
        machine=this_machine(),
        arms=ARMS,
        runs=tuple(outcome.run for outcome in outcomes),
        sheets=tuple(outcome.sheet for outcome in outcomes if outcome.sheet is not None),
        queries=next(outcome.queries for outcome in outcomes if outcome.queries and outcome.run.arm == PICTURED),
        queries_arm=PICTURED,
        prices=prices(),
    )


def settings_for(*, quick: bool) -> Settings:
    return Settings(
        num_prototypes=512,
        steps=QUICK_STEPS if quick else STEPS,
        batch=256,
        lr=5e-3,
        train_images=TRAIN,
        test_images=len(digits()[1]),
        epsilon=EPSILON,
    )


def this_machine() -> Machine:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    versions = {"prototile": version("prototile"), "Python": platform.python_version(), "torch": torch.__version__}
    return Machine(_processor(), cores, versions)


def _processor() -> str:
    """Its name where Linux tells it, else its kind."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
