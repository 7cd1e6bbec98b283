"""Reads PyTorch state dicts from safetensors files, and knows how PyTorch names layers.

| backbone | names of |
|---|---|
| squeezenet | torchvision's squeezenet1_1 |
| xception | timm's legacy_xception |
| efficientnet_lite0 | the port of the release that names its layers `_blocks.0...` |
| vit | timm, or Hugging Face (see `vit_files`) |
"""

import os
from collections.abc import Collection

import numpy as np
import safetensors

from fdftnet_jax.errors import UserError
from fdftnet_jax.models import efficientnet, vit

# First parts of the names in the classification tops.
TOPS = ("classifier", "fc", "_fc", "last_linear", "head")


def _squeezenet() -> dict[str, str]:
    layers = {"conv1": "features.0"}
    # The pools and the ReLU have places in `features`, too.
    for fire, place in enumerate((3, 4, 6, 7, 9, 10, 11, 12), 2):
        layers[f"fire{fire}/squeeze1x1"] = f"features.{place}.squeeze"
        for expand in ("expand1x1", "expand3x3"):
            layers[f"fire{fire}/{expand}"] = f"features.{place}.{expand}"
    return layers


def _xception() -> dict[str, str]:
    layers = {}

    def with_norm(ours: str, conv: str, norm: str) -> None:
        layers.update({ours: conv, f"{ours}_bn": norm})

    with_norm("block1_conv1", "conv1", "bn1")
    with_norm("block1_conv2", "conv2", "bn2")
    for block in range(1, 13):
        ours, theirs = f"block{block + 1}", f"block{block}"
        halves = block in (1, 2, 3, 12)
        if halves:
            with_norm(f"{ours}_shortcut", f"{theirs}.skip", f"{theirs}.skipbn")
        for index in range(2 if halves else 3):
            # ReLU, separable convolution, normalisation; block1 has no first ReLU.
            place = 3 * index + (block != 1)
            with_norm(
                f"{ours}_sepconv{index + 1}",
                f"{theirs}.rep.{place}",
                f"{theirs}.rep.{place + 1}",
            )
    with_norm("block14_sepconv1", "conv3", "bn3")
    with_norm("block14_sepconv2", "conv4", "bn4")
    return layers


def _efficientnet_lite0() -> dict[str, str]:
    pairs = [("stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")]
    for block in range(efficientnet.BLOCKS):
        parts = ("expand", "0"), ("depthwise", "1"), ("project", "2")
        pairs += [
            (
                f"block{block}_{part}",
                f"_blocks.{block}._{part}_conv",
                f"_blocks.{block}._bn{number}",
            )
            for part, number in parts
            # The first block does not expand.
            if block or part != "expand"
        ]
    layers = {ours: conv for ours, conv, _ in pairs}
    return layers | {f"{ours}_bn": norm for ours, _, norm in pairs}


def _vit() -> dict[str, str]:
    layers = {"": "", "patch": "patch_embed.proj", "norm_pre": "norm_pre"}
    layers["norm"] = "norm"
    inner = {"": "", "norm1": "norm1", "norm2": "norm2"}
    inner |= {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1"}
    inner |= {"fc2": "mlp.fc2"}
    for block in range(vit.BLOCKS):
        for ours, theirs in inner.items():
            name = f"block{block}/{ours}".removesuffix("/")
            layers[name] = f"blocks.{block}.{theirs}".removesuffix(".")
    return layers


# For each backbone our names of the layers, with PyTorch's.
LAYERS = {
    "squeezenet": _squeezenet(),
    "xception": _xception(),
    "efficientnet_lite0": _efficientnet_lite0(),
    "vit": _vit(),
}


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads all tensors, without the counters of batches.

    Args:
      path: a safetensors file.

    Returns:
      The tensors by name; bfloat16 ones as `ml_dtypes` has them.

    Raises:
      UserError: it is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118, it is no dict
                if not name.endswith("num_batches_tracked")
            }
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"cannot read {path} as safetensors, it seems to be damaged ({reason}): "
            "get the file again"
        ) from error


def prefix(names: Collection[str], known: Collection[str]) -> str:
    """What stands before all names, such as 'model.' or 'module.'.

    Args:
      names: of a file.
      known: of a network.

    Returns:
      The common beginning, up to a dot, without which the most names are known.
    """
    first = min(names, default="")
    ends = [index + 1 for index, character in enumerate(first) if character == "."]
    shared = [end for end in ends if all(n.startswith(first[:end]) for n in names)]

    def score(end: int) -> int:
        return len({name[end:] for name in names} & set(known))

    return first[: max([0, *shared], key=score)]
