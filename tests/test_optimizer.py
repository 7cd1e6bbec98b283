import chex
import jax
import numpy as np
import optax
import pytest

from fdftnet_jax.training import optimizer


def options(**changes):
    return {
        "name": "sgd",
        "learning_rate": 0.3,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "warmup_epochs": 0.0,
        "clip_norm": 0.0,
        "backbone_rate": 1.0,
        "l2_sp": 0.0,
        **changes,
    }


def expected_rate(step, peak, warmup, steps):
    if step < warmup:
        return peak * step / warmup
    return peak / 2 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))


@pytest.mark.parametrize(
    ("warmup_epochs", "steps_per_epoch", "steps", "warmup"),
    [(0.0, 5, 20, 0), (1.0, 5, 20, 5), (1.5, 5, 20, 7), (9.0, 5, 20, 19), (1, 3, 1, 0)],
)
def test_schedule(warmup_epochs, steps_per_epoch, steps, warmup):
    schedule = optimizer.schedule(
        options(warmup_epochs=warmup_epochs), steps, steps_per_epoch
    )
    found = [float(schedule(step)) for step in range(steps + 1)]
    expected = [expected_rate(step, 0.3, warmup, steps) for step in range(steps + 1)]
    np.testing.assert_allclose(found, expected, atol=1e-7)


MASK = {"backbone": {"a": False, "b": False}, "head": {"c": True, "d": True}}


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        part: {
            name: (scale * rng.normal(size=(3, 2))).astype(np.float32) for name in names
        }
        for part, names in MASK.items()
    }


@pytest.mark.parametrize("warmup_epochs", [0.0, 2.0])
@pytest.mark.parametrize("clip_norm", [0.0, 2.0])
def test_updates_against_numpy(warmup_epochs, clip_norm):
    """SGD with momentum written out in float64, with gradients for every leaf."""
    steps, momentum = 12, 0.9
    chosen = options(warmup_epochs=warmup_epochs, clip_norm=clip_norm)
    schedule = optimizer.schedule(chosen, steps, steps_per_epoch=3)
    transform = optimizer.create(chosen, schedule, MASK)
    params = random_tree(0)
    start = params
    state = transform.init(params)
    weights = {name: w.astype(np.float64) for name, w in params["head"].items()}
    velocity = {name: np.zeros((3, 2)) for name in weights}
    for step in range(steps):
        gradients = random_tree(1 + step)
        # A frozen part must not even count in the norm.
        gradients["backbone"] = {n: 1e3 * g for n, g in gradients["backbone"].items()}
        updates, state = transform.update(gradients, state, params)
        for update in updates["backbone"].values():
            assert not np.any(update)
        params = jax.device_get(optax.apply_updates(params, updates))

        norm = np.sqrt(sum(np.sum(g**2.0) for g in gradients["head"].values()))
        shrink = clip_norm / norm if clip_norm and norm > clip_norm else 1.0
        rate = expected_rate(step, 0.3, int(3 * warmup_epochs), steps)
        for name, gradient in gradients["head"].items():
            velocity[name] = momentum * velocity[name] + shrink * gradient
            weights[name] = weights[name] - rate * velocity[name]
    for name, weight in weights.items():
        np.testing.assert_allclose(params["head"][name], weight, rtol=1e-5, atol=1e-5)
        assert not np.allclose(weight, start["head"][name], atol=1e-2)
    for name, weight in start["backbone"].items():
        np.testing.assert_array_equal(params["backbone"][name], weight)


def test_a_released_backbone_is_pulled_back_and_slower():
    """L2-SP and its share of the rate, written out in float64."""
    steps, momentum, strength, share, clip = 6, 0.9, 0.7, 0.25, 1.5
    mask = jax.tree.map(lambda _: True, MASK)
    chosen = options(l2_sp=strength, backbone_rate=share, clip_norm=clip)
    transform = optimizer.create(chosen, lambda step: 0.1, mask)
    params = start = random_tree(0)
    state = transform.init(params)
    weights = jax.tree.map(lambda w: w.astype(np.float64), params)
    velocity = jax.tree.map(np.zeros_like, weights)
    for step in range(steps):
        gradients = random_tree(1 + step)
        updates, state = transform.update(gradients, state, params)
        params = jax.device_get(optax.apply_updates(params, updates))

        norm = np.sqrt(sum(np.sum(g**2.0) for g in jax.tree.leaves(gradients)))
        shrink = min(1.0, clip / norm)
        for part, names in MASK.items():
            of_backbone = part == "backbone"
            for name in names:
                pull = strength * (weights[part][name] - start[part][name])
                gradient = shrink * gradients[part][name] + of_backbone * pull
                velocity[part][name] = momentum * velocity[part][name] + gradient
                rate = 0.1 * (share if of_backbone else 1.0)
                weights[part][name] = weights[part][name] - rate * velocity[part][name]
    chex.assert_trees_all_close(params, weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_against_numpy(decay):
    """Loshchilov and Hutter's Algorithm 2 in float64, on a network's names."""
    steps, rate, share = 8, 0.05, 0.5
    rng = np.random.default_rng(0)
    params = {
        part: {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
        for part in ("backbone", "head")
    }
    mask = {"backbone": True, "head": True}
    mask = {part: dict.fromkeys(tree, mask[part]) for part, tree in params.items()}
    chosen = options(name="adamw", weight_decay=decay, backbone_rate=share)
    transform = optimizer.create(chosen, lambda step: rate, mask)
    state = transform.init(params)
    weights = jax.tree.map(np.copy, params)
    first, second = (jax.tree.map(np.zeros_like, weights) for _ in range(2))
    for step in range(1, steps + 1):
        gradients = jax.tree.map(lambda w: rng.normal(size=w.shape), params)
        updates, state = transform.update(gradients, state, params)
        params = jax.device_get(optax.apply_updates(params, updates))
        for part, tree in weights.items():
            for name, w in tree.items():
                g = gradients[part][name]
                first[part][name] = 0.9 * first[part][name] + 0.1 * g
                second[part][name] = 0.999 * second[part][name] + 0.001 * g**2
                m = first[part][name] / (1 - 0.9**step)
                v = second[part][name] / (1 - 0.999**step)
                decayed = decay * w if name == "kernel" else 0
                step_size = rate * (share if part == "backbone" else 1)
                tree[name] = w - step_size * (m / (np.sqrt(v) + 1e-8) + decayed)
    chex.assert_trees_all_close(params, weights, rtol=1e-4, atol=1e-4)


def test_state_has_no_arrays_for_frozen_leaves():
    params = random_tree(0)
    state = optimizer.create(options(), lambda step: 0.1, MASK).init(params)
    shapes = sorted(np.shape(leaf) for leaf in jax.tree.leaves(state))
    # The momentum of the head's two leaves, and the count of the schedule.
    assert shapes == [(), (3, 2), (3, 2)]
