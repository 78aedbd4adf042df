"""What pages have alike: numbers, data for scripts, images."""

import base64
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from prototile.reports import page


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0, "0"),
        (0.0123456, "0.0123"),
        (4.567, "4.57"),
        (-2.5, "−2.5"),
        (99.94, "99.9"),
        (1234.4, "1,234"),
        (7.114e-5, "7.11 × 10⁻⁵"),
        (-1e-12, "−1 × 10⁻¹²"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_short_numbers(number, written):
    assert page.short(number) == written


def test_decimals():
    assert page.minus(-0.12345, 3) == "−0.123"


def test_embedded_data_cannot_end_its_script():
    data = {"</script><script>alert(1)</script>": ["<!--", "]]>", "&lt;", '"quoted"', "\u2028"]}
    written = page.embedded(data)
    assert not set(written) & set("<>&\u2028")
    assert json.loads(written) == data


def test_embedded_data_is_strict_json():
    with pytest.raises(ValueError, match="JSON compliant"):
        page.embedded([math.nan])


def decoded(uri: str) -> Image.Image:
    head, data = uri.split(",")
    assert head in ("data:image/webp;base64", "data:image/png;base64")
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


@pytest.mark.parametrize("shape", [(100, 200), (200, 100)])
def test_a_photo_is_the_middle_square(shape):
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    height, width = shape
    image[0, (height - 100) // 2 : (height + 100) // 2, (width - 100) // 2 : (width + 100) // 2] = 255
    made = decoded(page.photo(image, 64))
    assert made.size == (64, 64)
    assert np.asarray(made)[..., 0].min() > 240


def test_small_images_are_enlarged_a_little_only():
    assert decoded(page.photo(torch.zeros(3, 8, 8, dtype=torch.uint8), 64)).size == (32, 32)
    assert decoded(page.photo(torch.zeros(3, 48, 50, dtype=torch.uint8), 64)).size == (48, 48)


def test_without_webp_it_is_a_png(monkeypatch):
    monkeypatch.setattr(page.features, "check", lambda name: False)
    assert page.photo(torch.zeros(3, 40, 40, dtype=torch.uint8), 64).startswith("data:image/png;base64,")
