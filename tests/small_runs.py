"""A backbone, tasks and runs that compile and train in seconds."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

from configs import finetune, pretrain
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import augment, preprocess
from fdftnet_jax.models import layers, registry
from fdftnet_jax.run import Run
from fdftnet_jax.training import freezing, loop, optimizer, steps

BACKBONE = "small"
SIZE = 32
# Changes to a config, with which a step compiles in half the time.
NO_AUGMENTATION = {
    "augment.zoom": 0.0,
    "augment.rotation": 0.0,
    "augment.translation": 0,
    "augment.flip": False,
    "augment.cutout_alpha": 0,
}
# Of the section `optimizer` of a config, without a learning rate.
OPTIMIZER = {
    "name": "sgd",
    "momentum": 0.9,
    "clip_norm": 0.0,
    "backbone_rate": 1.0,
    "l2_sp": 0.0,
}


class SmallNet(nn.Module):
    """Has all that a step must treat with care: batch statistics and dropout."""

    num_classes: int | None = None
    axis_name: str | None = None
    features: int = 8
    taps: bool = False

    @nn.compact
    def __call__(self, images, *, train):
        x = layers.Conv(self.features, (3, 3), 4, name="conv1")(images)
        x = layers.BatchNorm(
            use_running_average=not train, axis_name=self.axis_name, name="bn1"
        )(x)
        shallow = nn.relu(x)
        x = layers.Dropout(0.25, self.axis_name, name="dropout1")(shallow, train=train)
        x = nn.relu(layers.Conv(16, (3, 3), 2, name="conv2")(x))
        if self.num_classes is None:
            return (shallow, x) if self.taps else x
        return layers.Dense(self.num_classes, name="top")(jnp.mean(x, (1, 2)))


registry.BACKBONES[BACKBONE] = registry.Backbone(SmallNet, l2=1e-4)


def model_config(kind="fdftnet", backbone=BACKBONE):
    return {
        "kind": kind,
        "backbone": backbone,
        "num_blocks": 1,
        "num_stages": 1,
        "first_stride": 1,
    }


def task(model, phase="head", *, size=SIZE, traced_only=False, rate=0.05):
    """A task of the network that `model` describes, and its initial state.

    All parameters are 0 where the state is `traced_only`.
    """
    module = registry.build(model, axis_name=steps.AXIS)
    init = functools.partial(module.init, train=False)
    example = jax.random.key(1), jnp.zeros((1, size, size, 3))
    if traced_only:
        shapes = jax.eval_shape(init, *example)
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    else:
        variables = jax.device_get(jax.jit(init)(*example))
    apply = module.apply
    if model["kind"] in registry.ON_BACKBONE and phase == "all":
        apply = functools.partial(module.apply, train_backbone=True)

    def augmented(rng, indices, batch):
        return augment.augment_batch(augment.example_keys(rng, indices), batch)

    mask = freezing.trainable_mask(variables["params"], phase)
    made = steps.Task(
        apply=apply,
        scale=preprocess.scale,
        augment=augmented,
        l2=registry.l2_weights(model),
        optimizer=optimizer.create(OPTIMIZER, lambda step: rate, mask),
        mask=mask,
        seed=0,
    )
    state = steps.TrainState(
        step=np.zeros((), np.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=made.optimizer.init(variables["params"]),
    )
    return made, state


def batch(number=8, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (number, size, size, 3), np.uint8),
        "label": rng.integers(0, 2, number, np.int32),
    }


def small(cache_dir):
    """The fields of a small run's config."""
    return {
        "batch_size": 8,
        "epochs": 3,
        "data.cache_dir": str(cache_dir),
        "data.size": SIZE,
        "data.threads": 1,
        "data.toy_examples.train": 16,
        "data.toy_examples.validation": 9,
        "data.toy_examples.test": 9,
        "data.toy_examples.finetune": 16,
        "model.num_blocks": 1,
        "model.num_stages": 1,
        "augment.flip": True,
        "augment.cutout_alpha": 2,
        "optimizer.warmup_epochs": 1.0,
    }


