"""The fast forms agree with jax.lax, values and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from fdftnet_jax.ops import (
    attention,
    convolution,
    normalization,
    pooling,
    reduction,
    reuse,
)

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _value_and_gradients(function, *arguments):
    """The value, and the gradients of a fixed random projection of it."""

    def both(arguments):
        value, vjp = jax.vjp(function, *arguments)
        return value, vjp(_normal(99, *value.shape))

    return jax.jit(both)(arguments)


@pytest.mark.parametrize("platform", ["cpu", "default"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [(7, 8), (8, 7)])
def test_depthwise_conv_is_lax(
    size, kernel_size, stride, padding, platform, monkeypatch
):
    """Whatever the program is lowered for."""
    monkeypatch.setattr(
        lax, "platform_dependent", lambda *arguments, **by: by[platform](*arguments)
    )
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


@pytest.mark.parametrize("group_bytes", [0, 5000, 10**9])
@pytest.mark.parametrize("batch", [5, 6])
def test_large_arrays_are_summed_in_groups(batch, group_bytes, monkeypatch):
    """One image at a time, two or three, or all: the kernel's gradient is the same."""
    monkeypatch.setattr(reduction, "_LARGE_BYTES", 0)
    monkeypatch.setattr(reduction, "_GROUP_BYTES", group_bytes)
    images, kernel = _normal(0, batch, 7, 8, 6), _normal(1, 3, 3, 1, 6)

    def by(conv):
        return lambda x, k: conv(
            x,
            k,
            (2, 2),
            "SAME",
            dimension_numbers=DIMENSIONS,
            feature_group_count=6,
        )

    ours = _value_and_gradients(by(convolution.conv_general_dilated), images, kernel)
    lax_ = _value_and_gradients(by(lax.conv_general_dilated), images, kernel)
    chex.assert_trees_all_close(ours, lax_, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_convolution_of_a_picture_is_lax(padding, channels, stride):
    images, kernel = _normal(0, 2, 9, 8, channels), _normal(1, 3, 3, channels, 5)

    def by(conv):
        return lambda x, k: conv(
            x, k, (stride, stride), padding, dimension_numbers=DIMENSIONS
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
    chex.assert_trees_all_close(
        ours, _value_and_gradients(by_lax, images), rtol=1e-6, atol=1e-6
    )


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
            jax.jit(lambda x: pooling.max_pool(x, window, stride, "CEIL"))(images),
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


@pytest.mark.parametrize("padding", ["VALID", "SAME", ((1, 1), (1, 2))])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(3, 3), (4, 5)])
def test_a_convolution_to_a_few_pixels_is_lax(size, stride, padding):
    images, kernel = _normal(0, 2, *size, 6), _normal(1, 3, 3, 6, 10)

    def by(conv):
        return lambda x, k: conv(
            x, k, (stride, stride), padding, dimension_numbers=DIMENSIONS
        )

    ours = _value_and_gradients(by(convolution.conv_general_dilated), images, kernel)
    lax_ = _value_and_gradients(by(lax.conv_general_dilated), images, kernel)
    chex.assert_trees_all_close(ours, lax_, atol=2e-5, rtol=1e-5)


def test_ties_of_a_max_pool_share_the_gradient():
    """Every window gives its gradient away once, in equal shares."""
    images = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(1)
    weights = np.arange(1.0, 5.0, dtype=np.float32).reshape(1, 2, 2, 1)

    def pooled(x):
        return jnp.sum(pooling.max_pool(x, 3, 2) * weights)

    # The middle is in all four windows and wins each alone.
    expected = np.zeros((5, 5))
    expected[2, 2] = 10
    np.testing.assert_allclose(jax.grad(pooled)(images)[0, :, :, 0], expected)
    gradient = jax.grad(pooled)(jnp.zeros((1, 5, 5, 1)))[0, :, :, 0]
    assert gradient.sum() == pytest.approx(10, rel=1e-6)
    np.testing.assert_allclose(gradient[0, 0], 1 / 9, rtol=1e-6)
    np.testing.assert_allclose(gradient[2, 2], 10 / 9, rtol=1e-6)


@pytest.mark.parametrize("positions", [1100, 2048])
def test_attention_in_blocks_is_the_batched_form(positions):
    """More positions than one block holds, and a last block that is not full."""
    fgh = _normal(0, 2, positions, 4), _normal(1, 2, positions, 4)
    fgh = (*fgh, _normal(2, 2, positions, 8))

    def batched(f, g, h):
        return attention.attention_map(f, g) @ h

    ours = _value_and_gradients(attention.attend, *fgh)
    chex.assert_trees_all_close(
        ours, _value_and_gradients(batched, *fgh), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("first", [1.0, np.inf, -np.inf, np.nan])
def test_what_is_computed_once_is_what_it_was(first):
    x = _normal(0, 3, 4)
    x[0, 0] = first
    found = jax.jit(lambda x: reuse.compute_once(2 * x))(x)
    np.testing.assert_array_equal(found, 2 * x)


def test_attention_never_holds_a_map():
    """At 16,384 positions, one image: the map alone would be a gigabyte."""
    shapes = [jax.ShapeDtypeStruct((1, 128 * 128, c), jnp.float32) for c in (4, 4, 32)]

    def loss(f, g, h):
        return jnp.sum(attention.attend(f, g, h))

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100e6


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (attention.attend, [("b", 9, 2), ("b", 9, 2), ("b", 9, 4)]),
        (lambda x: pooling.max_pool(x, 3, 2, "SAME"), [("b", 9, 8, 4)]),
        (
            lambda x, k: convolution.depthwise_conv(x, k, (1, 1), ((1, 1), (1, 1))),
            [("b", 9, 8, 4), (3, 3, 4)],
        ),
        (convolution.pointwise_conv, [("b", 9, 8, 4), (4, 5)]),
        (reuse.compute_once, [("b", 9, 8, 4)]),
        (
            lambda x, k: convolution.dense_conv(x, k, (1, 1), ((0, 0), (0, 0))),
            [("b", 9, 8, 4), (3, 3, 4, 5)],
        ),
        (
            lambda x, s, b: normalization.batch_norm(x, s, b, 1e-3)[0],
            [("b", 9, 8, 4), (4,), (4,)],
        ),
    ],
)
def test_everything_exports_with_a_symbolic_batch(function, shapes):
    """Values and gradients, for all platforms, on any of them."""
    scope = export.SymbolicScope()
    arguments = [
        jax.ShapeDtypeStruct(
            tuple(export.symbolic_shape(str(n), scope=scope)[0] for n in shape),
            jnp.float32,
        )
        for shape in shapes
    ]
    numbers = tuple(range(len(shapes)))
    both = jax.jit(
        lambda *a: (
            function(*a),
            jax.grad(lambda *a: jnp.sum(function(*a)), numbers)(*a),
        )
    )
    exported = export.export(both, platforms=["cpu", "cuda", "tpu"])(*arguments)
    concrete = [
        _normal(index, *(3 if n == "b" else n for n in shape))
        for index, shape in enumerate(shapes)
    ]
    chex.assert_trees_all_close(exported.call(*concrete), both(*concrete), atol=1e-6)
