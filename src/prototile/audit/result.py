"""An audit as a whole: all that was measured of one checkpoint.

Parts are named: prototypes and clusters by the kind of token or head ("cls", "patches"), embeddings by where they were
taken ("features" of the backbone, "projections" of the projector).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from prototile.audit.clusters import ClusterAudit
from prototile.audit.embeddings import EmbeddingAudit
from prototile.audit.maps import Map
from prototile.audit.plain import plain
from prototile.audit.prototypes import PrototypeAudit
from prototile.audit.verdict import Verdict, verdict


@dataclass(frozen=True, eq=False)
class Audit:
    """What was measured of one checkpoint; what was not is missing from the mappings."""

    name: str
    layout: str = ""  # whose checkpoint it is: "DINO"
    evidence: tuple[str, ...] = ()  # why it was recognised as that
    network: str = ""  # which one of those in the file: "teacher"
    prototypes: Mapping[str, PrototypeAudit] = field(default_factory=dict)
    clusters: Mapping[str, ClusterAudit] = field(default_factory=dict)
    embeddings: Mapping[str, EmbeddingAudit] = field(default_factory=dict)
    maps: Mapping[str, Map] = field(default_factory=dict)

    @cached_property
    def verdict(self) -> Verdict:
        """What the numbers say in plain words."""
        return verdict(self.prototypes, self.clusters, self.embeddings)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as strict JSON takes it."""
        names = ("name", "layout", "evidence", "network", "verdict", "prototypes", "clusters", "embeddings", "maps")
        return {name: plain(getattr(self, name)) for name in names}

    def table(self) -> tuple[tuple[str, str], ...]:
        """What a terminal shows: names and values, the most telling first."""
        return tuple(self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        for part, x in self.prototypes.items():
            yield f"unique prototypes ({part})", f"{x.count:,} of {x.prototypes:,} ({x.share:.1%})"
            yield f"largest group ({part})", f"{int(x.unique.redundancy.max()):,}"
        for part, x in self.clusters.items():
            yield f"empty clusters ({part})", f"{x.empty:,} of {x.prototypes:,} ({x.empty_by_chance:,.1f} by chance)"
            yield f"largest cluster ({part})", f"{x.largest:.1f} times the mean"
            yield f"effective number ({part})", f"{x.effective:,.1f} of {x.prototypes:,}"
        for part, x in self.embeddings.items():
            yield f"RankMe ({part})", f"{x.rankme:.1f} of {x.dims:,} dims"

    def __str__(self) -> str:
        rows = self.table()
        width = max((len(name) for name, _ in rows), default=0)
        head = f"{self.name}: {self.layout} ({self.network})" if self.layout else self.name
        return "\n".join([head, *(f"  {name:{width}}  {value}" for name, value in rows), f"  {self.verdict.headline}"])
