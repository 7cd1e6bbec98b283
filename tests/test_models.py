"""Parameter counts of the paper's tables and of the architectures' publications."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from fdftnet_jax import errors
from fdftnet_jax.models import layers, registry, self_attention
from fdftnet_jax.models.fine_tune_transformer import FineTuneTransformer
from fdftnet_jax.models.layers import BatchNorm, Conv, Dropout
from fdftnet_jax.models.mobilenet_v3 import MBBlockV3, MobileNetHead, SqueezeExcite

# name: (feature map at 64x64, parameters without top, with the 2-class top), counted
# as Keras does: four per channel of a batch normalisation.
BACKBONES = {
    "squeezenet": ((3, 3, 512), 722_496, 723_522),
    "shallownetv3": ((12, 12, 32), 109_344, 4_835_106),
    "resnet50v2": ((2, 2, 2048), 23_564_800, 23_568_898),
    "xception": ((2, 2, 2048), 20_861_480, 20_865_578),
    "efficientnet_lite0": ((2, 2, 1280), 3_413_024, 3_415_586),
    # CLIP's image tower has 86,192,640 with a projection to 512 channels; here the
    # class token and its position are one.
    "vit": ((4, 4, 768), 86_192_640 - 768 * 512 - 768, 85_798_656 + 768 * 2 + 2),
}
# (name, variant): side of the feature map at 64, 128, 224 and 299.
SIDES = {
    ("squeezenet", "keras"): (3, 7, 13, 17),
    ("squeezenet", "torch"): (3, 7, 13, 18),
    ("shallownetv3", "keras"): (12, 28, 52, 70),
    ("resnet50v2", "keras"): (2, 4, 7, 10),
    ("xception", "keras"): (2, 4, 7, 10),
    ("xception", "torch"): (2, 4, 7, 10),
    ("efficientnet_lite0", "keras"): (2, 4, 7, 10),
    ("vit", "clip_b16"): (4, 8, 14, 18),
    **{
        ("vit", f"dinov2_{size}14{registers}"): (4, 9, 16, 21)
        for size in "sb"
        for registers in ("", "_reg")
    },
}


@functools.cache
def _init(module, *shape, **kwargs):
    """The shapes of the variables; to trace a network takes a second."""
    return jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros(shape), **kwargs)
    )


def _count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _model(backbone, **overrides):
    model = {"kind": "fdftnet", "backbone": backbone}
    return registry.build(
        model | {"num_blocks": 4, "num_stages": 3, "first_stride": 1} | overrides
    )


def test_every_backbone_is_in_the_table():
    # Other tests register backbones of their own.
    assert set(registry.OWN) == BACKBONES.keys()
    assert SIDES.keys() == {
        (name, variant)
        for name in registry.OWN
        for variant in registry.BACKBONES[name].variants
    }


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_counts(name):
    shape, without_top, with_top = BACKBONES[name]
    features, classifier = registry.get_backbone(name), registry.get_backbone(name, 2)
    variables = _init(features, 1, 64, 64, 3, train=False)
    assert _count(variables) == without_top
    out = jax.eval_shape(
        lambda v: features.apply(v, jnp.zeros((2, 64, 64, 3)), train=False), variables
    )
    assert out.shape == (2, *shape)
    assert _count(_init(classifier, 1, 64, 64, 3, train=False)) == with_top


@pytest.mark.parametrize("name", BACKBONES)
def test_the_top_is_added_to_the_layers_of_the_feature_map(name):
    features = _init(registry.get_backbone(name), 1, 64, 64, 3, train=False)
    whole = _init(registry.get_backbone(name, 2), 1, 64, 64, 3, train=False)
    for collection, tree in features.items():
        for layer, leaves in tree.items():
            chex.assert_trees_all_equal_shapes(whole[collection][layer], leaves)


@pytest.mark.parametrize(("channels", "count"), [(32, 1321), (64, 5201), (128, 20641)])
def test_self_attention_counts(channels, count):
    variables = _init(self_attention.SelfAttention(), 1, 4, 4, channels)
    assert _count(variables) == count


def test_fine_tune_transformer_counts():
    """Table 2, row by row."""
    variables = _init(FineTuneTransformer(), 1, 64, 64, 3, train=False)
    params, stats = variables["params"], variables["batch_stats"]
    rows = {
        "1st DConv": _count([params["depthwise1"], params["pointwise1"]]),
        "1st BN": _count([params["bn1"], stats["bn1"]]),
        "1st self-attention": _count(params["attention1"]),
        "2nd DConv": _count([params["depthwise2"], params["pointwise2"]]),
        "2nd BN": _count([params["bn2"], stats["bn2"]]),
        "2nd self-attention": _count(params["attention2"]),
        "3rd DConv": _count([params["depthwise3"], params["pointwise3"]]),
        "3rd BN": _count([params["bn3"], stats["bn3"]]),
        "3rd self-attention": _count(params["attention3"]),
        "1x1 Conv": _count(params["head"]),
        "last BN": _count([params["head_bn"], stats["head_bn"]]),
    }
    assert list(rows.values()) == [
        123, 128, 1321, 2336, 256, 5201, 8768, 512, 20641, 73728, 2304,
    ]  # fmt: skip
    assert _count(variables) == 115_318
    assert _count(params) == 113_718


def test_fine_tune_transformer_halves_the_image_at_each_stage():
    x = jnp.zeros((2, 64, 64, 3))
    module = FineTuneTransformer()
    _, state = jax.eval_shape(
        lambda: module.init_with_output(
            jax.random.key(0), x, train=False, capture_intermediates=True
        )
    )
    maps = state["intermediates"]
    shapes = [maps[f"attention{m}"]["__call__"][0].shape[1:] for m in (1, 2, 3)]
    assert shapes == [(32, 32, 32), (16, 16, 64), (8, 8, 128)]


def _block(channels, stride=1):
    def norm(name):
        return BatchNorm(use_running_average=True, name=name)

    def conv(*args, **kwargs):
        return Conv(*args, use_bias=False, **kwargs)

    return MBBlockV3(conv, norm, stride), (2, 8, 8, channels)


def test_mbblock_counts():
    """Table 3, row by row, at 512 channels; its last BN is misprinted for 4 * 128."""
    block, shape = _block(512)
    variables = _init(block, *shape)
    params, stats = variables["params"], variables["batch_stats"]
    rows = [
        _count(params["expand"]),
        _count([params["expand_bn"], stats["expand_bn"]]),
        _count(params["depthwise"]),
        _count([params["depthwise_bn"], stats["depthwise_bn"]]),
        _count(params["squeeze_excite"]["reduce"]),
        _count(params["squeeze_excite"]["expand"]),
        _count(params["project"]),
        _count([params["project_bn"], stats["project_bn"]]),
    ]
    assert rows == [294912, 2304, 5184, 2304, 82944, 82944, 73728, 512]
    block, shape = _block(128)
    assert _count(_init(block, *shape)) == 323_648


@pytest.mark.parametrize(
    ("channels", "stride", "residual"),
    [(128, 1, True), (128, 2, False), (512, 1, False)],
)
def test_mbblock_residual(channels, stride, residual):
    """With every scale of the last BN at 0 a block is its shortcut, or its bias."""
    block, shape = _block(channels, stride)
    x = jax.random.normal(jax.random.key(0), shape)
    variables = jax.jit(block.init)(jax.random.key(1), x)
    last = variables["params"]["project_bn"]
    last["scale"], last["bias"] = 0 * last["scale"], 0 * last["bias"] + 2
    y = jax.jit(block.apply)(variables, x)
    assert y.shape == (2, 8 // stride, 8 // stride, 128)
    chex.assert_trees_all_close(y, x + 2 if residual else jnp.full(y.shape, 2.0))


def test_the_excitation_multiplies_the_depthwise_output():
    """Against NumPy on the output that it gates."""
    module = SqueezeExcite(lambda *a, **k: Conv(*a, use_bias=False, **k), 4)
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 16))
    variables = module.init(jax.random.key(1), x)
    reduce, expand = (
        np.asarray(variables["params"][name]["kernel"])[0, 0]
        for name in ("reduce", "expand")
    )
    squeezed = np.maximum(np.asarray(x).mean((1, 2)) @ reduce, 0)
    gate = np.clip(squeezed @ expand + 3, 0, 6) / 6
    np.testing.assert_allclose(
        module.apply(variables, x), x * gate[:, None, None], atol=1e-5
    )
    # In the block, what it gets is the output of the depthwise branch.
    block, shape = _block(128)
    _, state = block.init_with_output(
        jax.random.key(1), jnp.ones(shape), capture_intermediates=True
    )
    maps = state["intermediates"]
    variables = {"params": state["params"]["squeeze_excite"]}
    gated = SqueezeExcite(lambda *a, **k: Conv(*a, use_bias=False, **k), 144).apply(
        variables, maps["depthwise_bn"]["__call__"][0]
    )
    chex.assert_trees_all_close(maps["squeeze_excite"]["__call__"][0], gated, atol=1e-6)


def test_mobilenet_head_counts():
    """The branch on Xception's 2,048 channels; N = 4, head convolution included."""
    variables = _init(MobileNetHead(4), 1, 2, 2, 2048, train=False)
    assert _count(variables) == 2_476_544


