"""Images through an imported network, once: what commands that look at images share.

crop_of(imported)            how its images are shown, where nothing else is said
encoded(imported, source)    features and projections of all images, kept on disk
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from prototile.backbones import Backbone, ResNet, ViT
from prototile.checkpoints import Imported, ImportedHead
from prototile.data import BadImage, Source, default_workers
from prototile.evaluation import Crop, Stored, outputs_of
from prototile.evaluation.features import evaluating
from prototile.evaluation.stored import weights_hash
from prototile.types import Features
from prototile.views import Augmentation, Engine, Group, preset, small
from prototile.views.masks import Draw

FEATURES, PROJECTIONS = "features", "projections"
SIZE = 224
_SMALL = 32  # what stems for small images are made for
_LARGE = 128  # pixels from which views are augmented as published
_BATCH = 64  # images whose views pass the network together
_STRIDE = 2654435761  # Knuth's multiplicative hash: which patch of an image is looked at


def default_cache() -> Path:
    """Where what networks make of images is kept, unless it is said."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "prototile" / "outputs"


def device_named(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def crop_of(imported: Imported, size: int | None = None, resize: int | None = None) -> Crop:
    """What a run says of the images that it has seen; else 224 pixels, or what the network was built for if less."""
    seen = imported.seen
    if seen is None:
        return Crop(_usual(imported.backbone) if size is None else size, resize)
    return Crop(seen.size if size is None else size, resize, seen.normalization)


def encoded(
    imported: Imported,
    source: Source,
    crop: Crop,
    *,
    cache: Path,
    device: torch.device,
    batch: int = 256,
    workers: int | None = None,
) -> Stored:
    """Features of the backbone, and what every projector makes of them: "projections", or "projections (patches)".

    A head of patches sees one patch of every image, another place each time.
    """
    backbone = imported.backbone
    if backbone is None:
        raise ValueError(
            f"this file ({imported.layout}) holds no backbone that can be built here, so that no image can be encoded: "
            "leave out the data, or give the full checkpoint"
        )
    projectors = projectors_of(imported)
    network = nn.ModuleList([backbone, *projectors.values()]).to(device)
    outputs = _outputs(backbone, projectors)
    key = {"weights": weights_hash(network), "network": described(backbone), "outputs": list(projectors)}
    workers = default_workers() if workers is None else workers
    return outputs_of(source, outputs, network, folder=cache, key=key, crop=crop, batch=batch, workers=workers)


@torch.no_grad()
def views_of(
    imported: Imported, source: Source, crop: Crop, *, views: int, images: int, device: torch.device, seed: int = 0
) -> dict[str, Float[Tensor, "v n _d"]]:
    """Features and projections of augmented views (SimCLR's) of some images, drawn by `seed`; of class tokens alone."""
    backbone = imported.backbone
    assert backbone is not None
    engine = Engine(_augmentation(crop, views), seed)
    numbers = np.random.default_rng(seed).permutation(len(source))[:images]
    projectors = {name: x for name, x in projectors_of(imported).items() if "patches" not in name}
    found: dict[str, list[Tensor]] = {name: [] for name in (FEATURES, *projectors)}
    with evaluating(nn.ModuleList([backbone, *projectors.values()])):
        for start in range(0, len(numbers), _BATCH):
            drawn = numbers[start : start + _BATCH].tolist()
            read = [image for number in drawn if (image := _read(source, number)) is not None]
            if not read:
                continue
            draw = Draw.alone(len(read), step=start)
            shown = engine(read, draw)[0].images.to(device)
            features = backbone(shown.flatten(0, 1), patches=False).pooled
            found[FEATURES].append(features.unflatten(0, (views, -1)).float().cpu())
            for name, projector in projectors.items():
                found[name].append(projector(features).unflatten(0, (views, -1)).float().cpu())
    return {name: torch.cat(parts, 1) for name, parts in found.items() if parts}


def projectors_of(imported: Imported) -> dict[str, nn.Module]:
    """By the name of their outputs; heads that share one name it once each."""
    heads: Mapping[str, ImportedHead] = imported.heads
    found = {output_of(kind): head.projector for kind, head in heads.items() if head.projector is not None}
    if imported.projector is not None:
        found[PROJECTIONS] = imported.projector
    return found


def output_of(kind: str) -> str:
    """The output that the head of this kind of token looks at."""
    return PROJECTIONS if kind == "cls" else f"{PROJECTIONS} ({kind})"


def _augmentation(crop: Crop, views: int) -> Augmentation:
    """So many of SimCLR's views, of the crop's size, and normalised as it is."""
    wished = preset("simclr")
    if crop.size < _LARGE:
        wished = small(wished, size=crop.size)
    view = replace(wished.groups[0].views[0], size=crop.size)
    return replace(wished, groups=(Group((view,) * views),), normalization=crop.normalization)


def _read(source: Source, index: int) -> Tensor | None:
    try:
        return source.image(index)
    except BadImage:
        return None


def _outputs(backbone: Backbone, projectors: Mapping[str, nn.Module]) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    patches = any(name.startswith(f"{PROJECTIONS} (patches") for name in projectors)

    def outputs(images: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        features = backbone(images, patches=patches)
        found = {FEATURES: features.pooled}
        for name, projector in projectors.items():
            of_patches = name.startswith(f"{PROJECTIONS} (patches")
            found[name] = projector(_one_patch(features, numbers) if of_patches else features.pooled)
        return found

    return outputs


def _one_patch(features: Features, numbers: Tensor) -> Tensor:
    """One patch of every image, by the image's number."""
    patches = features.patches
    if patches is None:
        raise ValueError("this checkpoint has prototypes for patches, and its backbone gives none")
    return patches[torch.arange(len(patches), device=patches.device), numbers * _STRIDE % patches.shape[1]]


def _usual(backbone: Backbone | None) -> int:
    match backbone:
        case ViT():
            side = backbone.vit.patch_embed.img_size[0]  # type: ignore[index]
            return min(side, SIZE)
        case ResNet() if backbone.resnet.conv1.kernel_size == (3, 3):
            return _SMALL
    return SIZE


def described(backbone: Backbone) -> str:
    """What the weights do not tell: layers, and plain options such as how positions are resized."""
    options = {k: v for k, v in vars(backbone).items() if isinstance(v, bool | int | float | str | None)}
    return f"{backbone} {sorted((k, v) for k, v in options.items() if k not in ('training', 'checkpointing'))}"
