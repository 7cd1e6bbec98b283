import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from fdftnet_jax.models import registry


@pytest.mark.parametrize(
    ("backbone", "without_top", "channels"),
    [("squeezenet", 722_496, 512), ("xception", 20_861_480, 2048)],
)
def test_a_probe_adds_one_dense_layer(backbone, without_top, channels):
    """The backbones' counts are those of the literature."""
    module = registry.build({"kind": "linear", "backbone": backbone})
    image = jnp.zeros((1, 64, 64, 3))
    init = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))
    assert init["params"].keys() == {"backbone", "classifier"}
    total = sum(leaf.size for leaf in jax.tree.leaves(init))
    assert total == without_top + 2 * channels + 2


def test_a_probe_is_linear_in_the_mean_of_the_features():
    module = registry.build(small_runs.model_config("linear"))
    images = jax.random.normal(jax.random.key(1), (3, 32, 32, 3))
    variables = module.init(jax.random.key(0), images, train=False)
    backbone = registry.get_backbone(small_runs.BACKBONE)
    inner = {name: tree["backbone"] for name, tree in variables.items()}
    features = np.asarray(backbone.apply(inner, images, train=False), np.float64)
    dense = variables["params"]["classifier"]
    expected = features.mean((1, 2)) @ dense["kernel"] + dense["bias"]
    found = module.apply(variables, images, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
