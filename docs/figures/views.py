"""Draw the views of every preset: of one photograph as published (views.png), of a small image (views_small.png).

    python docs/figures/views.py

Presets that are equal share a block. The photograph is one of scikit-learn's sample images, the small image one of the
drawn digits.

Axes: h w pixels of a picture, which has three channels between 0 and 1.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from prototile.data.toys import digits
from prototile.schedules import Progress
from prototile.types import Views
from prototile.views import PRESETS, Augmentation, Draw, Engine, Group, denormalized, preset, small

FOLDER = Path(__file__).parent
SEED = 4
DIGITS, DIGIT = 60, 35  # how many are drawn, and which is shown
START = Progress(step=0, steps=1)  # where presets that follow the run are shown
SMALL = 32  # pixels: presets for such images stay as they are
LEGEND = (
    "One image, and the views that each preset makes of it from the same random numbers.",
    "Captions: number of views × pixels, and what hides patches.",
    "Dark grey: a mask token takes the patch's place.",
    "Light grey: the patch is dropped.",
)
GAP, MARGIN, HEAD, FOOT = 8, 28, 50, 30  # pixels: between views, around all, captions above a block, space below it
MASKED, DROPPED, FRAME = 0.55, 0.9, 0.75  # greys
DPI = 100
PALETTE = 256  # colours: a third of the bytes, and hardly to be seen

Picture = Float[np.ndarray, "h w 3"]


class Sheet:
    """White paper to put pictures and words on, in pixels from the upper left corner."""

    def __init__(self, width: int, height: int):
        self._canvas = np.ones((height, width, 3))
        self._words: list[tuple[int, int, str, dict[str, object]]] = []

    def put(self, picture: Picture, x: int, y: int) -> None:
        height, width, _ = picture.shape
        self._canvas[y - 1 : y + height + 1, x - 1 : x + width + 1] = FRAME
        self._canvas[y : y + height, x : x + width] = picture

    def write(self, x: int, y: int, text: str, **style: object) -> None:
        self._words.append((x, y, text, style))

    def save(self, path: Path) -> None:
        height, width, _ = self._canvas.shape
        figure = Figure((width / DPI, height / DPI), DPI)
        canvas = FigureCanvasAgg(figure)
        figure.figimage(self._canvas)
        for x, y, text, style in self._words:
            figure.text(x / width, 1 - y / height, text, va="top", **style)
        canvas.draw()
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        pixels.quantize(PALETTE, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
        print(f"{path}: {width} x {height}, {path.stat().st_size / 1e6:.2f} MB")


# ------------------------------------------------------------------------------------------------------ blocks
def block(sheet: Sheet, x: int, y: int, names: list[str], augmentation: Augmentation, image: Tensor, zoom: int) -> None:
    """A preset's name, and below it its groups beside each other, small views in two rows."""
    sheet.write(x, y, " · ".join(names), size=13, weight="bold")
    made = Engine(augmentation, SEED)([image], Draw.alone(1), START)
    for group, views in zip(augmentation.groups, made, strict=True):
        sheet.write(x, y + 26, caption(group), size=9.5, color="0.35")
        for column, row, picture in arranged(pictures(group, views, augmentation, zoom), rows(group, augmentation)):
            step = group.size * zoom + GAP
            sheet.put(picture, x + column * step, y + HEAD + row * step)
        x += group_width(group, augmentation, zoom)


def caption(group: Group) -> str:
    words = f"{len(group.views)} × {group.size}"
    return words if group.masks is None else f"{words}, {type(group.masks).__name__}"


def rows(group: Group, augmentation: Augmentation) -> int:
    return 1 if group.size == largest(augmentation) else 2


def largest(augmentation: Augmentation) -> int:
    return max(group.size for group in augmentation.groups)


def arranged(items: list[Picture], rows: int) -> list[tuple[int, int, Picture]]:
    """Each with its column and row, row after row."""
    columns = -(-len(items) // rows)
    return [(place % columns, place // columns, item) for place, item in enumerate(items)]


def group_width(group: Group, augmentation: Augmentation, zoom: int) -> int:
    columns = -(-len(group.views) // rows(group, augmentation))
    return columns * (group.size * zoom + GAP) + 2 * GAP


# ---------------------------------------------------------------------------------------------------- pictures
def pictures(group: Group, views: Views, augmentation: Augmentation, zoom: int) -> list[Picture]:
    """The views of the one image as one sees them: normalisation undone, hidden patches grey."""
    pixels = denormalized(views.images[:, 0], augmentation.normalization).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    patches = (group.size // group.patch) ** 2
    shown = []
    for v, picture in enumerate(pixels):
        if views.mask is not None:
            picture = hidden(picture, views.mask[v, 0].numpy(), group, MASKED)
        if views.keep is not None:
            picture = hidden(picture, ~np.isin(np.arange(patches), views.keep[v, 0].numpy()), group, DROPPED)
        shown.append(magnified(picture, zoom))
    return shown


def hidden(picture: Picture, where: Bool[np.ndarray, " n"], group: Group, grey: float) -> Picture:
    grid = group.size // group.patch
    patches = where.reshape(grid, grid)
    return np.where(magnified(patches, group.patch)[..., None], grey, picture)


def magnified(picture: np.ndarray, zoom: int) -> np.ndarray:
    return picture.repeat(zoom, 0).repeat(zoom, 1)


# ------------------------------------------------------------------------------------------------------ sheets
def draw(path: Path, image: UInt8[Tensor, "3 h w"], presets: dict[str, Augmentation], zoom: int) -> None:
    """The image itself, then presets with one size of views to the left, those with small views too to the right."""
    alike: dict[Augmentation, list[str]] = {}
    for name, augmentation in presets.items():
        alike.setdefault(augmentation, []).append(name)
    sides = [[x for x in alike if (rows(x.groups[-1], x) == 2) == has_small] for has_small in (False, True)]
    widths = [max(sum(group_width(group, x, zoom) for group in x.groups) for x in side) for side in sides]
    edge = max(map(largest, alike)) * zoom
    step = HEAD + edge + FOOT
    sheet = Sheet(3 * MARGIN + sum(widths), MARGIN + edge + FOOT + max(map(len, sides)) * step)

    original = resized(image, edge)
    sheet.put(original, MARGIN, MARGIN)
    for line, text in enumerate(LEGEND):
        sheet.write(MARGIN + original.shape[1] + 2 * GAP, MARGIN + 22 * line, text, size=10.5, color="0.25")
    for x, side in zip((MARGIN, 2 * MARGIN + widths[0]), sides, strict=True):
        for row, augmentation in enumerate(side):
            block(sheet, x, MARGIN + edge + FOOT + row * step, alike[augmentation], augmentation, image, zoom)
    sheet.save(path)


def resized(image: UInt8[Tensor, "3 h w"], height: int) -> Picture:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    width = round(picture.width * height / picture.height)
    method = Image.Resampling.NEAREST if height > picture.height else Image.Resampling.LANCZOS
    return np.asarray(picture.resize((width, height), method)) / 255


def main() -> None:
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    published = {name: preset(name) for name in PRESETS}
    large = {name: x for name, x in published.items() if largest(x) > SMALL}
    draw(FOLDER / "views.png", photograph, large, 1)
    reduced = {name: small(x) if largest(x) > SMALL else x for name, x in published.items()}
    draw(FOLDER / "views_small.png", digits(num_images=DIGITS).image(DIGIT), reduced, 4)


if __name__ == "__main__":
    main()
