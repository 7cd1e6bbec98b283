"""The Fine-Tune Transformer of FDFtNet (section 3.3, Table 2).

Each of its M stages halves the image by a separable convolution and attends over all
positions; stage m has 32 * 2**(m - 1) channels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.models.layers import BatchNorm, Conv
from fdftnet_jax.models.self_attention import SelfAttention


class FineTuneTransformer(nn.Module):
    """The attention branch on the pixels; 115,318 parameters with three stages.

    Attributes:
      num_stages: M, the number of attention stages.
      features: the width of the branch's output.
      axis_name: the pmapped axis of the global batch, for batch statistics.
    """

    num_stages: int = 3
    features: int = 576
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Embeds images.

        Args:
          images: [batch, height, width, 3] float32 in [-1, 1].
          train: whether the batch's own statistics are used.

        Returns:
          [batch, features].
        """
        conv = functools.partial(Conv, use_bias=False)
        norm = functools.partial(
            BatchNorm, use_running_average=not train, axis_name=self.axis_name
        )
        x = images
        for stage in range(1, self.num_stages + 1):
            channels = x.shape[-1]
            x = conv(
                channels,
                (3, 3),
                2,
                feature_group_count=channels,
                name=f"depthwise{stage}",
            )(x)
            x = conv(32 * 2 ** (stage - 1), (1, 1), name=f"pointwise{stage}")(x)
            x = nn.relu(norm(name=f"bn{stage}")(x))
            x = SelfAttention(name=f"attention{stage}")(x)
        x = conv(self.features, (1, 1), name="head")(x)
        x = nn.relu(norm(name="head_bn")(x))
        return jnp.mean(x, axis=(1, 2))
