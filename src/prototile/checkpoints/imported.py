"""What a checkpoint is to this package, whoever wrote it.

n rows, d dims, k prototypes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from prototile.assignments import Assignments
from prototile.backbones import Backbone, Readout
from prototile.heads import Prototypes
from prototile.sphere import normalize
from prototile.views import Augmentation, Normalization

Choice = Literal["evaluated", "teacher", "student"]
_LARGEST = 2**16  # pixels that an image may have on a side


class ImportedHead(nn.Module):
    """A projector and prototypes as a file holds them: `projector` leads from features to raw embeddings, which the
    prototypes see L2-normalised; it is None where the file has none.
    """

    def __init__(self, projector: nn.Module | None, prototypes: Prototypes):
        super().__init__()
        self.projector, self.prototypes = projector, prototypes

    def forward(self, features: Float[Tensor, "n d"], temperature: float) -> Assignments:
        if self.projector is None:
            raise ValueError("the file holds prototypes without a projector: give the checkpoint of the whole network")
        return self.prototypes(self.projector(features), temperature)

    def scores(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """What the project's softmax sees before it divides by a temperature, of rows that the projector has made."""
        found = normalize(embeddings) @ self.prototypes.weights().T
        return found if self.prototypes.bias is None else found + self.prototypes.bias


@dataclass(frozen=True)
class Seen:
    """The images that a run was trained on: the pixels of its largest views, and how these were normalised."""

    size: int
    normalization: Normalization

    @classmethod
    def of(cls, augmentation: Augmentation) -> "Seen":
        return cls(augmentation.groups[0].size, augmentation.normalization)

    def as_dict(self) -> dict[str, Any]:
        return {"size": self.size, "mean": list(self.normalization.mean), "std": list(self.normalization.std)}

    @classmethod
    def read(cls, told: Any) -> "Seen | None":
        """From what `as_dict` gives; None where nothing is told."""
        if told is None:
            return None
        try:
            size, (r, g, b), (x, y, z) = told["size"], told["mean"], told["std"]
            if not (type(size) is int and 0 < size <= _LARGEST):
                raise ValueError(f"a size of {size!r}")
            return cls(size, Normalization((float(r), float(g), float(b)), (float(x), float(y), float(z))))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it does not say which images it has seen (size, mean, std): {error}") from error


@dataclass(frozen=True)
class Imported:
    """A network of a checkpoint, in evaluation mode, and what the file tells about it.

    `heads` are named by the tokens that they look at: "cls" (pooled features), "patches"; further ones of the same
    tokens "cls2", "cls3", ... `backbone` is None where the file holds none that can be built here. Weights stay in the
    file until they are used: leave it where it is meanwhile.
    """

    layout: str  # whose: "DINO", "SwAV", ..., "prototile"
    evidence: tuple[str, ...]  # why, and what the shapes do not tell, in words
    network: str  # "teacher", "student" or "only": which this is, and why it was chosen
    backbone: Backbone | None
    heads: Mapping[str, ImportedHead] = field(default_factory=dict)
    projector: nn.Module | None = None  # of methods without prototypes
    predictor: nn.Module | None = None  # behind the projector, or data2vec's behind its patches
    decoder: nn.Module | None = None  # MAE's
    ignored: tuple[str, ...] = ()  # what is left out, and why
    temperature: float | None = None  # of the student's softmax, where file or project tell
    readouts: Mapping[str, Readout] = field(default_factory=dict)  # what its evaluations take: "knn", "linear", ...
    buffers: Mapping[str, Tensor] = field(default_factory=dict)  # centres and the like, by the file's names
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the file says of how it was trained
    epoch: int | None = None
    seen: Seen | None = None  # by a run of one's own

    def __str__(self) -> str:
        parts = [] if self.backbone is None else [f"{type(self.backbone).__name__} of {self.backbone.dims} dims"]
        parts += [f"{len(head.prototypes.vectors):,} prototypes ({kind})" for kind, head in self.heads.items()]
        parts += [name for name in ("projector", "predictor", "decoder") if vars(self)[name] is not None]
        return f"{self.layout}, {self.network.split(':')[0]}: {', '.join(parts)}"
