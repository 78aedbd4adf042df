"""Experiment: a prior decides which factor of the data its clusters keep (Assran et al. 2023, section 5.1).

    python benchmarks/toy_prior.py --data mnist-on-cifar:ROOT    60 epochs, 5 paired seeds; meant for a GPU
    python benchmarks/toy_prior.py --quick                       drawn digits, tiny networks: does it run?

Images have two independent factors: a small digit, whose classes follow a power law of exponent 0.5, and an object,
whose classes are equally frequent. PMSN with as many prototypes as classes is trained under a uniform prior and under
the digits' own. The claim is that the uniform one discards the digit, and the matching one keeps it.

Said beforehand: the claim holds if the nearest neighbour's digit agrees more often under the matching prior for every
seed, of at least three. Nothing is said if the assignments have collapsed in either arm: the entropy of their marginal
is off that of its prior by more than a tenth of ln K, or fewer than half of the prototypes are used.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from sklearn.metrics import mutual_info_score

import experiments
import report
from experiments import Experiment, Options, divergence, entropy, interval, judged, paired, spread, teacher, values
from prototile.backbones import vit
from prototile.balancing import Sinkhorn
from prototile.data import Toy, digits, open_source
from prototile.evaluation import knn, linear
from prototile.methods import Prototypical, pmsn
from prototile.priors import PowerLaw, Prior, Uniform
from prototile.schedules import Constant, Cosine
from prototile.training.optimization import Optimization, Special
from prototile.views import presets

PROTOTYPES, TEMPERATURE = 10, 0.1
EXPONENT = 0.5  # of the digits
FAR = 0.1  # of ln K: the marginal's entropy is not that of its prior
LEAST_SEEDS = 3
UNIFORM, MATCHING = "uniform", f"power law {EXPONENT}"
AUGMENTATION = presets.pmsn_toy()
NUMBERS = {
    "nn_digit": "nearest neighbour, digit",
    "nn_object": "nearest neighbour, object",
    "probe_digit": "linear probe, digit",
    "probe_object": "linear probe, object",
    "mi_digit": "I(cluster; digit), nats",
    "mi_object": "I(cluster; object), nats",
    "entropy": "entropy of the marginal, nats",
    "divergence": "KL(marginal, prior), nats",
    "used": "prototypes used",
}
METHOD = {
    "what": " ".join((__doc__ or "").split("\n\n")[2].split()),
    "said": " ".join((__doc__ or "").split("\n\n")[3].split()),
    "how": (
        "ViT-tiny/4, the toy's views (crops of half to all of the area, 5% of patches dropped, no blur), learning rate "
        "2e-4 to 1e-3 and down to 1e-6, weight decay 0.04 to 0.4, no clipping. Nearest neighbours are those of test "
        "images among test images, where both factors are equally frequent: chance is 0.1. Probes learn on training "
        "images and are tested on test images. Clusters and marginals are those of the teacher on training images as "
        "they are."
    ),
}


def prior_of(arm: str) -> Prior:
    return Uniform() if arm == UNIFORM else PowerLaw(float(arm.split()[-1]))


def method(arm: str, targets: str, weight: float, *, seed: int, quick: bool) -> Prototypical:
    """PMSN under the arm's prior; `targets` are balanced to that prior, to the uniform one, or not."""
    torch.manual_seed(seed)
    tiny = {"dims": 32, "depth": 2, "heads": 2} if quick else {}
    extra: dict[str, Any] = {"hidden": 64, "bottleneck": 32} if quick else {}
    if targets == "none":
        extra["balancer"] = lambda prior: Sinkhorn(prior, iterations=0, start="probabilities")
    elif targets == "uniform":
        extra["target_prior"] = Uniform()
    return pmsn(
        vit("tiny", patch=4, image_size=32, resize="msn", **tiny),
        num_prototypes=PROTOTYPES,
        prior=prior_of(arm),
        match_weight=weight,
        student_temperature=TEMPERATURE,
        **extra,
    )


def optimization(epochs: int) -> Optimization:
    """That of the paper's toy, whose warm-up is 15 of 300 epochs."""
    return Optimization(
        lr=Cosine(1e-3, 1e-6, warmup_epochs=epochs / 20, start=2e-4, stretch=1.25, ahead=True),
        weight_decay=Cosine(0.04, 0.4, stretch=1.25, ahead=True),
        lr_scaling="none",
        roles={"prototypes": Special(weight_decay=Constant(0.0), clip=False)},
    )


def toys(options: Options) -> tuple[Toy, Toy]:
    """To train and to test on."""
    if options.quick:
        return digits("train", num_images=experiments.QUICK_IMAGES), digits("test", num_images=experiments.QUICK_IMAGES)
    found = [open_source(options.data, split) for split in ("train", "test")]
    train, test = found
    if not (isinstance(train, Toy) and isinstance(test, Toy)):
        raise ValueError(f"{options.data} has no two known factors: use mnist-on-cifar:ROOT or digits")
    return train, test