@pytest.mark.parametrize("name", BACKBONES)
def test_fdftnet_parts(name):
    variables = _init(_model(name), 1, 64, 64, 3, train=False)
    parts = {
        part: _count([variables["params"][part], variables["batch_stats"].get(part)])
        for part in variables["params"]
    }
    channels = BACKBONES[name][0][2]
    head = 2_476_544 - (2048 - channels) * 576
    assert parts == {
        "backbone": BACKBONES[name][1],
        "mobilenet_head": head,
        "fine_tune_transformer": 115_318,
        "classifier": 1_154,
    }


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("blocks", [1, 2])
def test_numbers_of_stages_and_blocks(stages, blocks):
    model = _model("squeezenet", num_stages=stages, num_blocks=blocks)
    params = _init(model, 1, 64, 64, 3, train=False)["params"]
    assert f"attention{stages}" in params["fine_tune_transformer"]
    assert f"attention{stages + 1}" not in params["fine_tune_transformer"]
    assert f"block{blocks}" in params["mobilenet_head"]
    assert f"block{blocks + 1}" not in params["mobilenet_head"]


def test_without_stages_there_is_no_fine_tune_transformer():
    """M = 0 (Table 6): the classifier gets the other branch alone."""
    model = _model("squeezenet", num_stages=0, num_blocks=2)
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(1), images
    )
    params = variables["params"]
    assert set(params) == {"backbone", "mobilenet_head", "classifier"}
    whole = _init(_model("squeezenet", num_blocks=2), 1, 64, 64, 3, train=False)
    assert _count(whole) - _count(variables) == 115_318
    apply = functools.partial(
        model.apply,
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name == "mobilenet_head",
    )
    logits, state = jax.jit(apply)(variables, images)
    branch = state["intermediates"]["mobilenet_head"]["__call__"][0]
    dense = jax.tree.map(np.float64, params["classifier"])
    expected = np.float64(branch) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_a_frozen_backbone_runs_as_in_inference():
    model = _model("shallownetv3", num_blocks=1, num_stages=0)
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(1), images
    )

    def features(**kwargs):
        apply = functools.partial(
            model.apply,
            **kwargs,
            rngs={"dropout": jax.random.key(2)},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name == "backbone",
        )
        _, state = jax.jit(apply)(variables, images)
        return state["intermediates"]["backbone"]["__call__"][0]

    inference = features(train=False)
    chex.assert_trees_all_equal(features(train=True), inference)
    released = features(train=True, train_backbone=True)
    assert np.abs(released - inference).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), SIDES)
