"""Benchmark of views: images per second and core, from JPEG files in memory to DINO's 2 x 224 + 10 x 96 views.

    python benchmarks/views.py                  everything: some minutes
    python benchmarks/views.py --quick          few images, to see that it runs
    python benchmarks/views.py --only 64        the cases whose names contain a word
    python benchmarks/views.py --device cuda    with batches that are finished on the GPU
    python benchmarks/views.py --report         the tables anew, from the numbers there are

Results go to benchmarks/results; those of a partial or quick run, which are not for keeping, to a temporary folder.
Modules: `photographs` the data, `transforms` the contestants, `measure` the method, `goals`, `report`, `command`.

Axes: n views, h w pixels.
"""

import random
import statistics
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import command
import goals
import report
from measure import CPUMeter, CUDAMeter, Meter, in_turns, machine
from photographs import QUALITY, photographs
from prototile.data.images import decode
from prototile.views import IMAGENET, Crops, Draw, Engine, denormalized
from transforms import CONTESTANTS, DINO, Contestant, Make

METHOD = {
    "time": (
        "One process with one thread, process CPU time (GPU: events). In each round every contestant in turn makes all "
        "views of all images again and again for about half a second, with new random numbers each time, so that a "
        "disturbance of the machine hits all of them alike. Images per second are the median over the rounds, beside "
        "it their range."
    ),
    "check": (
        "Before anything is timed, every contestant must give as many views as it should, of the right sizes and type, "
        "and, normalisation undone, pixels in [0, 1] whose mean and deviation are about those of the photographs."
    ),
}
IMAGES = 16
GPU_BATCH = 64
SHARE = 0.5  # seconds per contestant and round
LIMIT = 90.0  # seconds per case


@dataclass(frozen=True)
class Case:
    """JPEG files of one size."""

    width: int
    height: int

    @property
    def name(self) -> str:
        return f"{self.width} x {self.height}"


CASES = Case(500, 375), Case(64, 64)


# ------------------------------------------------------------------------------------------------------- check
def check(views: list[Tensor], dtype: torch.dtype, images: list[Tensor]) -> None:
    """Whether these can be the views of the images; raises a ValueError if not."""
    shapes = sorted(tuple(view.shape) for view in views)
    wanted = sorted((3, view.size, view.size) for view in DINO.views) * len(images)
    if shapes != sorted(wanted) or {view.dtype for view in views} != {dtype}:
        raise ValueError(f"views of {sorted(set(shapes))}, {len(views)} in all, of {views[0].dtype}")
    pixels = torch.cat([_pixels(view) for view in views])
    photos = torch.cat([_pixels(image) for image in images])
    if pixels.min() < -1e-4 or pixels.max() > 1 + 1e-4:
        raise ValueError(f"pixels lie in [{float(pixels.min()):.3g}, {float(pixels.max()):.3g}], not in [0, 1]")
    if abs(pixels.mean() - photos.mean()) > 0.1 or abs(pixels.std() - photos.std()) > 0.1:
        raise ValueError(
            f"pixels are {float(pixels.mean()):.3g} ± {float(pixels.std()):.3g}, "
            f"those of the photographs {float(photos.mean()):.3g} ± {float(photos.std()):.3g}"
        )


def _pixels(view: Tensor) -> Tensor:
    """All values in [0, 1], normalisation undone."""
    if view.dtype == torch.uint8:
        return view.flatten() / 255
    return denormalized(view, IMAGENET).flatten()


# --------------------------------------------------------------------------------------------------------- run
def rates(calls: dict[str, Callable[[], Any]], images: int, meter: Meter, *, quick: bool) -> dict[str, dict[str, Any]]:
    """Images per second of calls that make the views of so many images, all rounds and their median."""
    share, limit = (0.0, 1.0) if quick else (SHARE, LIMIT)
    passes = {name: max(1, round(share / meter.seconds(call))) for name, call in calls.items()}
    repeated = {name: _repeated(call, passes[name]) for name, call in calls.items()}
    found = {}
    for name, seconds in in_turns(repeated, meter, limit).items():
        rounds = [images * passes[name] / x for x in seconds]
        found[name] = {"images_per_second": statistics.median(rounds), "rounds": rounds}
    return found


