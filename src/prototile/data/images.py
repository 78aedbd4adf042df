"""Image files into RGB, as a viewer would show them.

    read        a file
    decode      the bytes of a file
    from_pil    an opened Pillow image

A viewer does what a mere `convert("RGB")` does not: it turns images by their EXIF orientation, lays transparent ones on
white, shows 16 bits of grey as 8. Colour profiles are not applied. What cannot be read raises `BadImage`.

Axes: 3 channels, h w pixels. Memory is channels last, as decoders give it and resizing likes it.
"""

import os
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from prototile.data.source import BadImage

# How an image with this EXIF orientation is turned to be shown (EXIF 2.3, tag 0x0112).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read(path: str | os.PathLike[str]) -> UInt8[Tensor, "3 h w"]:
    """The image in this file."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadImage(f"cannot open the file: {error.strerror or error}") from error
    return decode(data)


def decode(data: bytes) -> UInt8[Tensor, "3 h w"]:
    """The image in these bytes; of an animation the first frame."""
    if not data:
        raise BadImage("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of large or slightly broken files: what matters is raised
        try:
            with Image.open(BytesIO(data)) as image:
                return from_pil(image)
        except (BadImage, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise BadImage("no image format that is known") from error
        except Exception as error:  # Pillow's readers raise nearly anything where a file is broken
            raise BadImage(_one_line(error)) from error


def from_pil(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """An opened Pillow image of any mode."""
    if 0 in image.size:
        raise BadImage(f"the image has no pixels: {image.width} x {image.height}")
    image.load()  # first, for Pillow turns a TIFF while it loads
    if (turn := TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))) is not None:
        image = image.transpose(turn)  # not by ImageOps, which writes the EXIF anew and fails where a tag is odd
    if image.mode == "F":
        raise BadImage("floating-point images have no stated range of values; store them with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.has_transparency_data:
        image = _on_white(image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    # a copy, for Pillow's memory is read-only to numpy
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, v, as v / 257 rounded: 65535 is white. (Pillow's own conversion cuts off at 255.)"""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage(f"grey values from {values.min()} to {values.max()} do not fit 16 bits and have no stated range")
    grey = (values + 128) // 257
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