def test_other_image_sizes(name, variant):
    model = registry.get_backbone(name, variant=variant)
    apply = functools.partial(model.apply, train=False)
    variables = _init(model, 1, 64, 64, 3, train=False)
    channels = BACKBONES[name][0][2]
    for size, side in zip((64, 128, 224, 299), SIDES[name, variant], strict=True):
        images = jnp.zeros((1, size, size, 3))
        features = jax.eval_shape(apply, variables, images)
        assert features.shape[:3] == (1, side, side)
    whole = registry.get_backbone(name, 2, variant=variant)
    logits, variables = jax.eval_shape(
        lambda: whole.init_with_output(jax.random.key(0), images, train=False)
    )
    assert logits.shape == (1, 2)
    if name == "shallownetv3":
        # Its dense layer takes the whole map.
        dense = variables["params"]["dense1"]["kernel"]
        assert dense.shape == (side * side * channels, 1024)


# (Those of the vision transformer are other networks.)
@pytest.mark.parametrize("name", sorted(BACKBONES.keys() - {"vit"}))
def test_variants_have_the_same_parameters(name):
    trees = [
        _init(
            registry.get_backbone(name, 2, variant=variant), 1, 64, 64, 3, train=False
        )
        for variant in registry.BACKBONES[name].variants
    ]
    chex.assert_trees_all_equal_shapes(*trees, trees[0])


