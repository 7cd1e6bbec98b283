import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.training import freezing


def tree(*parts):
    rng = np.random.default_rng(0)
    return {
        part: {
            "conv": {
                "kernel": rng.normal(size=(2, 3)).astype(np.float32),
                "bias": np.zeros(3, np.float32),
            }
        }
        for part in parts
    }


def run_config(trainable, release_epoch=0):
    return ml_collections.ConfigDict(
        {"trainable": trainable, "release_epoch": release_epoch}
    )


def test_a_run_has_one_phase_or_releases_its_backbone():
    params = tree("backbone", "classifier")
    (frozen,) = freezing.phases(params, run_config("head"))
    assert frozen.mask == freezing.trainable_mask(params, "head")
    assert frozen.options == {} and frozen.num_parameters(params) == 9
    (whole,) = freezing.phases(params, run_config("all"))
    assert (
        whole.options == {"train_backbone": True} and whole.num_parameters(params) == 18
    )
    (of_classifier,) = freezing.phases(tree("conv1", "top"), run_config("all"))
    assert of_classifier.options == {}
    first, second = released = freezing.phases(params, run_config("head", 3))
    assert (first.mask, second.mask) == (frozen.mask, whole.mask)
    assert second.options == {"train_backbone": True}
    found = [freezing.phase_at(released, epoch) for epoch in range(5)]
    assert found == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("phase", ["head", "all"])
def test_no_phase_trains_a_regression_beside_the_network(phase):
    mask = freezing.trainable_mask(tree("backbone", "regression", "classifier"), phase)
    found = {part: all(jax.tree.leaves(layers)) for part, layers in mask.items()}
    expected = {"backbone": phase == "all", "regression": False, "classifier": True}
    assert found == expected
    # A part of that name in a network of another kind is a layer like any other.
    mask = freezing.trainable_mask(tree("regression", "top"), "all")
    assert all(jax.tree.leaves(mask))


# A part whose name merely contains the pattern is not the backbone.
PARTS = ("backbone", "backbone_head", "my_backbone", "classifier")


def test_head_freezes_the_backbone_alone():
    mask = freezing.trainable_mask(tree(*PARTS), "head")
    for part in PARTS:
        assert mask[part]["conv"] == {
            "kernel": part != "backbone",
            "bias": part != "backbone",
        }


def test_all_freezes_nothing():
    assert all(jax.tree.leaves(freezing.trainable_mask(tree(*PARTS), "all")))


@pytest.mark.parametrize("backbone", sorted(registry.BACKBONES))
def test_head_of_the_network_is_what_the_paper_trains(backbone):
    model = registry.build(
        {
            "kind": "fdftnet",
            "backbone": backbone,
            "num_blocks": 2,
            "num_stages": 2,
            "first_stride": 1,
        }
    )
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    mask = freezing.trainable_mask(params["params"], "head")
    assert set(mask) == {
        "backbone",
        "mobilenet_head",
        "fine_tune_transformer",
        "classifier",
    }
    for part, leaves in mask.items():
        assert set(jax.tree.leaves(leaves)) == {part != "backbone"}


@pytest.mark.parametrize(
    ("parts", "phase", "message"),
    [
        (("conv1", "top"), "head", "freeze nothing.*here the parts are conv1, top"),
        (("backbone",), "head", "freeze everything"),
        (PARTS, "tail", "'tail': expected one of head, all"),
    ],
)
def test_mistakes(parts, phase, message):
    with pytest.raises(UserError, match=message):
        freezing.trainable_mask(tree(*parts), phase)


@pytest.mark.parametrize("phase", ["head", "all"])
def test_partition_and_merge(phase):
    params = tree(*PARTS)
    mask = freezing.trainable_mask(params, phase)
    trainable, frozen = freezing.partition(params, mask)
    assert len(jax.tree.leaves(frozen)) == (2 if phase == "head" else 0)
    assert len(jax.tree.leaves(trainable)) == 8 - len(jax.tree.leaves(frozen))
    if phase == "head":
        assert trainable["backbone"]["conv"] == {"kernel": None, "bias": None}
        assert frozen["backbone"]["conv"]["kernel"] is not None
    merged = freezing.merge(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, merged, params)))
