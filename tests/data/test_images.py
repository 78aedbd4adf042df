"""Images: every mode against what a viewer shows, EXIF, transparency, and what is bad."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from prototile.data.images import decode, from_pil, read
from prototile.data.source import BadImage

HEIGHT, WIDTH = 24, 40
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([6 * COLUMNS, 10 * ROWS, 3 * (ROWS + COLUMNS)], -1).astype(np.uint8)
GREY = (6 * COLUMNS).astype(np.uint8)
ALPHA = (10 * ROWS).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(data: bytes) -> np.ndarray:
    """h x w x 3, as integers that can be subtracted."""
    return decode(data).permute(1, 2, 0).numpy().astype(int)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour.reshape(*alpha.shape, -1) * share + 255 * (1 - share)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, -1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_rgb_grey_and_one_bit(kind):
    if kind != "GIF":  # which has 256 colours only
        np.testing.assert_array_equal(shown(encoded(RGB, kind)), RGB)
    np.testing.assert_array_equal(shown(encoded(GREY, kind)), grey(GREY))
    np.testing.assert_array_equal(shown(encoded(GREY > 100, kind)), grey(255 * (GREY > 100)))


def test_palette():
    image = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(shown(encoded(image)), np.array(image.getpalette()).reshape(-1, 3)[np.array(image)])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparent_images_lie_on_white(kind):
    image = Image.fromarray(np.dstack([RGB, ALPHA]))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    np.testing.assert_allclose(shown(encoded(image, kind, **options)), on_white(RGB, ALPHA), atol=0.51)


def test_grey_with_alpha_lies_on_white():
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    np.testing.assert_allclose(shown(encoded(image)), grey(on_white(GREY, ALPHA)[..., 0]), atol=0.51)


def test_transparency_keys_are_white():
    palette = Image.fromarray(RGB).quantize(16)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    key = np.array(palette)[0, 0]
    colours[key] = 255
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(shown(encoded(palette, kind, transparency=int(key))), colours[np.array(palette)])
    expected = np.where(GREY == 60, 255, GREY)
    np.testing.assert_array_equal(shown(encoded(GREY, transparency=60)), grey(expected))
    expected = np.where((RGB[3, 4] == RGB).all(-1, keepdims=True), 255, RGB)
    np.testing.assert_array_equal(shown(encoded(RGB, transparency=tuple(RGB[3, 4].tolist()))), expected)


def test_palette_with_levels_of_transparency():
    image = Image.fromarray(RGB).quantize(4)
    alpha = np.array([0, 80, 160, 255], np.uint8)
    colours = np.array(image.getpalette()).reshape(-1, 3)
    expected = on_white(colours[np.array(image)], alpha[np.array(image)])
    np.testing.assert_allclose(shown(encoded(image, transparency=alpha.tobytes())), expected, atol=0.51)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_scaled(kind):
    values = (np.arange(HEIGHT * WIDTH) * 68).reshape(HEIGHT, WIDTH).astype(np.uint16)
    values[0, :4] = 0, 128, 129, 65535
    np.testing.assert_array_equal(shown(encoded(values, kind)), grey(np.rint(values / 257).astype(int)))


def test_sixteen_bits_in_other_clothes():
    values = np.array([[0, 1000, 32768, 65535]])
    expected = torch.from_numpy(np.rint(values / 257).astype(np.uint8)).expand(3, 1, 4)
    for image in (
        Image.fromarray(values.astype(np.int32)),
        Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes()),
    ):
        assert torch.equal(from_pil(image), expected)
    pgm = b"P5 4 1 65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(shown(pgm), grey(expected[0].numpy()))


def test_transparency_key_of_sixteen_bits():
    key = b"tRNS" + struct.pack(">H", 1000)
    chunk = struct.pack(">I", 2) + key + struct.pack(">I", zlib.crc32(key))
    data = encoded(np.array([[1000, 2000]], np.uint16))
    before = data.index(b"IDAT") - 4
    np.testing.assert_array_equal(shown(data[:before] + chunk + data[before:]), grey(np.array([[255, 8]])))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV"])
def test_other_colour_spaces(mode):
    image = Image.fromarray(np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0]]], np.uint8))
    if mode == "LAB":  # L from 0 to 255; a and b around 128
        image = Image.merge(
            "LAB", [Image.fromarray(np.array([x], np.uint8)) for x in ([255, 0, 138], [128, 128, 209], [128, 128, 198])]
        )
    else:
        image = image.convert(mode)
    expected = [[[255, 255, 255], [0, 0, 0], [255, 0, 0]]]
    np.testing.assert_allclose(from_pil(image).permute(1, 2, 0), expected, atol=5)
    if mode in ("CMYK", "LAB"):
        np.testing.assert_array_equal(shown(encoded(image, "TIFF")), from_pil(image).permute(1, 2, 0))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpegs_as_pillow_decodes_them(mode, options):
    data = encoded(Image.fromarray(RGB).convert(mode), "JPEG", **options)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_allclose(shown(data), expected, atol=2)
    np.testing.assert_allclose(shown(data), RGB if mode != "L" else expected, atol=40)


# Orientation and how the stored image is turned into what is shown (EXIF 2.3, tag 0x0112).
TURNS = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    turned, plain = encoded(RGB, kind, exif=exif, **options), encoded(RGB, kind, **options)
    np.testing.assert_array_equal(shown(turned), TURNS[orientation](shown(plain)))


@pytest.mark.parametrize("orientation", TURNS)
def test_an_odd_tag_does_not_keep_a_photograph_from_turning(orientation):
    """ImageWidth is a number, and here a text: Pillow reads it and cannot write it."""
    entries = struct.pack("<HHHI4s", 2, 0x0100, 2, 4, b"abc\0") + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entries + struct.pack("<I", 0)
    turned, plain = encoded(RGB, "JPEG", exif=exif), encoded(RGB, "JPEG")
    np.testing.assert_array_equal(shown(turned), TURNS[orientation](shown(plain)))


def test_exif_orientation_of_a_photograph_in_colours_of_print():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", exif=exif)
    assert shown(data).shape == (WIDTH, HEIGHT, 3)


def test_broken_exif_turns_nothing():
    np.testing.assert_array_equal(shown(encoded(RGB, exif=b"Exif\0\0MM\0*garbage")), RGB)
    assert shown(encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0*garbage")).shape == RGB.shape


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    expected = np.broadcast_to([255, 0, 0], (8, 8, 3))
    np.testing.assert_allclose(shown(data), expected, atol=2 if kind == "MPO" else 0)  # MPO has JPEGs


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_memory_is_channels_last(kind):
    assert decode(encoded(RGB, kind)).stride() == (1, 3 * WIDTH, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF"])
def test_truncated_files_are_bad(kind):
    if kind == "AVIF" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow reads no AVIF")
    data = encoded(RGB, kind)
    assert decode(data).shape == (3, HEIGHT, WIDTH)
    for length in (1, 3, len(data) // 4, len(data) // 2, len(data) - 40):
        with pytest.raises(BadImage):
            decode(data[:length])


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_that_lacks_a_byte_is_bad(options):
    data = encoded(RGB, "JPEG", **options)
    for length in range(len(data)):
        with pytest.raises(BadImage):
            decode(data[:length])


def test_reasons_are_one_line():
    for data, reason in (
        (b"", "empty"),
        (b"no image at all\nbut text", "no image format that is known"),
        (encoded(RGB, "JPEG")[:200], "."),
        (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floating-point images"),
        (encoded(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF"), "from 70000 to 70000 do not fit 16 bits"),
        (encoded(Image.fromarray(np.full((2, 2), -1, np.int32)), "TIFF"), "from -1 to -1 do not fit 16 bits"),
    ):
        with pytest.raises(BadImage, match=reason) as caught:
            decode(data)
        assert "\n" not in str(caught.value)
        assert ".cpp" not in str(caught.value)
        assert "BytesIO" not in str(caught.value)


def bomb(side: int) -> bytes:
    """A PNG of this size, nearly all of which is missing."""
    data = bytearray(encoded(GREY))
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data[12:33] = head + struct.pack(">I", zlib.crc32(head))
    return bytes(data)


def test_bombs_are_bad_in_silence():
    with pytest.raises(BadImage, match="bomb"):
        decode(bomb(30_000))
    with pytest.raises(BadImage, match="truncated"):  # of this size Pillow only warns
        decode(bomb(10_000))
    data = bytearray(encoded(RGB, "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(BadImage, match="bomb"):
        decode(bytes(data))


def test_filters_of_warnings_stay_as_they_are():
    before = list(warnings.filters)
    decode(encoded(RGB))
    assert list(warnings.filters) == before


def test_no_pixels():
    with pytest.raises(BadImage, match="no pixels: 0 x 5"):
        from_pil(Image.new("RGB", (0, 5)))
    with pytest.raises(BadImage):
        decode(b"P6 0 4 255\n")


def test_read(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(RGB))
    np.testing.assert_array_equal(read(tmp_path / "a.png").permute(1, 2, 0), RGB)
    assert torch.equal(read(str(tmp_path / "a.png")), read(tmp_path / "a.png"))
    with pytest.raises(BadImage, match="cannot open the file: No such file"):
        read(tmp_path / "b.png")
    with pytest.raises(BadImage, match="cannot open the file: Is a directory"):
        read(tmp_path)
