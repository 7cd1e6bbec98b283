"""How fast a step runs, and how near it comes to what the machine can do.

Timed is the pmapped step of training and of scoring (`steps.pmap_steps`), with the
optimiser of the config, on new weights and random images that are on the devices
already. Augmentation is off; the state is donated and carried on, as in training. Of
scoring the parts of a batch are timed side by side, as a detector scores them.
"""

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from fdftnet_jax import parallel
from fdftnet_jax.data import preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import counting, registry
from fdftnet_jax.training import freezing, initialization, logistic, optimizer, steps

# Mode -> what one step of it is called.
MODES = {
    "infer": "scoring images with FDFtNet",
    "finetune": "fine-tuning step of FDFtNet, backbone frozen",
    "pretrain": "pre-training step of the backbone with its top",
    "features": "features of a probe, which the frozen backbone gives",
}
# The first steps compile; those of some time after them are slower than the rest.
_FIRST = 3
_WARM_UP_SECONDS = 1.0
_PROFILED = 3
_PACKAGES = ("jax", "jaxlib", "flax", "optax")


@dataclasses.dataclass
class Work:
    """A step and what it works on.

    Attributes:
      step: pmapped, `(carry, batch) -> (carry, metrics)`.
      carry: on the devices, the training state or the network's variables.
      batches: on the devices, as the step expects them; of training one, of scoring
        the parts that are scored side by side (see `parallel`).
    """

    step: Callable[[Any, steps.Batch], tuple[Any, Any]]
    carry: Any
    batches: Sequence[steps.Batch]

    def run(self) -> float:
        """Takes a step to its end, and returns its seconds."""
        began = time.perf_counter()
        carry = self.carry
        ended = parallel.at_once(
            lambda batch: jax.block_until_ready(self.step(carry, batch)), self.batches
        )
        self.carry = ended[-1][0]
        return time.perf_counter() - began

    def flops(self) -> int:
        """Floating-point operations of a step on all devices, see `counting`."""
        one_device = counting.flops(self.step, self.carry, self.batches[0])
        return one_device * jax.local_device_count() * len(self.batches)


def prepare(config: ml_collections.ConfigDict, mode: str) -> Work:
    """Makes the step of a config with new weights and random images.

    Args:
      config: all fields of `training/defaults.py`; FDFtNet needs no `init_from` here.
      mode: one of `MODES`; 'finetune' and 'pretrain' train.

    Raises:
      UserError: of what `config` asks for.
    """
    steps.check_batch_size(config.batch_size)
    described = config.model.to_dict()
    variables = initialization.initialise(
        registry.build(described, axis_name=steps.AXIS),
        described,
        size=config.data.size,
        seed=config.seed,
        start=initialization.Start(),
    )
    return make_work(config, mode, variables)


