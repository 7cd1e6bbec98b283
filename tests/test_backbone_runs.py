"""Every backbone of the package through the steps, and through whole runs."""

import functools

import jax
import numpy as np
import pytest
import small_runs

from fdftnet_jax.evaluation import scoring
from fdftnet_jax.models import registry
from fdftnet_jax.run import Run
from fdftnet_jax.training import steps

pytestmark = pytest.mark.slow

# Smaller images leave ShallowNetV3 and SqueezeNet without pixels.
SIZE = 64


@pytest.mark.parametrize("kind", ["classifier", "fdftnet"])
@pytest.mark.parametrize("backbone", registry.OF_PAPER)
def test_a_step_of_training_and_of_scoring_is_traced(backbone, kind):
    """The arrays that come out fit those that went in; nothing is compiled."""
    model = small_runs.model_config(kind, backbone)
    phase = "all" if kind == "classifier" else "head"
    task, state = small_runs.task(model, phase, size=SIZE, traced_only=True)
    batch = small_runs.batch(4, SIZE)

    def mapped(function, *arguments):
        traced = jax.make_jaxpr(function, axis_env=[(steps.AXIS, 2)], return_shape=True)
        return traced(*arguments)[1]

    train = functools.partial(steps.train_step, task=task)
    after, metrics = mapped(train, state, batch, np.int32(0))
    shapes = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert shapes(after) == shapes(state)
    assert metrics["count"].shape == ()

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    score = functools.partial(steps.eval_step, apply=task.apply, scale=task.scale)
    rows = {"index": np.arange(4), "mask": np.ones(4, np.float32)}
    scored = mapped(score, variables, batch | rows)
    assert scored["logits"].shape == (2, 4, 2)


@pytest.mark.long
@pytest.mark.parametrize("backbone", registry.OF_PAPER)
def test_pretrain_finetune_evaluate(backbone, tmp_path, cache_dir):
    """Compiles for one to four minutes each."""
    changes = {"model.backbone": backbone, "data.size": SIZE, "epochs": 1}
    base, fdft = tmp_path / "base", tmp_path / "fdft"
    small_runs.run(small_runs.config(cache_dir, **changes), base)
    small_runs.run(small_runs.config(cache_dir, base, **changes), fdft)
    for workdir in (base, fdft):
        scores = scoring.score_split(Run(workdir))
        assert scores.logits.shape == (18, 2)
        assert np.isfinite(scores.logits).all()
