"""Records of evaluations, made by hand: what their page shows is known."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prototile.evaluation.records import Record, packed

IMAGES = 400


def record(protocol: str, *values: float, name: str = "a", metric: str = "top1", **changes: Any) -> Record:
    """With as many right images, drawn by the protocol's length and the checkpoint's name, as each value says."""
    counted = metric == "top1" and not math.isnan(sum(values))
    rights = [_right(value, f"{protocol}{name}{i}") for i, value in enumerate(values)] if counted else []
    given: dict[str, Any] = {
        "seeds": tuple(range(len(values))),
        "values": values,
        "checkpoint": {"name": name, "weights": f"{name}0123456789", "layout": "DINO", "network": "teacher"},
        "data": {"name": "cifar10", "test hash": "t", "train": 1300, "test": IMAGES, "crop": {"size": 32}},
        "features": "pooled",
        "versions": {"prototile": "1", "torch": "2.9"},
        "finished": "2026-01-01T00:00:00Z",
        "right": tuple(packed(right) for right in rights),
    }
    return Record(protocol, metric, sum(values) / len(values), IMAGES, **(given | changes))


def _right(share: float, name: str) -> torch.Tensor:
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(sum(map(ord, name))))
    return order < round(share * IMAGES)


def groups(head: float | None, middle: float | None, tail: float | None) -> Mapping[str, Any]:
    """Head, middle and tail as evaluations of frozen features write them."""
    found = {"head": (head, 4), "middle": (middle, 12), "tail": (tail, 0 if tail is None else 84)}
    return {
        "by": "counts",
        "groups": {x: {"accuracy": a, "classes": n, "tested": n, "images": 5} for x, (a, n) in found.items()},
        "overall": 0.5,
    }


def several(name: str = "a", better: float = 0.0) -> Sequence[Record]:
    """A number of each kind."""
    return (
        record("knn", 0.6 + better, name=name, selected_on="validation", chosen=({"k": 20},)),
        record("linear", 0.7 + better, name=name, selected_on="test", chosen=({"features": "linear", "rate": 0.01},)),
        record("lowshot, 1 per class", 0.3, 0.32, 0.35 + better, name=name),
        record("logistic", 0.72, name=name, details={"groups": [groups(0.9, 0.6, 0.2), groups(0.7, 0.6, None)]}),
        record("logistic", 0.5, name=name, options={"labels": 0.01}),
        record("label-free", 41.5, name=name, metric="RankMe"),
        record("transfer cifar10", 0.81, name=name, data={"name": "cifar10", "test hash": "u"}),
        record("transfer dtd", 0.55, name=name, data={"name": "dtd", "test hash": "v"}),
        record("linear", float("nan"), name=name, data={"name": "inat18", "test hash": "w"}),
    )
