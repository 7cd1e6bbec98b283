"""Every operation in bfloat16 and under jax's transforms agrees with its plain form."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fdftnet_jax.ops import attention, convolution, normalization, pooling, reuse
from fdftnet_jax.ops.reduction import channel_sums

SAME = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))


def _lax_conv(images, kernel, strides, pads, groups=1):
    return lax.conv_general_dilated(
        images,
        kernel,
        strides,
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _norm(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    mean, variance = jnp.mean(x, axes), jnp.var(x, axes)
    return (x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias


# name: (ours, the plain form, shapes without the batch of those that have one, others)
OPERATIONS = {
    "dense": (
        lambda x, k: convolution.dense_conv(x, k, (1, 1), NONE),
        lambda x, k: _lax_conv(x, k, (1, 1), NONE),
        [(9, 8, 5)],
        [(3, 3, 5, 7)],
    ),
    "dense, padded": (
        lambda x, k: convolution.dense_conv(x, k, (2, 2), SAME),
        lambda x, k: _lax_conv(x, k, (2, 2), SAME),
        [(9, 8, 5)],
        [(3, 3, 5, 7)],
    ),
    "depthwise": (
        lambda x, k: convolution.depthwise_conv(x, k, (1, 1), SAME),
        lambda x, k: _lax_conv(x, k[:, :, None], (1, 1), SAME, 6),
        [(9, 8, 6)],
        [(3, 3, 6)],
    ),
    "pointwise": (
        convolution.pointwise_conv,
        lambda x, k: jnp.einsum("bhwc,cd->bhwd", x, k),
        [(9, 8, 6)],
        [(6, 5)],
    ),
    "max-pool": (
        lambda x: pooling.max_pool(x, 3, 2),
        lambda x: lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"
        ),
        [(9, 8, 6)],
        [],
    ),
    "computed once": (
        lambda x: reuse.compute_once(jnp.sin(x)),
        jnp.sin,
        [(9, 8, 6)],
        [],
    ),
    "attention": (
        attention.attend,
        lambda f, g, h: jax.nn.softmax(jnp.einsum("bjc,bic->bji", g, f), axis=-1) @ h,
        [(20, 4), (20, 4), (20, 8)],
        [],
    ),
    "batch norm": (
        lambda x, s, b: normalization.batch_norm(x, s, b, 1e-3)[0],
        _norm,
        [(9, 8, 6)],
        [(6,), (6,)],
    ),
}
each_operation = pytest.mark.parametrize("name", OPERATIONS)


def _arguments(name, dtype=np.float32):
    _, _, images, others = OPERATIONS[name]
    rng = np.random.default_rng(0)
    shapes = [(4, *shape) for shape in images] + others
    if name == "max-pool":  # no ties: which of them wins is another test's
        values = np.broadcast_to(np.arange(9 * 8), (4, 6, 9 * 8))
        values = rng.permuted(values, axis=2).reshape(4, 6, 9, 8)
        return [jnp.asarray(np.moveaxis(values, 1, 3), dtype)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradients(function, arguments):
    value, vjp = jax.vjp(function, *arguments)
    rng = np.random.default_rng(9)
    return value, vjp(jnp.asarray(rng.normal(size=value.shape), value.dtype))


@each_operation
def test_float32_is_the_plain_form(name):
    ours, plain, _, _ = OPERATIONS[name]
    found = _value_and_gradients(ours, _arguments(name))
    expected = _value_and_gradients(plain, _arguments(name))
    chex.assert_trees_all_close(found, expected, atol=3e-5, rtol=1e-5)


@each_operation
def test_bfloat16_is_near_the_plain_form_in_float32(name):
    """Within a few of bfloat16's steps (2^-8) of the largest value."""
    ours, plain, _, _ = OPERATIONS[name]
    arguments = _arguments(name, jnp.bfloat16)
    if name == "batch norm":  # whose parameters stay float32
        arguments[1:] = [a.astype(jnp.float32) for a in arguments[1:]]
    found = _value_and_gradients(ours, arguments)
    wide = [a.astype(jnp.float32) for a in arguments]
    expected = _value_and_gradients(plain, wide)
    assert found[0].dtype == jnp.bfloat16
    for gradient, argument in zip(found[1], arguments, strict=True):
        assert gradient.dtype == argument.dtype
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(
            np.asarray(one, np.float32), other, atol=3 * scale / 256
        )


@each_operation
@pytest.mark.parametrize("mapped", ["vmap", "pmap"])
def test_mapped_over_two_batches(name, mapped):
    ours, _, images, _ = OPERATIONS[name]
    first = _arguments(name)
    second = [-2 * a for a in first[: len(images)]] + first[len(images) :]
    both = [jnp.stack(pair) for pair in zip(first, second, strict=True)]
    found = getattr(jax, mapped)(
        lambda *arguments: _value_and_gradients(ours, arguments)
    )(*both)
    for index, arguments in enumerate((first, second)):
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=index: leaf[i], found),
            _value_and_gradients(ours, arguments),
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize("shape", [(3, 40, 5), (2, 7, 70, 4), (50, 3), (2, 0, 3, 2)])
def test_channel_sums_in_float64(shape):
    """Rows of one block and of several, and none."""
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    axes = tuple(range(len(shape) - 1))
    exact = (one.astype(np.float64) * other).sum(axes)
    np.testing.assert_allclose(channel_sums(one, other), exact, atol=1e-5)
    exact = one.astype(np.float64).sum(axes)
    np.testing.assert_allclose(channel_sums(one), exact, atol=1e-5)


def test_the_statistics_of_a_batch_norm():
    x = _arguments("batch norm")[0] * 3 + 2
    _, mean, variance = normalization.batch_norm(x, jnp.ones(6), jnp.zeros(6), 1e-3)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-4)


def test_batch_norm_over_devices_is_that_of_the_whole_batch():
    """The gradients of the sum over all devices, and so the statistics."""
    x, scale, bias = _arguments("batch norm")
    weights = np.random.default_rng(9).normal(size=x.shape).astype(np.float32)

    def loss(x, scale, bias, weights, axis_name=None):
        y, _, _ = normalization.batch_norm(x, scale, bias, 1e-3, axis_name)
        return jnp.sum(y * weights)

    expected = jax.grad(loss, (0, 1, 2))(x, scale, bias, weights)
    of_devices = jax.pmap(
        functools.partial(jax.grad(loss, (0, 1, 2)), axis_name="batch"),
        axis_name="batch",
        in_axes=(0, None, None, 0),
    )
    halves = [a.reshape(2, -1, *a.shape[1:]) for a in (x, weights)]
    found = of_devices(halves[0], scale, bias, halves[1])
    chex.assert_trees_all_close(found[0].reshape(x.shape), expected[0], atol=1e-5)
    for sums, whole in zip(found[1:], expected[1:], strict=True):
        chex.assert_trees_all_close(sums.sum(0), whole, atol=1e-5)
