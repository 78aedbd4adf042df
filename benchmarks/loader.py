"""Any data through the loader: one epoch of DINO's views, what came out of it, and how fast.

    python benchmarks/loader.py digits photos=folder:/data/photos cifar=cifar10:/data train=/data/train-{000..009}.tar

Each argument is a data set as `prototile.data.open_data` takes it, with a name for the table before it. Images of up to
64 pixels get the views for small images. Nothing consumes the batches: the loader does nothing but work.
"""

import argparse
import contextlib
import re
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import report
from command import RESULTS
from measure import machine
from prototile.data import BadImage, Loader, Shards, Source, default_workers, open_data
from prototile.data.images import decode
from prototile.data.shards import Part, read
from prototile.views import Augmentation, small
from prototile.views.presets import dino

SAMPLE = 100  # images whose size is looked at
METHOD = {
    "what": (
        "A whole epoch in batches of 32 (small images: 256), with floats made by the workers, after a first batch for "
        "which these are started. Images per second by the wall clock, of all workers together. `seen` are the images "
        "that came, each once; what is missing is the last, incomplete batch, or bad. Mean and deviation are those of "
        "the first group's normalised pixels."
    )
}


@dataclass(frozen=True)
class Job:
    name: str
    data: Source | Shards
    augmentation: Augmentation
    views: str
    batch: int


def job(argument: str) -> Job:
    name, _, spec = argument.partition("=") if re.match("[^:/{]*=", argument) else ("", "", argument)
    data = open_data(spec)
    side = statistics.median(min(image.shape[1:]) for image in _first_images(data))
    if side > 64:
        return Job(name or spec, data, dino(local_views=10), "2 x 224 + 10 x 96", 32)
    return Job(name or spec, data, small(dino(local_views=4)), "2 x 32 + 4 x 16", 256)


def _first_images(data: Source | Shards) -> Iterator[torch.Tensor]:
    """Those of the first images that can be read."""
    if isinstance(data, Source):
        reads = [partial(data.image, index) for index in range(min(SAMPLE, len(data)))]
    else:
        _, samples = next(read(data, Part(0, 0, min(SAMPLE, data.num_images))))
        reads = [partial(decode, sample.data) for sample in samples]
    for image in reads:
        with contextlib.suppress(BadImage):
            yield image()


def epoch(job: Job) -> dict[str, Any]:
    """One epoch, looked at: are all images there, once, and what do pixels and labels look like?"""
    loader = Loader(job.data, job.augmentation, job.batch)
    next(iter(loader))
    loader.bad.reasons.clear()
    seen, labels, means, deviations = [], set(), [], []
    for batch in loader:
        images = batch.views[0].images
        seen += batch.indices.tolist()
        labels |= set() if batch.labels is None else set(batch.labels.flatten().tolist()) - {-1}
        means.append(images.mean().item())
        deviations.append(images.std().item())
    assert len(seen) - len(set(seen)) <= len(loader.bad), "an image came twice"
    return {
        "images": len(job.data) if isinstance(job.data, Source) else job.data.num_images,
        "views": job.views,
        "classes": len(labels),
        "seen": len(set(seen)),
        "bad": dict(loader.bad.reasons),
        "mean": statistics.mean(means),
        "std": statistics.mean(deviations),
        "images_per_second": loader.waiting.images / loader.waiting.total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", metavar="[NAME=]DATA")
    parser.add_argument("--keep", action="store_true", help="write to benchmarks/results, not to a temporary folder")
    options = parser.parse_args()
    folder = RESULTS if options.keep else Path(tempfile.mkdtemp(prefix="benchmarks-"))
    run: dict[str, Any] = {
        "quick": False,
        "device": "cpu",
        "machine": machine(torch.device("cpu"), ("torchvision", "pillow")) | {"workers": default_workers()},
        "method": METHOD,
        "data": {},
    }
    for argument in options.data:
        each = job(argument)
        run["data"][each.name] = epoch(each)
        print(each.name, run["data"][each.name], flush=True)
    report.save(run, report.loader(run), folder, "loader")
    print(f"loader.json and loader.md are in {folder}")


if __name__ == "__main__":
    main()
