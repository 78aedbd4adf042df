"""Pages: one HTML file each, with all that it needs inside, for any screen, light or dark.

render(template, ...)       a page from a template that extends base.html
ink(pixels)                 an image as a data URI: ink on nothing, so that it suits either background
percent(share), count(n)    numbers as people read them
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

_SIDE = 16  # pixels of an image on a page, before the browser scales it


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def count(number: float) -> str:
    return f"{number:,.0f}"


def render(template: str, **values: object) -> str:
    """The page; every value is escaped but markup that was made here."""
    return _environment.get_template(template).render(**values)


def ink(pixels: Sequence[Sequence[int]], darkest: int) -> str:
    """Grey values from 0 (nothing) to `darkest` as a PNG whose opacity they are."""
    values = np.asarray(pixels, dtype=np.float64).clip(0, darkest) * (255 / darkest)
    opacity = Image.fromarray(values.round().astype(np.uint8)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    picture = Image.merge("LA", (Image.new("L", opacity.size, 0), opacity))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_environment = Environment(
    loader=PackageLoader("prototile.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters["percent"] = percent
_environment.filters["count"] = count
