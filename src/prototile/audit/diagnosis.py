"""Known failures of a run, told from its health in plain words: what is seen, what it means, what to try.

    finding                  of            seen where
    uniform assignments      each token    the student's entropy is ln K: every image gets every prototype alike
    one prototype            each token    most targets choose the same prototype
    few prototypes           each token    fewer than half of the prototypes are chosen, by rows that could reach all
    far from the prior       each token    the mean target is elsewhere than the prior says
    merging prototypes       each token    fewer unique prototypes than there were: partial prototype collapse
    constant embeddings      embeddings    all images have the same direction

    diagnose(history)    all that began and ended in it
    Watch                the same while a run goes on: each finding once when it begins, and once when it ends

A finding never stops a run: it says what to look at.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prototile.audit.health import ClusterHealth, Health

PATIENCE = 5  # so many observations in a row begin or end a finding: one batch may be odd
UNIFORM = 0.05  # nats below ln K; a random start, tau .1 and 256 dims, has an entropy .2 below
CONSTANT = 0.05  # spread, which means a cosine of .998 between any two; networks without training reach .99
MOST = 0.5  # share of the targets that one prototype has
FEW = 0.5  # share of the prototypes that are used; random images would leave 2% empty
FAR = 0.5  # share of the targets' mass that lies elsewhere than the prior says; chance makes it up to .2
MERGED = 0.75  # of the unique prototypes that there once were
SILENT = 0.1  # below this distance of the student's marginal, the prior's term of the loss sees nothing
_ROWS = 32  # a share among fewer says nothing


@dataclass(frozen=True)
class Finding:
    """A failure that began, or has `ended`, at this step; `token` is the kind of token, none for embeddings."""

    name: str
    step: int
    token: str | None
    seen: str
    meaning: str
    remedy: str
    ended: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        where = f"{self.name} ({self.token})" if self.token else self.name
        if self.ended:
            return f"step {self.step}: {where}: no longer seen"
        return f"step {self.step}: {where}: {self.seen}. {self.meaning} Try: {self.remedy}"


@dataclass(frozen=True)
class _Sign:
    """What is seen at a step, and what it means; `none` where nothing is wrong."""

    seen: str
    meaning: str
    remedy: str


@dataclass(frozen=True)
class _Moment:
    """What a symptom may look at: `peak` is the largest number of unique prototypes so far."""

    loss: float
    clusters: ClusterHealth
    peak: int

    @property
    def highest(self) -> float:
        """ln K."""
        return math.log(self.clusters.prototypes)

    @property
    def targets_say_nothing(self) -> bool:
        return self.clusters.target_entropy >= self.highest - UNIFORM


def diagnose(history: Iterable[Health]) -> list[Finding]:
    """All that began or ended in a history, in order."""
    watch = Watch()
    return [finding for health in history for finding in watch.update(health)]


class Watch:
    """Looks at a run's health as it comes. Its state is what a run that is resumed needs to find the same."""

    def __init__(self) -> None:
        self._peaks: dict[str, int] = {}
        self._streaks: dict[str, int] = {}  # how often in a row it was seen, or minus how often it was not
        self._active: dict[str, bool] = {}

    def update(self, health: Health) -> list[Finding]:
        """What begins or ends with this observation."""
        found = [self._noted("constant embeddings", None, _constant(health), health.step)]
        for token, clusters in health.clusters.items():
            peak = self._peaks[token] = max(clusters.unique, self._peaks.get(token, 0))
            moment = _Moment(health.loss, clusters, peak)
            found += [self._noted(name, token, sign(moment), health.step) for name, sign in SYMPTOMS.items()]
        return [finding for finding in found if finding is not None]

    @property
    def active(self) -> tuple[str, ...]:
        """The findings that have begun and not ended: "few prototypes (cls)"."""
        return tuple(key for key, active in self._active.items() if active)

    def state_dict(self) -> dict[str, Any]:
        return {"peaks": dict(self._peaks), "streaks": dict(self._streaks), "active": dict(self._active)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._peaks, self._streaks = dict(state["peaks"]), dict(state["streaks"])
        self._active = dict(state["active"])

    def _noted(self, name: str, token: str | None, sign: _Sign | None, step: int) -> Finding | None:
        key = f"{name} ({token})" if token else name
        streak, active = self._streaks.get(key, 0), self._active.get(key, False)
        streak = max(streak, 0) + 1 if sign is not None else min(streak, 0) - 1
        self._streaks[key] = streak
        if not active and sign is not None and streak >= PATIENCE:
            self._active[key] = True
            return Finding(name, step, token, sign.seen, sign.meaning, sign.remedy)
        if active and streak <= -PATIENCE:
            self._active[key] = False
            return Finding(name, step, token, "", "", "", ended=True)
        return None


def _constant(health: Health) -> _Sign | None:
    x = health.embeddings
    if not x.spread < CONSTANT:
        return None
    return _Sign(
        f"the embeddings' spread is {x.spread:.4f} (1: all over the sphere) and their mean cosine {x.cosine:.4f}",
        "Every image looks the same to the network: it has collapsed to a constant, or has not left its start yet.",
        "wait for the end of the warm-up; if it lasts, a lower learning rate, weaker augmentations, a larger batch, "
        "and for methods without negatives check the predictor, the stop-gradient or the variance term.",
    )


def _uniform(now: _Moment) -> _Sign | None:
    x = now.clusters
    if not x.student_entropy >= now.highest - UNIFORM:
        return None
    seen = (
        f"the student's assignments have an entropy of {x.student_entropy:.4f} and the targets' of "
        f"{x.target_entropy:.4f}, where ln K = ln {x.prototypes} = {now.highest:.4f}; the loss is {now.loss:.4f}"
    )
    if now.targets_say_nothing:
        meaning = "Uniform collapse: every image gets every prototype alike, the loss rests at ln K."
        remedy = (
            "a lower teacher temperature (sharper targets) with a longer temperature warm-up, a lower learning rate, "
            "a teacher momentum closer to 1, gradient clipping; start again, for it seldom recovers."
        )
    else:
        meaning = "The targets choose, but the student follows none of them: its cross-entropy rests at ln K."
        remedy = (
            "wait for the end of the warm-up; if it lasts, another learning rate, and a check that views of one image "
            "have something in common (crop scales, colours)."
        )
    return _Sign(seen, meaning, remedy)


def _one(now: _Moment) -> _Sign | None:
    x = now.clusters
    most = min(0.9, max(MOST, 2 * x.largest_prior))  # with few prototypes, or a skewed prior, one may be large
    if now.targets_say_nothing or x.rows < _ROWS or not x.largest > most:  # of equal ones the first would win
        return None
    return _Sign(
        f"{x.largest:.0%} of the last {x.rows:,} targets choose the same one of {x.prototypes:,} prototypes",
        "One prototype takes all: the targets say nothing about the image.",
        "a balancer (Sinkhorn to the prior, or explicit balancing) instead of plain or no centering, faster centering "
        "(momentum .9), a higher teacher temperature, a heavier weight on the prior's term.",
    )


def _few(now: _Moment) -> _Sign | None:
    x = now.clusters
    if now.targets_say_nothing or not x.representative or not x.used < FEW * x.prototypes:
        return None
    return _Sign(
        f"{x.used:,} of {x.prototypes:,} prototypes were chosen by the last {x.rows:,} targets ({x.used_share:.0%})",
        "More than half of the clusters are empty: the method sees fewer clusters than it was given. With plain "
        "centering that is usual, and the features may still be good.",
        "explicit balancing, Sinkhorn or probability centering to fill them, or fewer prototypes.",
    )


def _far(now: _Moment) -> _Sign | None:
    x = now.clusters
    skewed = x.largest_prior > 1.5 / x.prototypes
    if not x.representative or not x.target_distance > FAR or not (skewed or x.used >= FEW * x.prototypes):
        return None  # under a uniform prior few prototypes are said to be few already
    seen = f"{x.target_distance:.0%} of the mean target's mass lies elsewhere than the prior says"
    if x.marginal_distance < SILENT:
        seen += (
            f", while the student's own marginal follows it (KL {x.marginal_divergence:.4f}), so that the prior's term "
            "of the loss does not show this"
        )
    return _Sign(
        seen,
        "The clusters do not have the sizes that the prior wishes; one answer for all images satisfies it, too.",
        "a balancer that brings targets to the same prior (PMSN: balancer=Sinkhorn, no target_prior), or another one.",
    )


def _merging(now: _Moment) -> _Sign | None:
    x = now.clusters
    if not x.unique < MERGED * now.peak:
        return None
    return _Sign(
        f"{x.unique:,} of {x.prototypes:,} prototypes are unique, and {now.peak:,} were before",
        "Partial prototype collapse: prototypes move onto each other, and the method has fewer clusters than K.",
        f"KoLeo on the prototypes (KoLeo-proto, weight .1), a lower weight decay of the prototypes, or K of about "
        f"{x.unique:,}.",
    )


SYMPTOMS: dict[str, Callable[[_Moment], _Sign | None]] = {
    "uniform assignments": _uniform,
    "one prototype": _one,
    "few prototypes": _few,
    "far from the prior": _far,
    "merging prototypes": _merging,
}
