"""What experiments share: command line, one run of training, a look at what it made, statistics over seeds, files.

An experiment trains a few arms, each with the same seeds, and compares them seed by seed: arms of one seed have the
same first weights, order of images and views. It says beforehand what counts as a success, and when it says nothing.

    toy_prior    which prior keeps which factor (Assran et al. 2023, section 5.1)
    collapse     partial prototype collapse and its remedy (Govindarajan et al. 2024)

They lie among the benchmarks because they are run and written down like these: by hand, side by side, with the machine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import t as student_t
from torch import Tensor

import report
from measure import machine
from prototile.assignments import Assignments
from prototile.data import Loader, Source, default_workers
from prototile.evaluation import extract
from prototile.evaluation.features import evaluating
from prototile.methods import Prototypical
from prototile.methods.network import Network
from prototile.training.folder import environment
from prototile.training.guard import Diverged
from prototile.training.optimization import Optimization
from prototile.training.run import fit
from prototile.views import Augmentation, Normalization

RESULTS = Path(__file__).parents[1] / "docs" / "results"
QUICK_IMAGES = 256
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    data: str
    seeds: int
    epochs: int
    batch: int
    device: torch.device
    workers: int
    compile: bool
    quick: bool
    out: Path

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


def parser(doc: str, *, data: str, seeds: int, epochs: int, batch: int) -> argparse.ArgumentParser:
    """The arguments that every experiment takes, with these defaults."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument("--data", metavar="DATA", help=f"as prototile.data.open_source takes it ({data})")
    found.add_argument("--seeds", type=int, default=seeds, help="paired runs of each arm (%(default)s)")
    found.add_argument("--epochs", type=int, default=epochs, help="(%(default)s)")
    found.add_argument("--batch", type=int, default=batch, help="(%(default)s)")
    found.add_argument("--device", choices=("cpu", "cuda"), help="by default a GPU where there is one")
    found.add_argument("--workers", type=int, default=default_workers(), help="processes that make views (%(default)s)")
    found.add_argument("--compile", action="store_true", help="compile the backbones")
    found.add_argument("--quick", action="store_true", help="tiny networks on a few drawn digits: does it run?")
    found.add_argument("--out", type=Path, metavar="DIR", help=f"the folder for the results (docs/{RESULTS.name})")
    return found


def options(parser: argparse.ArgumentParser, values: argparse.Namespace) -> Options:
    """Checked, and for a quick run made small."""
    if values.quick:
        values.data, values.seeds, values.epochs, values.batch = "digits", 2, 2, 64
    if values.data is None:
        parser.error("say where the data are: --data, or --quick to see only that it runs")
    for name in ("seeds", "epochs", "batch"):
        if getattr(values, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(values, name)}")
    device = torch.device(values.device or ("cuda" if torch.cuda.is_available() and not values.quick else "cpu"))
    out = values.out or (Path(tempfile.mkdtemp(prefix="experiments-")) if values.quick else RESULTS)
    return Options(
        values.data,
        values.seeds,
        values.epochs,
        values.batch,
        device,
        0 if values.quick else values.workers,
        values.compile,
        values.quick,
        out,
    )


# ------------------------------------------------------------------------------------------------------ training
def train(
    method: Prototypical,
    source: Source,
    augmentation: Augmentation,
    optimization: Optimization,
    options: Options,
    *,
    seed: int,
) -> dict[str, Any]:
    """Trains it where the options say; gives the speed. The method ends on the device."""
    loader = Loader(
        source,
        augmentation,
        options.batch,
        seed=seed,
        epochs=options.epochs,
        device=options.device if options.on_gpu else None,
        workers=options.workers,
    )
    with tempfile.TemporaryDirectory(prefix="experiments-") as folder:
        run = fit(
            method,
            loader,
            optimization=optimization,
            epochs=options.epochs,
            out=folder,
            precision="bf16-mixed" if options.on_gpu else "32-true",
            accelerator="gpu" if options.on_gpu else "cpu",
            devices=1,
            compile=options.compile,
            checkpoint_minutes=1e6,
            seed=seed,
        )
    method.to(options.device)
    images = run.steps * options.batch
    return {"steps": run.steps, "seconds": run.seconds, "images_per_second": images / run.seconds}


@dataclass(frozen=True)
class Seen:
    """What a network makes of images as they are: features, labels and assignments."""

    features: Float[Tensor, "n d"]
    labels: Tensor
    assignments: Assignments


def look(network: Network, source: Source, normalization: Normalization, options: Options, temperature: float) -> Seen:
    """In evaluation mode, of all images, resized to 32 pixels where they have another size."""
    found = extract(
        network.backbone, source, size=32, normalization=normalization, workers=options.workers, device=options.device
    )
    features = found.features.to(options.device)
    with evaluating(network):
        assignments = network.head.prototypes(network.head.projector(features), temperature)
    return Seen(features, found.labels.to(options.device), assignments)


def teacher(method: Prototypical) -> Network:
    assert method.teacher is not None
    return method.teacher


