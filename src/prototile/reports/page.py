"""Pages: one HTML file each, with all that it needs inside, for any screen, light or dark.

render(template, ...)       a page from a template that extends base.html
ink(pixels)                 an image as a data URI: ink on nothing, so that it suits either background
photo(image, side)          an image as a data URI: cut to a square, small
embedded(data)              data for a page's script, as JSON that no tag can end
percent(share), count(n), short(x)    numbers as people read them
"""

import base64
import io
import json
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, features
from torch import Tensor

_SIDE = 16  # pixels of an image on a page, before the browser scales it
_SMALL = 32  # what is smaller is enlarged here: browsers smear it
_QUALITY = 72  # of WebP: about a kilobyte for a photograph of 64 pixels

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_IN_MARKUP = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"})


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def count(number: float) -> str:
    return f"{number:,.0f}"


def short(number: float, digits: int = 3) -> str:
    """To so many digits: 0.0123, 4.57, 1,230, 5.1 × 10⁻⁶."""
    if not math.isfinite(number):
        return "–"
    if 0 < abs(number) < 1e-3:
        mantissa, power = f"{number:.{digits - 1}e}".split("e")
        written = f"{float(mantissa):g} × 10{raised(int(power))}"
    else:
        written = f"{number:,.0f}" if abs(number) >= 10 ** (digits - 1) else f"{number:.{digits}g}"
    return written.replace("-", "−")


def minus(number: float, digits: int) -> str:
    """With so many decimals, and a minus as long as a plus."""
    return f"{number:.{digits}f}".replace("-", "−") if math.isfinite(number) else "–"


def raised(power: int) -> str:
    """An exponent above the line."""
    return str(power).translate(_RAISED)


def render(template: str, **values: object) -> str:
    """The page; every value is escaped but markup that was made here."""
    return _environment.get_template(template).render(**values)


def embedded(data: object) -> Markup:
    """JSON for `<script type="application/json">`: nothing in it can end the script or begin a tag."""
    return Markup(json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_IN_MARKUP))


def photo(image: UInt8[Tensor, "3 h w"], side: int) -> str:
    """The middle square of an image, at most `side` pixels wide, as a WebP, or a PNG where Pillow cannot."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    edge = min(picture.size)
    left, top = ((length - edge) // 2 for length in picture.size)
    wished = min(side, max(edge, _SMALL))
    square = picture.resize((wished, wished), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))
    buffer = io.BytesIO()
    if features.check("webp"):
        square.save(buffer, format="WEBP", quality=_QUALITY, method=4)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    square.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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
_environment.filters["short"] = short
_environment.filters["embedded"] = embedded
