"""What the demo found, in words made from its numbers: they say so where something did not show.

findings(result)     what was asked, whether it showed, figures, and what it means
headline(result)     the same in one line
shows(result)        what to take home
losses(result)       what the loss told meanwhile
table(result)        mean and spread of every arm
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from prototile.reports.demo_result import Result, Run, Snapshot, Spread, thrown

REPAIRED = 0.9  # of the prototypes are unique
FEW = 0.5  # of an empty share that was halved
NO_DIFFERENCE = 0.01  # in kNN accuracy


@dataclass(frozen=True)
class Finding:
    """A question to the numbers: did it show in every seed?"""

    name: str
    question: str
    shown: bool
    answer: str
    figures: tuple[tuple[str, str], ...]
    text: str


@dataclass(frozen=True)
class Row:
    """An arm of the table."""

    arm: str
    label: str
    unique: Spread
    teacher_unique: Spread
    used: Spread
    empty: Spread
    largest: Spread
    knn: Spread


def table(result: Result) -> list[Row]:
    rows = []
    for arm in result.arms:

        def spread(number: Callable[[Snapshot], float], key: str = arm.key) -> Spread:
            return Spread.of(result.values(key, number))

        rows.append(
            Row(
                arm=arm.key,
                label=arm.label,
                unique=spread(_unique),
                teacher_unique=spread(lambda s: s.teacher_unique),
                used=spread(lambda s: s.used),
                empty=spread(_empty),
                largest=spread(lambda s: s.largest),
                knn=spread(_knn),
            )
        )
    return rows


def untrained_knn(result: Result) -> Spread:
    """Of the networks before their first step, one per seed."""
    return Spread.of([run.before.knn for run in result.of(result.arms[0].key)])


def findings(result: Result) -> list[Finding]:
    return [_collapse(result), _repair(result), _balance(result), _two_illnesses(result), _accuracy(result)]


def headline(result: Result) -> str:
    """What became of the prototypes, in one line."""
    k = result.settings.num_prototypes
    collapse, repair, balance, *_ = findings(result)
    fallen, kept = (f"{fmean(result.values(arm, _unique)):.0f}" for arm in ("forgetting", "koleo"))
    lost, filled = (f"{100 * fmean(result.values(arm, _empty)):.0f} %" for arm in ("centering", "explicit"))
    first = f"Of {k} prototypes {fallen} stayed unique"
    if collapse.shown and repair.shown:
        first += f"; KoLeo-proto kept {kept}"
    elif not collapse.shown:
        first += ": no collapse to speak of"
    else:
        first += f", {kept} with KoLeo-proto: no repair to speak of"
    second = f"Centering left {lost} of the clusters empty, explicit balancing {filled}"
    return f"{first}. {second}{'' if balance.shown else ': no clear difference'}."


def shows(result: Result) -> list[str]:
    """What this run shows, of what it was made for."""
    said = {
        "collapse": "Prototypes can collapse in part while training goes on (Govindarajan et al. 2024).",
        "repair": "A term on the prototypes alone keeps them apart (Govindarajan et al. 2024).",
        "balance": "How many clusters hold images is decided by balancing (Maniadis Metaxas et al. 2024).",
        "two": "More unique prototypes are not more used ones.",
    }
    shown = [
        text for name, text in said.items() for finding in findings(result) if finding.name == name and finding.shown
    ]
    return [*shown, "Which code a prior admits, exactly (Assran et al. 2023)."]


def losses(result: Result) -> str:
    """How the loss went while prototypes merged, or did not."""
    parts = []
    for arm, name in (("forgetting", "without"), ("koleo", "with")):
        seen = [[point.loss for point in run.curve if point.loss is not None] for run in result.of(arm)]
        first, last = fmean(curve[0] for curve in seen), fmean(curve[-1] for curve in seen)
        parts.append(f"from {first:.2f} to {last:.2f} {name}")
    return f"The loss does not tell: it went {parts[0]} KoLeo-proto and {parts[1]}. What tells is M along the way."


def _collapse(result: Result) -> Finding:
    k = result.settings.num_prototypes
    runs = result.of("forgetting")
    times = sum(run.after.unique < k / 2 for run in runs)
    shown = times == len(runs)
    teacher = Spread.of(result.values("forgetting", lambda s: s.teacher_unique)).text(0)
    text = (
        "Many prototypes came to point the same way: they are copies, and the model has fewer clusters than it was "
        f"given. (The teacher, a moving average, lags behind in so short a run: M {teacher}.)"
        if shown
        else f"Fewer than half of the prototypes stayed unique in {times} of {_seeds(runs)}: this run does not show "
        "the collapse that the paper describes."
    )
    return Finding(
        name="collapse",
        question="Do prototypes become copies of each other?",
        shown=shown,
        answer=_answer(shown, times, runs),
        figures=((f"unique of {k}", Spread.of(result.values("forgetting", _unique)).text(1)),),
        text=text,
    )


def _repair(result: Result) -> Finding:
    k = result.settings.num_prototypes
    pairs = list(zip(result.of("forgetting"), result.of("koleo"), strict=True))
    times = sum(b.after.unique >= REPAIRED * k and b.after.unique > a.after.unique for a, b in pairs)
    shown = times == len(pairs)
    weight = result.arm("koleo").koleo
    text = (
        f"A term of weight {weight} that pushes every prototype away from its nearest neighbour, and nothing else "
        "changed."
        if shown
        else f"At least {100 * REPAIRED:.0f} % unique, and more than without the term, in {times} of "
        f"{_seeds(result.of('koleo'))}: the repair did not show in all."
    )
    return Finding(
        name="repair",
        question="Does KoLeo-proto keep them apart?",
        shown=shown,
        answer=_answer(shown, times, result.of("koleo")),
        figures=(
            ("without", Spread.of(result.values("forgetting", _unique)).text(1)),
            ("with", Spread.of(result.values("koleo", _unique)).text(1)),
        ),
        text=text,
    )


def _balance(result: Result) -> Finding:
    s = result.settings
    pairs = list(zip(result.of("centering"), result.of("explicit"), strict=True))
    times = sum(b.after.empty < FEW * a.after.empty for a, b in pairs)
    shown = times == len(pairs)
    chance = thrown(s.num_prototypes, s.train_images)
    side = "fewer" if fmean(result.values("explicit", _empty)) < chance else "more"
    text = (
        f"Throwing {s.train_images:,} images at random into {s.num_prototypes} clusters leaves "
        f"{100 * chance:.1f} % of them empty; explicit balancing left {side}."
    )
    if not shown:
        text = f"Less than half as many empty clusters in {times} of {_seeds(result.of('explicit'))}. {text}"
    return Finding(
        name="balance",
        question="Does explicit balancing fill the clusters?",
        shown=shown,
        answer=_answer(shown, times, result.of("explicit")),
        figures=(
            ("empty, centering", Spread.of(result.values("centering", _empty)).text(1, percent=True)),
            ("empty, explicit", Spread.of(result.values("explicit", _empty)).text(1, percent=True)),
        ),
        text=text,
    )


def _two_illnesses(result: Result) -> Finding:
    runs = result.of("koleo")
    half = result.settings.num_prototypes / 2
    times = sum(run.after.unique >= half and run.after.used < half for run in runs)
    shown = times == len(runs)
    used = {arm: Spread.of(result.values(arm, lambda s: s.used)).text(0) for arm in ("forgetting", "koleo")}
    text = (
        "KoLeo-proto makes prototypes differ, it does not give them images. Copies and empty clusters are two "
        "illnesses with two cures."
        if shown
        else f"Most prototypes unique and most of them without images in {times} of {_seeds(runs)}: here the two do "
        "not come apart in all."
    )
    return Finding(
        name="two",
        question="Are copies and empty clusters different things?",
        shown=shown,
        answer=_answer(shown, times, runs),
        figures=(("used without", used["forgetting"]), ("used with KoLeo-proto", used["koleo"])),
        text=text,
    )


def _accuracy(result: Result) -> Finding:
    without, with_koleo = result.values("forgetting", _knn), result.values("koleo", _knn)
    gain = fmean(b - a for a, b in zip(without, with_koleo, strict=True))
    shown = gain > NO_DIFFERENCE
    points = f"{100 * gain:+.1f} points".replace("-", "−")
    if shown:
        text = f"With KoLeo-proto the features were better by {points} on average; on so few images that proves little."
    elif gain < -NO_DIFFERENCE:
        text = f"With KoLeo-proto the features were worse ({points} on average)."
    else:
        text = (
            f"No: {points} on average, which is none to speak of. These digits are too easy to tell; the gains that "
            "the paper reports are on long-tailed data at scale."
        )
    return Finding(
        name="accuracy",
        question="Are the features better for it?",
        shown=shown,
        answer="yes, here" if shown else "no, not here",
        figures=(
            ("kNN without", Spread.of(without).text(1, percent=True)),
            ("with KoLeo-proto", Spread.of(with_koleo).text(1, percent=True)),
            ("untrained", untrained_knn(result).text(1, percent=True)),
        ),
        text=text,
    )


def _answer(shown: bool, times: int, runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return "yes, with one seed" if shown else "no, with one seed"
    return f"{'yes' if shown else 'no' if times == 0 else 'not always'}, in {times} of {_seeds(runs)}"


def _seeds(runs: Sequence[Run]) -> str:
    return f"{len(runs)} seed{'' if len(runs) == 1 else 's'}"


def _unique(snapshot: Snapshot) -> float:
    return snapshot.unique


def _empty(snapshot: Snapshot) -> float:
    return snapshot.empty


def _knn(snapshot: Snapshot) -> float:
    return snapshot.knn