@pytest.mark.parametrize(
    ("name", "number", "epsilon"),
    [("shallownetv3", 1, 1e-3), ("resnet50v2", 49, 1.001e-5), ("xception", 40, 1e-3)],
)
@pytest.mark.parametrize("train", [True, False])
def test_every_normalisation_is_told_the_mode_and_the_axis(
    name, number, epsilon, train
):
    found = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm):
            found.append(context.module)
        return call(*args, **kwargs)

    model = registry.get_backbone(name, 2, axis_name="batch")
    with nn.intercept_methods(record):
        jax.eval_shape(
            lambda: model.init(
                {"params": jax.random.key(0), "dropout": jax.random.key(0)},
                jnp.zeros((2, 64, 64, 3)),
                train=train,
            )
        )
    settings = {
        (norm.use_running_average, norm.axis_name, norm.momentum, norm.epsilon)
        for norm in found
    }
    assert settings == {(not train, "batch", 0.9, epsilon)}
    assert len({norm.name for norm in found}) == number


def test_gates():
    x = np.linspace(-5, 5, 101)
    relu6 = np.clip(x + 3, 0, 6)
    np.testing.assert_allclose(layers.hard_sigmoid(x), relu6 / 6, atol=1e-6)
    np.testing.assert_allclose(layers.hard_swish(x), x * relu6 / 6, atol=1e-6)


def test_dropout_rate_and_scale():
    x = jnp.ones((64, 100))
    rngs = {"dropout": jax.random.key(0)}
    y = Dropout(0.25).apply({}, x, train=True, rngs=rngs)
    kept = np.asarray(y) > 0
    np.testing.assert_allclose(y[kept], 1 / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / kept.size)
    # Examples have masks of their own.
    assert not (kept[0] == kept[1]).all()
    chex.assert_trees_all_equal(Dropout(0.25).apply({}, x, train=False), x)


def test_dropout_is_the_same_on_one_and_two_devices():
    x = jnp.ones((4, 50))
    rng = jax.random.key(0)

    def masked(axis_name):
        return lambda x: Dropout(0.5, axis_name).apply(
            {}, x, train=True, rngs={"dropout": rng}
        )

    on_two = jax.pmap(masked("batch"), axis_name="batch")(x.reshape(2, 2, 50))
    chex.assert_trees_all_equal(on_two.reshape(4, 50), masked(None)(x))


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


# Side and channels of each depth at 64x64, by the tables of the publications.
TAPS = {
    "squeezenet": [(31, 64), (15, 128), (7, 256), (3, 384), (3, 512)],
    "shallownetv3": [(60, 32), (28, 64), (12, 32)],
    "resnet50v2": [(16, 256), (8, 512), (4, 1024), (2, 2048)],
    "xception": [(29, 64), (15, 128), (8, 256), (4, 728), (4, 728), (2, 2048)],
    "efficientnet_lite0": [
        *((32, 32), (32, 16), (16, 24), (8, 40), (4, 80), (4, 112), (2, 192)),
        *((2, 320), (2, 1280)),
    ],
    "vit": [(4, 768)] * 4,
}


