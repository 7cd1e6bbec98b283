"""Checks this machine's accelerator and measures it, in about eight minutes.

    python -m experiments.device_check
    python -m experiments.device_check --peers=peers.json

Prints a table, row by row and once more at the end:

- agreement: logits of FDFtNet on every backbone against those of this machine's CPU;
- learning: a run of each phase that has to learn the toy, stopped and resumed;
- feeding: what `steps_per_call` and views on the device gain;
- ops: the forms of a layer that `fdftnet_jax.ops` chooses from, each way;
- throughput: steps at several batches and precisions;
- memory: of a fine-tuning step on 256x256 pixels.

`--peers` names a JSON file of names and commands. Each command is run after the
throughput and ends with a line that is, or a JSON object whose `images_per_second` is,
a number. A part that fails says why, and the others go on. `--small` rehearses
everything, in networks and batches that a CPU computes in a few minutes.
"""

import contextlib
import functools
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from configs import finetune, pretrain
from experiments import launch, peers
from fdftnet_jax.errors import Interrupted, UserError

_MINUTES = flags.DEFINE_float(
    "minutes", 8.0, "No row is begun after these minutes.", lower_bound=0
)
_SMALL = flags.DEFINE_bool("small", False, "Rehearse on small networks and batches.")
_PEERS = flags.DEFINE_string("peers", None, "JSON file of names and commands.")
_PARTS = flags.DEFINE_list(
    "parts", ["agreement", "learning", "feeding", "ops", "throughput", "memory"],
    "Which parts to run, in which order.",
)  # fmt: skip
_SEED = 0
# Steps or calls that are timed, after as many that are not.
_REPEAT = 10

Row = tuple[str, str, str]


