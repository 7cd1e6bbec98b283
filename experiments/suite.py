"""The steps of `docs/performance.md`, each in alternation with other programs."""

import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import ml_collections

from configs import feature_probe, finetune, pretrain
from experiments import peers
from fdftnet_jax.errors import UserError

_PACKAGES = ("jax", "jaxlib", "flax")
# Name, by mode and backbone -> what the table calls it.
STEPS = {
    "infer-xception": "score images, FDFtNet on Xception",
    "infer-resnet50v2": "score images, FDFtNet on ResNet50V2",
    "infer-squeezenet": "score images, FDFtNet on SqueezeNet",
    "infer-shallownetv3": "score images, FDFtNet on ShallowNetV3",
    "infer-efficientnet_lite0": "score images by the default network",
    "finetune-efficientnet_lite0": "fine-tune by the default recipe",
    "finetune-xception": "fine-tune FDFtNet, Xception frozen",
    "pretrain-xception": "pre-train Xception",
    "features-efficientnet_lite0": "features of a probe on EfficientNet-Lite0",
}


def config_of(step: str) -> ml_collections.ConfigDict:
    """The config of one of `STEPS`: batch 32, at the size that the step is for.

    The default network is timed without the regression beside it, which other programs
    do not have.
    """
    mode, backbone = step.split("-")
    # A recipe for photographs differs from that for the toy.
    data = "folder" if backbone == "efficientnet_lite0" else "toy"
    files = {"pretrain": pretrain, "features": feature_probe}
    config = files.get(mode, finetune).get_config(f"{backbone},{data}")
    config.model.regression = False
    if mode == "features":
        config.data.size = 224
    elif mode != "infer":
        config.data.size = config.data.train_size or config.data.size
    return config


def rows(
    steps: Sequence[str],
    commands: Mapping[str, str],
    *,
    runs: int,
    repeat: int,
    config_of: Callable[[str], Any] = config_of,
) -> Iterator[str]:
    """Measures steps, and yields a Markdown table line by line.

    Args:
      steps: of `STEPS`.
      commands: 'STEP: PEER' -> command, see `peers.images_per_second`.
      runs: of each step, in alternation with its peers.
      repeat: timed steps in a run.
      config_of: the config of a step.

    Raises:
      UserError: there is no such step; before anything is measured.
    """
    of_step: dict[str, dict[str, str]] = {step: {} for step in STEPS}
    for name, command in commands.items():
        step, _, peer = name.partition(": ")
        if step not in STEPS or not peer:
            raise UserError(
                f"expected the name of a peer to be 'STEP: PEER', found {name!r}; "
                f"steps: {', '.join(STEPS)}"
            )
        of_step[step][peer] = command
    if unknown := set(steps) - set(STEPS):
        raise UserError(f"no step {min(unknown)!r}; steps: {', '.join(STEPS)}")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    python = platform.python_version()
    yield f"Python {python}, {versions}; {runs} runs of {repeat} steps"
    yield ""
    yield "| step | ours, images/s | others | ours / the best | product, GFLOP/s |"
    yield "|---|---|---|---|---|"
    for step in steps:
        yield _row(step, config_of(step), of_step[step], runs, repeat)


def _row(
    step: str, config: Any, commands: Mapping[str, str], runs: int, repeat: int
) -> str:
    """Measures a step and its peers, and returns their line of the table."""
    from fdftnet_jax.training import benchmark

    work = benchmark.prepare(config, step.split("-")[0])
    ours: list[float] = []
    products: list[float] = []
    rates: dict[str, list[float]] = {peer: [] for peer in commands}
    failed: dict[str, str] = {}
    for _ in range(runs):
        products.append(benchmark.matmul_rate() / 1e9)
        ours.append(benchmark.images_per_second(work, config.batch_size, repeat))
        for peer, command in commands.items():
            if peer in failed:
                continue
            try:
                rates[peer].append(peers.images_per_second(command))
            except peers.PeerError as error:
                failed[peer] = f"{peer} failed: {error}"
    medians = {
        peer: statistics.median(found)
        for peer, found in rates.items()
        if peer not in failed
    }
    others = [failed.get(peer) or f"{peer} {_range(rates[peer])}" for peer in commands]
    ratio = ""
    if medians:
        best = rates[max(medians, key=lambda peer: medians[peer])]
        ratio = _range([a / b for a, b in zip(ours, best, strict=True)], ".2f")
    size = config.data.size
    cells = (
        f"{STEPS[step]}, batch {config.batch_size}, {size}x{size}",
        _range(ours),
        "; ".join(others),
        ratio,
        _range(products),
    )
    return f"| {' | '.join(cells)} |"


def _range(values: Sequence[float], form: str = ",.0f") -> str:
    """Median (lowest-highest)."""
    median, low, high = (
        format(value, form)
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} ({low}-{high})"