@pytest.mark.parametrize("name", registry.OWN)
def test_taps_of_a_backbone(name):
    """They come with the same feature map, from the same variables."""
    plain, tapped = (registry.get_backbone(name, taps=taps) for taps in (False, True))
    rng = np.random.default_rng(0)
    images = np.float32(rng.normal(size=(1, 64, 64, 3)))

    def drawn(leaf):
        if len(leaf.shape) < 2:
            return np.float32(rng.uniform(0.5, 1.5, leaf.shape))
        inputs = np.prod(leaf.shape[:-1])
        return np.float32(rng.normal(0, inputs**-0.5, leaf.shape))

    variables = jax.tree.map(drawn, _init(plain, 1, 64, 64, 3, train=False))

    @jax.jit
    def both(variables, images):
        return tuple(
            network.apply(variables, images, train=False) for network in (tapped, plain)
        )

    maps, expected = both(variables, images)
    assert [(m.shape[1], m.shape[3]) for m in maps] == TAPS[name]
    assert np.isfinite(expected).all() and np.ptp(expected) > 0
    chex.assert_trees_all_close(maps[-1], expected, rtol=1e-5, atol=1e-5)


def test_taps_of_every_block():
    """By Table 1 of Tan and Le 2019, which EfficientNet-Lite0 follows, at 64x64."""
    table = (
        # Blocks, channels and side after it of the stages of width 1.
        *((1, 16, 32), (2, 24, 16), (2, 40, 8), (3, 80, 4), (3, 112, 4)),
        *((4, 192, 2), (1, 320, 2)),
    )
    expected, before, side_before = [(32, 32)], 32, 32
    for stage, (blocks, channels, side) in enumerate(table[:6]):
        for _ in range(blocks):
            if stage >= 3:
                # The expansion by 6 comes before the stride.
                expected.append((side_before, 6 * before))
            expected.append((side, channels))
            before, side_before = channels, side
    expected.append((2, 1280))
    model = registry.get_backbone("efficientnet_lite0", taps=True, block_taps=True)
    images = np.zeros((1, 64, 64, 3), np.float32)
    maps = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, train=False)[0]
    )
    assert [(m.shape[1], m.shape[3]) for m in maps] == expected
    # All but the last are classified: 4 numbers of a normalisation, 2 weights.
    counted = [
        _count(
            _init(_model("efficientnet_lite0", **options), 1, 64, 64, 3, train=False)
        )
        for options in ({}, {"taps": True, "block_taps": True})
    ]
    pooled = 2 * sum(channels for _, channels in expected[:-1])
    assert counted[1] - counted[0] == pooled * (4 + 2)


def test_only_some_backbones_have_taps_of_every_block():
    with pytest.raises(errors.UserError, match="expected efficientnet_lite0, or"):
        registry.get_backbone("squeezenet", taps=True, block_taps=True)


def test_statistics_of_depths_against_numpy():
    rng = np.random.default_rng(0)
    maps = [rng.normal(3, 2, (2, side, side, c)) for side, c in ((5, 3), (2, 4))]
    maps.append(np.ones((2, 3, 3, 1)))
    found = layers.depth_statistics([jnp.asarray(x, jnp.float32) for x in maps])
    expected = []
    for x in maps:
        expected += [x.mean((1, 2)), x.std((1, 2))]
    # A map that is constant has a derivative, too: its deviation is not quite 0.
    expected[-1] += 1e-3
    np.testing.assert_allclose(found, np.concatenate(expected, -1), rtol=1e-5)
    slope = jax.grad(lambda x: layers.depth_statistics([x]).sum())(
        jnp.ones((1, 2, 2, 1))
    )
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("backbone", ["squeezenet", "shallownetv3"])
def test_taps_join_what_is_classified(backbone):
    """A normalisation of 4, and two weights of the classifier, for each of them."""
    sizes = [
        _count(_init(_model(backbone, taps=taps), 1, 64, 64, 3, train=False))
        for taps in (False, True)
    ]
    pooled = 2 * sum(channels for _, channels in TAPS[backbone])
    assert sizes[1] - sizes[0] == pooled * (4 + 2)


