"""A made-up result of the demo, whose numbers are easy to find on its page."""

from dataclasses import replace

from prototile.reports.demo_result import (
    Arm,
    Cluster,
    Machine,
    Picture,
    Point,
    Price,
    Prices,
    Query,
    Result,
    Run,
    Settings,
    Sheet,
    Snapshot,
    Warned,
)

K, IMAGES = 16, 40
ARMS = (
    Arm("forgetting", "fast forgetting", "centering", 0.0, 20.0),
    Arm("koleo", "with KoLeo", "centering", 0.1, 20.0),
    Arm("centering", "plain centering", "centering", 0.0, 0.04),
    Arm("explicit", "balanced", "explicit", 0.0, 0.04),
)
# of each arm: unique prototypes and used clusters of two seeds, and the accuracy
AFTER = {
    "forgetting": ((4, 6), (3, 5), 0.95),
    "koleo": ((16, 16), (4, 4), 0.955),
    "centering": ((16, 16), (2, 4), 0.95),
    "explicit": ((15, 16), (15, 14), 0.96),
}


def snapshot(unique: int, used: int, knn: float) -> Snapshot:
    groups = (K - unique + 1, *[1] * (unique - 1))
    sizes = (IMAGES - used + 1, *[1] * (used - 1), *[0] * (K - used))
    return Snapshot(unique=unique, teacher_unique=min(K, unique + 2), groups=groups, sizes=sizes, knn=knn)


def run(arm: str, seed: int) -> Run:
    uniques, useds, knn = AFTER[arm]
    after = snapshot(uniques[seed], useds[seed], knn)
    curve = (Point(0, None, K), Point(10, 2.0, (K + after.unique) // 2), Point(20, 1.0, after.unique))
    warnings = (Warned(10, "merging prototypes", "3 are one", "So it goes."),) if arm == "forgetting" else ()
    return Run(arm, seed, 2.5, curve, snapshot(K, 2, 0.9), after, warnings)


def picture(label: str) -> Picture:
    return Picture(label, tuple(tuple((row * column) % 17 for column in range(8)) for row in range(8)))


def result(**changes) -> Result:
    """Two seeds of four arms."""
    three = tuple(picture(label) for label in "335")
    made = Result(
        when="2026-01-01T12:00+00:00",
        seconds=90.0,
        quick=False,
        seeds=(0, 1),
        settings=Settings(K, 20, 8, 0.005, IMAGES, 10, 0.025),
        machine=Machine("Some Processor", 2, {"prototile": "0", "torch": "2"}),
        arms=ARMS,
        runs=tuple(run(arm.key, seed) for seed in (0, 1) for arm in ARMS),
        sheets=tuple(Sheet(arm.key, 0, (Cluster(1, 30, three), Cluster(4, 1, three[:1]))) for arm in ARMS),
        queries=(Query(picture("3"), three, three),),
        queries_arm="koleo",
        prices=Prices(10, (Price(0.5, 0.07, 0.06, 0.0, 0.0),), 0.5, (0.0, 1.0, 2.0), (0.1, 0.2, 0.9), (0.0, 0.3, 1.0)),
    )
    return replace(made, **changes)
