"""Timed steps, and what their arithmetic is counted as."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
import test_launch

from configs import finetune
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import counting, registry
from fdftnet_jax.training import benchmark, defaults, steps


def _config(mode, changes=None):
    init_from = [] if mode == "pretrain" else ["run"]
    probe = defaults.probe("small") if mode == "features" else {}
    return small_runs.config("", *init_from, **probe, **(changes or {}))


def _zeros(config):
    """The network's variables, all 0, without compiling its initialisation."""
    model = registry.build(config.model.to_dict())
    size = config.data.size

    def init():
        return model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)

    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(init)
    )
    return {"batch_stats": {}} | variables


@pytest.mark.slow
@pytest.mark.parametrize("mode", benchmark.MODES)
def test_the_timed_step_is_that_of_the_mode(mode):
    work = benchmark.prepare(_config(mode), mode)
    before = jax.device_get(work.carry)
    given = jax.tree.leaves(work.carry)
    assert all(work.run() > 0 for _ in range(3))
    after = jax.device_get(work.carry)

    def changed(part):
        same = jax.tree.map(np.array_equal, part(before), part(after))
        return {not leaf for leaf in jax.tree.leaves(same)}

    trains = mode in ("finetune", "pretrain")
    assert all(leaf.is_deleted() for leaf in given) == trains
    if not trains:
        assert changed(lambda variables: variables) == {False}
        return
    np.testing.assert_array_equal(after.step, [3] * jax.device_count())
    if mode == "finetune":
        assert changed(lambda state: state.params["backbone"]) == {False}
        assert changed(lambda state: state.params["classifier"]) == {True}
    else:
        assert changed(lambda state: state.params["conv1"]) == {True}


def test_a_step_is_timed_to_its_end():
    """Products are dispatched and then awaited: none is left over."""
    side = 768

    def product(carry, batch):
        for _ in range(20):
            carry = carry @ batch["x"]
        return carry, jnp.zeros(())

    matrix = steps.replicate(np.eye(side, dtype=np.float32))
    work = benchmark.Work(jax.pmap(product), matrix, [{"x": matrix}])
    work.run()
    work.run()
    assert all(leaf.is_ready() for leaf in jax.tree.leaves(work.carry))
    assert work.flops() == jax.device_count() * 20 * 2 * side**3


class TwoProducts(nn.Module):
    """Two matrix products, 3,072 x 64 and 64 x 2 at 32 pixels."""

    num_classes: int | None = None
    axis_name: str | None = None
    taps: bool = False

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(len(images), -1)
        for features in (64, self.num_classes):
            x = nn.Dense(features, use_bias=False)(x)
        return x


def test_flops_are_of_the_batch_on_all_devices(monkeypatch):
    monkeypatch.setitem(registry.BACKBONES, "two", registry.Backbone(TwoProducts))
    config = _config("pretrain", {"model.backbone": "two"})
    flops = {}
    for number in (8, 16):
        config.batch_size = number
        flops[number] = benchmark.make_work(config, "pretrain", _zeros(config)).flops()
    # Forward, both kernels' gradients, and that of what lies between.
    products = 2 * (2 * 3072 * 64 + 3 * 64 * 2)
    # Besides, scaling, loss and metrics.
    assert products < (flops[16] - flops[8]) / 8 < products + 3 * 3072


def test_fine_tuning_computes_only_what_it_needs():
    """The backbone forward, the new parts forward and backward."""
    backbone = "shallownetv3"
    config = finetune.get_config(f"{backbone},toy")
    found = benchmark.make_work(config, "finetune", _zeros(config)).flops()
    whole = counting.measure(registry.build(config.model.to_dict())).flops
    frozen = counting.measure(registry.get_backbone(backbone)).flops
    most = config.batch_size * (frozen + 3.2 * (whole - frozen))
    assert found <= most


def _check(found):
    """What every measurement keeps to."""
    assert list(found)[:6] == ["mode", "backbone", "batch", "size", "dtype", "repeat"]
    step, rates = found["step_seconds"], found["images_per_second_spread"]
    for spread, median in ((step, "median"), (rates, None)):
        middle = found["images_per_second"] if median is None else spread[median]
        names = ("min", "lower_quartile", "upper_quartile", "max")
        low, lower, upper, high = (spread[name] for name in names)
        assert 0 < low <= lower <= middle <= upper <= high
    assert found["images_per_second"] == pytest.approx(found["batch"] / step["median"])
    assert rates["min"] == pytest.approx(found["batch"] / step["max"])
    assert found["compile_seconds"] > 0
    # An interpreter with JAX takes more, a small network not much.
    assert 1e8 < found["peak_memory_bytes"] < 2e10
    gflops = found["flops"] / step["median"] / 1e9
    assert found["gflops_per_second"] == pytest.approx(gflops)
    share = gflops / found["matmul_gflops_per_second"]
    assert found["matmul_share"] == pytest.approx(share)
    assert found["matmul_gflops_per_second"] > 0.1
    assert found["device"] == found["platform"] == "cpu" and found["devices"] == 2
    assert found["versions"]["jax"] == jax.__version__


@pytest.mark.slow
def test_a_measurement_its_report_and_the_last_line(tmp_path):
    code = (
        "import small_runs; from experiments import benchmark, launch; "
        "launch.run(benchmark.main)"
    )
    options = ["--mode=pretrain", "--backbone=small", "--batch=4", "--size=32"]
    # An odd number: the median of the rates is that of the times.
    options += ["--repeat=3", "--json", f"--profile={tmp_path}"]
    ended = test_launch.start("-c", code, *options)
    assert ended.returncode == 0, ended.stderr
    *lines, last = ended.stdout.splitlines()
    found = json.loads(last)
    _check(found)
    asked = {"mode": "pretrain", "backbone": "small", "batch": 4, "size": 32}
    assert found.items() >= (asked | {"dtype": "float32", "repeat": 3}).items()
    assert list(tmp_path.rglob("*.xplane.pb"))
    text = "\n".join(lines)
    assert text == benchmark.report(found)
    assert text.startswith("small, pre-training step of the backbone with its top: ")
    assert "batch 4, 32x32, float32, 2 x cpu\n" in text
    assert f"images/s     {found['images_per_second']:.1f}  (quartiles" in text
    assert "3 steps\n" in text and f"jax {jax.__version__}" in text


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"batch_size": 5}, {}, "not a multiple of the 2 devices; nearest: 4 or 6"),
        ({}, {"profile": "/dev/null/trace"}, "cannot make the folder of the trace"),
    ],
)
def test_mistakes_show_before_anything_is_compiled(changes, options, message):
    config = _config("pretrain", changes)
    with pytest.raises(UserError, match=message):
        benchmark.measure(config, "pretrain", **options)