def make_work(
    config: ml_collections.ConfigDict, mode: str, variables: dict[str, Any]
) -> Work:
    """As `prepare`, with these `params` and `batch_stats`."""
    described = config.model.to_dict()
    params, batch_stats = variables["params"], variables["batch_stats"]
    mask = freezing.trainable_mask(params, config.trainable)
    # Where the schedule stands does not matter, only that there is one.
    schedule = optimizer.schedule(config.optimizer, steps=1000, steps_per_epoch=100)
    # (Training leaves the regression of FDFtNet out.)
    if mode != "infer":
        described["regression"] = False
    model = registry.build(described, axis_name=steps.AXIS)
    task = steps.Task(
        apply=registry.computing_in(config.dtype, model.apply),
        scale=preprocess.scale,
        augment=None,
        l2=registry.l2_weights(described),
        optimizer=optimizer.create(config.optimizer, schedule, mask),
        mask=mask,
        seed=config.seed,
    )
    p_train_step, p_eval_step = steps.pmap_steps(task)
    number, size = config.batch_size, config.data.size
    rng = np.random.default_rng(config.seed)
    batch = {
        "image": rng.integers(0, 256, (number, size, size, 3), np.uint8),
        "label": np.arange(number, dtype=np.int32) % 2,
    }
    carry: Any
    if mode in ("infer", "features"):
        carry = {"params": params, "batch_stats": batch_stats}
    if mode == "features":
        apply = registry.computing_in(config.dtype, model.clone(num_classes=None).apply)
        p_features = logistic.pmap_step(apply, "minus_one_one")

        def step(carry, batch):
            return carry, p_features(carry, batch["image"])

    elif mode == "infer":
        batch["index"] = np.arange(number)
        batch["mask"] = np.ones(number, np.float32)

        def step(carry, batch):
            return carry, p_eval_step(carry, batch)

    else:
        step = p_train_step
        carry = steps.TrainState(
            step=np.zeros((), np.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=task.optimizer.init(params),
        )
    carry = steps.replicate(carry)
    sharding = jax.tree.leaves(carry)[0].sharding
    one_device = jax.local_device_count() == 1
    scoring = mode in ("infer", "features")
    parts = parallel.parts(number) if scoring and one_device else 1
    rows = {name: np.split(values, parts) for name, values in batch.items()}
    batches = [{name: rows[name][i] for name in rows} for i in range(parts)]
    return Work(step, carry, jax.device_put([*map(steps.shard, batches)], sharding))


def images_per_second(work: Work, batch_size: int, repeat: int) -> float:
    """Images a second by the median of `repeat` steps, after a warm-up."""
    warm_up(work)
    return batch_size / statistics.median(work.run() for _ in range(repeat))


def warm_up(work: Work) -> None:
    """Takes steps for a time in which they are slower than later."""
    seconds = 0.0
    while seconds < _WARM_UP_SECONDS:
        seconds += work.run()


def matmul_rate(dtype: str = "float32", repeat: int = 7) -> float:
    """Operations a second (2 for each multiply-add) of a large matrix product.

    All local devices work at once; the median of `repeat` runs.
    """
    side = 2048 if jax.default_backend() == "cpu" else 8192
    rng = np.random.default_rng(0)
    factor = jnp.asarray(rng.uniform(-1, 1, (side, side)), dtype)
    factors = steps.replicate(factor)
    product = jax.pmap(jnp.matmul)
    seconds = []
    for _ in range(2 + repeat):
        began = time.perf_counter()
        product(factors, factors).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return jax.local_device_count() * 2 * side**3 / statistics.median(seconds[2:])


def peak_memory() -> int:
    """Most bytes in use so far: of the fullest device, on a CPU of the process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(found["peak_bytes_in_use"] for found in stats)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(
    config: ml_collections.ConfigDict,
    mode: str,
    *,
    repeat: int = 15,
    profile: str | None = None,
) -> dict[str, Any]:
    """Times the step of a config.

    Args:
      config: as in `prepare`.
      mode: as in `prepare`.
      repeat: timed steps, after the warm-up.
      profile: a folder for a trace of some more steps, see `jax.profiler.trace`.

    Returns:
      What `python -m experiments.benchmark --json` prints. `images_per_second` and
      `step_seconds` are of the median step; `compile_seconds` is what the first steps
      took longer than as many others, tracing included; `flops` are those of a step on
      all devices, `peak_memory_bytes` include compilation.

    Raises:
      UserError: as `prepare`, or the folder of the profile cannot be made.
    """
    if profile:
        try:
            Path(profile).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder of the trace: {error}") from error
    work = prepare(config, mode)
    first = sum(work.run() for _ in range(_FIRST))
    warm_up(work)
    seconds = [work.run() for _ in range(repeat)]
    memory = peak_memory()
    if profile:
        with jax.profiler.trace(profile):
            for _ in range(_PROFILED):
                work.run()
    flops = work.flops()
    median = statistics.median(seconds)
    rate, matmul = flops / median, matmul_rate(config.dtype)
    device = jax.local_devices()[0]
    return {
        "mode": mode,
        "backbone": config.model.backbone,
        "batch": config.batch_size,
        "size": config.data.size,
        "dtype": config.dtype,
        "repeat": repeat,
        "images_per_second": config.batch_size / median,
        "images_per_second_spread": _spread([config.batch_size / s for s in seconds]),
        "step_seconds": {"median": median, **_spread(seconds)},
        "compile_seconds": first - _FIRST * median,
        "peak_memory_bytes": memory,
        "flops": flops,
        "gflops_per_second": rate / 1e9,
        "matmul_gflops_per_second": matmul / 1e9,
        "matmul_share": rate / matmul,
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.local_device_count(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }


def report(found: dict[str, Any]) -> str:
    """Report of a measurement, for people."""
    images_per_second = found["images_per_second_spread"]
    step = {name: 1e3 * value for name, value in found["step_seconds"].items()}
    whose = "process" if found["platform"] == "cpu" else "device"
    versions = ", ".join(f"{name} {is_}" for name, is_ in found["versions"].items())
    return (
        f"{found['backbone']}, {MODES[found['mode']]}: batch {found['batch']}, "
        f"{found['size']}x{found['size']}, {found['dtype']}, "
        f"{found['devices']} x {found['device']}\n"
        f"  images/s     {found['images_per_second']:.1f}  "
        f"{_ranges(images_per_second, '.1f')}\n"
        f"  step         {step['median']:.1f} ms  {_ranges(step, '.1f')}, "
        f"{found['repeat']} steps\n"
        f"  compilation  {found['compile_seconds']:.1f} s\n"
        f"  peak memory  {found['peak_memory_bytes'] / 1e9:.2f} GB of the {whose}\n"
        f"  work         {found['flops'] / 1e9:.1f} GFLOP a step, "
        f"{found['gflops_per_second']:.0f} GFLOP/s\n"
        f"  matmul       {found['matmul_gflops_per_second']:.0f} GFLOP/s; the step "
        f"reaches {found['matmul_share']:.0%} of it\n"
        f"  {versions}"
    )


def _spread(values: list[float]) -> dict[str, float]:
    lower, upper = map(float, np.percentile(values, [25, 75]))
    return {
        "min": min(values),
        "lower_quartile": lower,
        "upper_quartile": upper,
        "max": max(values),
    }


def _ranges(spread: dict[str, float], form: str) -> str:
    low, lower, upper, high = (
        format(spread[name], form)
        for name in ("min", "lower_quartile", "upper_quartile", "max")
    )
    return f"(quartiles {lower}-{upper}, range {low}-{high})"
