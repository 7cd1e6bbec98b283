"""The vision transformer against one written in float64 NumPy, from files by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from scipy import special

from fdftnet_jax.errors import UserError
from fdftnet_jax.models import get_backbone, vit
from fdftnet_jax.weights import pretrained

# Of the papers: width, patch, trained grid, registers, layer scale, and whether it is
# CLIP's, as timm's files have it.
PUBLISHED = {
    "clip_b16": (768, 16, 14, 0, False, True),
    "dinov2_s14": (384, 14, 37, 0, True, False),
    "dinov2_s14_reg": (384, 14, 37, 4, True, False),
}
SIZE = 64


@functools.cache
def timm_file(name):
    """Random weights by timm's names."""
    width, patch, grid, registers, scaled, clip = PUBLISHED[name]
    rng = np.random.default_rng(0)

    def draw(*shape, around=0.0):
        spread = 0.1 if len(shape) == 1 else 1 / np.sqrt(np.prod(shape[1:]))
        return (around + spread * rng.standard_normal(shape)).astype(np.float32)

    def linear(name, outputs, inputs):
        return {f"{name}.weight": draw(outputs, inputs), f"{name}.bias": draw(outputs)}

    def norm(name):
        return {f"{name}.weight": draw(width, around=1), f"{name}.bias": draw(width)}

    # Files with registers have the class token's position in it already.
    positions = grid**2 + (not registers)
    file = {
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, positions, width),
        "patch_embed.proj.weight": draw(width, 3, patch, patch),
        **norm("norm"),
        **linear("head", 5, width),
    }
    if clip:
        file |= norm("norm_pre")
    else:
        file["patch_embed.proj.bias"] = draw(width)
    if registers:
        file["reg_token"] = draw(1, registers, width)
    for i in range(12):
        block = f"blocks.{i}"
        file |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        file |= linear(f"{block}.attn.qkv", 3 * width, width)
        file |= linear(f"{block}.attn.proj", width, width)
        file |= linear(f"{block}.mlp.fc1", 4 * width, width)
        file |= linear(f"{block}.mlp.fc2", width, 4 * width)
        if scaled:
            file[f"{block}.ls1.gamma"] = draw(width, around=0.5)
            file[f"{block}.ls2.gamma"] = draw(width, around=0.5)
    return file


