"""One run: a plain loop through the package's parts, with measures on the way."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from prototile.audit import Health, Watch, Window, cluster_health, embedding_health
from prototile.demo import measures
from prototile.demo.arms import adamw, build
from prototile.demo.data import Digits, digits
from prototile.demo.views import two_views
from prototile.methods import Terms
from prototile.reports.demo_result import Arm, Point, Query, Run, Settings, Sheet, Warned
from prototile.schedules import Cosine, Progress

EVERY = 10  # steps between two looks at a run
FINAL_LR, WARMUP = 1e-6, 0.1


@dataclass(frozen=True)
class Job:
    """What a worker is to do; `pictures`: with a sheet of clusters, and nearest neighbours."""

    arm: Arm
    seed: int
    settings: Settings
    pictures: bool

    def __str__(self) -> str:
        return f"“{self.arm.label}” with seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    run: Run
    sheet: Sheet | None
    queries: tuple[Query, ...]


def train(job: Job, report: Callable[[int], None]) -> Outcome:
    """Trains one arm with one seed; `report` hears how many steps were done since it last heard."""
    start = time.perf_counter()
    settings = job.settings
    torch.manual_seed(job.seed)
    random = torch.Generator().manual_seed(job.seed)
    known, unknown = digits()
    method = build(job.arm, settings)
    queries = measures.first_of_each_class(unknown)
    before = measures.snapshot(method, known, unknown)
    neighbors_before = measures.neighbors(method, known, unknown, queries)
    observer = _Observer(settings.num_prototypes)
    optimizer = adamw(method, job.arm.prototype_decay)
    lr = Cosine(settings.lr, FINAL_LR, warmup_epochs=WARMUP)
    curve = [Point(0, None, before.unique)]
    method.train()
    for step in range(settings.steps):
        progress = Progress(step, settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr(progress)
        terms = method((two_views(_batch(known, settings.batch, random), random),), progress)
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        method.after_step(progress)
        done = step + 1
        if done % EVERY == 0 or done == settings.steps:
            observer.look(done, terms)
            curve.append(Point(done, float(terms.loss.detach()), measures.of_student(method).count))
            report(done - curve[-2].step)
    run = Run(
        arm=job.arm.key,
        seed=job.seed,
        seconds=time.perf_counter() - start,
        curve=tuple(curve),
        before=before,
        after=measures.snapshot(method, known, unknown),
        warnings=tuple(observer.warnings),
    )
    if not job.pictures:
        return Outcome(run, None, ())
    neighbors_after = measures.neighbors(method, known, unknown, queries)
    return Outcome(
        run,
        measures.sheet(method, known, arm=job.arm.key, seed=job.seed),
        measures.pictured(known, unknown, queries, neighbors_before, neighbors_after),
    )


class _Observer:
    """The watch that every run has: health every few steps, and what it warns of."""

    def __init__(self, num_prototypes: int):
        self._window, self._watch = Window(num_prototypes), Watch()
        self.warnings: list[Warned] = []

    def look(self, step: int, terms: Terms) -> None:
        clusters = {
            token: cluster_health(x.student, x.targets, x.prior, x.prototypes, self._window)
            for token, x in terms.clusters.items()
        }
        health = Health(step, float(terms.loss.detach()), embedding_health(terms.embeddings), clusters)
        for finding in self._watch.update(health):
            if not finding.ended:
                advice = f"{finding.meaning} Try: {finding.remedy}"
                self.warnings.append(Warned(step, finding.name, finding.seen, advice))


def _batch(known: Digits, size: int, random: torch.Generator) -> torch.Tensor:
    """Images drawn with replacement."""
    return known.images[torch.randint(len(known), (size,), generator=random)]
