"""Experiment: a few epochs more with E2MC and its rivals (Chakraborty et al. 2025).

    python benchmarks/continuing.py --data cifar10:ROOT            as below; meant for a GPU
    python benchmarks/continuing.py --data cifar10:ROOT --small    about 25 minutes of one core
    python benchmarks/continuing.py --quick                        drawn digits: does it run?

VICReg, SwAV and SimSiam networks are trained; then each goes on from its last weights for a few epochs, at a constant
share of the highest learning rate, with its own loss alone and with VCReg, MMCR, AUH and E2MC added in their published
weights. Bases, orders of images and views are the same for all criteria of a seed.

Said beforehand: E2MC does what it claims for a method if, against continuing alone and in every seed, the entropy of
its projections is higher, near and far distances overlap less, and pairs of dims are more uniform (chi-square). Nothing
is said of a method if its entropy did not rise, or if its base is no better than an untrained network by kNN. Gains of
linear classification on 1% of the labels are reported with their standard errors over seeds and not judged: the paper's
are 0.1 to 1.6 points, which so few seeds of small networks cannot resolve.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

import experiments
import report
from experiments import Experiment, Options, interval, judged, paired
from prototile.backbones import resnet
from prototile.data import Loader, Source, Subset, digits, open_source
from prototile.evaluation import Crop, extract, linear
from prototile.methods import METHODS, Method
from prototile.schedules import Constant, Cosine
from prototile.training.continuing import Bench, Judge, KeepBest, continue_training, planned, restore, space_of
from prototile.training.optimization import Optimization
from prototile.training.run import fit
from prototile.views import CIFAR10, Augmentation, preset, small

BASES = ("vicreg", "swav", "simsiam")
CRITERIA = {"continued": "none", "VCReg": "vcreg", "MMCR": "mmcr", "AUH": "auh", "E2MC": "e2mc"}
ALONE, OURS = "continued", "E2MC"
ARMS = tuple(f"{base} {name}" for base in BASES for name in CRITERIA)
LR, DECAY = 1e-3, 1e-4
NUMBERS = {  # what a table says, its digits
    "entropy": ("entropy of a dim", 3),
    "covariance": ("squared covariances of a dim", 6),
    "chi_square": ("chi-square of two dims", 2),
    "distance": ("distance of a dim to uniform", 3),
    "overlap": ("overlap of near and far distances", 3),
    "auc": ("AUC of near and far distances", 3),
    "rankme": ("RankMe of features", 1),
    "knn": ("kNN", 4),
    "linear": ("linear, 1% of the labels", 4),
    "linear_all": ("linear, all labels looked at", 4),
}
METHOD = {
    "what": " ".join((__doc__ or "").split("\n\n")[2].split()),
    "said": " ".join((__doc__ or "").split("\n\n")[3].split()),
    "how": (
        "AdamW, learning rate 1e-3 with a warm-up of a tenth of the epochs and a cosine to 0, weight decay 1e-4; views "
        "of 32 pixels, two of each image. Measures are of images to test on, of the evaluated network's projections "
        "(entropies, distances) and features (kNN, the better of 10 and 20; RankMe; logistic regression on three drawn "
        "1% of the labels, and on all that are looked at). The last weights are measured, whatever the guard says."
    ),
}


@dataclass(frozen=True)
class Scale:
    """How large networks and runs are."""

    width: int
    stem: str
    hidden: int
    bottleneck: int
    prototypes: int
    images: int | None
    limit: int


FULL = Scale(64, "cifar", 2048, 128, 512, None, 10_000)
SMALL = Scale(32, "imagenet", 256, 128, 128, 5000, 2000)
QUICK = Scale(4, "imagenet", 16, 8, 8, experiments.QUICK_IMAGES, 128)


def method(name: str, scale: Scale) -> tuple[Method, dict[str, Any]]:
    """A network, and its description, from which it can be built again."""
    backbone = {"name": "resnet18", "stem": scale.stem, "width": scale.width}
    options = {"hidden": scale.hidden}
    if name != "vicreg":
        options["bottleneck"] = scale.bottleneck
    if name == "swav":
        options["num_prototypes"] = scale.prototypes
    described = {"backbone": {"class_path": "prototile.backbones.resnet", "init_args": backbone}, **options}
    made = METHODS[name](resnet(**backbone), **options)
    return made, {"class_path": f"prototile.methods.{name}", "init_args": described}


def views_of(name: str) -> Augmentation:
    first = small(preset(name), normalization=CIFAR10).groups[0]
    return Augmentation((first,), CIFAR10)


def optimization(epochs: int) -> Optimization:
    lr = Cosine(LR, 0.0, warmup_epochs=epochs / 10)
    return Optimization(lr=lr, lr_scaling="none", weight_decay=Constant(DECAY))


def sources(options: Options, scale: Scale) -> tuple[Source, Source]:
    """To train and to test on."""
    if options.quick:
        return digits("train", num_images=scale.images), digits("test", num_images=scale.images)
    train = open_source(options.data, "train")
    if scale.images is not None and scale.images < len(train):
        train = Subset(train, np.sort(np.random.default_rng(0).permutation(len(train))[: scale.images]))
    return train, open_source(options.data, "test")


class Runs:
    """Bases, which are trained once for each seed, and what becomes of them."""

    def __init__(self, options: Options, scale: Scale, epochs: int, factor: float, folder: Path):
        self.options, self.scale, self.epochs, self.factor, self.folder = options, scale, epochs, factor, folder
        self.train, self.test = sources(options, scale)
        self.benches = {
            name: Bench.of(
                self.train,
                self.test,
                Crop(32, None, CIFAR10),
                space_of(name),
                limit=scale.limit,
                workers=options.workers,
            )
            for name in BASES
        }

    def base(self, seed: int) -> dict[str, Any]:
        """Trains the bases of a seed; what they are like, and what untrained ones were like."""
        return {name: self._base(name, seed) for name in BASES}

    def _base(self, name: str, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        made, described = method(name, self.scale)
        untrained = self._measured(name, made)
        run = fit(
            made,
            self._loader(name, seed, self.options.epochs),
            optimization=optimization(self.options.epochs),
            epochs=self.options.epochs,
            out=self._folder(name, seed),
            config={"method": described},
            seed=seed,
            **self._where(),
        )
        speed = run.steps * self.options.batch / run.seconds
        found = {"untrained": untrained, "base": self._measured(name, made), "images_per_second": speed}
        print(f"{name}, seed {seed}: {found['base']}", flush=True)
        return found

    def __call__(self, arm: str, seed: int) -> dict[str, Any]:
        """Goes on from a base."""
        name, criterion = arm.split()
        restored = restore(self._folder(name, seed))
        crop = Crop(32, None, CIFAR10)
        with tempfile.TemporaryDirectory(prefix="experiments-") as out:
            done = continue_training(
                restored,
                self._loader(name, seed + 1000, self.epochs),
                bench=self.benches[name],
                guard=lambda folder: KeepBest(Judge.of(self.train, crop, limit=1000), folder, every=self.epochs),
                out=out,
                criterion=CRITERIA[criterion],
                optimization=planned(restored, lr=self.factor * LR),
                epochs=self.epochs,
                keep="last",
                seed=seed,
                **self._where(),
            )
        if done.diverged is not None:
            return {"error": done.diverged}
        return self._measured(name, restored.method) | {"steps": done.steps}

    def _measured(self, name: str, made: Method) -> dict[str, Any]:
        made.to(self.options.device)
        bench = self.benches[name]
        assert bench.known is not None
        shown = {"size": 32, "normalization": CIFAR10, "workers": self.options.workers}
        sides = [extract(made.backbone, source, **shown) for source in (bench.known, bench.asked)]
        right = linear(sides[0].features, sides[0].labels, sides[1].features, sides[1].labels).accuracy
        return bench(made).as_dict() | {"linear_all": right}

    def _loader(self, name: str, seed: int, epochs: int) -> Loader:
        device = self.options.device if self.options.on_gpu else None
        given = {"seed": seed, "epochs": epochs, "device": device, "workers": self.options.workers}
        return Loader(self.train, views_of(name), self.options.batch, **given)

    def _folder(self, name: str, seed: int) -> Path:
        return self.folder / f"{name}-{seed}"

    def _where(self) -> dict[str, Any]:
        return {
            "precision": "bf16-mixed" if self.options.on_gpu else "32-true",
            "accelerator": "gpu" if self.options.on_gpu else "cpu",
            "devices": 1,
            "compile": False,
            "checkpoint_minutes": 1e6,
        }


def of(found: dict[str, Any], arm: str, number: str) -> list[float]:
    """A number of an arm, over the seeds of which every arm has run; of a base where there is no criterion."""
    base, _, criterion = arm.partition(" ")
    if not criterion or criterion in ("base", "untrained"):
        done = experiments.complete(found)
        return [found["untrained"][str(seed)][base][criterion or "base"][number] for seed in done]
    return experiments.values(found, arm, number)


def judge(found: dict[str, Any]) -> dict[str, Any]:
    """The claims against the numbers, as was said beforehand."""
    reasons = [f"{run['arm']}, seed {run['seed']}, diverged" for run in found["runs"] if "error" in run]
    if not experiments.complete(found):
        return judged([*reasons, "no seed is complete"], "")
    said, checks, silent = [], {}, []
    for base in BASES:
        rise = paired(of(found, f"{base} {OURS}", "entropy"), of(found, f"{base} base", "entropy"))
        learnt = paired(of(found, f"{base} base", "knn"), of(found, f"{base} untrained", "knn"))
        if rise["positive"] < rise["pairs"] or learnt["mean"] <= 0:
            why = "its entropy did not rise" if learnt["mean"] > 0 else "its base has learnt nothing"
            silent.append(f"{base} ({why})")
            continue
        checks[base] = _checks(found, base)
        failed = [name for name, holds in checks[base].items() if not holds]
        said.append(f"{base}: " + ("holds" if not failed else f"not so: {', '.join(failed)}"))
    gains = "; ".join(
        f"{base} {interval(paired(of(found, f'{base} {OURS}', 'linear'), of(found, f'{base} {ALONE}', 'linear')), 4)}"
        for base in BASES
    )
    if not checks:
        return judged([*reasons, *silent], "")
    left = f" Nothing is said of {', '.join(silent)}." if silent else ""
    verdict = f"E2MC against continuing alone: {'; '.join(said)}.{left} Linear on 1% of the labels: {gains}."
    return judged(reasons, verdict, checks=checks, silent=silent)


def _checks(found: dict[str, Any], base: str) -> dict[str, bool]:
    """In every seed, against continuing alone."""
    checks = {}
    for said, number, sign in (
        ("higher entropy", "entropy", 1),
        ("less overlap", "overlap", -1),
        ("more uniform pairs of dims", "chi_square", -1),
    ):
        pairs = zip(of(found, f"{base} {OURS}", number), of(found, f"{base} {ALONE}", number), strict=True)
        checks[said] = all(sign * (ours - alone) > 0 for ours, alone in pairs)
    return checks


def text(found: dict[str, Any]) -> str:
    tables = (_table(found, base) for base in BASES)
    return "\n".join(chain(experiments.beginning("Continuing", found), *tables, _gains(found), _seeds(found)))


def _cell(values: list[float], digits: int) -> str:
    """The mean and its standard error over seeds."""
    if not values:
        return ""
    summary = experiments.summary(values)
    mean = f"{summary['mean']:.{digits}f}"
    return mean if summary["se"] is None else f"{mean} ± {summary['se']:.{digits}f}"


def _table(found: dict[str, Any], base: str) -> Iterator[str]:
    yield f"## {base}: mean and standard error over seeds\n"
    arms = [f"{base} untrained", f"{base} base", *(f"{base} {name}" for name in CRITERIA)]
    rows = [(said, *(_cell(of(found, arm, name), digits) for arm in arms)) for name, (said, digits) in NUMBERS.items()]
    yield from report.table(("", "untrained", "base", *CRITERIA), rows)


def _gains(found: dict[str, Any]) -> Iterator[str]:
    yield "## Against continuing alone, pair by pair\n"
    rows = []
    for base in BASES:
        for name in CRITERIA:
            if name != ALONE and experiments.complete(found):
                pairs = (
                    paired(of(found, f"{base} {name}", number), of(found, f"{base} {ALONE}", number))
                    for number in ("entropy", "overlap", "chi_square", "knn", "linear", "linear_all")
                )
                rows.append((base, name, *(interval(pair, 4) for pair in pairs)))
    header = ("", "", "entropy", "overlap", "chi-square", "kNN", "linear, 1%", "linear, all")
    yield from report.table(header, rows)


def _seeds(found: dict[str, Any]) -> Iterator[str]:
    yield "## Every run\n"
    rows = (
        (run["arm"], str(run["seed"]), *(f"{run[name]:.4g}" if name in run else "" for name in NUMBERS))
        for run in found["runs"]
    )
    yield from report.table(("arm", "seed", *NUMBERS), rows)


def main() -> None:
    parser = experiments.parser(__doc__ or "", data="cifar10:ROOT", seeds=3, epochs=100, batch=512)
    parser.add_argument("--small", action="store_true", help="about 25 minutes of one core, unless said otherwise")
    parser.add_argument("--more", type=int, help="epochs to go on for (10; small: 2)")
    parser.add_argument("--factor", type=float, help="of the highest learning rate (0.01; small: 0.1)")
    given = parser.parse_args()
    if given.small:
        usual = {"seeds": (3, 2), "epochs": (100, 10), "batch": (512, 250)}
        for name, (full, less) in usual.items():
            if getattr(given, name) == full:
                setattr(given, name, less)
    options = experiments.options(parser, given)
    if options.quick:
        more, factor = 1, 0.1
    else:
        more, factor = given.more or (2 if given.small else 10), given.factor or (0.1 if given.small else 0.01)
    scale = QUICK if options.quick else SMALL if given.small else FULL
    _run(parser, options, scale, more, factor)


def _run(parser: argparse.ArgumentParser, options: Options, scale: Scale, more: int, factor: float) -> None:
    with tempfile.TemporaryDirectory(prefix="experiments-") as folder:
        runs = Runs(options, scale, more, factor, Path(folder))
        if runs.train.labels is None or runs.test.labels is None:
            parser.error(f"{options.data} has no labels, which kNN needs")
        Experiment(
            name="continuing",
            arms=ARMS,
            settings={"epochs more": more, "share of the learning rate": factor, **vars(scale)},
            method=METHOD,
            once=runs.base,
            run=runs,
            judge=judge,
            text=text,
        )(options)


if __name__ == "__main__":
    main()
