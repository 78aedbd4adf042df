"""Small checkpoints for commands that evaluate."""

from pathlib import Path

import torch

from foreign_cases import CASES, filled, vit


def checkpoint(folder: Path, salt: str = "", name: str = "dino.pth") -> str:
    """A DINO backbone of four blocks, for images of 32 pixels; another salt, other weights."""
    torch.save(filled(vit(depth=4), salt), folder / name)
    return str(folder / name)


def resnet_checkpoint(folder: Path, case: str = "simsiam") -> str:
    torch.save(CASES[case][0](), folder / "resnet.pth")
    return str(folder / "resnet.pth")
