"""What a method looks at: DINO's views of a few images, as one picture.

    python examples/views.py                     of the drawn digits
    python examples/views.py ~/photographs       of the images in a folder
    python examples/views.py cifar10:DATA -o cifar10.png

One row an image: two global views, then eight local ones.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from prototile.data import BadImage, Loader, Source, open_source
from prototile.views import denormalized, preset, small

GAP = 4  # white pixels around every view
SMALL = 64  # images of so many pixels get the small form of the views


def montage(groups: list[Tensor]) -> Tensor:
    """Images x views of every group, v x b x 3 x s x s, beside each other; smaller ones stand in the middle."""
    side = max(images.shape[-1] for images in groups) + 2 * GAP
    columns = []
    for images in groups:
        margin = (side - images.shape[-1]) // 2
        padded = torch.nn.functional.pad(images, (GAP, GAP, margin, margin), value=1.0)
        columns += [torch.cat(list(view), dim=1) for view in padded]
    return torch.cat(columns, dim=2)


def side(source: Source) -> int:
    """The longer side of the first image that can be read."""
    for index in range(len(source)):
        try:
            return max(source.image(index).shape)
        except BadImage:
            continue
    raise SystemExit("none of the images can be read")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", nargs="?", default="digits", help="a folder or a data set (default: digits)")
    parser.add_argument("-n", "--images", type=int, default=6)
    parser.add_argument("-o", "--out", type=Path, default=Path("views.png"))
    options = parser.parse_args()
    if options.images < 1:
        parser.error("--images must be at least 1")

    source = open_source(options.source)
    augmentation, zoom = preset("dino"), 1
    if side(source) <= SMALL:
        augmentation, zoom = small(augmentation), 4
    batch = next(iter(Loader(source, augmentation, min(options.images, len(source)), workers=0)))
    picture = montage([denormalized(views.images, augmentation.normalization) for views in batch.views]).clamp(0, 1)
    enlarged = (255 * picture).byte().repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(enlarged.permute(1, 2, 0).numpy()).save(options.out)
    print(f"{options.out}: images {batch.indices.tolist()} of the {len(source):,} in {options.source}")


if __name__ == "__main__":
    main()
