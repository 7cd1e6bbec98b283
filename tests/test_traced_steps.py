"""What a step computes, and how often it is compiled."""

import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import small_runs

from fdftnet_jax.data import preprocess
from fdftnet_jax.models import fdftnet, registry
from fdftnet_jax.training import optimizer, steps


def inner_jaxprs(parameter):
    if isinstance(parameter, jax.extend.core.ClosedJaxpr):
        yield parameter.jaxpr
    elif isinstance(parameter, jax.extend.core.Jaxpr):
        yield parameter
    elif isinstance(parameter, (tuple, list)):
        for item in parameter:
            yield from inner_jaxprs(item)


def count_products(jaxpr):
    """Counts convolutions and matrix products, also inside of calls and loops.

    Of the forms for several platforms, one; a sum that is a product with ones, none.
    """
    counts = collections.Counter()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("conv_general_dilated", "dot_general"):
            counts[name] += equation.invars[0].aval.ndim > 1
        if name == "cond":
            branches = [count_products(b.jaxpr) for b in equation.params["branches"]]
            counts += max(branches, key=lambda branch: branch.total())
            continue
        for parameter in equation.params.values():
            for inner in inner_jaxprs(parameter):
                counts += count_products(inner)
    return counts


def traced(function, *arguments):
    """Counts what one device runs of a function that the devices map."""
    made = jax.make_jaxpr(function, axis_env=[(steps.AXIS, 1)])(*arguments)
    return count_products(made.jaxpr)


class GivenFeatures(nn.Module):
    """Stands for a backbone whose work is done."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, images, *, train):
        return jnp.ones((len(images), *self.shape))


@pytest.mark.parametrize("backbone", ["squeezenet", "shallownetv3", "small"])
def test_no_backward_pass_of_the_frozen_backbone_is_traced(backbone):
    model = small_runs.model_config(backbone=backbone)
    size = 64
    batch = small_runs.batch(number=2, size=size)
    whole, state = small_runs.task(model, "head", size=size, traced_only=True)
    step_of_head = traced(functools.partial(steps.train_step, task=whole), state, batch)

    variables = {
        "params": state.params["backbone"],
        "batch_stats": state.batch_stats.get("backbone", {}),
    }
    module = registry.get_backbone(backbone, axis_name=steps.AXIS)
    forward = functools.partial(module.apply, variables, train=False)
    network_input = preprocess.scale(batch["image"])
    forward_only = traced(forward, network_input)
    features = jax.eval_shape(forward, network_input)

    # The same step of the head alone, on features that are given.
    head = {k: v for k, v in state.params.items() if k != "backbone"}
    mask = jax.tree.map(lambda leaf: True, head)
    alone = fdftnet.FDFtNet(
        GivenFeatures(features.shape[1:]), 1, 1, axis_name=steps.AXIS
    )
    rule = optimizer.create(small_runs.OPTIMIZER, lambda step: 0.05, mask)
    task = steps.Task(
        alone.apply, preprocess.scale, whole.augment, whole.l2, rule, mask, seed=0
    )
    stats = {k: v for k, v in state.batch_stats.items() if k != "backbone"}
    own = steps.TrainState(state.step, head, stats, rule.init(head))
    head_only = traced(functools.partial(steps.train_step, task=task), own, batch)
    assert step_of_head == forward_only + head_only

    released, state = small_runs.task(model, "all", size=size, traced_only=True)
    step_of_all = traced(
        functools.partial(steps.train_step, task=released), state, batch
    )
    # Two more for each product of the backbone, one for its input and one for its
    # kernel. (Nobody reads the first input's, the images', and so XLA leaves it out.)
    backward = 2 * forward_only.total()
    assert step_of_all.total() == step_of_head.total() + backward


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
