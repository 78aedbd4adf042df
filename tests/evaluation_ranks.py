"""What ranks compute of evaluations: importable by spawned processes."""

from pathlib import Path

import torch

from evaluation_cases import Pixels, Some
from prototile.cli import main
from prototile.evaluation import Crop, outputs_of

SHAPES = [(4, 4), (8, 5), (6, 4), (4, 4), (9, 9), (5, 5), (4, 6)]


def encoded(rank: int, world: int, folder: Path, bad: list[int], images: int = len(SHAPES)) -> dict:
    """Every rank encodes its part, and all of them see the whole."""
    network = Pixels(48)
    options = {"folder": folder, "key": {}, "crop": Crop(4), "batch": 2}

    def outputs(shown, numbers):
        return {"features": network(shown).pooled, "numbers": numbers[:, None].float()}

    found = outputs_of(Some(SHAPES[:images], bad=bad), outputs, network, **options)
    return {
        "features": torch.tensor(found.outputs["features"].numpy()),
        "numbers": found.outputs["numbers"][:, 0].tolist(),
        "labels": found.labels.tolist(),
        "taken": found.taken.tolist(),
        "bad": found.bad,
        "reused": found.reused,
        "own": sum(network.batches),
    }


def failing(rank: int, world: int, folder: Path) -> str:
    """One of the ranks fails: both say so, and nothing stays."""
    network = Pixels(48)

    def outputs(shown, numbers):
        if rank == 1:
            raise RuntimeError("out of memory")
        return {"features": network(shown).pooled}

    try:
        outputs_of(Some(SHAPES), outputs, network, folder=folder, key={}, crop=Crop(4))
    except RuntimeError as error:
        return str(error)
    return "nothing"


def nothing_readable(rank: int, world: int, folder: Path) -> str:
    try:
        encoded(rank, world, folder, list(range(len(SHAPES))))
    except ValueError as error:
        return str(error)
    return "nothing"


def evaluated(rank: int, world: int, words: list[str]) -> int:
    """`prototile evaluate`, on every rank."""
    return main(words)
