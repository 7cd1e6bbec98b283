"""Counts against hand counts from the layers' formulas."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from fdftnet_jax.models import counting, layers, registry
from fdftnet_jax.models.fine_tune_transformer import FineTuneTransformer
from fdftnet_jax.models.mobilenet_v3 import MobileNetHead
from fdftnet_jax.models.self_attention import SelfAttention


def _flops(module, *shape, **kwargs):
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(
        functools.partial(module.init, **kwargs), jax.random.key(0), x
    )
    return counting.flops(functools.partial(module.apply, **kwargs), variables, x)


def _conv(side, kernel, inputs, outputs, groups=1, bias=0):
    """2 h w k k c_in c_out / groups, and one for each bias added."""
    products = 2 * side * side * kernel * kernel * inputs * outputs // groups
    return products + bias * side * side * outputs


@pytest.mark.parametrize("conv", [nn.Conv, layers.Conv])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "features"),
    [
        (3, 1, 1, 16),
        (3, 2, 1, 16),
        (1, 1, 1, 16),
        (1, 2, 1, 16),
        (3, 1, 8, 8),
        (3, 2, 8, 8),
        (5, 1, 8, 8),
        (3, 1, 4, 16),
    ],
)
def test_a_convolution_counts_alike_in_every_form(
    conv, kernel, stride, groups, features
):
    """Flax's own is lax's convolution; ours is a matrix product, or shifted ones."""
    for bias in (False, True):
        module = conv(
            features,
            (kernel, kernel),
            stride,
            feature_group_count=groups,
            use_bias=bias,
        )
        found = _flops(module, 12, 12, 8)
        assert found == _conv(12 // stride, kernel, 8, features, groups, bias)


def test_dense_normalisation_and_relu():
    assert _flops(nn.Dense(5), 7) == 2 * 7 * 5 + 5
    # (x - mean) * (rsqrt(var + epsilon) * scale) + bias
    norm = layers.BatchNorm(use_running_average=True)
    assert _flops(norm, 4, 4, 6) == 3 * 16 * 6 + 3 * 6
    x = jax.ShapeDtypeStruct((4, 5), jnp.float32)
    assert counting.flops(nn.relu, x) == 20
    assert counting.flops(jnp.sum, x) == 20
    assert counting.flops(lambda x: x.T.reshape(2, 10)[:, ::2] > 0, x) == 0
    pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
    assert counting.flops(pool, jnp.zeros((1, 4, 4, 3))) == 4 * 3 * 4


def test_self_attention():
    """The map is made image by image, in a loop."""
    side, channels, inner = 8, 32, 4
    positions = side * side
    convs = _conv(side, 1, channels, 2 * inner + channels, bias=1)
    products = 2 * positions**2 * (inner + channels)
    # Softmax: maximum, difference, exponential, sum; the quotient is the product's.
    softmax = 4 * positions**2 + positions * channels
    scale_and_add = 2 * positions * channels
    expected = convs + products + softmax + scale_and_add
    assert _flops(SelfAttention(), side, side, channels) == expected


def test_loops_count_by_their_length():
    x = jnp.ones((7, 3, 5))

    def product(matrix):
        return matrix @ jnp.ones((5, 2))

    once = 2 * 3 * 5 * 2
    assert counting.flops(product, x[0]) == once
    assert counting.flops(lambda x: lax.map(product, x), x) == 7 * once
    nested = jax.jit(lambda x: lax.map(lambda _: lax.map(product, x), jnp.arange(4)))
    assert counting.flops(nested, x) == 4 * 7 * once
    assert counting.flops(jax.checkpoint(product), x[0]) == once
    either = functools.partial(lax.cond, True, product, lambda x: x[:, :2])
    assert counting.flops(either, x[0]) == once
    with pytest.raises(ValueError, match="number of turns"):
        counting.flops(lambda x: lax.while_loop(lambda x: x < 9, lambda x: 2 * x, x), 1)


def test_squeezenet():
    """Layer by layer, at 64x64 with two classes: 31, 15, 7 and 3 pixels a side."""

    def fire(side, inputs, squeeze, expand):
        convs = (
            _conv(side, 1, inputs, squeeze, bias=1)
            + _conv(side, 1, squeeze, expand, bias=1)
            + _conv(side, 3, squeeze, expand, bias=1)
        )
        return convs + side * side * (squeeze + 2 * expand)  # ReLU

    def pool(side, channels):
        return side * side * channels * (3 * 3 - 1)

    expected = (
        _conv(31, 3, 3, 64, bias=1)
        + 31 * 31 * 64
        + pool(15, 64)
        + fire(15, 64, 16, 64)
        + fire(15, 128, 16, 64)
        + pool(7, 128)
        + fire(7, 128, 32, 128)
        + fire(7, 256, 32, 128)
        + pool(3, 256)
        + fire(3, 256, 48, 192)
        + fire(3, 384, 48, 192)
        + fire(3, 384, 64, 256)
        + fire(3, 512, 64, 256)
        + _conv(3, 1, 512, 2, bias=1)
        # ReLU, sum and quotient of the mean.
        + 2 * 3 * 3 * 2
        + 2
    )
    size = counting.measure(registry.get_backbone("squeezenet", 2), 64)
    assert size == counting.Size(723_522, expected, (2,))


# Multiply-adds that model tables give, in thousands of millions.
@pytest.mark.parametrize(
    ("name", "image_size", "published"),
    [("squeezenet", 224, 0.35), ("resnet50v2", 224, 3.5), ("xception", 299, 8.4)],
)
def test_the_order_of_published_counts(name, image_size, published):
    size = counting.measure(registry.get_backbone(name, 1000), image_size)
    assert size.flops / 2e9 == pytest.approx(published, rel=0.02)


def test_the_parts_of_fdftnet_add_up():
    options = {"num_blocks": 4, "num_stages": 3, "first_stride": 1}
    model = {"kind": "fdftnet", "backbone": "squeezenet"}
    whole = counting.measure(registry.build(model | options))
    backbone = counting.measure(registry.get_backbone("squeezenet"))
    transformer = counting.measure(FineTuneTransformer())
    assert whole.parameters == 2_430_776
    assert (transformer.parameters, transformer.output_shape) == (115_318, (576,))
    head = _flops(MobileNetHead(4), *backbone.output_shape, train=False)
    addition_and_classifier = 576 + 2 * 576 * 2 + 2
    parts = backbone.flops + head + transformer.flops + addition_and_classifier
    assert whole.flops == parts


@pytest.mark.long
def test_the_documented_table_is_that_of_the_code():
    page = Path(__file__).parents[1] / "docs" / "weights.md"
    text = counting.table()
    assert text in page.read_text()
    # By the publications.
    assert "| `xception` | 2x2x2048 | 20,861,480 | 20,865,578 |" in text
