"""Ordinary image processing against other implementations and what must hold."""

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from pictures import noise as random_pixels
from pictures import photograph
from PIL import Image
from scipy import ndimage

from fdftnet_jax.data import corruptions
from fdftnet_jax.errors import UserError

OPERATIONS = corruptions.OPERATIONS
CONDITIONS = [
    pytest.param(operation, strength, id=f"{name}-{strength}")
    for name, operation in OPERATIONS.items()
    for strength in operation.strengths
]


def textured(height=61, width=83):
    """A photograph's smooth areas with fine detail on it."""
    smooth = np.array(photograph(height, width), np.float64)
    detail = np.random.default_rng(0).normal(0, 12, (height, width, 1))
    return np.clip(smooth + detail, 0, 255).astype(np.uint8)


def error(image, other):
    """Mean squared error: PSNR is 10 log10(255^2 / this)."""
    return np.mean((image.astype(np.float64) - other) ** 2)


def test_the_table_of_strengths():
    found = {name: operation.strengths for name, operation in OPERATIONS.items()}
    assert found == {
        "jpeg": (95, 90, 75, 50, 30),
        "rescale": (0.75, 0.5, 0.25),
        "blur": (0.5, 1, 2, 4),
        "noise": (2, 5, 10, 20),
    }


@pytest.mark.parametrize(("operation", "strength"), CONDITIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 2), (17, 33)])
def test_shape_and_type_stay_and_the_picture_too(operation, strength, shape):
    pixels = random_pixels(*shape)
    before = pixels.copy()
    found = operation.apply(pixels, strength, 3)
    assert found.shape == pixels.shape and found.dtype == np.uint8
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(found, operation.apply(pixels, strength, 3))
    # As well where the array is a view that is laid out in another way.
    turned = np.asfortranarray(pixels)[:, ::-1]
    expected = operation.apply(np.ascontiguousarray(turned), strength, 3)
    np.testing.assert_array_equal(operation.apply(turned, strength, 3), expected)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_higher_strength_is_farther_from_the_picture(name):
    operation, pixels = OPERATIONS[name], textured()
    errors = [error(pixels, operation.apply(pixels, s, 0)) for s in operation.strengths]
    assert errors[0] > 0
    assert np.all(np.diff(errors) > 0)


@pytest.mark.parametrize("name", ["jpeg", "rescale", "blur"])
def test_one_colour_stays(name):
    operation = OPERATIONS[name]
    pixels = np.full((20, 31, 3), 128, np.uint8)
    for strength in operation.strengths:
        np.testing.assert_array_equal(operation.apply(pixels, strength, 0), pixels)


def test_nothing_to_do():
    pixels = random_pixels(12, 17)
    for found in (
        corruptions.rescale(pixels, 1),
        corruptions.blur(pixels, 0),
        corruptions.noise(pixels, 0),
    ):
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_is_what_another_library_makes_of_it(quality):
    pixels = textured()
    options = {
        cv2.IMWRITE_JPEG_QUALITY: quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    }
    flat = [number for option in options.items() for number in option]
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], flat)
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
    # They may differ in rounding; another quality is farther away.
    assert error(corruptions.jpeg(pixels, quality), expected) < 1
    assert error(corruptions.jpeg(pixels, quality - 5), expected) > 5


def test_jpeg_has_half_of_the_colours_resolution():
    """The bytes that are decoded: their header tells the subsampling and tables."""
    files = []

    class Kept(io.BytesIO):
        def __init__(self):
            super().__init__()
            files.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corruptions.io, "BytesIO", Kept)
        found = corruptions.jpeg(textured(), 50)
    data = files[0].getvalue()
    *_, subsampling = simplejpeg.decode_jpeg_header(data)
    assert subsampling == "420"
    with Image.open(io.BytesIO(data)) as image:
        # Quality 50 has the tables of the standard's annex K: 16 is the first.
        assert image.quantization[0][0] == 16
        np.testing.assert_array_equal(np.array(image), found)


