"""ResNet50V2: pre-activation residual units (He et al. 2016, arXiv:1603.05027).

Follows Keras Applications, whose layer names these are. As there, and unlike the
publication, the last unit of a stage halves the image, not the first of the next one;
its shortcut is every second pixel. The stem's max-pool is padded with zeros, which
win over negative values. The momentum of the batch statistics is 0.9, not Keras's 0.99
(see `xception`).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.models.layers import BatchNorm, Conv, Dense
from fdftnet_jax.ops.pooling import max_pool

# Units, channels inside a unit, and stride of the last unit, of conv2 to conv5.
STAGES = ((3, 64, 2), (4, 128, 2), (6, 256, 2), (3, 512, 1))


class ResNet50V2(nn.Module):
    """ResNet50V2; 23,564,800 parameters without its top.

    Attributes:
      num_classes: None returns the feature map after the last normalisation and ReLU.
      axis_name: the pmapped axis of the global batch, for batch statistics.
      taps: whether the feature map comes with those of smaller depths: a tuple, of
        which it is the last.
    """

    num_classes: int | None = None
    axis_name: str | None = None
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
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            epsilon=1.001e-5,  # of Keras Applications
            axis_name=self.axis_name,
        )
        x = Conv(64, (7, 7), 2, padding=3, name="conv1_conv")(images)
        x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)
        maps = []
        for stage, (units, channels, last_stride) in enumerate(STAGES, 2):
            for unit in range(1, units + 1):
                if unit == units and stage < 5:
                    # Before the unit that halves it.
                    maps.append(x)
                x = _unit(
                    x,
                    norm,
                    channels,
                    stride=last_stride if unit == units else 1,
                    project=unit == 1,
                    name=f"conv{stage}_block{unit}",
                )
        x = nn.relu(norm(name="post_bn")(x))
        if self.num_classes is None:
            return (*maps, x) if self.taps else x
        return Dense(self.num_classes, name="predictions")(jnp.mean(x, axis=(1, 2)))


def _unit(
    x: jax.Array, norm: Any, channels: int, *, stride: int, project: bool, name: str
) -> jax.Array:
    """[b, h, w, c] -> [b, h / stride, w / stride, 4 * channels], flat layer names."""
    active = nn.relu(norm(name=f"{name}_preact_bn")(x))
    if project:
        shortcut = Conv(4 * channels, (1, 1), stride, name=f"{name}_0_conv")(active)
    else:
        shortcut = x[:, ::stride, ::stride]
    x = Conv(channels, (1, 1), use_bias=False, name=f"{name}_1_conv")(active)
    x = nn.relu(norm(name=f"{name}_1_bn")(x))
    x = Conv(
        channels, (3, 3), stride, padding=1, use_bias=False, name=f"{name}_2_conv"
    )(x)
    x = nn.relu(norm(name=f"{name}_2_bn")(x))
    return shortcut + Conv(4 * channels, (1, 1), name=f"{name}_3_conv")(x)
