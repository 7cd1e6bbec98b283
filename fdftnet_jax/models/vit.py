"""The vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), as published.

The picture is cut into patches, each a token; a class token and, in some variants,
registers (Darcet et al. 2024) join them. Every block adds attention and a perceptron of
four times the width to its input, each after a layer normalisation.

| variant | weights | parameters | patch | width | registers | layer scale |
|---|---|---|---|---|---|---|
| clip_b16 | CLIP (Radford et al. 2021), the image tower | 86 M | 16 | 768 | | |
| dinov2_s14 | DINOv2 (Oquab et al. 2024) | 22 M | 14 | 384 | | yes |
| dinov2_s14_reg | the same | 22 M | 14 | 384 | 4 | yes |
| dinov2_b14 | the same | 86 M | 14 | 768 | | yes |
| dinov2_b14_reg | the same | 86 M | 14 | 768 | 4 | yes |

Two details are folded into one here: the class token holds its own position. Pixels at
the right and at the bottom that fill no patch are not seen.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.models.layers import Dense

BLOCKS = 12
# Every third one ends a depth.
_DEPTH = 3


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network that was published.

    Attributes:
      patch: side of a patch, in pixels.
      width: channels of a token; a head of the attention has 64 of them.
      grid: rows and columns of the positions that were trained.
      scaling: of the pixels (see `preprocess.scale`).
      registers: tokens beside the class token.
      layer_scale: whether each branch is scaled by channel (Touvron et al. 2021).
      clip: whether the tokens are normalised before the first block, the patches have
        no bias, and GELU is x sigmoid(1.702 x).
    """

    patch: int
    width: int
    grid: int
    scaling: str
    registers: int = 0
    layer_scale: bool = True
    clip: bool = False

    @property
    def epsilon(self) -> float:
        """Of the layer normalisations."""
        return 1e-5 if self.clip else 1e-6


VARIANTS = {
    "clip_b16": Variant(16, 768, 14, "clip", layer_scale=False, clip=True),
    "dinov2_s14": Variant(14, 384, 37, "imagenet"),
    "dinov2_s14_reg": Variant(14, 384, 37, "imagenet", registers=4),
    "dinov2_b14": Variant(14, 768, 37, "imagenet"),
    "dinov2_b14_reg": Variant(14, 768, 37, "imagenet", registers=4),
}


class Block(nn.Module):
    """Attention and a perceptron, each beside a shortcut."""

    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, tokens, width] -> the same."""
        variant, (batch, tokens, width) = self.variant, x.shape

        def scaled(branch: jax.Array, name: str) -> jax.Array:
            if not variant.layer_scale:
                return branch
            return branch * self.param(name, nn.initializers.constant(1e-5), (width,))

        norm1, norm2 = (
            nn.LayerNorm(variant.epsilon, name=name) for name in ("norm1", "norm2")
        )
        heads = (batch, tokens, 3, width // 64, 64)
        qkv = Dense(3 * width, name="qkv")(norm1(x)).reshape(heads)
        attended = jax.nn.dot_product_attention(*(qkv[:, :, i] for i in range(3)))
        branch = Dense(width, name="proj")(attended.reshape(x.shape))
        x = x + scaled(branch, "scale1")
        branch = Dense(4 * width, name="fc1")(norm2(x))
        if variant.clip:
            branch = branch * jax.nn.sigmoid(1.702 * branch)
        else:
            branch = jax.nn.gelu(branch, approximate=False)
        return x + scaled(Dense(width, name="fc2")(branch), "scale2")


class ViT(nn.Module):
    """A vision transformer; its feature map is that of the patch tokens.

    Attributes:
      num_classes: None returns the feature map after the last normalisation.
      axis_name: is not used; every backbone has it.
      variant: a key of `VARIANTS`.
      taps: whether the feature map comes with those of smaller depths: a tuple, of
        which it is the last.
    """

    num_classes: int | None = None
    axis_name: str | None = None
    variant: str = "clip_b16"
    taps: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images.

        Args:
          images: [batch, height, width, 3] float32, scaled as the variant says.
          train: changes nothing: there are neither batch statistics nor dropout.

        Returns:
          Logits [batch, num_classes], or the feature map: [batch, 14, 14, 768] at
          224x224 for 'clip_b16'.
        """
        variant = VARIANTS[self.variant]
        width, patch = variant.width, (variant.patch, variant.patch)
        embed = nn.Conv(
            width,
            patch,
            patch,
            padding="VALID",
            use_bias=not variant.clip,
            name="patch",
        )
        x = embed(images)
        batch, rows, columns, _ = x.shape
        normal = nn.initializers.normal(0.02)
        x = x + _resampled(
            self.param("positions", normal, (variant.grid, variant.grid, width)),
            rows,
            columns,
        )
        tokens = [self.param("class_token", normal, (1, width))]
        if variant.registers:
            tokens.append(self.param("registers", normal, (variant.registers, width)))
        first = jnp.concatenate(tokens).astype(x.dtype)
        first = jnp.broadcast_to(first, (batch, *first.shape))
        x = jnp.concatenate([first, x.reshape(batch, -1, width)], axis=1)
        if variant.clip:
            x = nn.LayerNorm(variant.epsilon, name="norm_pre")(x)

        def as_map(tokens: jax.Array) -> jax.Array:
            tokens = tokens[:, first.shape[1] :]
            return tokens.reshape(batch, rows, columns, width)

        maps = []
        for block in range(BLOCKS):
            if block and block % _DEPTH == 0:
                maps.append(as_map(x))
            x = Block(variant, name=f"block{block}")(x)
        x = as_map(nn.LayerNorm(variant.epsilon, name="norm")(x))
        if self.num_classes is None:
            return (*maps, x) if self.taps else x
        return Dense(self.num_classes, name="predictions")(jnp.mean(x, axis=(1, 2)))


def _resampled(positions: jax.Array, rows: int, columns: int) -> jax.Array:
    """Position embeddings for another number of patches, by cubic interpolation."""
    if positions.shape[:2] == (rows, columns):
        return positions
    return jax.image.resize(positions, (rows, columns, positions.shape[2]), "cubic")
