"""TIFFs of many kinds, written and read by an independent library."""

import io

import numpy as np
import pytest
import tifffile
from pictures import encode, photograph
from PIL import Image

from fdftnet_jax.data import images

RGB = np.asarray(photograph(40, 56))
GREY = RGB[..., 1]
OPACITY = np.tile(np.linspace(0, 255, 56).astype(np.uint8), (40, 1))


def written(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


def planes(pixels):
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def numbers(data):
    """The numbers of the first page, [40, 56, channels], in 0..1, by tifffile."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        values = page.asarray()
        if page.planarconfig == 2:
            values = np.moveaxis(values, 0, -1)
        most = np.iinfo(values.dtype).max
        return (values if values.ndim == 3 else values[..., None]) / most


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "deflate"},
        {"compression": "deflate", "predictor": 2},
        {"rowsperstrip": 7},
        {"tile": (16, 32)},
    ],
    ids=str,
)
class TestKinds:
    @pytest.fixture
    def scaled(self, dtype):
        """Makes 8-bit numbers those of the kind, not only multiples of 257."""

        def scale(values):
            values = values.astype(dtype)
            if dtype == np.uint8:
                return values
            return values * 257 - np.minimum(values, 100)

        return scale

    def check(self, data, shown):
        # Pillow takes the high byte of 16-bit colours.
        np.testing.assert_allclose(images.decode(data), 255 * shown, atol=2)

    def test_colours(self, scaled, order, options):
        for layout in ("contig", "separate"):
            values = scaled(RGB)
            values = values if layout == "contig" else planes(values)
            data = written(
                values,
                photometric="rgb",
                planarconfig=layout,
                byteorder=order,
                **options,
            )
            self.check(data, numbers(data))

    def test_white_is_zero(self, scaled, order, options):
        data = written(
            scaled(GREY), photometric="miniswhite", byteorder=order, **options
        )
        self.check(data, np.repeat(1 - numbers(data), 3, axis=-1))

    @pytest.mark.parametrize("layout", ["contig", "separate"])
    @pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
    def test_transparency(self, scaled, order, options, layout, kind):
        opacity = OPACITY[..., None]
        colours = RGB if kind == "unassalpha" else RGB * (opacity / 255)
        values = scaled(np.concatenate([colours, opacity], axis=-1))
        values = values if layout == "contig" else planes(values)
        data = written(
            values,
            photometric="rgb",
            planarconfig=layout,
            extrasamples=[kind],
            byteorder=order,
            **options,
        )
        stored = numbers(data)
        colours, alpha = stored[..., :3], stored[..., 3:]
        if kind == "unassalpha":
            colours = colours * alpha
        self.check(data, colours + 1 - alpha)

    def test_palette(self, dtype, order, options):
        size = np.iinfo(dtype).max + 1
        random = np.random.default_rng(0)
        palette = random.integers(0, 65536, (3, size), np.uint16)
        indices = random.integers(0, size, (40, 56)).astype(dtype)
        # (Nobody writes the differences of indices.)
        options = {name: v for name, v in options.items() if name != "predictor"}
        data = written(
            indices,
            photometric="palette",
            colormap=palette,
            byteorder=order,
            **options,
        )
        self.check(data, palette.T[indices] / 65535)

    def test_ink(self, scaled, order, options):
        ink = np.concatenate([255 - RGB, OPACITY[..., None] // 4], axis=-1)
        data = written(scaled(ink), photometric="separated", byteorder=order, **options)
        stored = numbers(data)
        self.check(data, (1 - stored[..., :3]) * (1 - stored[..., 3:]))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "deflate", "predictor": 2}, {"tile": (16, 32)}]
)
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_transparent_grey_of_16_bits(kind, options, order):
    grey = GREY if kind == "unassalpha" else GREY * (OPACITY / 255)
    values = (np.stack([grey, OPACITY], axis=-1) * 257.0).astype(np.uint16)
    values -= np.minimum(values, 100)
    options = {"photometric": "minisblack", "extrasamples": [kind], **options}
    data = written(values, planarconfig="contig", byteorder=order, **options)
    colours, alpha = np.split(numbers(data), 2, axis=-1)
    if kind == "unassalpha":
        colours = colours * alpha
    shown = 255 * (colours + 1 - alpha)
    np.testing.assert_allclose(images.decode(data), np.repeat(shown, 3, -1), atol=2)
    assert images.decode(data, "stored").shape == (40, 56, 3)
    # (In planes of their own they are refused, in words.)
    data = written(planes(values), planarconfig="separate", **options)
    with pytest.raises(images.ImageError, match="lie apart"):
        images.decode(data)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_transparent_grey(kind):
    grey = GREY if kind == "unassalpha" else GREY * (OPACITY / 255)
    values = np.stack([grey, OPACITY], axis=-1).astype(np.uint8)
    data = written(
        values, photometric="minisblack", planarconfig="contig", extrasamples=[kind]
    )
    shown = GREY * (OPACITY / 255) + 255 - OPACITY
    np.testing.assert_allclose(images.decode(data)[..., 0], shown, atol=1.5)


def test_jpeg_and_ycbcr_in_a_tiff():
    ycbcr = np.asarray(photograph(40, 56).convert("YCbCr"))
    data = written(ycbcr, photometric="ycbcr")
    np.testing.assert_allclose(images.decode(data), RGB, atol=3)
    data = encode(Image.fromarray(RGB), "TIFF", compression="jpeg", quality=95)
    np.testing.assert_allclose(images.decode(data), RGB, atol=16)


def test_the_first_page_is_read():
    small = np.zeros((10, 14, 3), np.uint8)
    pages, sub = io.BytesIO(), io.BytesIO()
    with tifffile.TiffWriter(pages) as file:
        file.write(RGB, photometric="rgb", metadata=None)
        file.write(small, photometric="rgb", subfiletype=1, metadata=None)
    with tifffile.TiffWriter(sub) as file:
        file.write(RGB, photometric="rgb", subifds=1, metadata=None)
        file.write(small, photometric="rgb", subfiletype=1, metadata=None)
    picture = images.read(pages.getvalue())
    np.testing.assert_array_equal(picture.pixels, RGB)
    assert picture.notes == ("the first of its 2 pages",)
    picture = images.read(sub.getvalue())
    np.testing.assert_array_equal(picture.pixels, RGB)
    assert picture.notes == ()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (written(np.float32(RGB / 255), photometric="rgb"), "kind of pixels"),
        (written(RGB, photometric="cielab"), "CIELAB"),
        (written(RGB, photometric="rgb", subfiletype=1), "preview"),
    ],
    ids=["float", "lab", "preview"],
)
def test_what_is_not_read_is_said_in_words(data, reason):
    with pytest.raises(images.ImageError, match=reason):
        images.decode(data)


def test_a_strip_without_its_size():
    """Its size is optional where nothing is compressed; some scanners leave it out."""
    data = bytearray(written(RGB, photometric="rgb"))
    entry = data.index((279).to_bytes(2, "little") + (4).to_bytes(2, "little"))
    data[entry : entry + 2] = (65000).to_bytes(2, "little")
    np.testing.assert_array_equal(images.decode(bytes(data)), RGB)
