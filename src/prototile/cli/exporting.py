"""`prototile export`: the backbone of any checkpoint as one file for others."""

import argparse
from pathlib import Path
from typing import Literal, get_args

import torch

from prototile.checkpoints import load
from prototile.checkpoints.exporting import write_onnx, write_weights
from prototile.checkpoints.imported import Choice
from prototile.cli.encoding import crop_of

ENDINGS = (".safetensors", ".pth", ".onnx")


def export_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    network: Choice = "evaluated",
    names: Literal["timm", "prototile"] = "timm",
    size: int | None = None,
    overwrite: bool = False,
) -> str | None:
    """Writes the backbone of a checkpoint, of any project that is known, by the ending of `out`.

    .safetensors and .pth hold weights under timm's names (or the package's own), and the lines of Python that build
    timm's network for them are given. .onnx holds the network itself, for images of `size` pixels, normalised already.
    """
    out = Path(out)
    if out.suffix not in ENDINGS:
        raise ValueError(f"{out.name} must end in one of {', '.join(ENDINGS)}: weights, or the network itself")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} is there already: give another name, or overwrite")
    imported = load(path, network=network)
    if imported.backbone is None:
        raise ValueError(f"{path} ({imported.layout}) holds no backbone that can be built here")
    backbone = imported.backbone.eval()
    if out.suffix != ".onnx":
        return write_weights(backbone, out, names=names)
    write_onnx(backbone, out, crop_of(imported, size).size, channels=_channels(backbone))
    return None


def command(words: list[str]) -> None:
    """`prototile export`."""
    parser = argparse.ArgumentParser(
        prog="prototile export",
        description="Writes the backbone of a checkpoint as one file for others; the ending of OUT says as what.",
    )
    parser.add_argument("checkpoint", help="a run, or a checkpoint of any project that is known")
    parser.add_argument("--out", required=True, help=".safetensors or .pth (weights), or .onnx (the network)")
    parser.add_argument("--network", choices=get_args(Choice), default="evaluated", help="which of those in the file")
    parser.add_argument("--names", choices=("timm", "prototile"), default="timm", help="whose names weights get")
    parser.add_argument("--size", type=int, help="pixels of the images that an .onnx network takes")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    given = parser.parse_args(words)
    code = export_checkpoint(
        given.checkpoint,
        given.out,
        network=given.network,
        names=given.names,
        size=given.size,
        overwrite=given.overwrite,
    )
    print(f"{given.out} is written")
    if code is not None:
        print(f"timm's network for it:\n\nimport timm\n{code}\ntimm.models.load_checkpoint(model, {given.out!r})")


def _channels(backbone: torch.nn.Module) -> int:
    """Of the images that the first convolution sees."""
    first = next(part for part in backbone.modules() if isinstance(part, torch.nn.Conv2d))
    return first.in_channels
