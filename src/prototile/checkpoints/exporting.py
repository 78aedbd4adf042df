"""Backbones for others to use: one file that needs nothing of this package.

write_weights(backbone, path)      .safetensors or .pth, under timm's names or the package's own
write_onnx(backbone, path, size)   the network itself, images in, pooled features out
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from prototile.backbones import Backbone, as_timm
from prototile.checkpoints.atomic import write_atomically

OPSET = 20
_EXPORTERS = ("onnx_ir", "onnxscript", "torch.onnx")  # they say much


def write_weights(backbone: Backbone, path: str | Path, *, names: Literal["timm", "prototile"] = "timm") -> str | None:
    """Writes the weights; gives the lines that build timm's network for them (`as_timm`), which safetensors hold too.

    `path` ends in .safetensors, or in .pth for a state dict that `torch.load(..., weights_only=True)` reads.
    """
    path = Path(path)
    if names not in ("timm", "prototile"):
        raise ValueError(f"names must be 'timm' or 'prototile', got {names!r}")
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"weights are written as .safetensors or .pth, got {path.name}")
    told = as_timm(backbone) if names == "timm" else None
    weights = backbone.state_dict() if told is None else told.weights
    plain = {name: x.detach().cpu().contiguous().clone() for name, x in weights.items()}
    code = None if told is None else told.code

    def written(file: IO[bytes]) -> None:
        if path.suffix == ".pth":
            torch.save(plain, file)
        else:
            file.write(save(plain, {"format": "pt"} | ({} if code is None else {"timm": code})))

    write_atomically(path, written)
    return code


def write_onnx(backbone: Backbone, path: str | Path, size: int, *, channels: int = 3) -> None:
    """Writes the network for images of `size` pixels and any number of them, from "images" to "features".

    Images are normalised already. Needs onnx and onnxscript (the extra `onnx`).
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"a network is written as .onnx, got {path.name}")
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError("onnx files need onnx and onnxscript: pip install 'prototile[onnx]'") from error
    network = _Pooled(backbone).eval()
    images = torch.zeros(2, channels, size, size, device=next(backbone.parameters()).device)
    with tempfile.TemporaryDirectory() as folder:  # the exporter writes large weights beside the file
        made = Path(folder) / path.name
        with _quiet():
            program: Any = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes={"images": {0: torch.export.Dim("n")}},
                opset_version=OPSET,
                verbose=False,
            )
            program.save(made, external_data=False)
        write_atomically(path, lambda file: file.write(made.read_bytes()))


class _Pooled(nn.Module):
    """Images to pooled features, as a network with plain tensors."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.backbone(images, patches=False).pooled


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own parts."""
    levels = {name: logging.getLogger(name).level for name in _EXPORTERS}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in _EXPORTERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
