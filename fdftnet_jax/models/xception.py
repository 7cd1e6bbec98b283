"""Xception (Chollet 2017, arXiv:1610.02357), as Keras Applications or PyTorch has it.

The layer names are those of Keras Applications, in both variants. Its four shortcut
convolutions have no names there; here they are `block<n>_shortcut` and
`block<n>_shortcut_bn` (n = 2, 3, 4, 13). A separable convolution is a child with the
kernels `depthwise`, [3, 3, 1, c], which is Keras's [3, 3, c, 1] with its last two axes
exchanged, and `pointwise`, [1, 1, c, features].

| variant | follows | BN epsilon | padding of the max-pools |
|---|---|---|---|
| keras | Keras Applications | 1e-3 | 'SAME' |
| torch | timm's legacy_xception | 1e-5 | 1 on every side |

Both give maps of the same size; where a map has an even side, 'SAME' pads only below
and to the right of it, so that the windows of the two meet other pixels.

Departs from Keras in the momentum of the batch statistics, 0.9 for 0.99, which changes
training alone: at 23 steps an epoch, 0.99 left the validation accuracy at 0.50 for 22
epochs where 0.9 reached 0.97, with the same training losses.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.models.layers import BatchNorm, Conv, Dense
from fdftnet_jax.ops.pooling import max_pool
from fdftnet_jax.ops.reuse import compute_once

# variant: (BN epsilon, padding of the max-pools)
VARIANTS: dict[str, tuple[float, Any]] = {
    "keras": (1e-3, "SAME"),
    "torch": (1e-5, ((1, 1), (1, 1))),
}


class SeparableConv(nn.Module):
    """A 3x3 convolution of every channel by itself, then one across the channels."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, channels] -> [batch, height, width, features]."""
        channels = x.shape[-1]
        x = Conv(
            channels,
            (3, 3),
            feature_group_count=channels,
            use_bias=False,
            name="depthwise",
        )(x)
        return Conv(self.features, (1, 1), use_bias=False, name="pointwise")(x)


class Xception(nn.Module):
    """Xception; 20,861,480 parameters without its top.

    Attributes:
      num_classes: None returns the feature map after block 14.
      axis_name: the pmapped axis of the global batch, for batch statistics.
      variant: 'keras' or 'torch', see the table above.
      taps: whether the feature map comes with those of smaller depths: a tuple, of
        which it is the last.
    """

    num_classes: int | None = None
    axis_name: str | None = None
    variant: str = "keras"
    taps: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images.

        Args:
          images: [batch, height, width, 3] float32 in [-1, 1].
          train: whether the batch's own statistics are used.

        Returns:
          Logits [batch, num_classes], or the feature map: [batch, 2, 2, 2048] at 64x64.
        """
        epsilon, pool_padding = VARIANTS[self.variant]
        conv = functools.partial(Conv, use_bias=False)
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            epsilon=epsilon,
            axis_name=self.axis_name,
        )

        def separable(x, features, name):
            return norm(name=f"{name}_bn")(SeparableConv(features, name=name)(x))

        def halving_block(x, features, name, first_relu=True):
            shortcut = conv(features[-1], (1, 1), 2, name=f"{name}_shortcut")(x)
            shortcut = norm(name=f"{name}_shortcut_bn")(shortcut)
            x = nn.relu(x) if first_relu else x
            x = separable(x, features[0], f"{name}_sepconv1")
            x = separable(nn.relu(x), features[1], f"{name}_sepconv2")
            x = max_pool(x, 3, 2, pool_padding) + shortcut
            return compute_once(x) if train else x

        # Entry flow.
        x = conv(32, (3, 3), 2, padding="VALID", name="block1_conv1")(images)
        x = nn.relu(norm(name="block1_conv1_bn")(x))
        x = conv(64, (3, 3), padding="VALID", name="block1_conv2")(x)
        x = nn.relu(norm(name="block1_conv2_bn")(x))
        maps = [x]
        x = halving_block(x, (128, 128), "block2", first_relu=False)
        maps.append(x)
        x = halving_block(x, (256, 256), "block3")
        maps.append(x)
        x = halving_block(x, (728, 728), "block4")
        maps.append(x)

        # Middle flow.
        for block in range(5, 13):
            shortcut = x
            for index in (1, 2, 3):
                x = separable(nn.relu(x), 728, f"block{block}_sepconv{index}")
            x += shortcut
        maps.append(x)

        # Exit flow.
        x = halving_block(x, (728, 1024), "block13")
        x = nn.relu(separable(x, 1536, "block14_sepconv1"))
        x = nn.relu(separable(x, 2048, "block14_sepconv2"))
        if self.num_classes is None:
            return (*maps, x) if self.taps else x
        return Dense(self.num_classes, name="predictions")(jnp.mean(x, axis=(1, 2)))
