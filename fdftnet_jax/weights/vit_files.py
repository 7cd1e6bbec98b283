"""Vision transformers in the names of timm and of Hugging Face, brought to one form.

That form has timm's names, with the position of the class token added to it
(`cls_token`, [1, width]), the others as a grid (`pos_embed`, [rows, columns, width])
and the registers as [number, width].
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fdftnet_jax.models import vit

# Hugging Face's names, CLIP's first and then DINOv2's, and timm's in their place.
_RENAMED = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (r"pre_layr?norm\.", "norm_pre."),
    (r"post_layernorm\.", "norm."),
    (r"encoder\.layers\.", "blocks."),
    (r"self_attn\.out_proj\.", "attn.proj."),
    (r"self_attn\.([qkv])_proj\.", r"attn.\1."),
    (r"layer_norm([12])\.", r"norm\1."),
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"encoder\.layer\.", "blocks."),
    (r"attention\.attention\.([qkv])\w+\.", r"attn.\1."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
# Parts of the names of what is no image tower, or serves pre-training alone.
_LEFT_OUT = re.compile(
    r"text_model|text_projection|visual_projection|logit_scale|position_ids|mask_token"
)


def in_one_form(tensors: Mapping[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """Reads the names and shapes of a file.

    Args:
      tensors: by the file's names.

    Returns:
      The variant that has these parts, a key of `vit.VARIANTS`, or '' for none; the
      tensors by name; and the names of those that are left out.
    """
    left_out = [name for name in tensors if _LEFT_OUT.search(name)]
    kept = {name: tensors[name] for name in tensors if name not in left_out}
    prefix = _prefix(kept)
    renamed = {_rename(name.removeprefix(prefix)): t for name, t in kept.items()}
    parts = [name for name in renamed if re.search(r"\.attn\.q\.", name)]
    for name in parts:
        both = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(other in renamed for other in both):
            three = [np.asarray(renamed.pop(other)[()]) for other in both]
            joined = name.replace(".attn.q.", ".attn.qkv.")
            renamed[joined] = np.concatenate(three)
    return _variant(renamed), _tokens(renamed), left_out


def _prefix(names: Mapping[str, Any]) -> str:
    """What stands before the names, such as 'vision_model.' or 'dinov2.'."""
    first = re.compile(r"^(.*?)(?:embeddings\.|patch_embed\.)")
    found = (match.group(1) for name in names if (match := first.match(name)))
    return min(found, key=len, default="")


def _rename(name: str) -> str:
    for pattern, ours in _RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def _variant(tensors: Mapping[str, Any]) -> str:
    patch = tensors.get("patch_embed.proj.weight")
    if patch is None or len(patch.shape) != 4:
        return ""
    registers = "reg_token" in tensors
    for name, variant in vit.VARIANTS.items():
        same = patch.shape[0] == variant.width and patch.shape[2] == variant.patch
        clip = "norm_pre.weight" in tensors
        if same and registers == bool(variant.registers) and clip == variant.clip:
            return name
    return ""


def _tokens(tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors with class token, positions and registers in the one form."""
    classes, positions = tensors.get("cls_token"), tensors.get("pos_embed")
    if classes is None or positions is None:
        return tensors
    width = classes.shape[-1]
    classes, positions = (
        np.asarray(t[()], np.float32).reshape(-1, width) for t in (classes, positions)
    )
    grid = math.isqrt(len(positions))
    if grid**2 + 1 == len(positions):
        # timm's files with registers have added the first one already.
        classes, positions = classes + positions[:1], positions[1:]
    elif grid**2 != len(positions):
        return tensors
    tensors = {**tensors, "cls_token": classes}
    tensors["pos_embed"] = positions.reshape(grid, grid, width)
    if (registers := tensors.get("reg_token")) is not None:
        tensors["reg_token"] = np.asarray(registers[()]).reshape(-1, width)
    return tensors