def main() -> None:
    """Runs the parts and prints their table."""
    import jax

    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "agreement": _agreement,
        "learning": _learning,
        "feeding": _feeding,
        "ops": _ops,
        "throughput": _throughput,
        "memory": _memory,
    }
    if unknown := set(_PARTS.value) - set(parts):
        known = ", ".join(parts)
        raise UserError(f"no part {min(unknown)!r}: --parts takes some of {known}")
    print(f"{_machine()}\n", flush=True)
    end = time.monotonic() + 60 * _MINUTES.value
    rows: list[Row] = []
    # What one step compiled, another finds again; nothing from before does.
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        for part in _PARTS.value:
            for row in _until(end, part, parts[part]()):
                rows.append(row)
                print(" | ".join(row), flush=True)
    print("\n| part | what | value |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def _until(end: float, part: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows of a part as long as there is time; its failure is one, too."""
    while time.monotonic() < end:
        try:
            yield next(rows)
        except StopIteration:
            return
        # Whatever a device or a peer makes of this: the other parts go on.
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            yield part, "failed", f"{type(error).__name__}: {text[0]}"
            return
    yield part, "what is left of it", "not done: the minutes are over"


def _machine() -> str:
    import jax

    from fdftnet_jax.training import benchmark

    device = jax.local_devices()[0]
    rates = ", ".join(
        f"{benchmark.matmul_rate(dtype) / 1e12:.1f} TFLOP/s in {dtype}"
        for dtype in ("float32", "bfloat16")
    )
    return (
        f"{jax.local_device_count()} x {device.device_kind}, jax {jax.__version__}, "
        f"{os.cpu_count()} CPU cores; matrix product {rates}"
    )


def _config(backbone: str, **changes: Any) -> Any:
    config = finetune.get_config(f"{backbone},toy")
    # A picture of 64x64 has four patches of vit, or nearly five.
    config.data.size = 56 if backbone == "vit" else 64
    config.update_from_flattened_dict(changes)
    return config


def _backbones() -> tuple[str, ...]:
    from fdftnet_jax.models import registry

    return ("squeezenet", "resnet50v2") if _SMALL.value else registry.OWN


def _agreement() -> Iterator[Row]:
    """How far logits are from those of the CPU, as a share of the largest."""
    import jax

    from fdftnet_jax.detector import detector
    from fdftnet_jax.models import registry
    from fdftnet_jax.training import initialization

    cpu, here = jax.devices("cpu")[0], jax.devices()[0]
    forms = {
        "CPU": (cpu, "float32", "float32"),
        "float32": (here, "float32", "float32"),
        "default precision": (here, "float32", None),
        "bfloat16": (here, "bfloat16", None),
    }

    def logits(described, variables, images, form):
        device, dtype, precision = forms[form]
        module = registry.build(described)
        apply = registry.computing_in(
            dtype, functools.partial(module.apply, train=False)
        )
        variables, images = jax.device_put((variables, images), device)
        with jax.default_matmul_precision(precision):
            return np.asarray(jax.jit(apply)(variables, images), np.float64)

    def initial(config):
        described = config.model.to_dict()
        with jax.default_device(cpu):
            variables = initialization.initialise(
                registry.build(described),
                described,
                size=config.data.size,
                seed=_SEED,
                start=initialization.Start(),
            )
        # At its start gamma is 0, and the attention would not count.
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf + 0.5 * (path[-1].key == "gamma"),
            variables["params"],
        )
        return {**variables, "params": params}

    def apart(backbone):
        config = _config(backbone)
        size = config.data.size
        images = np.random.default_rng(_SEED).uniform(-1, 1, (16, size, size, 3))
        arguments = config.model.to_dict(), initial(config), images.astype(np.float32)
        with futures.ThreadPoolExecutor() as pool:
            each = pool.map(functools.partial(logits, *arguments), forms)
            found = dict(zip(forms, each, strict=True))
        reference = found.pop("CPU")
        scale = np.abs(reference).max()
        return {
            form: np.abs(values - reference).max() / scale
            for form, values in found.items()
        }

    # Most of the time goes into compiling, which has a core for each network.
    with futures.ThreadPoolExecutor() as pool:
        for backbone, found in zip(
            _backbones(), pool.map(apart, _backbones()), strict=True
        ):
            for form, share in found.items():
                row = f"{backbone}, {form}", f"{share:.1e} of the largest logit"
                yield "agreement", *row
    toy = detector.load("toy")
    # Its first logits are compared with those that the file states.
    side = toy.preprocessing.size
    toy.logits(np.zeros((1, side, side, 3), np.uint8))
    yield "agreement", "the toy detector's own check", "passed"


def _learning() -> Iterator[Row]:
    """Both phases on the toy; the second again, stopped by a signal and resumed."""
    from fdftnet_jax.run import Run
    from fdftnet_jax.training import loop

    with tempfile.TemporaryDirectory() as folder:
        first = pretrain.get_config("squeezenet,toy")
        second = _config("squeezenet")
        for config in (first, second):
            config.data.cache_dir = f"{folder}/cache"
            number = 64 if _SMALL.value else 1000
            config.data.toy_examples = dict.fromkeys(config.data.toy_examples, number)
            config.data.toy_examples.validation = 250
            config.epochs = 3 if _SMALL.value else 8
        first.data.family, second.data.family = "upsampled", "blended"
        second.data.replay = 0
        second.init_from = f"{folder}/first"
        loop.train_and_evaluate(first.lock(), second.init_from)
        yield (
            "learning",
            "pre-training, validation accuracy",
            _accuracy(second.init_from),
        )
        second.lock()
        for name in ("whole", "again"):
            loop.train_and_evaluate(second, f"{folder}/{name}")
        yield (
            "learning",
            "fine-tuning, validation accuracy",
            _accuracy(f"{folder}/whole"),
        )
        stopped = f"{folder}/stopped"
        with _stopped_after_an_epoch(stopped), contextlib.suppress(Interrupted):
            loop.train_and_evaluate(second, stopped)
        epochs = len(Run(stopped).history())
        loop.train_and_evaluate(second, stopped)
        losses = {
            name: np.array(
                [row["validation_loss"] for row in Run(f"{folder}/{name}").history()]
            )
            for name in ("whole", "again", "stopped")
        }
        for name, what in (
            ("again", "the same run again"),
            ("stopped", f"stopped after {epochs} epochs and resumed"),
        ):
            apart = np.abs(losses[name] - losses["whole"]).max()
            yield (
                "learning",
                f"{what}, largest difference of a validation loss",
                (f"{apart:.1e} nats"),
            )