def test_unknown_names():
    with pytest.raises(errors.UserError, match="did you mean 'squeezenet'"):
        registry.get_backbone("squeeze")
    with pytest.raises(errors.UserError, match="'other': expected one of classifier"):
        registry.build({"kind": "other", "backbone": "squeezenet"})
    with pytest.raises(errors.UserError, match="'tensorflow': it has keras, torch"):
        registry.get_backbone("xception", variant="tensorflow")
    with pytest.raises(errors.UserError, match="no variant 'torch': it has keras"):
        registry.get_backbone("resnet50v2", variant="torch")


@pytest.mark.parametrize("kind", ["classifier", "fdftnet"])
def test_a_configuration_may_name_the_variant(kind):
    model = {"kind": kind, "backbone": "xception", "variant": "torch"}
    model |= {"num_blocks": 1, "num_stages": 1, "first_stride": 1}
    for options, variant in ((model, "torch"), (model | {"variant": "keras"}, "keras")):
        network = registry.build(options)
        assert getattr(network, "backbone", network).variant == variant


def test_the_fine_tune_transformer_sees_reduced_images():
    """Half the size by weights 1, 3, 3, 1 along each side, by NumPy in float64."""
    model = _model("shallownetv3", num_blocks=1, num_stages=1, ftt_size=64)
    images = jax.random.uniform(jax.random.key(0), (2, 64, 64, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(1), images
    )

    # (Compiled without the backbone, whose map is not asked for.)
    @functools.partial(jax.jit, static_argnums=0)
    def branch(model, images):
        _, state = model.apply(
            variables,
            images,
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda m, _: m.name == "fine_tune_transformer",
        )
        return state["intermediates"]["fine_tune_transformer"]["__call__"][0]

    large = np.random.default_rng(0).uniform(-1, 1, (2, 128, 128, 3))
    weights = np.zeros((64, 128))
    for i in range(64):
        for offset, weight in zip((-1, 0, 1, 2), (1, 3, 3, 1), strict=True):
            if 0 <= 2 * i + offset < 128:
                weights[i, 2 * i + offset] = weight
    weights /= weights.sum(1, keepdims=True)
    reduced = np.einsum("ih,jw,bhwc->bijc", weights, weights, large)
    whole = _model("shallownetv3", num_blocks=1, num_stages=1)
    expected = branch(whole, jnp.float32(reduced))
    found = branch(model, jnp.float32(large))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(branch(whole, jnp.float32(large)) - expected).max() > 1e-3
    # Smaller ones are taken as they are.
    np.testing.assert_array_equal(branch(model, images), branch(whole, images))
    # Or the window in the centre.
    model = _model(
        "shallownetv3", num_blocks=1, num_stages=1, ftt_size=64, ftt_view="window"
    )
    found = branch(model, jnp.float32(large))
    expected = branch(whole, jnp.float32(large[:, 32:96, 32:96]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "channels"), [("npr", 3), ("srm", 30)])
def test_the_fine_tune_transformer_sees_residuals(name, channels):
    """Nothing else changes; at 64x64 with neither, the counts are Table 2's."""
    plain, filtered = (
        _init(_model("squeezenet", ftt_filter=f), 1, 64, 64, 3, train=False)["params"]
        for f in ("", name)
    )
    assert filtered["fine_tune_transformer"]["depthwise1"]["kernel"].shape == (
        *(3, 3, 1),
        channels,
    )
    for part in plain.keys() - {"fine_tune_transformer"}:
        chex.assert_trees_all_equal_shapes(plain[part], filtered[part])
    assert plain.keys() == filtered.keys()
