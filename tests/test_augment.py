import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdftnet_jax import errors
from fdftnet_jax.data import augment

KEYS = 4000

augment_batch = jax.jit(
    augment.augment_batch, static_argnames=("cutout_alpha", "cutout_beta")
)


def random_image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(0, 255, (height, width, 3)), jnp.float32)


def reference_warp(image, zoom, degrees, translation):
    """The protocol's warp, one output pixel at a time, in float64."""
    image = np.asarray(image, np.float64)
    height, width, _ = image.shape
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    angle = math.radians(degrees)
    rotation = np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    limit = np.array([height - 1, width - 1])
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            position = np.array([row, column]) - centre
            source = rotation @ (np.array(zoom) * position) + translation + centre
            source = np.clip(source, 0, limit)
            low = np.floor(source).astype(int)
            for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
                pixel = np.minimum(low + corner, limit)
                weight = np.prod(1 - np.abs(source - (low + corner)))
                result[row, column] += weight * image[tuple(pixel)]
    return result


def warp(zoom=(1.0, 1.0), rotation=0.0, translation=(0.0, 0.0)):
    return augment.Warp(
        jnp.array(zoom, jnp.float32),
        jnp.array(rotation, jnp.float32),
        jnp.array(translation, jnp.float32),
    )


@pytest.mark.parametrize("shape", [(16, 16), (11, 14), (1, 5), (3, 1)])
@pytest.mark.parametrize(
    "zoom, rotation, translation",
    [
        ((0.83, 1.17), 0.0, (0, 0)),
        ((1.0, 1.0), 0.2, (0, 0)),
        ((1.0, 1.0), -30.0, (0, 0)),
        ((1.1, 0.9), 25.0, (-2, 1)),
        ((0.8, 1.2), 0.2, (2, -2)),
    ],
)
def test_warp_agrees_with_float64_reference(shape, zoom, rotation, translation):
    image = random_image(*shape)
    actual = jax.jit(augment.apply_warp)(image, warp(zoom, rotation, translation))
    expected = reference_warp(image, zoom, rotation, translation)
    np.testing.assert_allclose(actual, expected, atol=0.01)


def test_identity_warp_changes_nothing():
    image = random_image(12, 9)
    np.testing.assert_array_equal(augment.apply_warp(image, warp()), image)


def test_translation_moves_content_and_repeats_the_border():
    image = random_image(6, 7)
    actual = augment.apply_warp(image, warp(translation=(2, -1)))
    expected = np.pad(image, ((0, 2), (1, 0), (0, 0)), mode="edge")[2:, :-1]
    np.testing.assert_array_equal(actual, expected)


def test_zoom_below_one_magnifies_and_rotation_is_clockwise():
    rows, columns = np.mgrid[:9, :9] - 4.0
    ramp = jnp.asarray(np.stack([rows, columns, 0 * rows], axis=-1), jnp.float32)
    magnified = augment.apply_warp(ramp, warp(zoom=(0.5, 1.0)))
    np.testing.assert_allclose(magnified[..., 0], rows / 2, atol=1e-5)
    np.testing.assert_allclose(magnified[..., 1], columns, atol=1e-5)
    # Clockwise by a quarter: the right edge shows what was the top edge.
    turned = augment.apply_warp(ramp, warp(rotation=90.0))
    np.testing.assert_allclose(turned, np.rot90(ramp, k=-1), atol=1e-4)


def test_warp_parameters_have_the_protocols_distribution():
    keys = jax.random.split(jax.random.key(1), KEYS)
    draw = functools.partial(augment.sample_warp, zoom=0.2, rotation=0.2, translation=2)
    drawn = jax.vmap(draw)(keys)
    for values, low, high in (
        (drawn.zoom[:, 0], 0.8, 1.2),
        (drawn.zoom[:, 1], 0.8, 1.2),
        (drawn.rotation, -0.2, 0.2),
    ):
        shares, _ = np.histogram(values, bins=4, range=(low, high))
        assert shares.sum() == KEYS
        np.testing.assert_allclose(shares / KEYS, 0.25, atol=0.04)
    for axis in range(2):
        shifts, counts = np.unique(drawn.translation[:, axis], return_counts=True)
        np.testing.assert_array_equal(shifts, [-2, -1, 0, 1, 2])
        np.testing.assert_allclose(counts / KEYS, 0.2, atol=0.04)
    parameters = np.column_stack([drawn.zoom, drawn.rotation, drawn.translation])
    correlation = np.corrcoef(parameters, rowvar=False) - np.eye(5)
    np.testing.assert_allclose(correlation, 0, atol=0.08)


def test_flip_mirrors_columns_in_half_of_the_images():
    image = random_image(4, 5)
    for flip, expected in ((True, image[:, ::-1]), (False, image)):
        actual = augment.apply_flip(image, jnp.array(flip))
        np.testing.assert_array_equal(actual, expected)
    keys = jax.random.split(jax.random.key(2), KEYS)
    flips = np.asarray(jax.vmap(augment.sample_flip)(keys))
    assert abs(flips.mean() - 0.5) < 0.04


