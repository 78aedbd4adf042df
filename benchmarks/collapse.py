"""Experiment: prototypes collapse, and spreading them repairs it (Govindarajan et al. 2024).

    python benchmarks/collapse.py --data cifar10:ROOT                              as below; meant for a GPU
    python benchmarks/collapse.py --data cifar10:ROOT --method dino --forget 20    with an accelerated weight decay
    python benchmarks/collapse.py --quick                                          drawn digits: does it run?

DINO-vMF (or iBOT-vMF, or DINO) is trained on small images with 1,024 prototypes, without a remedy, with KoLeo of the
prototypes (kp) of weights 0.02, 0.1 and 0.5, and with KoLeo of the features (kd) of weight 0.1. M counts prototypes
that are further than a cosine distance of 0.025 from each other.

Said beforehand: the claim holds if M with kp 0.1 is more than three times that without, M does not fall as kp grows, M
with kd is less than half of that with kp 0.1, and kNN with kp 0.1 is no worse than without by more than a standard
error of the paired difference. Nothing is said if M without a remedy is above 0.9 K: nothing has collapsed then.

A prototype forgets its random start only by weight decay: what is left of it is exp of minus the sum of learning rate
x weight decay over the run. That sum is about 20 in a run of the paper and below 1 in one of minutes. `--forget 20`
multiplies the prototypes' weight decay so that it is 20 here, too; with vMF it would shrink the concentrations as well,
so it is for `--method dino`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch

import experiments
import report
from experiments import Experiment, Options, interval, judged, paired, spread, teacher, values
from prototile.audit import unique
from prototile.backbones import vit
from prototile.data import Source, digits, open_source
from prototile.evaluation import knn, linear
from prototile.methods import METHODS, AddOn, Prototypical, koleo_data, koleo_proto
from prototile.schedules import Constant, Cosine, EpochRamp, Progress
from prototile.training.optimization import Optimization, Special
from prototile.views import CIFAR10, Augmentation, preset, small

ARMS: dict[str, Callable[[], Sequence[AddOn]]] = {
    "none": tuple,
    "kp 0.02": lambda: [koleo_proto(0.02)],
    "kp 0.1": lambda: [koleo_proto(0.1)],
    "kp 0.5": lambda: [koleo_proto(0.5)],
    "kd 0.1": lambda: [koleo_data(0.1)],
}
EPSILONS = (0.001, 0.01, 0.025, 0.05, 0.1)
PAPER = 0.025
TEMPERATURE = 0.1
CROPS = 4
LR, FINAL_LR, DECAY, FINAL_DECAY = 5e-4, 1e-6, 0.04, 0.4
NUMBERS = {
    "unique": "M, student",
    "unique_teacher": "M, teacher",
    "empty": "share of prototypes without an image",
    "knn": "kNN",
    "linear": "linear probe",
}
METHOD = {
    "what": " ".join((__doc__ or "").split("\n\n")[2].split()),
    "said": " ".join((__doc__ or "").split("\n\n")[3].split()),
    "forget": " ".join((__doc__ or "").split("\n\n")[4].split()),
    "how": (
        "ViT-tiny/4, 2 views of 32 and 4 of 16 pixels, a head of 512-512-128, AdamW with learning rate 5e-4 x batch / "
        "256 (a tenth of the epochs of warm-up, then cosine to 1e-6), weight decay 0.04 to 0.4, gradients clipped at "
        "3, teacher's momentum 0.99 to 1 and temperature 0.04 to 0.06. M is of the last weights, by the degree-ordered "
        "greedy cover of `prototile.audit.unique`. kNN (the better of 10 and 20) and the quick linear probe are of the "
        "teacher's features, from training to test images; a prototype is without an image if it is the most probable "
        "one of no training image as it is."
    ),
}


def method(name: str, arm: str, prototypes: int, epochs: int, *, seed: int, quick: bool) -> Prototypical:
    torch.manual_seed(seed)
    tiny = {"dims": 32, "depth": 2, "heads": 2} if quick else {}
    temperature = EpochRamp(0.04, 0.06, max(epochs // 3, 1))
    return METHODS[name](
        vit("tiny", patch=4, image_size=32, mask_token=name.startswith("ibot"), **tiny),
        num_prototypes=prototypes,
        add_ons=ARMS[arm](),
        hidden=64 if quick else 512,
        bottleneck=32 if quick else 128,
        student_temperature=TEMPERATURE,
        teacher_temperature=temperature,
        momentum=Cosine(0.99, 1.0),
        **({"patch_temperature": temperature} if name.startswith("ibot") else {}),
    )


def optimization(epochs: int, steps: int, batch: int, forget: float) -> Optimization:
    """With `forget`, the sum of learning rate x weight decay of the prototypes over the run is that."""
    lr = Cosine(LR, FINAL_LR, warmup_epochs=epochs / 10, inclusive=True)
    decay = Cosine(DECAY, FINAL_DECAY)
    roles = {}
    if forget:
        moments = [Progress(step, epochs * steps, epochs) for step in range(epochs * steps)]
        usual = sum(lr(moment) * batch / 256 * decay(moment) for moment in moments)
        roles["prototypes"] = Special(decay_factor=Constant(forget / usual))
    return Optimization(lr=lr, weight_decay=decay, lr_scaling="linear", clip=3.0, roles=roles)


def views_of(name: str) -> Augmentation:
    published = preset("ibot" if name.startswith("ibot") else "dino")
    first, crops = small(published, normalization=CIFAR10).groups
    return Augmentation((first, type(crops)(crops.views[:CROPS], patch=crops.patch)), CIFAR10)


def sources(options: Options) -> tuple[Source, Source]:
    """To train and to test on."""
    if options.quick:
        return digits("train", num_images=experiments.QUICK_IMAGES), digits("test", num_images=experiments.QUICK_IMAGES)
    return open_source(options.data, "train"), open_source(options.data, "test")


def measured(made: Prototypical, train: Source, test: Source, options: Options) -> dict[str, Any]:
    """How many prototypes are there, how many are used, and what features are worth."""
    seen, tested = (experiments.look(teacher(made), x, CIFAR10, options, TEMPERATURE) for x in (train, test))
    both = seen.features, seen.labels, tested.features, tested.labels
    students = made.student.head.prototypes.directions()
    teachers = teacher(made).head.prototypes.directions()
    counts = seen.assignments.counts()
    return {
        "unique": float(unique(students, PAPER).count),
        "unique_teacher": float(unique(teachers, PAPER).count),
        "grid": {str(epsilon): unique(students, epsilon).count for epsilon in EPSILONS},
        "empty": float((counts == 0).double().mean()),
        "knn": knn(*both).accuracy,
        "linear": linear(*both).accuracy,
    }


def judge(found: dict[str, Any]) -> dict[str, Any]:
    """The claim against the numbers, as it was said beforehand."""
    reasons = [f"{run['arm']}, seed {run['seed']}, diverged" for run in found["runs"] if "error" in run]
    if not experiments.complete(found):
        return judged([*reasons, "no seed is complete"], "")
    m = {arm: experiments.summary(values(found, arm, "unique"))["mean"] for arm in ARMS}
    prototypes = found["settings"]["prototypes"]
    if m["none"] > 0.9 * prototypes:
        reasons.append(f"nothing has collapsed without a remedy: M is {m['none']:.0f} of {prototypes}")
    difference = paired(values(found, "kp 0.1", "knn"), values(found, "none", "knn"))
    rising = [m["none"], m["kp 0.02"], m["kp 0.1"], m["kp 0.5"]]
    checks = {
        "M with kp 0.1 is more than three times that without": m["kp 0.1"] > 3 * m["none"],
        "M does not fall as kp grows": rising == sorted(rising),
        "M with kd is less than half of that with kp": m["kd 0.1"] < 0.5 * m["kp 0.1"],
        "kNN with kp is no worse by more than a standard error": difference["mean"] >= -(difference["se"] or 0.0),
    }
    failed = [said for said, holds in checks.items() if not holds]
    ms = ", ".join(f"{arm}: {value:.0f}" for arm, value in m.items())
    outcome = "holds" if not failed else f"does not hold (not so: {'; '.join(failed)})"
    verdict = f"The claim {outcome}. M of {prototypes}: {ms}. kNN, kp 0.1 minus none: {interval(difference)}."
    return judged(reasons, verdict, checks=checks, knn=difference)


def text(found: dict[str, Any]) -> str:
    lines = experiments.beginning("Partial prototype collapse", found), _table(found), _grid(found), _seeds(found)
    return "\n".join(chain(*lines))


def _table(found: dict[str, Any]) -> Iterator[str]:
    yield "## Mean and deviation over seeds\n"
    rows = []
    for name, said in NUMBERS.items():
        digits_shown = 0 if name.startswith("unique") else 3
        start = spread([x[name] for x in found["untrained"].values()], digits_shown)
        rows.append((said, start, *(spread(values(found, arm, name), digits_shown) for arm in found["arms"])))
    yield from report.table(("", "untrained", *found["arms"]), rows)


def _grid(found: dict[str, Any]) -> Iterator[str]:
    yield "## M of the student by the distance that counts as the same\n"
    done = experiments.complete(found)
    rows = []
    for epsilon in map(str, EPSILONS):
        counts = (
            [run["grid"][epsilon] for run in found["runs"] if run["arm"] == arm and run["seed"] in done]
            for arm in found["arms"]
        )
        rows.append((epsilon, *(spread(each, 0) for each in counts)))
    yield from report.table(("epsilon", *found["arms"]), rows)


def _seeds(found: dict[str, Any]) -> Iterator[str]:
    yield "## Every run\n"
    rows = []
    for run in found["runs"]:
        numbers = (f"{run[name]:.4g}" if name in run else "" for name in NUMBERS)
        rows.append((run["arm"], str(run["seed"]), *numbers, f"{run.get('images_per_second', 0):,.0f}"))
    yield from report.table(("arm", "seed", *NUMBERS, "images / s"), rows)


def main() -> None:
    parser = experiments.parser(__doc__ or "", data="cifar10:ROOT", seeds=3, epochs=60, batch=512)
    parser.add_argument("--method", choices=("dino_vmf", "ibot_vmf", "dino"), default="dino_vmf")
    parser.add_argument("--prototypes", type=int, default=1024, help="K (%(default)s)")
    parser.add_argument("--forget", type=float, default=0.0, help="see the text above; 0 leaves the decay as it is")
    given = parser.parse_args()
    if given.forget and given.method != "dino":
        parser.error("--forget is for --method dino: with vMF it would shrink the concentrations, too")
    options = experiments.options(parser, given)
    prototypes = 64 if options.quick else given.prototypes
    train, test = sources(options)
    if train.labels is None or test.labels is None:
        parser.error(f"{options.data} has no labels, which kNN needs")

    def made(arm: str, seed: int) -> Prototypical:
        network = method(given.method, arm, prototypes, options.epochs, seed=seed, quick=options.quick)
        return network.to(options.device)

    def run(arm: str, seed: int) -> dict[str, Any]:
        trained, steps = made(arm, seed), len(train) // options.batch
        plan = optimization(options.epochs, steps, options.batch, given.forget)
        speed = experiments.train(trained, train, views_of(given.method), plan, options, seed=seed)
        return measured(trained, train, test, options) | speed

    Experiment(
        name=f"collapse-{given.method}",
        arms=tuple(ARMS),
        settings={"method": given.method, "prototypes": prototypes, "forget": given.forget},
        method=METHOD,
        once=lambda seed: measured(made("none", seed), train, test, options),
        run=run,
        judge=judge,
        text=text,
    )(options)


if __name__ == "__main__":
    main()
