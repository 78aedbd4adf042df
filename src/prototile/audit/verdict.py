"""The verdict on a checkpoint: what its numbers say in plain words, with the evidence and what to do.

A statement says no more than its numbers carry: each threshold is a constant with its reason.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prototile.audit.clusters import ClusterAudit
from prototile.audit.embeddings import EmbeddingAudit
from prototile.audit.prototypes import PrototypeAudit

Level = Literal["fine", "note", "problem"]


@dataclass(frozen=True)
class Statement:
    """One thing that is seen: `text` says what, `evidence` the numbers, `meaning` what follows, `remedy` what to do."""

    level: Level
    name: str  # "partial prototype collapse"
    part: str  # which head or embeddings: "cls", "features"
    text: str
    evidence: str
    meaning: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        said = f"{self.part}: {self.text} ({self.evidence}). {self.meaning}"
        return said + (f" Try: {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Verdict:
    """All statements, problems first; none where there was nothing to look at."""

    statements: tuple[Statement, ...]

    @property
    def problems(self) -> tuple[Statement, ...]:
        return tuple(x for x in self.statements if x.level == "problem")

    @property
    def headline(self) -> str:
        """The most telling statement, as one sentence."""
        return self.statements[0].text if self.statements else "There is nothing to judge: no prototypes, no images."

    def __iter__(self) -> Iterator[Statement]:
        return iter(self.statements)

    def as_dict(self) -> dict[str, Any]:
        return {"headline": self.headline, "statements": [x.as_dict() for x in self.statements]}

    def __str__(self) -> str:
        return "\n".join(f"{x.level:8} {x}" for x in self.statements) or self.headline


def verdict(
    prototypes: Mapping[str, PrototypeAudit],
    clusters: Mapping[str, ClusterAudit] | None = None,
    embeddings: Mapping[str, EmbeddingAudit] | None = None,
) -> Verdict:
    """What these measures say; parts are named as in `Audit`."""
    return Verdict(())
