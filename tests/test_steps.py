"""The functions of a step: what they change, measure and draw."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_runs
from jax.experimental.compilation_cache import compilation_cache
from scipy import special

from fdftnet_jax.data import augment, preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.training import freezing, optimizer, steps

FDFTNET = small_runs.model_config()


def train(task, state, number, devices=None, first=0):
    """Runs steps on `number` batches; returns the state on the host and the metrics."""
    train_step, _ = steps.pmap_steps(task, devices)
    replicated = steps.replicate(state, devices)
    metrics = []
    for index in range(first, first + number):
        batch = steps.shard(small_runs.batch(seed=index), devices)
        replicated, found = train_step(replicated, batch)
        metrics.append(steps.unreplicate(found))
    return steps.unreplicate(replicated), metrics


def parts(tree, name):
    """Path -> leaf of one top-level part of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree[name])
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


# What changes.


def test_the_frozen_backbone_stays_bit_identical():
    task, before = small_runs.task(FDFTNET, "head")
    after, _ = train(task, before, 3)
    for collection in ("params", "batch_stats"):
        old, new = getattr(before, collection), getattr(after, collection)
        assert old.keys() == new.keys()
        frozen = parts(old, "backbone")
        assert frozen
        for path, leaf in parts(new, "backbone").items():
            assert leaf.tobytes() == frozen[path].tobytes(), path
        for part in old.keys() - {"backbone"}:
            trained = parts(new, part)
            for path, leaf in parts(old, part).items():
                assert np.any(leaf != trained[path]), (part, path)
    assert after.step == 3


def test_a_released_backbone_changes():
    task, before = small_runs.task(small_runs.model_config("linear"), "all")
    after, _ = train(task, before, 2)
    for collection in ("params", "batch_stats"):
        old = parts(getattr(before, collection), "backbone")
        for path, leaf in parts(getattr(after, collection), "backbone").items():
            assert np.any(leaf != old[path]), path


def toy_task(**changes):
    """A task whose loss says which random numbers were drawn."""

    def apply(variables, images, train, mutable=(), rngs=None):
        pixel = images[:, 0, 0, 0] * variables["params"]["classifier"]["kernel"]
        if rngs is not None and "dropout" in rngs:
            pixel += jax.random.uniform(rngs["dropout"])
        logits = jnp.stack([jnp.zeros_like(pixel), pixel], axis=1)
        return (logits, {}) if mutable else logits

    def noisy(rng, indices, images):
        keys = augment.example_keys(rng, indices)
        return images + jax.vmap(jax.random.uniform)(keys)[:, None, None, None]

    params = {"classifier": {"kernel": np.ones((), np.float32)}}
    mask = freezing.trainable_mask(params, "all")
    fields = {
        "apply": apply,
        "scale": lambda images: images / 255,
        "augment": noisy,
        "l2": {},
        "optimizer": optimizer.create(small_runs.OPTIMIZER, lambda step: 0.0, mask),
        "mask": mask,
        "seed": 0,
    }
    task = steps.Task(**{**fields, **changes})
    state = steps.TrainState(
        np.zeros((), np.int32), params, {}, task.optimizer.init(params)
    )
    return task, state


def no_augmentation(rng, indices, images):
    return images