def measured(made: Prototypical, train: Toy, test: Toy, prior: Prior, options: Options) -> dict[str, Any]:
    """What is left of digit and object in features and clusters."""
    normalization = AUGMENTATION.normalization
    seen, tested = (experiments.look(teacher(made), x, normalization, options, TEMPERATURE) for x in (train, test))
    found: dict[str, Any] = {}
    clusters = seen.assignments.hard().cpu().numpy()
    for factor in ("digit", "object"):
        y, wanted = (torch.from_numpy(x.factors[factor]).to(options.device) for x in (train, test))
        near = knn(tested.features, wanted, tested.features, wanted, (1,), leave_one_out=True)
        found[f"nn_{factor}"] = near.accuracy
        found[f"probe_{factor}"] = linear(seen.features, y, tested.features, wanted).accuracy
        found[f"mi_{factor}"] = float(mutual_info_score(train.factors[factor], clusters))
    marginal = seen.assignments.mean().double().cpu().numpy()
    pi = prior(PROTOTYPES).numpy()
    return found | {
        "entropy": entropy(marginal),
        "prior_entropy": entropy(pi),
        "divergence": divergence(marginal, pi),
        "used": float(len(np.unique(clusters))),
        "marginal": marginal.tolist(),
    }


def judge(found: dict[str, Any]) -> dict[str, Any]:
    """The claim against the numbers, as it was said beforehand."""
    matching, uniform = (values(found, arm, "nn_digit") for arm in (MATCHING, UNIFORM))
    reasons = [f"{run['arm']}, seed {run['seed']}, diverged" for run in found["runs"] if "error" in run]
    reasons += list(_collapsed(found))
    if len(matching) < LEAST_SEEDS:
        reasons.append(f"{len(matching)} pairs have run, and at least {LEAST_SEEDS} are needed")
    if not matching:
        return judged(reasons, "")
    difference = paired(matching, uniform)
    higher, pairs = difference["positive"], difference["pairs"]
    said = "holds" if higher == pairs else "is reversed" if higher == 0 else "does not hold"
    verdict = f"The claim {said}: the digit of the nearest neighbour, matching minus uniform, {interval(difference)}."
    objects = paired(values(found, MATCHING, "nn_object"), values(found, UNIFORM, "nn_object"))
    return judged(reasons, verdict, digit=difference, object=objects)


def _collapsed(found: dict[str, Any]) -> Iterator[str]:
    """What says that the assignments of an arm that is compared have collapsed."""
    for arm in (UNIFORM, MATCHING):
        runs = [run for run in found["runs"] if run["arm"] == arm and "error" not in run]
        gaps = [abs(run["entropy"] - run["prior_entropy"]) for run in runs]
        if far := [gap for gap in gaps if gap > FAR * np.log(PROTOTYPES)]:
            runs_of = f"{len(far)} of {len(runs)} runs"
            yield f"{arm}: the marginal's entropy is up to {max(far):.2f} off its prior's ({runs_of})"
        if few := [run["used"] for run in runs if run["used"] < PROTOTYPES / 2]:
            runs_of = f"{len(few)} of {len(runs)} runs"
            yield f"{arm}: as few as {min(few):.0f} of {PROTOTYPES} prototypes are used ({runs_of})"


def text(found: dict[str, Any]) -> str:
    lines = experiments.beginning("A prior decides which factor is kept", found), _table(found), _seeds(found)
    return "\n".join(chain(*lines))


def _table(found: dict[str, Any]) -> Iterator[str]:
    yield "## Mean and deviation over seeds\n"
    untrained = list(found["untrained"].values())
    rows = []
    for name, said in NUMBERS.items():
        start = spread([x[name] for x in untrained]) if name.split("_")[0] in ("nn", "probe") else ""
        rows.append((said, start, *(spread(values(found, arm, name)) for arm in found["arms"])))
    yield from report.table(("", "untrained", *found["arms"]), rows)
    for name in ("digit", "object"):
        if name in found["verdict"]:
            yield f"Nearest neighbour's {name}, matching minus uniform: {interval(found['verdict'][name])}.\n"


def _seeds(found: dict[str, Any]) -> Iterator[str]:
    yield "## Every run\n"
    header = ("arm", "seed", *NUMBERS, "images / s")
    rows = []
    for run in found["runs"]:
        numbers = (f"{run[name]:.3f}" if name in run else "" for name in NUMBERS)
        rows.append((run["arm"], str(run["seed"]), *numbers, f"{run.get('images_per_second', 0):,.0f}"))
    yield from report.table(header, rows)


def main() -> None:
    parser = experiments.parser(__doc__ or "", data="mnist-on-cifar:ROOT", seeds=5, epochs=60, batch=1024)
    parser.add_argument("--targets", choices=("prior", "uniform", "none"), default="prior", help="balanced to what")
    parser.add_argument("--match-weight", type=float, default=100.0, help="lambda (%(default)s)")
    parser.add_argument("--more", type=float, nargs="*", default=(), metavar="EXPONENT", help="more power laws")
    given = parser.parse_args()
    options = experiments.options(parser, given)
    train, test = toys(options)

    def made(arm: str, seed: int) -> Prototypical:
        return method(arm, given.targets, given.match_weight, seed=seed, quick=options.quick).to(options.device)

    def run(arm: str, seed: int) -> dict[str, Any]:
        trained = made(arm, seed)
        speed = experiments.train(trained, train, AUGMENTATION, optimization(options.epochs), options, seed=seed)
        return measured(trained, train, test, prior_of(arm), options) | speed

    Experiment(
        name="toy_prior",
        arms=(UNIFORM, MATCHING, *(f"power law {exponent}" for exponent in given.more if exponent != EXPONENT)),
        settings={"targets": f"balanced to: {given.targets}", "lambda": given.match_weight},
        method=METHOD,
        once=lambda seed: measured(made(UNIFORM, seed), train, test, Uniform(), options),
        run=run,
        judge=judge,
        text=text,
    )(options)


if __name__ == "__main__":
    main()
