"""Times a step of training or scoring on this machine.

    python -m experiments.benchmark --mode=finetune --backbone=xception --batch=32

Random weights and images, no augmentation; the step is the one that training runs.
`--mode`: infer (score images with FDFtNet), finetune (FDFtNet, backbone frozen),
pretrain (the backbone with its own top), or features (of a probe of the frozen
backbone). Everything is compiled anew.

    python -m experiments.benchmark --suite --peers=peers.json

measures the steps of `docs/performance.md` instead, each in alternation with other
programs, and prints a table row by row. `peers.json` has names and commands,
`{"infer-xception: PEER": "COMMAND"}`, see `experiments.device_check`; `--steps` takes
some of the steps, after an interruption those that are missing.
"""

import json

from absl import flags

from configs import feature_probe, finetune, pretrain
from experiments import launch, peers, suite

_MODE = flags.DEFINE_enum(
    "mode",
    "finetune",
    ["infer", "finetune", "pretrain", "features"],
    "What a step does.",
)
_BACKBONE = flags.DEFINE_string(
    "backbone", "xception", "A name, or MODULE:ATTRIBUTE of your own."
)
_BATCH = flags.DEFINE_integer("batch", 32, "Images in a step, over all devices.")
_SIZE = flags.DEFINE_integer("size", 64, "Side of the images in pixels.", lower_bound=1)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "What the network computes in."
)
_OPTIMIZER = flags.DEFINE_enum(
    "optimizer", "sgd", ["sgd", "adamw"], "What updates the weights in training."
)
_REPEAT = flags.DEFINE_integer("repeat", 15, "Timed steps.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object as the last line.")
_PROFILE = flags.DEFINE_string(
    "profile", None, "Folder for a trace of some steps, for TensorBoard or XProf."
)
_SUITE = flags.DEFINE_bool("suite", False, "Measure the steps of the documentation.")
_PEERS = flags.DEFINE_string("peers", None, "With --suite: JSON of names and commands.")
_STEPS = flags.DEFINE_list("steps", list(suite.STEPS), "With --suite: which steps.")
_RUNS = flags.DEFINE_integer(
    "runs", 5, "With --suite: runs of each step.", lower_bound=1
)


def main() -> None:
    """Measures and prints."""
    if _SUITE.value:
        commands = peers.read(_PEERS.value) if _PEERS.value else {}
        table = suite.rows(
            _STEPS.value, commands, runs=_RUNS.value, repeat=_REPEAT.value
        )
        for line in table:
            print(line, flush=True)
        return
    import jax

    from fdftnet_jax.training import benchmark

    # Compilation is timed, too.
    jax.config.update("jax_enable_compilation_cache", False)
    files = {"pretrain": pretrain, "features": feature_probe}
    config = files.get(_MODE.value, finetune).get_config()
    config.model.backbone = _BACKBONE.value
    config.dtype = _DTYPE.value
    config.batch_size = _BATCH.value
    config.data.size = _SIZE.value
    config.optimizer.name = _OPTIMIZER.value
    found = benchmark.measure(
        config,
        _MODE.value,
        repeat=_REPEAT.value,
        profile=_PROFILE.value,
    )
    print(benchmark.report(found))
    if _JSON.value:
        print(json.dumps(found))


if __name__ == "__main__":
    launch.run(main)