@pytest.fixture
def compiled(tmp_path):
    """A folder where all programs of a test are kept, however fast they compiled."""
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    for values in (wanted, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.clear_caches()
        if values is wanted:
            yield tmp_path


def test_another_seed_is_not_compiled_anew(compiled):
    names = []
    for seed in (0, 1):
        task, state = toy_task(seed=seed)
        train(task, state, 1)
        names.append({path.name for path in compiled.glob("*-cache")})
        jax.clear_caches()
    assert names[0]
    assert names[1] == names[0]


@pytest.mark.parametrize("changes", [{}, {"augment": no_augmentation}])
def test_randomness_is_a_function_of_seed_and_step(changes):
    def losses(seed, first_step, number):
        task, state = toy_task(seed=seed, **changes)
        train_step, _ = steps.pmap_steps(task)
        state = steps.replicate(state.replace(step=np.int32(first_step)))
        batch = small_runs.batch()
        found = []
        for _ in range(number):
            state, metrics = train_step(state, steps.shard(batch))
            found.append(float(steps.unreplicate(metrics)["loss"]))
        return found

    undisturbed = losses(0, 0, 4)
    assert len(set(undisturbed)) == 4
    assert losses(0, 0, 4) == undisturbed
    assert losses(0, 2, 2) == undisturbed[2:]
    assert not set(losses(1, 0, 4)) & set(undisturbed)


@pytest.mark.parametrize("devices", [1, 2])
def test_randomness_is_a_function_of_the_index(devices):
    def indices_as_images(rng, indices, batch):
        return jnp.broadcast_to(indices[:, None, None, None] / 8.0, batch.shape)

    task, state = toy_task(
        augment=indices_as_images,
        scale=lambda images: images,
        apply=lambda variables, images, **_: (
            jnp.stack([images[:, 0, 0, 0]] * 2, 1) * jnp.array([0, 1]),
            {},
        ),
    )
    batch = {**small_runs.batch(), "label": np.zeros(8, np.int32)}
    batch["label"][3] = 1
    chosen = jax.devices()[:devices]
    train_step, _ = steps.pmap_steps(task, chosen)
    _, metrics = train_step(steps.replicate(state, chosen), steps.shard(batch, chosen))
    logit = np.arange(8) / 8
    expected = np.logaddexp(0, np.where(batch["label"] == 1, -logit, logit)).sum()
    np.testing.assert_allclose(steps.unreplicate(metrics)["loss"], expected, rtol=1e-6)


# What is measured.


def test_training_metrics_are_sums_over_the_global_batch():
    task, state = toy_task(augment=None, scale=lambda images: images / 255)
    task = steps.Task(**{**vars(task), "apply": without_dropout(task.apply)})
    batch = small_runs.batch()
    _, metrics = train(task, state, 1)
    logit = batch["image"][:, 0, 0, 0] / 255.0
    losses = np.logaddexp(0, np.where(batch["label"] == 1, -logit, logit))
    assert metrics[0]["count"] == 8
    assert metrics[0]["correct"] == batch["label"].sum()  # every logit is >= 0
    np.testing.assert_allclose(metrics[0]["loss"], losses.sum(), rtol=1e-6)


def without_dropout(apply):
    def applied(variables, images, rngs=None, **options):
        return apply(variables, images, **options)

    return applied


def padded(batches, number, order):
    """Batches of 4 of a source in `order`, the last filled with noise of mask 0."""
    source = small_runs.batch(number)
    noise = small_runs.batch(4 * batches - number, seed=1)
    rows = {name: np.concatenate([source[name], noise[name]]) for name in source}
    rows["index"] = np.r_[:number, [-1] * (4 * batches - number)].astype(np.int32)
    rows["mask"] = (rows["index"] >= 0).astype(np.float32)
    order = np.asarray(order)
    return source, [
        {name: values[order[start : start + 4]] for name, values in rows.items()}
        for start in range(0, 4 * batches, 4)
    ]


@pytest.fixture(scope="module")
def evaluated():
    """(p_eval_step, variables on the host, forward) of an untrained FDFtNet."""
    task, state = small_runs.task(FDFTNET, "head")
    _, eval_step = steps.pmap_steps(task)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    forward = jax.jit(lambda x: task.apply(variables, preprocess.scale(x), train=False))
    return eval_step, variables, forward


@pytest.mark.parametrize(
    "order", [np.arange(12), np.random.default_rng(3).permutation(12)]
)
def test_evaluation_scores_the_source_in_its_order(evaluated, order):
    """Whatever order and padding the batches come in."""
    eval_step, variables, forward = evaluated
    source, batches = padded(3, 10, order)
    means, logits = steps.evaluate(
        eval_step, steps.replicate(variables), batches, num_examples=10
    )
    expected = np.asarray(forward(source["image"]), np.float64)
    assert np.ptp(expected) > 1e-2
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    log_likelihood = special.log_softmax(expected, axis=1)
    loss = -log_likelihood[np.arange(10), source["label"]].mean()
    assert means["loss"] == pytest.approx(loss, rel=1e-4)
    called = expected[:, 1] >= expected[:, 0]
    assert means["accuracy"] == pytest.approx(np.mean(called == source["label"]))


def test_the_views_of_an_image_share_its_score(evaluated):
    """The logits of a grid of windows are the mean of theirs."""
    eval_step, variables, forward = evaluated
    views = np.stack([small_runs.batch(8, seed=k)["image"] for k in range(3)], 1)
    batch = {**small_runs.batch(8), "image": views, "index": np.arange(8)}
    batch["mask"] = np.ones(8, np.float32)
    _, logits = steps.evaluate(eval_step, steps.replicate(variables), [batch], 8)
    expected = np.mean([forward(views[:, k]) for k in range(3)], axis=0)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_class_weights_weigh_the_loss():
    """One step of plain SGD, against the gradient in float64."""
    rule, weights = optax.sgd(1.0), (0.25, 3.0)
    params = {"classifier": {"kernel": np.float32(0.5)}}
    task, state = toy_task(augment=None, optimizer=rule, class_weights=weights)
    task = steps.Task(**{**vars(task), "apply": without_dropout(task.apply)})
    state = state.replace(params=params, opt_state=rule.init(params))
    after, metrics = train(task, state, 1)
    batch = small_runs.batch()
    pixel, label = batch["image"][:, 0, 0, 0] / 255.0, batch["label"]
    slope = (special.expit(0.5 * pixel) - label) * pixel
    expected = 0.5 - np.mean(np.array(weights)[label] * slope)
    assert after.params["classifier"]["kernel"] == pytest.approx(expected, rel=1e-5)
    # What is measured is not weighted.
    losses = np.logaddexp(0, np.where(label == 1, -0.5, 0.5) * pixel)
    assert metrics[0]["loss"] == pytest.approx(losses.sum(), rel=1e-5)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_teacher_is_followed_where_it_is_right(stacked):
    """One step of plain SGD, against the gradient in float64."""
    rule, weights = optax.sgd(1.0), (0.25, 3.0)
    start, old = 0.5, -2.0
    task, state = toy_task(
        augment=None, optimizer=rule, class_weights=weights, distillation=0.7
    )
    task = steps.Task(**{**vars(task), "apply": without_dropout(task.apply)})
    params, teacher = (
        {"classifier": {"kernel": np.float32(kernel)}} for kernel in (start, old)
    )
    state = state.replace(params=params, opt_state=rule.init(params))
    batch = small_runs.batch()
    # The teacher calls all of them real.
    pixel, label = batch["image"][:, 0, 0, 0] / 255.0, batch["label"]
    p_train_steps, _ = steps.pmap_steps(task)
    batch = steps.shard(batch)
    if stacked:
        batch = {name: rows[:, None] for name, rows in batch.items()}
    found, metrics = p_train_steps(
        steps.replicate(state), batch, steps.replicate({"params": teacher})
    )
    right = (old * pixel > 0) == (label == 1)
    assert 0 < right.sum() < right.size
    judged, taught = special.expit(start * pixel), special.expit(old * pixel)
    slope = (judged - label + 0.7 * right * (judged - taught)) * pixel
    expected = start - np.mean(np.array(weights)[label] * slope)
    kernel = steps.unreplicate(found).params["classifier"]["kernel"]
    assert kernel == pytest.approx(expected, rel=1e-5)
    # The loss that is told is that of the labels alone.
    losses = np.logaddexp(0, np.where(label == 1, -start, start) * pixel)
    told = np.squeeze(steps.unreplicate(metrics)["loss"])
    assert told == pytest.approx(losses.sum(), rel=1e-5)


def test_divergence_is_that_of_scipy():
    rng = np.random.default_rng(0)
    taught, logits = rng.normal(size=(2, 9, 2))
    labels = rng.integers(0, 2, 9)
    old, new = (special.softmax(each, axis=1) for each in (taught, logits))
    right = np.argmax(taught, axis=1) == labels
    assert 0 < right.sum() < 9
    expected = right * special.rel_entr(old, new).sum(1)
    found = steps.divergence(jnp.asarray(taught), jnp.asarray(logits), labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_an_example_that_was_not_scored_shows(evaluated):
    eval_step, variables, _ = evaluated
    _, batches = padded(3, 10, np.arange(12))
    _, logits = steps.evaluate(
        eval_step, steps.replicate(variables), batches[:2], num_examples=10
    )
    np.testing.assert_array_equal(np.isnan(logits[:, 0]), np.arange(10) >= 8)


# L2.


def test_l2_is_the_sum_of_squares_of_the_kernels():
    rng = np.random.default_rng(0)
    params = {
        part: {
            "conv": {
                "kernel": rng.normal(size=(3, 3, 2, 2)),
                "bias": rng.normal(size=2),
            },
            "bn": {"scale": rng.normal(size=2), "bias": rng.normal(size=2)},
            "attention": {
                "gamma": rng.normal(),
                "f": {"kernel": rng.normal(size=(2, 1))},
            },
        }
        for part in ("backbone", "mobilenet_head", "classifier")
    }

    def squares(part):
        kernels = (
            params[part]["conv"]["kernel"],
            params[part]["attention"]["f"]["kernel"],
        )
        return sum(np.sum(kernel**2) for kernel in kernels)

    def found(weights):
        return float(steps.l2_penalty(params, weights))

    of_head = registry.l2_weights(FDFTNET)
    expected = 1e-5 * (squares("mobilenet_head") + squares("classifier"))
    assert found(of_head) == pytest.approx(expected, rel=1e-5)
    of_shallownet = registry.l2_weights(
        {"kind": "classifier", "backbone": "shallownetv3"}
    )
    expected = 1e-4 * sum(squares(part) for part in params)
    assert found(of_shallownet) == pytest.approx(expected, rel=1e-5)
    assert (
        found(registry.l2_weights({"kind": "classifier", "backbone": "squeezenet"}))
        == 0
    )
    assert found({}) == 0


def test_l2_trains_and_is_not_measured():
    """One step of plain SGD: the penalty adds 2 lambda w to the gradient of w."""
    weight, rate, penalty = 1.5, 0.25, 0.1
    rule = optax.sgd(rate)
    params = {"classifier": {"kernel": np.float32(weight)}}
    updated, losses = [], []
    for l2 in ({"classifier": penalty}, {}):
        task, state = toy_task(augment=None, l2=l2, optimizer=rule)
        state = state.replace(params=params, opt_state=rule.init(params))
        after, metrics = train(task, state, 1)
        updated.append(after.params["classifier"]["kernel"])
        losses.append(metrics[0]["loss"])
    assert updated[0] - updated[1] == pytest.approx(
        -rate * 2 * penalty * weight, rel=1e-4
    )
    assert losses[0] == losses[1]


# Devices.


@pytest.mark.parametrize(
    ("size", "nearest"), [(7, "6 or 8"), (1, "2"), (0, "2"), (-3, "2")]
)
def test_a_batch_that_the_devices_cannot_share(size, nearest):
    with pytest.raises(UserError, match=f"2 devices; nearest: {nearest}$"):
        steps.check_batch_size(size)
    steps.check_batch_size(8)


def test_shard_deals_rows_in_order():
    rows = np.arange(24).reshape(8, 3)
    sharded = steps.shard({"rows": rows}, jax.devices()[:2])["rows"]
    np.testing.assert_array_equal(sharded, rows.reshape(2, 4, 3))
    assert steps.shard({"rows": rows}, jax.devices()[:1])["rows"].shape == (1, 8, 3)


def test_the_step_is_compiled_once():
    """The state that a step returns is dealt to the devices as the first one was."""
    task, state = small_runs.task(small_runs.model_config("classifier"), "all")
    p_train_step, _ = steps.pmap_steps(task)
    state = steps.replicate(state)
    compiled = []

    def note(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        for number in (1, 1):
            state, _ = p_train_step(state, steps.shard(small_runs.batch(8)))
            assert len(compiled) == number
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
