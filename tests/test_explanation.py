"""Attention maps against float64 NumPy, Grad-CAM against central differences."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from fdftnet_jax.models import explanation
from fdftnet_jax.models.fdftnet import FDFtNet
from fdftnet_jax.models.mobilenet_v3 import MobileNetHead

STAGES = 2
# 12 x 20 positions in the first stage are no whole number of blocks of queries.
SHAPE = (3, 24, 40, 3)


@pytest.fixture(scope="module")
def case():
    """A network whose every variable counts, and images."""
    model = FDFtNet(small_runs.SmallNet(), num_blocks=1, num_stages=STAGES)
    images = jax.random.uniform(jax.random.key(0), SHAPE, minval=-1, maxval=1)
    init = jax.jit(lambda key: model.init(key, images, train=False))
    variables = jax.device_get(init(jax.random.key(1)))
    rng = np.random.default_rng(0)

    def varied(path, leaf):
        moved = leaf + 0.3 * rng.normal(size=leaf.shape)
        # Variances stay above 0.
        return np.float32(np.abs(moved) + 0.1 if path[-1].key == "var" else moved)

    return model, jax.tree_util.tree_map_with_path(varied, variables), images


def depthwise(x, kernel):
    """A 3x3 depthwise convolution of stride 2, padded as TensorFlow's 'SAME'."""
    height, width = (-(-side // 2) for side in x.shape[1:3])
    above, left = (
        max(0, (out - 1) * 2 + 3 - side) // 2
        for out, side in zip((height, width), x.shape[1:3], strict=True)
    )
    padded = np.pad(x, [(0, 0), (above, 3), (left, 3), (0, 0)])
    out = np.zeros((x.shape[0], height, width, x.shape[3]))
    for dy in range(3):
        for dx in range(3):
            view = padded[:, dy : dy + 2 * height : 2, dx : dx + 2 * width : 2]
            out += view * kernel[dy, dx, 0]
    return out


def reference(variables, images):
    """The maps of all stages in float64, each query in turn."""
    params, statistics = (
        jax.tree.map(np.float64, variables[name]["fine_tune_transformer"])
        for name in ("params", "batch_stats")
    )
    x = np.asarray(images, np.float64)
    maps = []
    for stage in range(1, STAGES + 1):
        x = depthwise(x, params[f"depthwise{stage}"]["kernel"])
        x = x @ params[f"pointwise{stage}"]["kernel"][0, 0]
        bn, found = params[f"bn{stage}"], statistics[f"bn{stage}"]
        x = (x - found["mean"]) / np.sqrt(found["var"] + 1e-3)
        x = np.maximum(0, x * bn["scale"] + bn["bias"])
        layers = params[f"attention{stage}"]
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        f, g, h = (rows @ layers[k]["kernel"][0, 0] + layers[k]["bias"] for k in "fgh")
        received, out = np.zeros(rows.shape[:2]), np.zeros_like(rows)
        for n in range(rows.shape[0]):
            for j in range(rows.shape[1]):
                logits = f[n] @ g[n, j]
                beta = np.exp(logits - logits.max())
                beta /= beta.sum()
                received[n] += beta / rows.shape[1]
                out[n, j] = beta @ h[n]
        maps.append(received.reshape(x.shape[:3]))
        x = layers["gamma"] * out.reshape(x.shape) + x
    return maps


def test_attention_maps(case):
    maps = explanation.attention_maps(*case)
    expected = reference(*case[1:])
    assert len(maps) == STAGES
    for found, wanted in zip(maps, expected, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, atol=1e-4 * wanted.max())
        np.testing.assert_allclose(np.sum(found, axis=(1, 2)), 1, atol=1e-5)


def test_gammas(case):
    _, variables, _ = case
    layers = variables["params"]["fine_tune_transformer"]
    expected = [layers["attention1"]["gamma"], layers["attention2"]["gamma"]]
    np.testing.assert_array_equal(explanation.gammas(variables), expected)
    assert explanation.gammas({"params": {"conv1": {}}}) == ()


def test_without_a_transformer_there_are_no_maps(case):
    model, variables, images = case
    alone = FDFtNet(model.backbone, num_blocks=1, num_stages=0)
    assert explanation.attention_maps(alone, variables, images) == ()


def log_odds(logits):
    return logits[:, 1] - logits[:, 0]


def test_grad_cam_is_its_definition(case):
    """alpha by central differences of the logits over each channel of A."""
    model, variables, images = case
    _, state = jax.jit(
        functools.partial(
            model.apply,
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "head_bn",
        )
    )(variables, images)
    x = state["intermediates"]["mobilenet_head"]["head_bn"]["__call__"][0]
    features = np.float64(x) * np.clip(np.float64(x) + 3, 0, 6) / 6
    _, height, width, channels = features.shape

    def of_features(added):
        """The log odds with `added`, [channels], at every position of A."""

        def replaced(call, args, kwargs, context):
            if not isinstance(context.module, MobileNetHead):
                return call(*args, **kwargs)
            return jnp.mean(features + added, axis=(1, 2))

        with nn.intercept_methods(replaced):
            return log_odds(model.apply(variables, images, train=False))

    steps = np.eye(channels, dtype=np.float32)
    of_all = jax.jit(jax.vmap(of_features))
    slope = np.float64(of_all(steps) - of_all(-steps)) / 2
    # That is the gradient summed over the positions; alpha is its mean.
    alpha = slope / (height * width)
    expected = np.maximum(0, np.einsum("bhwk,kb->bhw", features, alpha))
    found = explanation.grad_cam(model, variables, images)
    assert found.shape == (3, height, width) and found.dtype == jnp.float32
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def test_grad_cam_sums_to_what_the_branch_adds_to_the_log_odds(case):
    """With the map of the opposite classifier, which has what is below 0."""
    model, variables, images = case
    params = variables["params"]

    def with_part(name, part):
        return variables | {"params": params | {name: part}}

    classifier = params["classifier"]
    opposite = classifier | {"kernel": classifier["kernel"][:, ::-1]}
    found, negative = (
        np.float64(explanation.grad_cam(model, changed, images))
        for changed in (variables, with_part("classifier", opposite))
    )
    assert np.all(found >= 0) and found.max() > 0 and negative.max() > 0
    head = params["mobilenet_head"]
    silent = head | {"head_bn": jax.tree.map(np.zeros_like, head["head_bn"])}
    apply = jax.jit(functools.partial(model.apply, train=False))
    with_it, without = (
        np.float64(log_odds(apply(changed, images)))
        for changed in (variables, with_part("mobilenet_head", silent))
    )
    total = np.sum(found - negative, axis=(1, 2))
    np.testing.assert_allclose(total, with_it - without, atol=1e-4)


def test_attention_to_a_window_lies_amid_zeros(case):
    _, variables, _ = case
    images = jax.random.uniform(jax.random.key(2), (2, 32, 40, 3), minval=-1, maxval=1)
    whole = FDFtNet(small_runs.SmallNet(), num_blocks=1, num_stages=STAGES)
    model = whole.clone(ftt_size=16, ftt_view="window")
    window = images[:, 8:24, 12:28]
    found = explanation.attention_maps(model, variables, images)
    expected = explanation.attention_maps(whole, variables, window)
    for stage, inner in zip(found, expected, strict=True):
        side = inner.shape[1]
        assert stage.shape == (2, 2 * side, 5 * side // 2)
        placed = np.zeros(stage.shape)
        top, left = side // 2, 3 * side // 4
        placed[:, top : top + side, left : left + side] = inner
        np.testing.assert_allclose(stage, placed, rtol=1e-5, atol=1e-7)