def test_cutout_parameters_have_the_protocols_distribution():
    keys = jax.random.split(jax.random.key(3), KEYS)
    draw = functools.partial(augment.sample_cutout, height=7, width=12, alpha=3, beta=5)
    drawn = jax.vmap(lambda key: draw(key))(keys)
    for values, expected in (
        (drawn.number, [0, 1, 2, 3]),
        (drawn.side, [4, 8, 12, 16, 20]),
        (drawn.centre[..., 0], range(7)),
        (drawn.centre[..., 1], range(12)),
    ):
        found, counts = np.unique(values, return_counts=True)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(counts / values.size, 1 / len(expected), atol=0.04)
    # Sides are drawn for each square, not once for an image.
    assert abs(np.corrcoef(drawn.side[:, 0], drawn.side[:, 1])[0, 1]) < 0.08


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_cutout_blackens_the_first_squares_clipped_at_the_border(number):
    image = random_image(20, 17) + 1
    centres = [(3, 4), (0, 16), (19, 8)]
    sides = [4, 8, 12]
    expected = np.array(image)
    for (row, column), side in list(zip(centres, sides, strict=True))[:number]:
        half = side // 2
        rows = slice(max(row - half, 0), row + half)
        columns = slice(max(column - half, 0), column + half)
        expected[rows, columns] = 0
    cutout = augment.Cutout(jnp.array(number), jnp.array(centres), jnp.array(sides))
    actual = np.asarray(augment.apply_cutout(image, cutout))
    np.testing.assert_array_equal(actual, expected)
    if number == 1:
        assert (actual == 0).all(axis=-1).sum() == 4 * 4


def test_options_turn_each_part_off():
    image = random_image(8, 10)
    rng = jax.random.key(4)
    unchanged = augment.augment(
        rng, image, zoom=0, rotation=0, translation=0, flip=False, cutout_alpha=0
    )
    np.testing.assert_array_equal(unchanged, image)

    ones = jnp.ones((200, 8, 10, 3))
    keys = jax.random.split(rng, 200)
    without = augment_batch(keys, ones, cutout_alpha=0)
    np.testing.assert_allclose(without, 1, atol=1e-5)
    black = augment_batch(keys, ones, cutout_alpha=1, cutout_beta=1) == 0
    area = black.all(axis=-1).sum(axis=(1, 2))
    assert (area == 0).mean() == pytest.approx(0.5, abs=0.15)
    assert area.max() == 16


def test_order_is_warp_then_flip_then_cutout():
    rng = jax.random.key(6)
    image = random_image(16, 16) + 1
    for key in jax.random.split(rng, 8):
        warp_rng, flip_rng, cutout_rng = jax.random.split(key, 3)
        expected = reference_warp(
            image,
            *augment.sample_warp(warp_rng, zoom=0.2, rotation=0.2, translation=2),
        )
        if augment.sample_flip(flip_rng):
            expected = expected[:, ::-1]
        cutout = augment.sample_cutout(cutout_rng, 16, 16, alpha=3, beta=5)
        expected = augment.apply_cutout(expected, cutout)
        np.testing.assert_allclose(augment.augment(key, image), expected, atol=0.01)


def test_batch_is_a_function_of_key_and_global_index_alone():
    images = jnp.stack([random_image(8, 8, seed) for seed in range(6)])
    indices = jnp.array([40, 41, 42, 43, 44, 45])
    step_rng = jax.random.key(5)

    def run(rng, images, indices):
        keys = augment.example_keys(rng, indices)
        return augment.augment_batch(keys, images, cutout_beta=1)

    batch = jax.jit(run)
    whole = batch(step_rng, images, indices)
    one = augment.augment(jax.random.fold_in(step_rng, 43), images[3], cutout_beta=1)
    np.testing.assert_allclose(whole[3], one, atol=1e-3)

    devices = jax.local_device_count()
    shards = jax.pmap(run, in_axes=(None, 0, 0))(
        step_rng, images.reshape(devices, -1, 8, 8, 3), indices.reshape(devices, -1)
    )
    np.testing.assert_allclose(shards.reshape(whole.shape), whole, atol=1e-3)
    shuffled = np.array([3, 0, 5, 1, 4, 2])
    permuted = batch(step_rng, images[shuffled], indices[shuffled])
    np.testing.assert_allclose(permuted, whole[shuffled], atol=1e-3)
    # Equal images differ after augmentation, and differ again at another step.
    same = jnp.stack([images[0]] * 6)
    steps = [batch(jax.random.fold_in(step_rng, s), same, indices) for s in (0, 1)]
    assert len(np.unique(np.concatenate(steps), axis=0)) == 12


def test_result_is_float32_within_range_for_uint8_images():
    images = jax.random.bits(jax.random.key(7), (16, 9, 13, 3), jnp.uint8)
    keys = jax.random.split(jax.random.key(8), 16)
    actual = augment_batch(keys, images)
    assert actual.shape == images.shape and actual.dtype == jnp.float32
    assert actual.min() >= 0 and actual.max() <= 255.01


@pytest.mark.parametrize(
    "option, value",
    [
        ("zoom", 1.0),
        ("zoom", -0.1),
        ("rotation", -1.0),
        ("translation", -1),
        ("cutout_alpha", -1),
        ("cutout_beta", 0),
    ],
)
def test_option_out_of_range_is_a_user_error(option, value):
    with pytest.raises(errors.UserError, match=option):
        augment.augment(jax.random.key(0), random_image(4, 4), **{option: value})
