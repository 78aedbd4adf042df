"""What is evaluated: the backbone of a checkpoint, and what is read from it of any images, once.

n images, d dims.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.backbones import Backbone, Readout, ResNet, Swin, ViT
from prototile.checkpoints import Imported, load
from prototile.checkpoints.imported import Choice
from prototile.cli.encoding import crop_of, default_cache, described, device_named
from prototile.data import Source, default_workers
from prototile.evaluation import Crop
from prototile.evaluation.stored import Stored, fingerprint, outputs_of, weights_hash

_FEATURES, _MIRRORED = "features", "mirrored"


@dataclass(frozen=True, eq=False)
class Part:
    """Images to learn from or to test on: their labels, and features by name; `mirrored` are those of them turned."""

    source: Source
    labels: Int[Tensor, " n *classes"]
    taken: Int[Tensor, " n"]  # their numbers in the source
    features: Mapping[str, Float[Tensor, "_n _d"]]
    mirrored: Mapping[str, Float[Tensor, "_n _d"]]
    fingerprint: str

    @property
    def ids(self) -> list[str]:
        return [self.source.id(i) for i in self.taken.tolist()]


@dataclass(frozen=True, eq=False)
class Subject:
    """A frozen backbone, on a device, and how images are shown to it."""

    name: str
    imported: Imported
    backbone: Backbone
    weights: str
    crop: Crop
    cache: Path
    device: torch.device
    batch: int
    workers: int

    @classmethod
    def of(
        cls,
        path: str | Path,
        *,
        network: Choice,
        size: int | None,
        resize: int | None,
        cache: str | Path | None,
        device: str,
        batch: int,
        workers: int | None,
    ) -> "Subject":
        imported = load(path, network=network)
        backbone = imported.backbone
        if backbone is None:
            raise ValueError(
                f"{path} ({imported.layout}) holds no backbone that can be built here, so that there are no features: "
                "give the full checkpoint"
            )
        there = device_named(device)
        weights = weights_hash(backbone)
        return cls(
            Path(path).resolve().name,
            imported,
            backbone.to(there).requires_grad_(False),
            weights,
            crop_of(imported, size, resize),
            default_cache() if cache is None else Path(cache),
            there,
            batch,
            default_workers() if workers is None else workers,
        )

    @property
    def about(self) -> dict[str, Any]:
        """What tells it from others: for keys and records."""
        network = hashlib.sha256(described(self.backbone).encode()).hexdigest()
        return {"weights": self.weights, "network hash": network}

    def readout(self, *wished: str) -> Readout:
        """The first of these that the checkpoint's project reads in its evaluations; else pooled features."""
        readouts = self.imported.readouts
        return next((readouts[name] for name in wished if name in readouts), Readout())

    def linear_readout(self) -> Readout:
        """What linear classifiers read; the last four class tokens of transformers of which nothing is known."""
        if "linear" in self.imported.readouts or not isinstance(self.backbone, ViT | Swin):
            return self.readout("linear")
        return Readout(blocks=self._last_blocks)

    @property
    def _last_blocks(self) -> int:
        """Four, or as many as there are."""
        match self.backbone:
            case ViT():
                depth = len(self.backbone.vit.get_submodule("blocks"))  # type: ignore[arg-type]
            case Swin():
                depth = sum(1 for name, _ in self.backbone.named_modules() if name.split(".")[-2:-1] == ["blocks"])
            case _:
                depth = 0
        return min(4, depth)

    def vissl_readouts(self) -> dict[str, Readout]:
        """Two: the last map at 2 x 2 places, or the last four class tokens, beside pooled features."""
        if isinstance(self.backbone, ResNet):
            return {"pooled": Readout(), "map": Readout(grid=2)}
        if isinstance(self.backbone, ViT | Swin):
            return {"cls": Readout(), "cls of blocks": Readout(blocks=self._last_blocks)}
        return {"pooled": Readout()}

    def part(
        self, source: Source, readouts: Mapping[str, Readout], *, squeeze: bool = False, mirrored: bool = False
    ) -> Part:
        """What these readouts see of all images, each from the disk where it has been seen before.

        Ranks share the work; all must call it.
        """
        crop = replace(self.crop, squeeze=True) if squeeze else self.crop
        data = fingerprint(source)
        found = {name: self._stored(source, data, readout, crop, mirrored) for name, readout in readouts.items()}
        first = next(iter(found.values()))
        return Part(
            source,
            first.labels,
            first.taken,
            {name: x.outputs[_FEATURES] for name, x in found.items()},
            {name: x.outputs[_MIRRORED] for name, x in found.items()} if mirrored else {},
            data,
        )

    def _stored(self, source: Source, data: str, readout: Readout, crop: Crop, mirrored: bool) -> Stored:
        def outputs(images: Tensor, numbers: Tensor) -> dict[str, Tensor]:
            found = {_FEATURES: readout(self.backbone, images)}
            return found | ({_MIRRORED: readout(self.backbone, images.flip(-1))} if mirrored else {})

        key = {"weights": self.weights, "network": described(self.backbone), "readout": repr(readout)}
        return outputs_of(
            source,
            outputs,
            self.backbone,
            folder=self.cache,
            key=key | ({"mirrored": True} if mirrored else {}),
            crop=crop,
            batch=self.batch,
            workers=self.workers,
            data=data,
        )