def _accuracy(workdir: str) -> str:
    from fdftnet_jax.run import Run

    return f"{max(row['validation_accuracy'] for row in Run(workdir).history()):.3f}"


@contextlib.contextmanager
def _stopped_after_an_epoch(workdir: str) -> Iterator[None]:
    """Sends this process SIGTERM once the run in `workdir` has a row of history."""
    from fdftnet_jax.run import Run

    over = threading.Event()

    def watch():
        while not over.wait(0.1):
            if Path(workdir).exists() and Run(workdir).history():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _feeding() -> Iterator[Row]:
    """Images a second of whole epochs, by how batches reach the device."""
    from fdftnet_jax.run import Run
    from fdftnet_jax.training import loop

    with tempfile.TemporaryDirectory() as folder:
        config = pretrain.get_config("squeezenet,toy")
        config.data.cache_dir = f"{folder}/cache"
        config.data.toy_examples = dict.fromkeys(config.data.toy_examples, 32)
        # Twenty or sixty steps: a whole number of calls.
        config.data.toy_examples.train = 320 if _SMALL.value else 960
        config.epochs = 2 if _SMALL.value else 5
        for megabytes, views in ((0, "sent"), (256, "on the device")):
            for number in (1, 10):
                config.data.device_megabytes = megabytes
                config.steps_per_call = number
                workdir = f"{folder}/{megabytes}-{number}"
                loop.train_and_evaluate(config, workdir)
                rates = [row["images_per_second"] for row in Run(workdir).history()]
                yield (
                    "feeding",
                    (
                        f"squeezenet, batch 32, pre-training: views {views}, "
                        f"steps_per_call {number}"
                    ),
                    f"{max(rates[1:]):,.0f} images/s",
                )