def reference(name, file, images):
    """The tokens after each block, and those of the patches at the end."""
    width, patch, grid, registers, scaled, clip = PUBLISHED[name]
    w = {key: value.astype(np.float64) for key, value in file.items()}

    def norm(x, key):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + (1e-5 if clip else 1e-6))
        return x * w[f"{key}.weight"] + w[f"{key}.bias"]

    def linear(x, key):
        return x @ w[f"{key}.weight"].T + w[f"{key}.bias"]

    side = images.shape[1] // patch
    seen = images[:, : side * patch, : side * patch]
    patches = seen.reshape(-1, side, patch, side, patch, 3).transpose(0, 1, 3, 5, 2, 4)
    kernel = w["patch_embed.proj.weight"].reshape(width, -1)
    x = patches.reshape(len(images), side**2, -1) @ kernel.T
    x = x + w.get("patch_embed.proj.bias", 0)
    first, positions = w["cls_token"][0], w["pos_embed"][0]
    if not registers:
        first, positions = first + positions[:1], positions[1:]
    channels = positions.reshape(grid, grid, width).transpose(2, 0, 1)
    # Pillow's own bicubic filter, which is wider where it reduces.
    resampled = [
        Image.fromarray(channel.astype(np.float32)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        for channel in channels
    ]
    x = x + np.stack([np.asarray(r, np.float64) for r in resampled], -1).reshape(
        1, side**2, width
    )
    lead = [np.broadcast_to(first, (len(x), 1, width))]
    if registers:
        lead.append(np.broadcast_to(w["reg_token"], (len(x), registers, width)))
    x = np.concatenate([*lead, x], 1)
    if clip:
        x = norm(x, "norm_pre")
    states = []
    for i in range(12):
        block = f"blocks.{i}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        heads = qkv.reshape(*x.shape[:2], 3, width // 64, 64)
        q, k, v = (heads[:, :, j].transpose(0, 2, 1, 3) for j in range(3))
        attention = special.softmax(q @ k.transpose(0, 1, 3, 2) / 8, axis=-1)
        branch = (attention @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        branch = linear(branch, f"{block}.attn.proj")
        x = x + branch * (w[f"{block}.ls1.gamma"] if scaled else 1)
        h = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        if clip:
            h = h * special.expit(1.702 * h)
        else:
            h = h / 2 * (1 + special.erf(h / np.sqrt(2)))
        branch = linear(h, f"{block}.mlp.fc2")
        x = x + branch * (w[f"{block}.ls2.gamma"] if scaled else 1)
        states.append(x)
    tokens = 1 + registers

    def as_map(x):
        return x[:, tokens:].reshape(len(x), side, side, width)

    return [as_map(states[i]) for i in (2, 5, 8)] + [as_map(norm(x, "norm"))]


def hugging_face(name, file):
    """The same tensors by Hugging Face's names."""
    clip = PUBLISHED[name][5]
    found = {}
    for key, tensor in file.items():
        if key.startswith("head."):
            continue
        parts = key.split(".")
        if clip:
            simple = {
                "cls_token": "embeddings.class_embedding",
                "pos_embed": "embeddings.position_embedding.weight",
                "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
                "norm_pre.weight": "pre_layrnorm.weight",
                "norm_pre.bias": "pre_layrnorm.bias",
                "norm.weight": "post_layernorm.weight",
                "norm.bias": "post_layernorm.bias",
            }
            layer, qkv = "encoder.layers", "self_attn.{}_proj"
            inner = {
                "norm1": "layer_norm1",
                "norm2": "layer_norm2",
                "attn.proj": "self_attn.out_proj",
            }
            words = "qkv"
        else:
            patches = "embeddings.patch_embeddings.projection"
            simple = {
                "cls_token": "embeddings.cls_token",
                "pos_embed": "embeddings.position_embeddings",
                "reg_token": "embeddings.register_tokens",
                "patch_embed.proj.weight": f"{patches}.weight",
                "patch_embed.proj.bias": f"{patches}.bias",
                "norm.weight": "layernorm.weight",
                "norm.bias": "layernorm.bias",
            }
            layer, qkv = "encoder.layer", "attention.attention.{}"
            inner = {
                "attn.proj": "attention.output.dense",
                "ls1": "layer_scale1",
                "ls2": "layer_scale2",
            }
            words = ("query", "key", "value")
        if key in simple:
            found[simple[key]] = tensor
        elif "qkv" in parts:
            for word, part in zip(words, np.split(tensor, 3), strict=True):
                found[f"{layer}.{parts[1]}.{qkv.format(word)}.{parts[-1]}"] = part
        else:
            middle = ".".join(parts[2:-1])
            leaf = "lambda1" if parts[-1] == "gamma" else parts[-1]
            found[f"{layer}.{parts[1]}.{inner.get(middle, middle)}.{leaf}"] = tensor
    if clip:
        shaped = found["embeddings.position_embedding.weight"][0]
        found["embeddings.position_embedding.weight"] = shaped
        found["embeddings.class_embedding"] = file["cls_token"][0, 0]
        found = {f"vision_model.{key}": tensor for key, tensor in found.items()}
        found["text_model.embeddings.token_embedding.weight"] = np.ones((3, 4))
        found["visual_projection.weight"] = np.ones((2, 3))
        found["logit_scale"] = np.ones(())
    else:
        if "reg_token" in file:
            # Here the class token still has a position of its own.
            positions = found["embeddings.position_embeddings"]
            own = np.zeros((1, 1, positions.shape[2]), np.float32)
            both = np.concatenate([own, positions], 1)
            found["embeddings.position_embeddings"] = both
        found["embeddings.mask_token"] = np.ones((1, 3))
    return {key: np.ascontiguousarray(t, np.float32) for key, t in found.items()}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize("names", ["timm", "hugging face"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_depth_against_numpy(name, names, images, tmp_path):
    file = timm_file(name)
    path = tmp_path / "model.safetensors"
    save_file(file if names == "timm" else hugging_face(name, file), path)
    params, batch_stats, info = pretrained.load(path, "vit")
    assert (info.variant, batch_stats) == (name, {})
    assert info.scaling == ("clip" if name.startswith("clip") else "imagenet")
    model = get_backbone("vit", variant=info.variant, taps=True)
    apply = jax.jit(functools.partial(model.apply, train=False))
    found = apply({"params": params}, images)
    expected = reference(name, file, images.astype(np.float64))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        # About 1e-6 of their size a block.
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=3e-5)


def test_what_is_left_out_is_named(tmp_path):
    path = tmp_path / "clip.safetensors"
    save_file(hugging_face("clip_b16", timm_file("clip_b16")), path)
    info = pretrained.load(path, "vit")[2]
    assert set(info.left_out) == {
        "text_model.embeddings.token_embedding.weight",
        "visual_projection.weight",
        "logit_scale",
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"blocks.3.attn.qkv.bias": None},
            r"1 missing: blocks.3.attn.qkv.bias",
        ),
        ({"blocks.12.norm1.bias": np.ones(384)}, "1 surplus: blocks.12.norm1.bias"),
        ({"norm.bias": np.ones(7)}, r"1 misshapen: norm.bias \(7,\) instead of \(384,"),
        ({"pos_embed": np.ones((1, 50, 384))}, "misshapen: pos_embed"),
    ],
)
def test_other_files_do_not_fit(change, problem, tmp_path):
    file = timm_file("dinov2_s14") | change
    file = {k: np.float32(v) for k, v in file.items() if v is not None}
    save_file(file, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=problem):
        pretrained.load(tmp_path / "other.safetensors", "vit")


def test_sizes_of_the_variants():
    """Parameters as the papers round them."""
    millions = {
        name: sum(
            leaf.size
            for leaf in jax.tree.leaves(
                jax.eval_shape(
                    functools.partial(
                        vit.ViT(variant=name).init, jax.random.key(0), train=False
                    ),
                    jnp.zeros((1, 56, 56, 3)),
                )
            )
        )
        / 1e6
        for name in vit.VARIANTS
    }
    assert {name: round(size) for name, size in millions.items()} == {
        "clip_b16": 86,
        "dinov2_s14": 22,
        "dinov2_s14_reg": 22,
        "dinov2_b14": 87,
        "dinov2_b14_reg": 87,
    }
