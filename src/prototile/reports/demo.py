"""The page of `prototile demo`.

page(result)    HTML, self-contained
"""

from collections.abc import Sequence
from statistics import fmean

from markupsafe import Markup

from prototile.reports import demo_words, svg
from prototile.reports import page as pages
from prototile.reports.demo_result import Picture, Prices, Result, Run, Spread, Warned, thrown

INK = 16  # the darkest value of an image
BANDS = 32  # places of the chart of sizes that a pointer can read
COMMANDS = (
    ("More seeds, a smaller spread:", "prototile demo --seeds 6"),
    ("The published methods, ready to run:", "prototile recipes"),
    ("Train on images of your own, with the same watch:", "prototile pretrain --recipe NAME --data FOLDER --out RUN"),
    ("Spread the prototypes of any clustering method:", "add_ons=[koleo_proto(weight=0.1)]"),
)


def page(result: Result) -> str:
    return pages.render(
        "demo.html",
        result=result,
        headline=demo_words.headline(result),
        findings=demo_words.findings(result),
        table=demo_words.table(result),
        shows=demo_words.shows(result),
        losses=demo_words.losses(result),
        usual=Spread.of(result.values("centering", lambda snapshot: snapshot.unique)),
        untrained=demo_words.untrained_knn(result),
        chance=thrown(result.settings.num_prototypes, result.settings.train_images),
        curves=curves(result),
        tilings=tilings(result),
        sizes=sizes(result),
        price_curves=price_curves(result.prices),
        warned=[run for run in result.runs if run.warnings],
        kinds=_kinds(result),
        commands=COMMANDS,
        per_run=fmean(run.seconds for run in result.runs),
        watched=watched(result),
        source=source,
        wrong=wrong,
    )


def curves(result: Result) -> Markup:
    """M over training: every arm, every seed."""
    k, steps = result.settings.num_prototypes, result.settings.steps
    kinds = _kinds(result)
    lines = [
        svg.Line([(point.step, point.unique) for point in run.curve], kinds[run.arm]) for run in _from_the_back(result)
    ]
    marks = [point.step for point in result.runs[0].curve]
    tips = []
    for index, (step, following) in enumerate(zip(marks, [*marks[1:], steps], strict=True)):
        text = [f"step {step}"]
        for arm in result.arms:
            values = sorted(run.curve[index].unique for run in result.of(arm.key))
            text.append(f"{arm.label}: {_range(values)}")
        middle = step if index == 0 else (marks[index - 1] + step) / 2
        if following >= step:
            tips.append(svg.Tip(middle, "\n".join(text)))
    ticks = [round(k * share) for share in (0, 0.25, 0.5, 0.75, 1)]
    return svg.chart(
        lines,
        svg.Axis(0, steps, [round(steps * share) for share in (0, 0.25, 0.5, 0.75, 1)], "step"),
        svg.Axis(0, 1.04 * k, ticks, "unique prototypes"),
        title=f"Unique prototypes of {k} over {steps} steps, for each arm and seed",
        tips=tips,
    )


def tilings(result: Result) -> list[tuple[str, int, Markup]]:
    """The student's prototypes as patches of tiles: before, and after training without and with KoLeo-proto."""
    without, with_koleo = result.of("forgetting")[0], result.of("koleo")[0]
    shown = [
        ("before training", without.before),
        (result.arm("forgetting").label, without.after),
        (result.arm("koleo").label, with_koleo.after),
    ]
    return [
        (title, s.unique, svg.tiling(s.groups, title=f"{title}: {s.unique} unique of {sum(s.groups)}"))
        for title, s in shown
    ]


def sizes(result: Result) -> Markup:
    """Images of each cluster relative to an equal share, from the largest on."""
    k, images = result.settings.num_prototypes, result.settings.train_images
    runs = [run for run in _from_the_back(result) if run.arm in ("centering", "explicit")]
    lowest, highest = k / images, max(run.after.largest for run in runs)  # a cluster of one image is the smallest
    floor = 0.7 * lowest
    lines = [svg.Line(_steps(run, k, floor), _kinds(result)[run.arm], steps=True) for run in runs]
    tips = []
    for rank in range(0, k, max(k // BANDS, 1)):
        text = [f"cluster {rank + 1} from the largest on"]
        for key in ("centering", "explicit"):
            values = sorted(run.after.sizes[rank] for run in result.of(key))
            text.append(f"{result.arm(key).label}: {_range(values)} images")
        tips.append(svg.Tip(rank, "\n".join(text)))
    ticks = [x for x in (0.1, 0.3, 1, 3, 10, 30, 100, 300) if floor <= x <= 1.6 * highest]
    return svg.chart(
        lines,
        svg.Axis(0, k, [round(k * share) for share in (0, 0.25, 0.5, 0.75, 1)], "clusters, from the largest on"),
        svg.Axis(floor, 1.6 * highest, ticks, "relative size", log=True),
        title="Size of each cluster relative to an equal share, by centering and by explicit balancing",
        rules=[svg.Rule(1, "the prior: an equal share")],
        tips=tips,
    )


def price_curves(prices: Prices) -> Markup:
    """What a long-tailed and a uniform code pay, over the exponent of the prior."""
    exponents, highest = prices.exponents, max(*prices.tailed, *prices.uniform)
    ticks = svg.even_ticks(highest, 4)
    tips = [
        svg.Tip(x, f"prior of exponent {x:.2f}\nlong-tailed code: {a:.4f}\nuniform code: {b:.4f}")
        for x, a, b in zip(exponents, prices.tailed, prices.uniform, strict=True)
    ]
    return svg.chart(
        [
            svg.Line([*zip(exponents, prices.tailed, strict=True)], "kind5"),
            svg.Line([*zip(exponents, prices.uniform, strict=True)], "kind6"),
        ],
        svg.Axis(0, exponents[-1], svg.even_ticks(exponents[-1], 4), "exponent of the prior (0: uniform)"),
        svg.Axis(0, ticks[-1], ticks, "KL, nats"),
        title="KL divergence that each code pays over the exponent of the prior",
        dots=[(0, 0, "kind6"), (prices.shown, 0, "kind5")],
        tips=tips,
    )


def watched(result: Result) -> list[tuple[Run, list[tuple[Warned, str]]]]:
    """The first run of each arm that was warned, and its warnings; what one means is said once on the page."""
    said: set[str] = set()
    found = []
    for arm in result.arms:
        for run in [run for run in result.of(arm.key) if run.warnings][:1]:
            warnings = []
            for warning in run.warnings:
                warnings.append((warning, "" if warning.name in said else warning.advice))
                said.add(warning.name)
            found.append((run, warnings))
    return found


def source(picture: Picture) -> str:
    return pages.ink(picture.pixels, INK)


def wrong(picture: Picture, query: Picture) -> bool:
    return picture.label != query.label


def _kinds(result: Result) -> dict[str, str]:
    """The class of each arm's colour."""
    return {arm.key: f"kind{index}" for index, arm in enumerate(result.arms, 1)}


def _from_the_back(result: Result) -> list[Run]:
    """All runs, arms in reverse order, so that the first arm is drawn on top."""
    return [run for arm in reversed(result.arms) for run in result.of(arm.key)]


def _steps(run: Run, k: int, floor: float) -> list[tuple[float, float]]:
    """Relative sizes as stairs, down to the floor behind the last cluster that has images."""
    relative = [size * k / sum(run.after.sizes) for size in run.after.sizes[: run.after.used]]
    return [*((float(rank), size) for rank, size in enumerate(relative)), (float(len(relative)), floor)]


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"
