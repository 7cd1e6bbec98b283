"""The attention module against float64 NumPy (Eq. 1-3)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdftnet_jax.models.self_attention import SelfAttention

SHAPE = (2, 4, 3, 16)


@pytest.fixture(scope="module")
def case():
    """A module with gamma = 0.7 and random biases, and an input."""
    x = jax.random.normal(jax.random.key(0), SHAPE)
    params = SelfAttention().init(jax.random.key(1), x)["params"]
    for index, name in enumerate("fgh"):
        bias = params[name]["bias"]
        params[name]["bias"] = jax.random.normal(jax.random.key(index), bias.shape)
    return {**params, "gamma": jnp.float32(0.7)}, x


def _reference(params, x):
    """Eq. 1-3 in float64: positions in a loop, beta[j, i] written out."""
    x = np.asarray(x, np.float64)
    batch, height, width, channels = x.shape
    positions = x.reshape(batch, height * width, channels)
    layer = {
        name: (
            np.asarray(params[name]["kernel"], np.float64)[0, 0],
            np.asarray(params[name]["bias"], np.float64),
        )
        for name in "fgh"
    }
    f, g, h = (positions @ kernel + bias for kernel, bias in layer.values())
    out = np.zeros_like(positions)
    for n in range(batch):
        for j in range(height * width):
            logits = f[n] @ g[n, j]
            beta = np.exp(logits - logits.max())
            out[n, j] = (beta / beta.sum()) @ h[n]
    return float(params["gamma"]) * out.reshape(x.shape) + x


def test_is_the_identity_at_initialisation():
    x = jax.random.normal(jax.random.key(0), SHAPE)
    variables = SelfAttention().init(jax.random.key(1), x)
    assert variables["params"]["gamma"] == 0
    chex.assert_trees_all_equal(SelfAttention().apply(variables, x), x)


def test_values(case):
    params, x = case
    y = SelfAttention().apply({"params": params}, x)
    chex.assert_shape(y, SHAPE)
    chex.assert_trees_all_close(
        np.asarray(y, np.float64), _reference(params, x), atol=1e-5
    )


def test_gradients(case):
    """Against central differences of the float64 reference."""
    params, x = case
    weights = np.asarray(jax.random.normal(jax.random.key(3), SHAPE), np.float64)
    gradients, gradient_x = jax.grad(
        lambda p, x: jnp.sum(SelfAttention().apply({"params": p}, x) * weights),
        argnums=(0, 1),
    )(params, x)
    rng = np.random.default_rng(0)
    step = 1e-6

    def slope(tree):
        """The reference's derivative along one leaf's unit vector, at both sides."""
        high = np.sum(_reference(*tree(step)) * weights)
        low = np.sum(_reference(*tree(-step)) * weights)
        return (high - low) / (2 * step)

    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        for index in {tuple(rng.integers(leaf.shape)) for _ in range(5)}:

            def shifted(by, path=path, index=index):
                def at(p, value):
                    value = np.array(value, np.float64)
                    if p == path:
                        value[index] += by
                    return value

                return jax.tree_util.tree_map_with_path(at, params), x

            found = gradients
            for key in path:
                found = found[key.key]
            np.testing.assert_allclose(
                found[index], slope(shifted), rtol=1e-5, atol=1e-5
            )
    for index in {tuple(rng.integers(SHAPE)) for _ in range(10)}:

        def shifted_x(by, index=index):
            moved = np.array(x, np.float64)
            moved[index] += by
            return params, moved

        np.testing.assert_allclose(
            gradient_x[index], slope(shifted_x), rtol=1e-5, atol=1e-5
        )


def test_permuting_positions_permutes_the_output(case):
    params, x = case
    order = np.random.default_rng(0).permutation(SHAPE[1] * SHAPE[2])

    def permuted(images):
        flat = images.reshape(SHAPE[0], -1, SHAPE[3])
        return flat[:, order].reshape(SHAPE)

    apply = jax.jit(lambda x: SelfAttention().apply({"params": params}, x))
    chex.assert_trees_all_close(apply(permuted(x)), permuted(apply(x)), atol=1e-5)