# ---------------------------------------------------------------------------------------------------- statistics
def summary(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, deviation and the mean's standard error; a single value has no deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    error = None if deviation is None else deviation / len(values) ** 0.5
    return {"mean": statistics.fmean(values), "sd": deviation, "se": error}


def paired(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """The differences of pairs: their mean with its t-interval, and how many are positive."""
    differences = [a - b for a, b in zip(values, others, strict=True)]
    found: dict[str, Any] = {"differences": differences, **summary(differences)}
    low = high = None
    if found["se"] is not None:
        half = float(student_t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * found["se"]
        low, high = found["mean"] - half, found["mean"] + half
    return found | {"low": low, "high": high, "positive": sum(x > 0 for x in differences), "pairs": len(differences)}


def entropy(p: Float[np.ndarray, " k"]) -> float:
    return float(-np.sum(p * np.log(np.where(p > 0, p, 1))))


def divergence(p: Float[np.ndarray, " k"], q: Float[np.ndarray, " k"]) -> float:
    """KL(p || q), in nats."""
    return float(np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0)))


# --------------------------------------------------------------------------------------------------------- files
@dataclass(frozen=True)
class Experiment:
    """Arms and seeds, and what becomes of them: `once` is measured for each seed before its arms are trained.

    `judge` gives {"informative", "reasons", "verdict", ...} from all numbers; `text` the Markdown.
    """

    name: str
    arms: Sequence[str]
    settings: dict[str, Any]
    method: dict[str, str]
    once: Callable[[int], dict[str, Any]]
    run: Callable[[str, int], dict[str, Any]]
    judge: Callable[[dict[str, Any]], dict[str, Any]]
    text: Callable[[dict[str, Any]], str]

    def __call__(self, options: Options) -> dict[str, Any]:
        """Runs everything; after each run both files are there, so that what was measured is never lost."""
        began = time.monotonic()
        found: dict[str, Any] = {
            "experiment": self.name,
            "quick": options.quick,
            "device": options.device.type,
            "machine": machine(options.device, ("torchvision", "timm", "lightning"))
            | {"workers": options.workers, "commit": environment()["git"]},
            "method": self.method,
            "settings": {
                "data": options.data.partition(":")[0],
                "seeds": options.seeds,
                "epochs": options.epochs,
                "batch": options.batch,
                "precision": "bf16-mixed" if options.on_gpu else "32-true",
                "compiled": options.compile,
                **self.settings,
            },
            "arms": list(self.arms),
            "untrained": {},
            "runs": [],
        }
        for seed in range(options.seeds):
            found["untrained"][str(seed)] = self.once(seed)
            for arm in self.arms:
                found["runs"].append({"arm": arm, "seed": seed} | self._numbers(arm, seed))
                print(_line(found["runs"][-1]), flush=True)
                found["minutes"] = (time.monotonic() - began) / 60
                self.save(found, options.out)
        print(found["verdict"]["verdict"])
        print(f"{self.name}.json and {self.name}.md are in {options.out}")
        return found

    def _numbers(self, arm: str, seed: int) -> dict[str, Any]:
        try:
            return self.run(arm, seed)
        except Diverged as error:  # what it says is a result; the other runs go on
            return {"error": str(error)}

    def save(self, found: dict[str, Any], folder: Path) -> None:
        found["verdict"] = self.judge(found)
        report.save(found, self.text(found), folder, self.name)


def _line(run: dict[str, Any]) -> str:
    numbers = (f"{name} {value:.4g}" for name, value in run.items() if isinstance(value, float))
    return f"{run['arm']}, seed {run['seed']}: {run.get('error') or ', '.join(numbers)}"


def values(found: dict[str, Any], arm: str, name: str) -> list[float]:
    """A number of an arm, over the seeds for which every arm has run."""
    return [run[name] for run in found["runs"] if run["arm"] == arm and run["seed"] in complete(found)]


def complete(found: dict[str, Any]) -> list[int]:
    """The seeds for which every arm has run to its end."""
    done: dict[int, set[str]] = {}
    for run in found["runs"]:
        if "error" not in run:
            done.setdefault(run["seed"], set()).add(run["arm"])
    return [seed for seed, arms in done.items() if arms == set(found["arms"])]


def judged(reasons: list[str], verdict: str, **rest: Any) -> dict[str, Any]:
    """A verdict, or why there is none."""
    said = f"Not informative: {'; '.join(reasons)}." if reasons else verdict
    return {"informative": not reasons, "reasons": reasons, "verdict": said, **rest}


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± deviation."""
    if not values:
        return ""
    found = summary(values)
    mean = f"{found['mean']:.{digits}f}"
    return mean if found["sd"] is None else f"{mean} ± {found['sd']:.{digits}f}"


def interval(found: dict[str, Any], digits: int = 3) -> str:
    """A paired difference in words."""
    said = f"{found['mean']:+.{digits}f}"
    if found["low"] is not None:
        said += f" ({CONFIDENCE:.0%}: {found['low']:+.{digits}f} to {found['high']:+.{digits}f})"
    return f"{said}, positive in {found['positive']} of {found['pairs']}"


def beginning(title: str, found: dict[str, Any]) -> Iterator[str]:
    """Title, verdict, machine, method and settings."""
    yield f"# {title}\n"
    yield f"Written by `benchmarks/{found['experiment'].partition('-')[0]}.py` from the JSON file beside it.\n"
    if found["quick"]:
        yield "**A quick run on tiny networks and few images: no number here means anything.**\n"
    missing = len(found["arms"]) * found["settings"]["seeds"] - len(found["runs"])
    if missing:
        yield f"**Unfinished: {missing} runs are missing.**\n"
    yield f"**{found['verdict']['verdict']}**\n"
    yield from (f"{text}\n" for text in found["method"].values())
    yield "## Settings\n"
    yield from (f"* {name}: {value}" for name, value in (found["settings"] | found["machine"]).items())
    yield f"* minutes: {found['minutes']:.1f}\n"
