"""The fast forms agree with jax.lax, values and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fdftnet_jax.ops import attention, convolution, pooling

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _value_and_gradients(function, *arguments):
    """The value, and the gradients of a fixed random projection of it."""

    def both(arguments):
        value, vjp = jax.vjp(function, *arguments)
        return value, vjp(_normal(99, *value.shape))

    return jax.jit(both)(arguments)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [(7, 8), (8, 7)])
def test_depthwise_conv_is_lax(size, kernel_size, stride, padding):
    images = _normal(0, 2, *size, 6)
    kernel = _normal(1, kernel_size, kernel_size, 1, 6)

    def by(conv):
        return lambda x, k: conv(
            x,
            k,
            (stride, stride),
            padding,
            dimension_numbers=DIMENSIONS,
            feature_group_count=6,
        )

    ours = _value_and_gradients(by(convolution.conv_general_dilated), images, kernel)
    lax_ = _value_and_gradients(by(lax.conv_general_dilated), images, kernel)
    chex.assert_trees_all_close(ours, lax_, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_conv_is_lax(stride):
    images, kernel = _normal(0, 2, 7, 8, 6), _normal(1, 1, 1, 6, 10)

    def by(conv):
        return lambda x, k: conv(
            x, k, (stride, stride), "SAME", dimension_numbers=DIMENSIONS
        )

    ours = _value_and_gradients(by(convolution.conv_general_dilated), images, kernel)
    lax_ = _value_and_gradients(by(lax.conv_general_dilated), images, kernel)
    chex.assert_trees_all_close(ours, lax_, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel_shape", "groups", "dilation"),
    [((3, 3, 6, 4), 1, 1), ((3, 3, 2, 9), 3, 1), ((3, 3, 1, 6), 6, 2)],
)
def test_other_convolutions_go_to_lax(kernel_shape, groups, dilation):
    images, kernel = _normal(0, 2, 9, 8, 6), _normal(1, *kernel_shape)
    options = {
        "window_strides": (1, 1),
        "padding": "SAME",
        "rhs_dilation": (dilation, dilation),
        "dimension_numbers": DIMENSIONS,
        "feature_group_count": groups,
    }
    chex.assert_trees_all_equal(
        convolution.conv_general_dilated(images, kernel, **options),
        lax.conv_general_dilated(images, kernel, **options),
    )


@pytest.mark.parametrize(
    "padding", ["VALID", "SAME", ((1, 1), (1, 1)), ((0, 2), (1, 0))]
)
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 8), (8, 7)])
def test_max_pool_is_lax(size, stride, window, padding):
    # Below 0: a padding of zeros would win.
    images = _normal(0, 2, *size, 3) - 5

    def by_lax(x):
        shape = (1, window, window, 1)
        strides = (1, stride, stride, 1)
        pads = padding if isinstance(padding, str) else [(0, 0), *padding, (0, 0)]
        return lax.reduce_window(x, -jnp.inf, lax.max, shape, strides, pads)

    ours = _value_and_gradients(
        lambda x: pooling.max_pool(x, window, stride, padding), images
    )
    chex.assert_trees_all_close(ours, _value_and_gradients(by_lax, images), rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("window", [2, 3])
def test_max_pool_in_ceil_mode(window, stride):
    """Windows over the border are cut there; none starts beyond it."""

    def spans(length):
        count = int(np.ceil((length - window) / stride)) + 1
        starts = [stride * index for index in range(count)]
        return [slice(start, start + window) for start in starts if start < length]

    for length in range(window, 12):
        images = _normal(length, 1, length, 7, 2) - 5
        expected = [
            [images[:, rows, columns].max((1, 2)) for columns in spans(7)]
            for rows in spans(length)
        ]
        np.testing.assert_array_equal(
            pooling.max_pool(images, window, stride, "CEIL"),
            np.moveaxis(np.array(expected), 2, 0),
        )


def _attend_float64(f, g, h):
    """Eq. 1 and 2, position by position."""
    f, g, h = (np.asarray(a, np.float64) for a in (f, g, h))
    out = np.zeros_like(h)
    for image in range(len(f)):
        for j in range(f.shape[1]):
            logits = np.array([f[image, i] @ g[image, j] for i in range(f.shape[1])])
            beta = np.exp(logits - logits.max())
            beta /= beta.sum()
            out[image, j] = sum(beta[i] * h[image, i] for i in range(f.shape[1]))
    return out


def test_attend_is_equations_1_and_2():
    f, g, h = _normal(0, 2, 9, 4), _normal(1, 2, 9, 4), _normal(2, 2, 9, 8)
    chex.assert_trees_all_close(
        np.asarray(attention.attend(f, g, h), np.float64),
        _attend_float64(f, g, h),
        atol=1e-5,
    )


# 256 positions are two blocks of the backward pass, 9 are one.
@pytest.mark.parametrize("positions", [9, 256])
def test_attend_gradients_are_those_of_the_batched_form(positions):
    fgh = [_normal(k, 2, positions, c) for k, c in enumerate((4, 4, 8))]

    def batched(f, g, h):
        return jnp.matmul(attention.attention_map(f, g), h)

    chex.assert_trees_all_close(
        _value_and_gradients(attention.attend, *fgh),
        _value_and_gradients(batched, *fgh),
        atol=1e-5,
        rtol=1e-5,
    )


def test_attention_rows_sum_to_one():
    beta = attention.attention_map(_normal(0, 2, 9, 4), 3 * _normal(1, 2, 9, 4))
    chex.assert_trees_all_close(jnp.sum(beta, -1), jnp.ones((2, 9)), atol=1e-6)
    # Only one of the two sums is 1: a transposed map would be seen here.
    assert np.abs(np.asarray(beta).sum(-2) - 1).max() > 0.1
