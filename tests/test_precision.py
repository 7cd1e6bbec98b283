"""bfloat16: what is rounded, and what stays float32."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_runs

from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import preprocess
from fdftnet_jax.evaluation import scoring
from fdftnet_jax.models import registry
from fdftnet_jax.run import Run


def _dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone", ["squeezenet", "shallownetv3", "resnet50v2", "xception"]
)
def test_every_large_product_is_in_bfloat16(backbone):
    """Of FDFtNet in training; what is in float32 are sums over a batch, with ones."""
    model = registry.build(small_runs.model_config(backbone=backbone))
    example = jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), example, train=False)
    )
    apply = registry.computing_in("bfloat16", model.apply)

    def loss(params):
        logits, updates = apply(
            {**variables, "params": params},
            example,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        assert logits.dtype == jnp.float32
        assert _dtypes(updates) == {"float32"}
        return jnp.sum(logits)

    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
    params = variables["params"]
    made, gradients = jax.make_jaxpr(jax.grad(loss), return_shape=True)(params)
    assert _dtypes(gradients) == {"float32"}
    found = set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                first = equation.invars[0].aval
                found.add((str(first.dtype), first.ndim > 1))
            for value in jax.tree.leaves(
                list(equation.params.values()),
                is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr),
            ):
                if isinstance(value, jax.extend.core.ClosedJaxpr):
                    visit(value.jaxpr)

    visit(made.jaxpr)
    assert found == {("bfloat16", True), ("float32", False)}


def test_float32_is_the_network_itself():
    model = registry.build(small_runs.model_config())
    assert registry.computing_in("float32", model.apply) == model.apply


def test_logits_are_near_those_of_float32():
    task, state = small_runs.task(small_runs.model_config(), "all")
    batch = small_runs.batch(seed=0)
    x = preprocess.scale(jnp.asarray(batch["image"]))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    ours, exact = (
        jax.jit(functools.partial(apply, train=False))(variables, x)
        for apply in (registry.computing_in("bfloat16", task.apply), task.apply)
    )
    assert ours.dtype == jnp.float32
    assert np.abs(ours - exact).max() > 0
    chex.assert_trees_all_close(ours, exact, atol=0.03)


@pytest.mark.slow
def test_a_run_in_bfloat16_keeps_float32_and_is_scored_as_it_was_validated(
    cache_dir, tmp_path, monkeypatch
):
    config = small_runs.config(cache_dir, dtype="bfloat16", epochs=1)
    workdir = small_runs.run(config, tmp_path / "run")
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.load_meta()["model"]["dtype"] == "bfloat16"
        variables = checkpoints.load_variables()
    assert _dtypes(variables) == {"float32"}
    asked = []
    computing_in = registry.computing_in
    monkeypatch.setattr(
        registry,
        "computing_in",
        lambda dtype, apply: asked.append(dtype) or computing_in(dtype, apply),
    )
    scores = scoring.score_split(Run(workdir), "validation")
    assert asked == ["bfloat16"]
    losses = optax.softmax_cross_entropy_with_integer_labels(
        scores.logits, scores.labels
    )
    # Two programs of other batches may round at other places.
    validated = small_runs.Run(workdir).history()[-1]["validation_loss"]
    assert np.mean(losses) == pytest.approx(validated, abs=1e-3)