def _repeated(call: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def on_cpu(case: Case, *, quick: bool) -> dict[str, Any]:
    files = photographs(2 if quick else IMAGES, case.width, case.height)
    made: dict[str, Make] = {}
    failed = {}
    for name, contestant in CONTESTANTS.items():
        try:
            made[name] = _checked(contestant, files)
        except Exception as error:  # a rival that fails must not cost the numbers of the others
            traceback.print_exc()
            failed[name] = {"error": type(error).__name__}
    calls = {name: lambda make=make: make(files) for name, make in made.items()}
    found = rates(calls, len(files), CPUMeter(), quick=quick)
    size = statistics.mean(map(len, files)) / 1e3
    note = f"{len(files)} JPEG files of quality {QUALITY}, {size:.1f} kB on average; views are made on the CPU."
    return {"note": note, "contestants": {name: found.get(name) or failed[name] for name in CONTESTANTS}}


def _checked(contestant: Contestant, files: list[bytes]) -> Make:
    make = contestant.build()
    views = make(files)
    if contestant.gives is not None:
        check(views, contestant.gives, [decode(data) for data in files])
    return make


def on_gpu(case: Case, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Whole batches of crops, finished on the GPU: where they lie there, and from pinned memory."""
    images = [decode(data) for data in photographs(2 if quick else GPU_BATCH, case.width, case.height)]
    exact, linear = Engine(DINO), Engine(replace(DINO, colour="linear"))
    crops = exact.crop(images, Draw.alone(len(images)))
    pinned, there = [x.pin_memory() for x in crops], [x.to(device) for x in crops]

    def finish(engine: Engine, groups: list[Crops]) -> None:
        for group in groups:
            engine.finish(group.to(device))

    calls = {
        "finish, exact": lambda: finish(exact, there),
        "finish, linear": lambda: finish(linear, there),
        "copy and finish, exact": lambda: finish(exact, pinned),
        "copy and finish, linear": lambda: finish(linear, pinned),
    }
    megabytes = sum(group.images.numel() for group in crops) / len(images) / 1e6
    note = f"Batches of {len(images)}, cropped beforehand: {megabytes:.2f} MB of uint8 an image."
    for call in calls.values():
        call()
    return {"note": note, "contestants": rates(calls, len(images), CUDAMeter(), quick=quick)}


def run(only: list[str] | None, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Everything that is measured, as it goes into the JSON file."""
    torch.set_num_threads(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    versions = machine(device, ("torchvision", "pillow"))
    found: dict[str, Any] = {"quick": quick, "device": device.type, "machine": versions, "method": METHOD}
    jobs = {case.name: lambda case=case: on_cpu(case, quick=quick) for case in CASES}
    if device.type == "cuda":
        jobs["finished on the GPU"] = lambda: on_gpu(CASES[0], device, quick=quick)
    found["cases"] = {}
    for name, job in jobs.items():
        if only is None or any(word in name for word in only):
            found["cases"][name] = job()
            _print_summary(name, found["cases"][name])
    found["about"] = {name: contestant.about for name, contestant in CONTESTANTS.items()}
    return found | {"goals": goals.views(found)}


def _print_summary(name: str, case: dict[str, Any]) -> None:
    print(f"{name}  {case['note']}", flush=True)
    for contestant, result in case["contestants"].items():
        rate = f"{result['images_per_second']:9.1f} images/s" if "error" not in result else f"failed: {result['error']}"
        print(f"  {contestant:24} {rate}", flush=True)


if __name__ == "__main__":
    command.main(__doc__ or "", "views", run, report.views)