def _ops() -> Iterator[Row]:
    """Milliseconds of a layer and its gradient, ours and XLA's own form of it."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from fdftnet_jax.ops import attention, convolution, pooling

    batch = 4 if _SMALL.value else 128
    rng = np.random.default_rng(_SEED)

    def array(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def by_lax(images, kernel, groups=1):
        return lax.conv_general_dilated(
            images,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def ours(images, kernel, groups=1):
        return convolution.conv_general_dilated(
            images, kernel, (1, 1), "SAME", feature_group_count=groups
        )

    def lax_pool(images):
        return lax.reduce_window(
            images, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"
        )

    def whole_map(f, g, h):
        return attention.attention_map(f, g) @ h

    def depthwise(function):
        return lambda x, k: function(x, k, x.shape[-1])

    def our_pool(images):
        return pooling.max_pool(images, 3, 2, "SAME")

    wide, deep = array(batch, 32, 32, 128), array(batch, 4, 4, 728)
    keys = array(batch, 1024, 8), array(batch, 1024, 8), array(batch, 1024, 64)
    layers = {
        "depthwise 3x3, 32x32x128": (
            (wide, array(3, 3, 1, 128)), depthwise(ours), depthwise(by_lax)
        ),
        "depthwise 3x3, 4x4x728": (
            (deep, array(3, 3, 1, 728)), depthwise(ours), depthwise(by_lax)
        ),
        "1x1, 4x4x728": ((deep, array(1, 1, 728, 728)), ours, by_lax),
        "3x3 of few pixels, 2x2x512": (
            (array(batch, 2, 2, 512), array(3, 3, 512, 512)), ours, by_lax
        ),
        "max-pool 3x3, stride 2, 32x32x128": ((wide,), our_pool, lax_pool),
        "self-attention, 1,024 positions": (keys, attention.attend, whole_map),
    }  # fmt: skip

    def with_gradient(function, number):
        def total(*arrays):
            return jnp.sum(jnp.square(function(*arrays)))

        return jax.jit(jax.value_and_grad(total, range(number)))

    for name, (arrays, *functions) in layers.items():
        found = []
        for function in (with_gradient(f, len(arrays)) for f in functions):
            jax.block_until_ready(function(*arrays))
            found.append(_seconds(functools.partial(function, *arrays)))
        mine, xla = found
        yield (
            "ops",
            f"{name}, batch {batch}, float32",
            (f"ours {1e3 * mine:.2f} ms, XLA's {1e3 * xla:.2f} ms"),
        )


def _seconds(call: Callable[[], Any]) -> float:
    """Of one call, from several that the device may overlap; the median of three."""
    import jax

    found = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready([call() for _ in range(_REPEAT)])
        found.append((time.perf_counter() - began) / _REPEAT)
    return statistics.median(found)


def _throughput() -> Iterator[Row]:
    """Images a second of the steps on Xception, and the peers'."""
    import jax

    from fdftnet_jax.training import benchmark

    backbone = "squeezenet" if _SMALL.value else "xception"
    small, middle, large = (2, 4, 8) if _SMALL.value else (32, 128, 512)
    cases: list[tuple[str, int, str, str | None]] = [
        ("finetune", middle, "bfloat16", None),
        ("infer", middle, "bfloat16", None),
        ("finetune", middle, "float32", None),
        ("finetune", middle, "float32", "float32"),
        ("finetune", small, "bfloat16", None),
        ("finetune", large, "bfloat16", None),
        ("infer", large, "bfloat16", None),
    ]
    for mode, batch, dtype, precision in cases:
        config = _config(backbone, batch_size=batch, dtype=dtype)
        with jax.default_matmul_precision(precision):
            found = benchmark.measure(config, mode, repeat=_REPEAT)
        exact = ", products in float32" * (precision is not None)
        yield (
            "throughput",
            f"{backbone}, {mode}, batch {batch}, {dtype}{exact}",
            f"{found['images_per_second']:,.0f} images/s, compiled in "
            f"{found['compile_seconds']:.0f} s",
        )
    if _PEERS.value:
        for name, command in peers.read(_PEERS.value).items():
            yield "throughput", name, _peer(command)


def _peer(command: str) -> str:
    """The rate of a peer, or why there is none."""
    try:
        return f"{peers.images_per_second(command):,.0f} images/s"
    except peers.PeerError as error:
        return f"failed: {error}"


def _memory() -> Iterator[Row]:
    """Bytes that XLA plans for a fine-tuning step, weights included."""
    import jax

    from fdftnet_jax.training import benchmark

    backbone = "squeezenet" if _SMALL.value else "xception"
    size = 64 if _SMALL.value else 256
    cases = [(batch, ftt) for batch in (8, 32) for ftt in (64, 0)]

    def planned(case):
        batch, ftt = case
        changes = {"data.size": size, "batch_size": batch, "model.ftt_size": ftt}
        work = benchmark.prepare(_config(backbone, **changes), "finetune")
        step = jax.jit(work.step, donate_argnums=0)
        found: Any = step.lower(work.carry, work.batches[0]).compile().memory_analysis()
        # The new state takes the place of the old one.
        return found.temp_size_in_bytes + found.argument_size_in_bytes

    with futures.ThreadPoolExecutor() as pool:
        for (batch, ftt), found in zip(cases, pool.map(planned, cases), strict=True):
            attended = ftt or size
            yield (
                "memory",
                f"{backbone}, finetune, {size}x{size}, batch {batch}, "
                f"attention on {attended}x{attended}",
                f"{found / 1e9:.2f} GB",
            )


if __name__ == "__main__":
    launch.run(main)