def test_jpeg_loses_fine_colour():
    """Columns of two colours of one brightness: 4:2:0 mixes them, 4:4:4 does not."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, ::2], pixels[:, 1::2] = (200, 100, 100), (64, 160, 160)
    found = corruptions.jpeg(pixels, 95).astype(float)
    assert np.abs(found[:, ::2, 0] - found[:, 1::2, 0]).mean() < 60


def test_a_picture_that_is_too_long_for_jpeg():
    with pytest.raises(UserError, match="65500 pixels a side for JPEG, found 65501x1;"):
        corruptions.jpeg(np.zeros((1, 65501, 3), np.uint8), 90)


@pytest.mark.parametrize("sigma", [0.5, 1, 2, 4])
@pytest.mark.parametrize("shape", [(61, 83), (5, 40)])
def test_blur_is_scipy_s(sigma, shape):
    pixels = textured(*shape)
    expected = ndimage.gaussian_filter(
        pixels.astype(np.float64), (sigma, sigma, 0), mode="reflect", truncate=4
    )
    found = corruptions.blur(pixels, sigma)
    # Rounded, and OpenCV's kernel is of whole multiples of 1/256.
    assert np.abs(found - expected).max() < 2
    assert np.abs(found - expected).mean() < 0.4


def test_rescaling_does_not_alias():
    """Columns of the finest stripes become grey; dropped pixels would keep one."""
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    found = corruptions.rescale(stripes, 0.5)[:, 4:-4]
    assert np.abs(found.astype(int) - 128).max() < 20
    found = corruptions.rescale(textured(), 0.25)
    by_area = cv2.resize(textured(), (21, 15), interpolation=cv2.INTER_AREA)
    expected = cv2.resize(by_area, (83, 61), interpolation=cv2.INTER_LINEAR)
    assert error(found, expected) < 0.3 * error(textured(), expected)


@pytest.mark.parametrize("sigma", [2, 20])
def test_statistics_of_the_noise(sigma):
    grey = np.full((200, 300, 3), 128, np.uint8)
    change = corruptions.noise(grey, sigma, index=5).astype(float) - 128
    # 180,000 draws; rounding adds 1/12 to the variance.
    assert abs(change.mean()) < 4 * sigma / np.sqrt(change.size)
    assert change.std() == pytest.approx(np.sqrt(sigma**2 + 1 / 12), rel=0.01)
    normal = (change / sigma).reshape(-1)
    assert abs(np.mean(normal**3)) < 0.05 and abs(np.mean(normal**4) - 3) < 0.25
    colours = np.corrcoef(change.reshape(-1, 3).T)
    assert np.abs(colours - np.eye(3)).max() < 0.02


def test_noise_follows_the_seed_and_the_picture():
    grey = np.full((16, 16, 3), 128, np.uint8)
    drawn = [
        corruptions.noise(grey, 10, seed=seed, index=index).astype(int) - 128
        for seed in (0, 1)
        for index in (0, 1)
    ]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.2
    # The same noise at another strength: conditions differ in nothing else.
    twice = corruptions.noise(grey, 20).astype(int) - 128
    assert np.abs(twice - 2 * drawn[0]).max() <= 2


def test_noise_is_clipped():
    for colour in (0, 255):
        found = corruptions.noise(np.full((30, 30, 3), colour, np.uint8), 20)
        assert np.mean(found == colour) == pytest.approx(0.5, abs=0.06)
        assert np.abs(found.astype(int) - colour).max() < 150


# At random.


def drawn(number, **probabilities):
    """(sigma, quality, factor) of each of a number of draws, None where there is none.

    Each operation puts what it was given in its place.
    """
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for place, name in enumerate(("blur", "jpeg", "rescale")):

            def note(image, strength, place=place):
                return [*image[:place], strength, *image[place + 1 :]]

            patch.setattr(corruptions, name, note)
        for i in range(number):
            rng = np.random.default_rng(i)
            found.append(corruptions.Drawn(**probabilities)([None] * 3, rng))
    return found


def test_shares_and_ranges_of_what_is_drawn():
    found = drawn(2000, jpeg=0.3, blur=0.6, rescale=0.4)
    sigmas, qualities, factors = (
        [value for value in values if value is not None]
        for values in zip(*found, strict=True)
    )
    assert len(sigmas) == pytest.approx(1200, abs=90)
    assert len(qualities) == pytest.approx(600, abs=85)
    assert len(factors) == pytest.approx(800, abs=90)
    all_three = sum(None not in values for values in found)
    assert all_three == pytest.approx(2000 * 0.3 * 0.6 * 0.4, abs=48)
    assert set(qualities) == set(range(30, 96))
    assert 0.5 <= min(sigmas) < 0.51 and 2.99 < max(sigmas) <= 3
    assert np.mean(sigmas) == pytest.approx(1.75, abs=0.08)
    assert 0.35 <= min(factors) < 0.36 and 0.99 < max(factors) <= 1
    assert np.mean(factors) == pytest.approx(0.675, abs=0.03)


def test_one_probability_leaves_the_draws_of_the_other_alone():
    all_three, compressed = (
        drawn(50, jpeg=0.5, blur=1.0, rescale=0.5),
        drawn(50, jpeg=0.5),
    )
    assert [each[1] for each in all_three] == [each[1] for each in compressed]
    assert all(each[0] is None and each[2] is None for each in compressed)


def test_never_and_always():
    pixels, rng = textured(), np.random.default_rng(0)
    assert not corruptions.Drawn()
    for name in ("jpeg", "blur", "rescale"):
        assert corruptions.Drawn(**{name: 0.1})
    np.testing.assert_array_equal(corruptions.Drawn()(pixels, rng), pixels)
    rng = np.random.default_rng(7)
    rng.random(2)
    sigma, quality = rng.uniform(0.5, 3), rng.integers(30, 96)
    rng.random()
    blurred = corruptions.blur(pixels, sigma)
    scaled = corruptions.rescale(blurred, rng.uniform(0.35, 1))
    expected = corruptions.jpeg(scaled, quality)
    always = corruptions.Drawn(jpeg=1.0, blur=1.0, rescale=1.0)
    np.testing.assert_array_equal(always(pixels, np.random.default_rng(7)), expected)
