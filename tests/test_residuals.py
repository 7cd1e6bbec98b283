"""The fixed filters: what they leave, and what they take away."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from fdftnet_jax.ops import residuals


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 5, 7, 1)])
def test_neighbouring_pixels_against_loops(shape):
    x = np.random.default_rng(0).normal(size=shape)
    expected = np.empty(shape)
    for i in range(shape[1]):
        for j in range(shape[2]):
            expected[:, i, j] = x[:, i, j] - x[:, i - i % 2, j - j % 2]
    found = residuals.neighbouring_pixels(jnp.float32(x))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_neighbouring_pixels_of_an_enlarged_picture_are_equal():
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 3))
    enlarged = jnp.float32(x.repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(residuals.neighbouring_pixels(enlarged), 0)


def surface(order):
    """A picture of a polynomial of that order in both directions."""
    y, x = np.mgrid[:9, :9] / 9.0
    powers = [(a, b) for a in range(order + 1) for b in range(order + 1 - a)]
    # Unlike in both directions, so that no diagonal is flat.
    return sum(y**a * (2 * x) ** b for a, b in powers)


def test_the_rich_model_takes_away_what_its_orders_say():
    """First differences a constant, second ones a plane, third ones a parabola."""
    orders = [0] * 8 + [1] * 4 + [2] * 8
    for kernel, order in zip(residuals.KERNELS[:20], orders, strict=True):
        flat = signal.correlate2d(surface(order), kernel, "valid")
        np.testing.assert_allclose(flat, 0, atol=1e-12)
        left = signal.correlate2d(surface(order + 1), kernel, "valid")
        assert np.abs(left).max() > 1e-3
    # The squares and edges predict by a fit of a plane at least.
    for kernel in residuals.KERNELS[20:]:
        flat = signal.correlate2d(surface(1), kernel, "valid")
        np.testing.assert_allclose(flat, 0, atol=1e-12)


def test_the_rich_model_has_30_residuals_of_the_pixel():
    kernels = residuals.KERNELS
    assert kernels.shape == (30, 5, 5)
    assert len({kernel.tobytes() for kernel in kernels}) == 30
    np.testing.assert_allclose(kernels[:, 2, 2], -1)


def test_the_rich_model_against_scipy():
    x = np.random.default_rng(0).normal(size=(2, 8, 9, 3))
    found = residuals.rich_model(jnp.float32(x))
    chex.assert_shape(found, (2, 8, 9, 30))
    for k, kernel in enumerate(residuals.KERNELS):
        for b in range(2):
            expected = signal.correlate2d(x[b].mean(-1), kernel, "same")
            np.testing.assert_allclose(found[b, :, :, k], expected, atol=1e-5)
