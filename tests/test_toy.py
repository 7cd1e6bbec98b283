"""The toy's promises: pure functions, natural statistics, traces, and no easy cue."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from fdftnet_jax.data import toy
from fdftnet_jax.errors import UserError

COUNT = 96


def make(kind: str, seed: int, index: int) -> np.ndarray:
    if kind == "real":
        return toy.real_image(seed, index)
    if kind.startswith("source of "):
        return toy.source_image(kind.removeprefix("source of "), seed, index)
    return toy.fake_image(kind, seed, index)


KINDS = ("real", *toy.FAMILIES, *(f"source of {family}" for family in toy.FAMILIES))


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    """`COUNT` images of each kind, [count, 64, 64, 3] uint8."""
    return {
        kind: np.stack([make(kind, 3, index) for index in range(COUNT)])
        for kind in KINDS
    }


def power(images: np.ndarray) -> np.ndarray:
    """Power spectra of each image, [n, 64, 64], averaged over the colours."""
    images = images.astype(np.float64)
    images -= images.mean(axis=(1, 2), keepdims=True)
    window = np.outer(np.hanning(64), np.hanning(64))[None, :, :, None]
    return (np.abs(np.fft.fft2(images * window, axes=(1, 2))) ** 2).mean(axis=-1)


def peak(images: np.ndarray, row: int, column: int) -> np.ndarray:
    """Power at one frequency over the median of its surroundings, [n]."""
    spectra = power(images)
    ring = [
        spectra[:, (row + down) % 64, (column + right) % 64]
        for down in (-4, -3, 3, 4)
        for right in (-4, -3, 3, 4)
    ]
    return spectra[:, row, column] / np.median(ring, axis=0)


def detail(images: np.ndarray) -> np.ndarray:
    """Squared difference to a blurred copy, [n, 64, 64]."""
    images = images.astype(np.float64)
    return ((images - ndimage.gaussian_filter(images, (0, 1, 1, 0))) ** 2).mean(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_pure_functions_of_seed_and_index(kind):
    first = make(kind, 0, 5)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    np.random.default_rng(1).random()
    others = [make(kind, seed, index) for seed, index in [(0, 6), (1, 5), (5, 0)]]
    np.testing.assert_array_equal(make(kind, 0, 5), first)
    for other in others:
        assert np.mean(first != other) > 0.5


def test_the_largest_indices_work():
    assert np.mean(toy.real_image(2**32, 2**31) != toy.real_image(2**32, 2**32)) > 0.5


def test_no_fake_shares_its_source_with_a_real_example_or_another_family(pictures):
    streams = ("real", "source of upsampled", "source of blended")
    pixels = np.concatenate([pictures[kind] for kind in streams]).astype(np.float64)
    correlation = np.corrcoef(pixels.reshape(len(pixels), -1))
    np.fill_diagonal(correlation, 0)
    assert correlation.max() < 0.9


@pytest.mark.parametrize("function", [toy.fake_image, toy.source_image])
def test_an_unknown_family_is_a_user_error(function):
    with pytest.raises(UserError, match=r"upsampled, blended, found 'swapped'"):
        function("swapped", 0, 0)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused(seed, index):
    with pytest.raises(ValueError, match="non-negative"):
        toy.real_image(seed, index)


def test_photographs_have_the_power_spectrum_of_natural_images(pictures):
    # This estimate gives -3.2 +- 0.3 on photographs of faces scaled to 64x64: optics
    # and scaling make pictures steeper than the -2 of the scenes themselves.
    frequency = np.fft.fftfreq(64, 1 / 64)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    rings = np.arange(3, 25)
    spectra = power(pictures["real"])
    profile = [spectra[:, np.abs(radius - ring) < 0.5].mean(axis=1) for ring in rings]
    slopes = np.polyfit(np.log(rings), np.log(profile), 1)[0]
    assert -3.5 < slopes.mean() < -2.4
    assert -4.8 < slopes.min() < slopes.max() < -1.8
    # Sharpness differs from picture to picture.
    assert slopes.std() > 0.2


def test_photographs_have_correlated_colours_and_are_exposed(pictures):
    pixels = pictures["real"].reshape(-1, 3)
    correlation = np.corrcoef(pixels.T.astype(np.float64))
    assert 0.7 < correlation.min() < correlation[0, 1] < 0.98
    assert np.mean((pixels == 0) | (pixels == 255)) < 0.01
    assert 80 < pixels.mean() < 130


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_forgeries_keep_the_look_of_their_source(pictures, family):
    sources, fakes = (
        pictures[kind].reshape(COUNT, -1).astype(np.float64)
        for kind in (f"source of {family}", family)
    )
    correlation = [
        np.corrcoef(*pair)[0, 1] for pair in zip(sources, fakes, strict=True)
    ]
    assert np.median(correlation) > 0.9
    assert min(correlation) > 0.7


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_brightness_and_contrast_are_no_cue(pictures, family):
    labels = np.repeat([0, 1], COUNT)
    images = np.concatenate([pictures["real"], pictures[family]]).mean(axis=-1)
    for cue in (images.mean(axis=(1, 2)), images.std(axis=(1, 2))):
        assert 0.35 < roc_auc_score(labels, cue) < 0.65
        assert cue[:COUNT].mean() == pytest.approx(cue[COUNT:].mean(), rel=0.1)


@pytest.mark.parametrize("frequency", [(0, 32), (32, 0), (0, 16), (16, 0)])
def test_only_upsampled_images_have_replicas_of_a_lower_resolution(pictures, frequency):
    assert np.median(peak(pictures["upsampled"], *frequency)) > 10
    assert np.mean(peak(pictures["upsampled"], *frequency) > 5) > 0.7
    for kind in ("real", "blended"):
        assert np.median(peak(pictures[kind], *frequency)) < 3


def test_a_transposed_convolution_is_periodic_in_two_and_keeps_the_mean():
    def doubled(features: np.ndarray) -> np.ndarray:
        return toy._transposed_convolution(np.random.default_rng(0), features)

    flat = doubled(np.ones((3, 8, 8), np.float32))
    np.testing.assert_allclose(flat, np.tile(flat[:, :2, :2], (1, 8, 8)), atol=1e-6)
    np.testing.assert_allclose(flat[:, :2, :2].mean(axis=(1, 2)), 1, atol=1e-6)
    assert flat[:, :2, :2].std(axis=(1, 2)).min() > 0.01
    # One pixel further in the code is two pixels further in the image.
    code = np.random.default_rng(1).random((3, 8, 8), dtype=np.float32)
    moved = doubled(np.roll(code, (1, 1), axis=(1, 2)))
    inner = (slice(None), slice(4, 14), slice(4, 14))
    np.testing.assert_allclose(
        moved[inner], np.roll(doubled(code), (2, 2), axis=(1, 2))[inner], atol=1e-5
    )
    # A single code pixel spreads over the 4x4 pixels of its kernel.
    point = np.zeros((3, 8, 8), np.float32)
    point[:, 3, 4] = 1
    rows, columns = np.nonzero(doubled(point)[0])
    assert (rows.min(), rows.max()) == (5, 8)
    assert (columns.min(), columns.max()) == (7, 10)


def test_upsampled_images_are_not_given_away_by_missing_detail(pictures):
    for quarter in (25, 50, 75):
        fake, source = (
            np.percentile(detail(pictures[kind]).mean(axis=(1, 2)), quarter)
            for kind in ("upsampled", "source of upsampled")
        )
        assert fake > source


def test_blended_images_differ_from_their_source_inside_the_mask_only(pictures):
    masks = np.stack([toy.blend_mask(3, index) for index in range(COUNT)])
    assert masks.shape == (COUNT, 64, 64)
    assert masks.min() == 0
    assert masks.max() == 1
    changed = (pictures["blended"] != pictures["source of blended"]).any(axis=-1)
    assert not changed[masks == 0].any()
    assert changed[masks == 1].mean() > 0.95
    # An inner region: it covers a good part of the image, never its border.
    assert (masks > 0.5).mean(axis=(1, 2)).min() > 0.1
    assert (masks > 0.5).mean(axis=(1, 2)).max() < 0.4
    assert masks[:, [0, -1], :].max() == masks[:, :, [0, -1]].max() == 0


def test_the_swapped_region_lacks_the_detail_of_its_source_and_is_mismatched(pictures):
    masks = np.stack([toy.blend_mask(3, index) for index in range(COUNT)])
    lost, shift = [], []
    for mask, fake, source in zip(
        masks == 1, pictures["blended"], pictures["source of blended"], strict=True
    ):
        inner = ndimage.binary_erosion(mask, iterations=3)
        lost.append(detail(fake[None])[0][inner].mean())
        lost[-1] /= detail(source[None])[0][inner].mean()
        shift.append(fake[mask].mean(axis=0) - source[mask].mean(axis=0))
    assert np.median(lost) < 0.15
    assert max(lost) < 0.5
    # Colours: off by a few grey levels, in no constant direction.
    assert 2 < np.abs(shift).mean() < 15
    assert np.abs(np.mean(shift, axis=0)).max() < 4


@pytest.fixture(scope="module")
def real_pixels() -> np.ndarray:
    return np.stack([toy.real_image(7, index) for index in range(1250)])


@pytest.mark.slow
@pytest.mark.parametrize("family", toy.FAMILIES)
def test_logistic_regression_on_pixels_fails(real_pixels, family):
    fakes = np.stack([toy.fake_image(family, 7, index) for index in range(1250)])

    def rows(part: slice) -> np.ndarray:
        images = np.concatenate([real_pixels[part], fakes[part]])
        return images.reshape(len(images), -1).astype(np.float32)

    train, test = slice(750), slice(750, None)
    scaler = StandardScaler()
    model = LogisticRegression(C=1e-4, max_iter=500)
    model.fit(scaler.fit_transform(rows(train)), np.repeat([0, 1], 750))
    scores = model.decision_function(scaler.transform(rows(test)))
    assert roc_auc_score(np.repeat([0, 1], 500), scores) < 0.6
