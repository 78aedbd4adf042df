"""What continuing came to: before and after, and which weights were kept."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prototile.audit.plain import plain
from prototile.training.continuing.measuring import Measures

FILE = "continued.json"
_PERCENT, _NUMBER = "{:.2%}".format, "{:.3f}".format
_ROWS = {  # names as a table has them, and how they are written
    "knn": ("kNN", _PERCENT),
    "linear": ("linear, 1% of the labels", _PERCENT),
    "linear_error": ("  its standard error", _PERCENT),
    "entropy": ("entropy of a dim of projections", _NUMBER),
    "covariance": ("squared covariances of a dim", "{:.2e}".format),
    "chi_square": ("chi-square of two dims (uniform: 1)", _NUMBER),
    "distance": ("distance of a dim to uniform", _NUMBER),
    "overlap": ("overlap of near and far distances", _NUMBER),
    "overlap_directions": ("  the same of directions", _NUMBER),
    "auc": ("AUC of near and far distances", _NUMBER),
    "rankme": ("RankMe of features", "{:.1f}".format),
    "rankme_projections": ("RankMe of projections", "{:.1f}".format),
}


@dataclass(frozen=True, eq=False)
class Continued:
    """`after` are the weights that are kept: those after `kept` epochs, by the `scores` of `measure`; 0 is the
    beginning. `last` are those of the end, where these are others. `diverged` says why the run broke off, if it did.
    """

    checkpoint: str
    layout: str
    network: str
    method: str
    criterion: str
    coefficients: Mapping[str, Any]
    before: Measures
    after: Measures
    last: Measures | None
    measure: str
    scores: Mapping[int, float]
    kept: int
    keep: str  # "best" or "last"
    epochs: int
    steps: int
    rebuilt: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    diverged: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def worse(self) -> bool:
        """Whether the last weights are worse than those of the beginning, by the measure."""
        return self.diverged is not None or self.scores[max(self.scores)] < self.scores[0]

    @property
    def verdict(self) -> str:
        """What became of it, in words."""
        before, last = (self._shown(self.scores[epoch]) for epoch in (0, max(self.scores)))
        said = f"{self.measure}: {before} before"
        if self.diverged is not None:
            said = f"Continuing broke off: {self.diverged}\n{said}"
        if self.keep == "last":
            end = ", worse than before" if self.worse else ""
            return f"{said}, {last} at the end{end}: the last weights are kept, as asked for."
        if self.kept:
            end = f"; at the end it was {last}, worse than before" if self.worse else f", {last} at the end"
            kept = self._shown(self.scores[self.kept])
            return f"{said}, {kept} after epoch {self.kept}, whose weights are kept{end}."
        if not self.worse:
            return f"Continuing made nothing better. {said}, {last} at the end: the weights of before are kept."
        return f"Continuing made it worse. {said}, {last} at the end: the weights of before are kept."

    def as_dict(self) -> dict[str, Any]:
        """As strict JSON takes it."""
        names = [each.name for each in dataclasses.fields(self)]
        return {name: plain(getattr(self, name)) for name in names} | {"worse": self.worse, "verdict": self.verdict}

    def __str__(self) -> str:
        columns = {"before": self.before, "after": self.after} | ({} if self.last is None else {"last": self.last})
        rows = [("", *columns)]
        for name, (said, form) in _ROWS.items():
            values = [getattr(each, name) for each in columns.values()]
            if values[0] is not None:
                rows.append((said, *("" if x is None else form(x) for x in values)))
        width = max(len(row[0]) for row in rows)
        lines = [f"{row[0]:{width}}" + "".join(f"  {cell:>10}" for cell in row[1:]) for row in rows]
        head = f"{self.checkpoint}: {self.layout}, {self.network}; {self.method}, criterion {self.criterion}"
        return "\n".join([head, *self.said, "", *lines, "", self.verdict])

    def _shown(self, score: float) -> str:
        return f"{score:.2%}" if self.measure == "kNN" else f"{score:.1f}"