def config(cache_dir, init_from="", /, **changes):
    """The config of a small run: fine-tuning where there is `init_from`."""
    module = finetune if init_from else pretrain
    made = module.get_config(f"{BACKBONE},toy")
    made.update_from_flattened_dict(small(cache_dir))
    if init_from:
        made.init_from = str(init_from)
        made.data.shots = 12
        # One compiled step, and one data set.
        made.release_epoch = 0
        made.data.replay = 0
    made.update_from_flattened_dict(changes)
    return made.lock()


def pretend(monkeypatch, *losses):
    """Makes these the validation losses of the next run's epochs."""
    found = ({"loss": loss, "accuracy": 0.5} for loss in losses)
    monkeypatch.setattr(steps, "evaluate", lambda *_: (next(found), None))


def run(config, workdir):
    loop.train_and_evaluate(config, str(workdir))
    return workdir


def arrays(workdir):
    """All arrays of the latest checkpoint, the optimiser's too, by item and path."""
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        items = ocp.args.Composite(
            variables=ocp.args.StandardRestore(), optimizer=ocp.args.StandardRestore()
        )
        return dict(manager.restore(manager.latest_step(), args=items).items())


def history(workdir):
    """The rows without what depends on the machine."""
    rows = Run(workdir).history()
    measured = ("images_per_second", "input_wait_share")
    return [{k: v for k, v in r.items() if k not in measured} for r in rows]


def assert_same(workdir, other):
    """Two finished runs are the same, bit by bit."""
    assert history(workdir) == history(other)
    chex.assert_trees_all_equal(arrays(workdir), arrays(other))


def marked_config(cache_dir):
    """The config of the run of `marked_run.py`."""
    return config(cache_dir, epochs=6, patience=6)


def start_marked(cache_dir, workdir, devices=2):
    """Starts `marked_run.py` in a process of its own."""
    flags = [
        f"--xla_force_host_platform_device_count={devices}"
        if "device_count" in flag
        else flag
        for flag in os.environ["XLA_FLAGS"].split()
    ]
    here = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, here / "marked_run.py", cache_dir, workdir],
        env={
            **os.environ,
            "XLA_FLAGS": " ".join(flags),
            "PYTHONPATH": f"{here.parent}{os.pathsep}{here}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, phase, times=1):
    """Reads what a marked run says until it begins a phase; False if it ends first."""
    for line in process.stdout:
        times -= line.startswith(phase)
        if times == 0:
            return True
    return False


class StopError(Exception):
    """Stands for a machine that goes down."""


def stop(monkeypatch, epoch, before_saving):
    """Makes a run stop in an epoch, just before or just after its checkpoint."""
    save = Checkpoints.save

    def interrupted(self, state, meta, validation_loss, **options):
        if meta["progress"]["epoch"] < epoch:
            return save(self, state, meta, validation_loss, **options)
        if not before_saving:
            save(self, state, meta, validation_loss, **options)
        raise StopError

    monkeypatch.setattr(Checkpoints, "save", interrupted)


def stop_before_training(monkeypatch):
    def stopped(*_):
        raise StopError

    monkeypatch.setattr(steps, "shard", stopped)


def write_folder(
    folder, splits=("train", "validation", "test", "finetune"), number=4, seed=0
):
    rng = np.random.default_rng(seed)
    for split in splits:
        for label in ("real", "fake"):
            target = folder / split / label
            target.mkdir(parents=True)
            for index in range(number):
                picture = rng.integers(0, 256, (40, 48, 3), np.uint8)
                Image.fromarray(picture).save(target / f"{index}.png")
    return folder


def folder_config(cache_dir, folder, init_from="", **changes):
    changes = {"data.name": "folder", "data.dir": str(folder), **changes}
    return config(cache_dir, init_from, **changes)
