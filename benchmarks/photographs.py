"""Photographs without a camera: random colours with the spectrum of photographs, 1 / f, as JPEG files in memory.

Axes: h w pixels.
"""

from io import BytesIO

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

QUALITY = 90
# With these, files are as large as photographs' of this size and quality, or somewhat larger.
MEAN, CONTRAST, COLOURFULNESS = 120.0, 62.0, 0.3


def photographs(count: int, width: int, height: int, seed: int = 0) -> list[bytes]:
    """`count` JPEG files, always the same."""
    rng = np.random.default_rng(seed)
    return [_jpeg(_photograph(height, width, rng)) for _ in range(count)]


def _photograph(height: int, width: int, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    luma, warm, green = (_noise(height, width, rng) for _ in range(3))
    red, blue = luma + COLOURFULNESS * warm, luma - COLOURFULNESS * warm
    pixels = np.stack([red, luma + COLOURFULNESS * green, blue], -1)
    return np.clip(np.rint(MEAN + CONTRAST * pixels), 0, 255).astype(np.uint8)


def _noise(height: int, width: int, rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Amplitudes proportional to 1 / f, phases random; mean zero, deviation one."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = np.inf
    values = np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / frequency).real
    return values / values.std()


def _jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
